//! One watcher's stream: an image if it needs one, then every entry, then signs of life.
//!
//! Block events come beside the log: the index in parts, then items of the members' ring of streams, each after the
//! entries that it rests on. The stream's queue is short and the ring it reads from is shared, so a slow watcher costs a few entries of
//! memory; if the ring passes it by, it gets a new image. A watcher that is ahead of this member is sent to
//! another one, so that nobody's view goes back in time.
//!
//! A watcher says which version it reads. One of an older program gets the state in that version's words, and of an entry
//! that it could not read only the time: it sees less of the cluster, and goes on.

use std::time::Duration;

use mainstay_proto::convert::responses::withhold_payload;
use mainstay_proto::convert::withhold_tokens;
use mainstay_proto::v1;
use mainstay_proto::v1::command::Command;
use mainstay_proto::v1::watch_event::Event;
use mainstay_raft::{Applied, Group, ItemsRead, Read, StreamItem};
use mainstay_state::{Position, TENANTS_AND_REGIONS, VERSION_OLDEST};
use mainstay_types::{Epoch, EventSequence, LogIndex, WorkerId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

/// Between two signs of life.
const PROGRESS: Duration = Duration::from_millis(100);
/// Entries taken from the ring at a time.
const BATCH: usize = 256;
/// Items of streams taken from their ring at a time.
const ITEMS: usize = 4_096;
/// Bytes of the index, or of items, in one message.
const PART_BYTES: usize = 1 << 20;
/// How long items wait for others, to share a message.
const MERGE: Duration = Duration::from_millis(1);
/// Events that wait for a slow watcher.
pub(crate) const QUEUE: usize = 64;
/// How long a member that is behind a watcher may take to catch up with it.
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// The largest image that fits a message, with some room for what surrounds it.
const IMAGE_BYTES_MAX: usize = mainstay_proto::client::MESSAGE_BYTES_MAX - (1 << 10);

pub(crate) type Item = Result<v1::WatchEvent, Status>;

pub(crate) struct Watcher {
    pub(crate) group: Group,
    pub(crate) request: v1::WatchRequest,
    pub(crate) plain_index: bool,
    pub(crate) out: mpsc::Sender<Item>,
    /// Turns true when the member stops.
    pub(crate) closes: watch::Receiver<bool>,
}

impl Watcher {
    /// Runs until the watcher or the member is gone.
    pub(crate) async fn run(mut self) {
        let mut closes = self.closes.clone();
        let out = self.out.clone();
        let end = tokio::select! {
            end = self.follow() => end,
            _ = closes.wait_for(|closing| *closing) => Err(Status::unavailable("this member stops")),
            () = out.closed() => return,
        };
        if let Err(status) = end {
            // It may be gone.
            let _ = out.try_send(Err(status));
        }
    }

    async fn follow(&mut self) -> Result<(), Status> {
        let mut applied = self.group.watch_applied();
        let mut arrived = self.group.streams().watch();
        let mut next = LogIndex(self.request.from_log_index);
        if next.0 == 0 {
            next = self.send_image().await?;
        } else {
            self.catch_up(next, &mut applied).await?;
        }
        let mut items = self.join_streams().await?;
        let mut told = Instant::now();
        loop {
            // Also while there is much to do and nothing of it is for this watcher.
            if told.elapsed() >= PROGRESS {
                let log_index = next.0.saturating_sub(1);
                self.send(Event::Progress(v1::Progress { log_index })).await?;
                told = Instant::now();
            }
            applied.mark_unchanged();
            arrived.mark_unchanged();
            // Items first, sent after the entries: an item's epoch begins with an entry that was there before it.
            let news = items.map(|from| self.group.streams().read(from, ITEMS));
            let more = self.send_entries(&mut next, &mut told).await?;
            match news {
                Some(ItemsRead::Items(batch, after)) => {
                    self.send_items(batch).await?;
                    (items, told) = (Some(after), Instant::now());
                    continue;
                }
                Some(ItemsRead::Lagged) => {
                    metrics::counter!("mainstay_control_watchers_lagged_total").increment(1);
                    items = Some(self.send_index().await?);
                    continue;
                }
                Some(ItemsRead::UpToDate) | None if more => continue,
                Some(ItemsRead::UpToDate) | None => {}
            }
            tokio::select! {
                () = tokio::time::sleep_until(told + PROGRESS) => {}
                changed = applied.changed() => {
                    changed.map_err(|_| Status::unavailable("this member stops"))?;
                }
                changed = arrived.changed(), if items.is_some() => {
                    changed.map_err(|_| Status::unavailable("this member stops"))?;
                    // A message for each frame would cost more than the frames.
                    tokio::time::sleep(MERGE).await;
                }
            }
        }
    }

    /// Sends all entries there are; answers whether there were any.
    async fn send_entries(&self, next: &mut LogIndex, told: &mut Instant) -> Result<bool, Status> {
        let mut any = false;
        loop {
            match self.group.entries(*next, BATCH) {
                Read::Entries(entries) => {
                    for entry in entries {
                        *next = LogIndex(entry.index + 1);
                        if let Some(event) = self.event(entry) {
                            self.send(event).await?;
                            *told = Instant::now();
                        }
                    }
                }
                Read::Lagged => {
                    metrics::counter!("mainstay_control_watchers_lagged_total").increment(1);
                    *next = self.send_image().await?;
                }
                Read::UpToDate => return Ok(any),
            }
            any = true;
        }
    }

    /// Where this watcher goes on in the ring of items: where it was, if the ring goes back so far, else after an
    /// image of the index. `None` if it wants no blocks, or gets them as entries.
    async fn join_streams(&self) -> Result<Option<u64>, Status> {
        if self.request.without_blocks || self.plain_index {
            return Ok(None);
        }
        let had: Vec<Position> = self.request.positions.iter().map(position_from_wire).collect();
        let resumes = self.request.from_log_index > 0 && !had.is_empty();
        match resumes.then(|| self.group.streams().resume(&had)).flatten() {
            Some(from) => Ok(Some(from)),
            None => self.send_index().await.map(Some),
        }
    }

    /// Sends the whole index; answers with the item that comes after it.
    async fn send_index(&self) -> Result<u64, Status> {
        let group = self.group.clone();
        let image = tokio::task::spawn_blocking(move || group.streams().image(PART_BYTES))
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        let count = image.parts.len();
        for (at, runs) in image.parts.into_iter().enumerate() {
            let last = at + 1 == count;
            let all = image.positions.iter().filter(|_| last);
            let positions = all.map(position_to_wire).collect();
            let part = v1::IndexPart { runs: runs.into(), first: at == 0, last, positions };
            self.send(Event::Index(part)).await?;
        }
        Ok(image.next_item)
    }

    /// Sends items in messages that are not too large.
    async fn send_items(&self, items: Vec<StreamItem>) -> Result<(), Status> {
        let mut wire = v1::StreamItems::default();
        let mut bytes = 0;
        for item in items {
            bytes += item.bytes();
            wire.items.push(item.to_wire());
            if bytes >= PART_BYTES {
                bytes = 0;
                self.send(Event::Items(core::mem::take(&mut wire))).await?;
            }
        }
        if wire.items.is_empty() { Ok(()) } else { self.send(Event::Items(wire)).await }
    }

    /// Waits for a member that is a little behind its watcher.
    async fn catch_up(
        &self,
        next: LogIndex,
        applied: &mut watch::Receiver<u64>,
    ) -> Result<(), Status> {
        let until = Instant::now() + BEHIND_MAX;
        let reached = tokio::time::timeout_at(until, applied.wait_for(|at| at + 1 >= next.0)).await;
        if matches!(reached, Ok(Ok(_))) {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "this member has applied entries up to {}, not yet {}; ask another",
            self.group.status().applied,
            next.0.saturating_sub(1)
        )))
    }

    /// Sends the whole state; answers with the entry that comes after it.
    async fn send_image(&self) -> Result<LogIndex, Status> {
        let group = self.group.clone();
        // Entries without a proposal move the log on, but not the machine; all up to here are in the image.
        let floor = *group.watch_applied().borrow();
        let (bare, reads) = (self.request.without_blocks, self.reads());
        // Encoding a big state takes a while; it is not for the async threads.
        let (at, state) = tokio::task::spawn_blocking(move || {
            group.read(|m| (m.applied(), m.encode_for(reads, !bare)))
        })
        .await
        .map_err(|e| Status::internal(e.to_string()))?;
        if state.len() > IMAGE_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "the state takes {} bytes, more than a message may have; watch with without_blocks",
                state.len()
            )));
        }
        let version = state.first().copied().map_or(0, u32::from);
        let plain_index = self.plain_index;
        let image = v1::StateImage { log_index: at.0, state: state.into(), version, plain_index };
        self.send(Event::Image(image)).await?;
        Ok(LogIndex(at.0.max(floor)).next())
    }

    /// The newest version that the watcher reads.
    fn reads(&self) -> u8 {
        crate::versions::known(self.request.version)
    }

    /// The event of an entry, if it has one for this watcher.
    fn event(&self, entry: Applied) -> Option<Event> {
        let proposal = entry.proposal?;
        let command = proposal.command.as_ref().and_then(|c| c.command.as_ref());
        let of_blocks = matches!(command, Some(Command::Blocks(_) | Command::Cut(_)));
        if self.request.without_blocks && of_blocks {
            return None;
        }
        let mut proposal = v1::Proposal::clone(&proposal);
        let mut command = proposal.command.as_mut().and_then(|c| c.command.as_mut());
        if let Some(command) = command.as_deref_mut().filter(|c| version_of(c) > self.reads()) {
            *command = Command::Tick(v1::Tick {});
        }
        // Somebody's prompt, which no watcher needs.
        match command {
            Some(Command::PutPin(pin)) => withhold_tokens(pin),
            Some(Command::PutResponse(record)) => withhold_payload(record),
            _ => {}
        }
        Some(Event::Entry(v1::Entry { log_index: entry.index, proposal: Some(proposal) }))
    }

    async fn send(&self, event: Event) -> Result<(), Status> {
        let event = v1::WatchEvent { event: Some(event) };
        self.out.send(Ok(event)).await.map_err(|_| Status::cancelled("the watcher is gone"))
    }
}

