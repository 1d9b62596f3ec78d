//! The gateway's replica of the cluster's state: the same machine and the same streams that control members run,
//! fed by `Watch`.
//!
//! Any member will do, one of the gateway's region is preferred; when one goes, the replica turns to the next and resumes
//! from its log index and from where its streams stand. A stream that lacks a frame, or that a cut contradicts, is mended
//! by a new image of the index. While no member answers the replica stays as it is, ever staler, and says how old it is:
//! it asks its member ten times a second how fresh that one is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_index::{BlockIndex, IndexReader, RunSnapshot};
use mainstay_proto::convert::{frame_view, proposal_from_wire, snapshot_view};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_proto::v1::stream_item::Item;
use mainstay_proto::v1::watch_event::Event;
use mainstay_state::{
    CutCheck, Freshness, IndexLoader, Limits, Machine, Outcome, Position, Streams, Taken,
    VERSION_NEWEST,
};
use mainstay_types::{Command, Epoch, EventSequence, LogIndex, WorkerId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::members::{Member, Members};

const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A member sends progress ten times a second; this much silence means that it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Between two questions how fresh the followed member is.
const FRESHNESS_PACE: Duration = Duration::from_millis(100);
/// The clock of ages begins here, so that what a member knew before this gateway was started is a time, too.
const CLOCK_BEGINS_MS: u64 = 1 << 40;
/// The first message may be an image of the whole state, which takes its time to make and to send.
const IMAGE_MAX: Duration = Duration::from_secs(60);

/// A replica, shared by everything in the gateway that reads cluster state.
#[derive(Clone)]
pub(crate) struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    machine: RwLock<Machine>,
    streams: Mutex<Streams>,
    /// Of the streams' index; another one after an image.
    reader: RwLock<IndexReader>,
    /// The index is in the machine, and there are no streams.
    plain: AtomicBool,
    /// Whether there was an image ever.
    begun: AtomicBool,
    /// The index is known to be wrong somewhere: until an image of all of it has been taken.
    whole: AtomicBool,
    started: Instant,
    fresh: Mutex<Freshness>,
    /// All entries up to here have come, those without a proposal too.
    seen: AtomicU64,
    followed: RwLock<Option<Member>>,
    changed: watch::Sender<LogIndex>,
}

