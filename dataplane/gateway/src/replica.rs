//! The gateway's replica of the cluster's state: the same machine and the same streams that control members run,
//! fed by `Watch`.
//!
//! Any member will do; when one goes, the replica turns to the next and resumes from its log index and from where
//! its streams stand. A stream that lacks a frame, or that a cut contradicts, is mended by a new image of the index.
//! While no member answers the replica stays as it is, ever staler, and says how old it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mainstay_index::IndexReader;
use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::{event_view, mark_from_wire, proposal_from_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::stream_item::Item;
use mainstay_proto::v1::watch_event::Event;
use mainstay_state::{CutCheck, IndexLoader, Limits, Machine, Outcome, Position, Streams, Taken};
use mainstay_types::{Command, Epoch, EventSequence, LogIndex, StreamMark, WorkerId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::Status;

const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A member sends progress ten times a second; this much silence means that it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A member that was cut off or removed says that it lives and has nothing new, for ever; even an idle leader
/// moves the log every ten seconds.
const STALE_MAX: Duration = Duration::from_secs(25);
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
    heard: RwLock<Option<Instant>>,
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
            heard: RwLock::new(None),
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

    /// How long ago a member was last heard; `None` before the first image.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.inner.heard.read().map(|at| at.elapsed())
    }

    /// Applies a command as if a member had sent it.
    #[cfg(test)]
    pub(crate) fn test_apply(&self, command: Command) {
        let mut machine = self.inner.machine.write();
        let at = machine.applied().next();
        let proposal =
            mainstay_types::Proposal { stamp: mainstay_types::Stamp::default(), command };
        let outcome = machine.apply(at, &proposal);
        assert!(!matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        *self.inner.heard.write() = Some(Instant::now());
    }

    /// Wakes whenever the log index moves.
    pub(crate) fn changes(&self) -> watch::Receiver<LogIndex> {
        self.inner.changed.subscribe()
    }

    /// Follows the control plane for ever; ends when the task is aborted.
    pub(crate) async fn follow(self, control: ControlPlane) {
        let mut whole = false;
        loop {
            // A stream that can't go on needs all of the index, wherever it is asked for.
            let positions = if whole { Vec::new() } else { self.positions() };
            whole = match self.follow_one(&control, positions).await {
                Ok(()) => false,
                Err(End::IndexNeeded(reason)) => {
                    tracing::info!(reason, "the index is asked for anew");
                    metrics::counter!("mainstay_gateway_index_images_total").increment(1);
                    true
                }
                Err(End::Ended(status)) => {
                    tracing::debug!(code = ?status.code(), reason = status.message(), "watch ended; turning to another member");
                    false
                }
            };
            control.rotate();
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
        control: &ControlPlane,
        positions: Vec<v1::StreamPosition>,
    ) -> Result<(), End> {
        let started = self.inner.heard.read().is_some();
        let from = if started { self.read(|m| m.applied().0 + 1) } else { 0 };
        let request = v1::WatchRequest { from_log_index: from, without_blocks: false, positions };
        let opened = tokio::time::timeout(SILENCE_MAX, control.current().watch(request)).await;
        let mut stream =
            opened.map_err(|_| Status::deadline_exceeded("watch did not open"))??.into_inner();
        let mut patience = IMAGE_MAX;
        let mut moved = Instant::now();
        let mut loader = None;
        loop {
            let message = tokio::time::timeout(patience, stream.message())
                .await
                .map_err(|_| Status::deadline_exceeded("watch fell silent"))??;
            let Some(event) = message.and_then(|m| m.event) else { return Ok(()) };
            patience = SILENCE_MAX;
            if !matches!(event, Event::Progress(_)) {
                moved = Instant::now();
            } else if moved.elapsed() > STALE_MAX {
                return Err(Status::unavailable("the member has no news of the log").into());
            }
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
                Event::Progress(_) => {}
            }
            *self.inner.heard.write() = Some(Instant::now());
            self.inner.changed.send_replace(self.read(Machine::applied));
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
            let mark = StreamMark {
                sequence: EventSequence(frame.sequence),
                digest: frame.digest,
                blocks: frame.blocks,
            };
            let events: Vec<_> = frame.events.iter().map(event_view).collect::<Result<_, _>>()?;
            Ok(streams.take_frame(WorkerId(frame.worker), Epoch(frame.epoch), mark, &events))
        }
        Item::Snapshot(part) => {
            let mark = mark_from_wire(part.mark.as_ref())?;
            let events: Vec<_> = part.events.iter().map(event_view).collect::<Result<_, _>>()?;
            let (worker, epoch) = (WorkerId(part.worker), Epoch(part.epoch));
            Ok(streams.take_snapshot(worker, epoch, mark, (part.part, part.last), &events))
        }
    }
}