/// The first version whose programs can read a command.
fn version_of(command: &Command) -> u8 {
    match command {
        Command::Tick(_)
        | Command::Bootstrap(_)
        | Command::RegisterWorker(_)
        | Command::FenceWorker(_)
        | Command::Blocks(_)
        | Command::PutPin(_)
        | Command::ExtendPin(_)
        | Command::ReleasePin(_)
        | Command::ReportPin(_)
        | Command::Cut(_) => VERSION_OLDEST,
        Command::OrderPin(_)
        | Command::PutTenant(_)
        | Command::RemoveTenant(_)
        | Command::PutKey(_)
        | Command::RemoveKey(_)
        | Command::PutJoinToken(_)
        | Command::UseJoinToken(_)
        | Command::RemoveJoinToken(_)
        | Command::PutResponse(_)
        | Command::EndResponse(_) => TENANTS_AND_REGIONS,
        // Whoever reads that version knows it.
        Command::RaiseVersion(to) => crate::versions::known(to.version),
    }
}

fn position_from_wire(position: &v1::StreamPosition) -> Position {
    Position {
        worker: WorkerId(position.worker),
        epoch: Epoch(position.epoch),
        next: EventSequence(position.next_sequence),
    }
}

fn position_to_wire(position: &Position) -> v1::StreamPosition {
    let Position { worker, epoch, next } = *position;
    v1::StreamPosition { worker: worker.0, epoch: epoch.0, next_sequence: next.0 }
}