impl Replica {
    /// An empty replica, which [`Replica::follow`] fills.
    pub(crate) fn new() -> Self {
        let streams = Streams::new(&Limits::standard());
        let inner = Inner {
            machine: RwLock::new(Machine::new(Limits::standard())),
            reader: RwLock::new(streams.reader()),
            streams: Mutex::new(streams),
            plain: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            started: Instant::now(),
            fresh: Mutex::default(),
            seen: AtomicU64::new(0),
            followed: RwLock::new(None),
            changed: watch::Sender::new(LogIndex(0)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A reader of the block index, to be used without any lock.
    pub(crate) fn index_reader(&self) -> IndexReader {
        if self.inner.plain.load(Ordering::Acquire) {
            return self.read(|m| m.index().reader());
        }
        self.inner.reader.read().clone()
    }

    /// Looks at the state. The closure holds a lock: it must not wait for anything.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.inner.machine.read())
    }

    /// All runs of the index with their holders, unless it has more than `entries_max` entries: the walk keeps frames
    /// waiting.
    pub(crate) fn runs(&self, entries_max: u64) -> Option<Vec<RunSnapshot>> {
        let walk =
            |index: &BlockIndex| (index.held_count() <= entries_max).then(|| index.snapshot());
        if self.inner.plain.load(Ordering::Acquire) {
            return self.read(|m| walk(m.index()));
        }
        walk(self.inner.streams.lock().index())
    }

    /// How many blocks each of these workers holds, and how many different ones there are.
    pub(crate) fn held(&self, workers: &[WorkerId]) -> (Vec<u64>, u64) {
        let count = |index: &BlockIndex| {
            let held = workers.iter().map(|id| index.worker_block_count(*id)).collect();
            (held, index.block_count())
        };
        if self.inner.plain.load(Ordering::Acquire) {
            return self.read(|m| count(m.index()));
        }
        count(self.inner.streams.lock().index())
    }

    /// Whether there is any state to look at.
    pub(crate) fn has_begun(&self) -> bool {
        self.inner.begun.load(Ordering::Acquire)
    }

    /// How old the state is at most, in milliseconds: everything acknowledged before is in it. `None` while nobody has
    /// said.
    pub(crate) fn age_ms(&self) -> Option<u64> {
        if !self.has_begun() {
            return None;
        }
        let seen = LogIndex(self.inner.seen.load(Ordering::Acquire));
        let applied = self.read(Machine::applied).max(seen);
        self.inner.fresh.lock().age_ms(applied, self.ms_of(Instant::now()))
    }

    fn ms_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.inner.started).as_millis();
        CLOCK_BEGINS_MS.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// The member that is followed, and a client of it.
    pub(crate) fn followed(&self) -> Option<(String, ControlClient<Channel>)> {
        let followed = self.inner.followed.read();
        followed.as_ref().map(|member| (member.address.clone(), member.client.clone()))
    }

    /// Applies a command as if a member had sent it.
    #[cfg(test)]
    pub(crate) fn test_apply(&self, command: Command) {
        let mut machine = self.inner.machine.write();
        if machine.version() < VERSION_NEWEST {
            let raise = Command::RaiseVersion { version: VERSION_NEWEST };
            let stamp = mainstay_types::Stamp::default();
            let at = machine.applied().next();
            machine.apply(at, &mainstay_types::Proposal { stamp, command: raise });
        }
        let at = machine.applied().next();
        let proposal =
            mainstay_types::Proposal { stamp: mainstay_types::Stamp::default(), command };
        let outcome = machine.apply(at, &proposal);
        assert!(!matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        self.inner.begun.store(true, Ordering::Release);
    }

    /// Wakes whenever the log index moves.
    pub(crate) fn changes(&self) -> watch::Receiver<LogIndex> {
        self.inner.changed.subscribe()
    }

    /// Follows the control plane for ever; ends when the task is aborted.
    pub(crate) async fn follow(self, members: Members) {
        let mut avoided: Option<String> = None;
        loop {
            let Some(member) = members.best(avoided.take().as_deref()).await else {
                *self.inner.followed.write() = None;
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            *self.inner.followed.write() = Some(member.clone());
            // A stream that can't go on needs all of the index, wherever it is asked for.
            let whole = self.inner.whole.load(Ordering::Acquire);
            let positions = if whole { Vec::new() } else { self.positions() };
            match self.follow_one(&members, &member, positions).await {
                Ok(()) => {}
                Err(End::IndexNeeded(reason)) => {
                    tracing::info!(reason, "the index is asked for anew");
                    metrics::counter!("mainstay_gateway_index_images_total").increment(1);
                    self.inner.whole.store(true, Ordering::Release);
                }
                Err(End::Ended(status)) => {
                    tracing::debug!(code = ?status.code(), reason = status.message(), "watch ended; turning to another member");
                    avoided = Some(member.address);
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn positions(&self) -> Vec<v1::StreamPosition> {
        let positions = self.inner.streams.lock().positions();
        let wire = |p: Position| v1::StreamPosition {
            worker: p.worker.0,
            epoch: p.epoch.0,
            next_sequence: p.next.0,
        };
        positions.into_iter().map(wire).collect()
    }

    async fn follow_one(
        &self,
        members: &Members,
        member: &Member,
        positions: Vec<v1::StreamPosition>,
    ) -> Result<(), End> {
        let from = if self.has_begun() { self.read(|m| m.applied().0 + 1) } else { 0 };
        let version = u32::from(VERSION_NEWEST);
        let request =
            v1::WatchRequest { from_log_index: from, without_blocks: false, positions, version };
        let opened = tokio::time::timeout(SILENCE_MAX, member.client.clone().watch(request)).await;
        let mut stream =
            opened.map_err(|_| Status::deadline_exceeded("watch did not open"))??.into_inner();
        let mut patience = IMAGE_MAX;
        let mut loader = None;
        // Looked at between messages only: a message is taken whole.
        let better = members.better_than(member, || self.age_ms());
        let asking = self.ask_for_freshness(member.client.clone());
        tokio::pin!(better, asking);
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(patience, stream.message()) => message
                    .map_err(|_| Status::deadline_exceeded("watch fell silent"))??,
                () = &mut better => {
                    tracing::info!(member = member.address, "a better member answers; turning to it");
                    return Ok(());
                }
                () = &mut asking => return Ok(()),
            };
            let Some(event) = message.and_then(|m| m.event) else { return Ok(()) };
            patience = SILENCE_MAX;
            match event {
                Event::Image(image) => {
                    let replica = self.clone();
                    let taken =
                        tokio::task::spawn_blocking(move || replica.take_image(&image)).await;
                    taken.map_err(|e| Status::internal(e.to_string()))??;
                }
                Event::Entry(entry) => self.take_entry(&entry)?,
                Event::Index(part) => {
                    if part.first {
                        loader = Some(IndexLoader::new(Limits::standard()));
                    }
                    let last = part.last;
                    if let Some(mut loading) = loader.take() {
                        let replica = self.clone();
                        // A part is a megabyte: it is not for the async threads.
                        let loaded = tokio::task::spawn_blocking(move || {
                            loading.take(&part.runs).map_err(|e| data_loss(&e))?;
                            if last {
                                replica.take_index(loading, &part.positions);
                                return Ok::<_, Status>(None);
                            }
                            Ok(Some(loading))
                        });
                        loader = loaded.await.map_err(|e| Status::internal(e.to_string()))??;
                    }
                    patience = IMAGE_MAX;
                }
                Event::Items(items) => self.take_items(&items)?,
                Event::Progress(progress) => {
                    self.inner.seen.fetch_max(progress.log_index, Ordering::AcqRel);
                }
            }
            self.inner.begun.store(true, Ordering::Release);
            self.inner.changed.send_replace(self.read(Machine::applied));
        }
    }

    /// Asks the member how fresh it is, for as long as it is followed.
    async fn ask_for_freshness(&self, mut client: ControlClient<Channel>) {
        let mut pace = tokio::time::interval(FRESHNESS_PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let asked = Instant::now();
            let answer = client.freshness(v1::FreshnessRequest {});
            let Ok(Ok(answer)) = tokio::time::timeout(SILENCE_MAX, answer).await else { continue };
            let answer = answer.into_inner();
            if let Some(age_ms) = answer.age_ms {
                // A part of a millisecond more, for what was rounded down there.
                let until_ms = self.ms_of(asked).saturating_sub(age_ms.saturating_add(1));
                self.inner.fresh.lock().note(LogIndex(answer.log_index), until_ms);
            }
            if let Some(age_ms) = self.age_ms() {
                metrics::gauge!("mainstay_gateway_index_age_ms").set(age_ms as f64);
            }
        }
    }

    fn take_image(&self, image: &v1::StateImage) -> Result<(), Status> {
        let machine =
            Machine::decode(&image.state, Limits::standard()).map_err(|e| data_loss(&e))?;
        self.inner.plain.store(image.plain_index, Ordering::Release);
        *self.inner.machine.write() = machine;
        self.follow_epochs();
        Ok(())
    }

    fn take_entry(&self, entry: &v1::Entry) -> Result<(), End> {
        let proposal = entry.proposal.as_ref();
        let proposal = proposal.ok_or_else(|| Status::data_loss("an entry is empty"))?;
        let proposal = proposal_from_wire(proposal).map_err(Status::from)?;
        let outcome = self.inner.machine.write().apply(LogIndex(entry.log_index), &proposal);
        if matches!(outcome, Outcome::Registered { .. } | Outcome::Fenced) {
            self.follow_epochs();
        }
        if let Command::Cut(sources) = &proposal.command {
            let mut streams = self.inner.streams.lock();
            let differs = sources.iter().filter(|s| streams.check_cut(s) == CutCheck::Differs);
            if differs.count() > 0 {
                return Err(End::IndexNeeded("a cut differs"));
            }
        }
        Ok(())
    }

    fn follow_epochs(&self) {
        let machine = self.inner.machine.read();
        self.inner.streams.lock().follow(&machine);
    }

    fn take_index(&self, loaded: IndexLoader, positions: &[v1::StreamPosition]) {
        let position = |p: &v1::StreamPosition| Position {
            worker: WorkerId(p.worker),
            epoch: Epoch(p.epoch),
            next: EventSequence(p.next_sequence),
        };
        let positions: Vec<Position> = positions.iter().map(position).collect();
        let mut streams = loaded.finish(&positions);
        let machine = self.inner.machine.read();
        streams.follow(&machine);
        *self.inner.reader.write() = streams.reader();
        *self.inner.streams.lock() = streams;
        self.inner.whole.store(false, Ordering::Release);
    }

    fn take_items(&self, items: &v1::StreamItems) -> Result<(), End> {
        let mut streams = self.inner.streams.lock();
        for item in items.items.iter().filter_map(|item| item.item.as_ref()) {
            match take_item(&mut streams, item)? {
                Taken::Applied { .. } | Taken::Known { .. } | Taken::EpochOver => {}
                // The rest of a snapshot that began before this watch; the image had what came of it so far.
                Taken::SnapshotNeeded if matches!(item, Item::Snapshot(_)) => {}
                Taken::Gap { .. } | Taken::SnapshotNeeded => {
                    return Err(End::IndexNeeded("a stream lacks a frame"));
                }
                Taken::EpochUnknown => {
                    return Err(End::IndexNeeded("a frame came before its epoch"));
                }
            }
        }
        Ok(())
    }
}

/// Why a watch is over.
enum End {
    /// It broke, or says nothing any more.
    Ended(Status),
    /// The streams can't go on as they are.
    IndexNeeded(&'static str),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Ended(status)
    }
}

fn data_loss(error: &mainstay_state::ImageError) -> Status {
    Status::data_loss(format!("image: {error}"))
}

fn take_item(streams: &mut Streams, item: &Item) -> Result<Taken, Status> {
    match item {
        Item::Frame(frame) => {
            let (worker, epoch, mark, events) = frame_view(frame)?;
            Ok(streams.take_frame(worker, epoch, mark, &events))
        }
        Item::Snapshot(part) => {
            let (worker, epoch, mark, events) = snapshot_view(part)?;
            Ok(streams.take_snapshot(worker, epoch, mark, (part.part, part.last), &events))
        }
    }
}
