//! Streams of block events: applied by every member, anchored by cuts, mended by snapshots, followed by watchers.

use mainstay_index::BlockIndex;
use mainstay_proto::convert::{frame_view, mark_to_wire, snapshot_view};
use mainstay_proto::v1::stream_item::Item;
use mainstay_state::{IndexLoader, Position, Streams, Taken};
use mainstay_types::{Epoch, EventSequence, StreamMark, WorkerId};

use super::*;

/// A worker's side of a stream: what it holds, and the frames that say so.
pub(crate) struct Told {
    pub(crate) me: v1::RegisterReply,
    index: BlockIndex,
    pub(crate) sequence: u64,
}

pub(crate) fn chain(first: u128, count: u128) -> BlockEvent {
    BlockEvent::Stored {
        namespace: NamespaceId(9),
        parent: SequenceHash(9),
        blocks: (first..first + count).map(SequenceHash).collect(),
        tier: Tier::Device,
    }
}

impl Told {
    pub(crate) fn new(me: v1::RegisterReply) -> Self {
        Self { me, index: BlockIndex::new(1 << 20), sequence: 0 }
    }

    pub(crate) fn mark(&self) -> StreamMark {
        let worker = WorkerId(self.me.worker);
        StreamMark {
            sequence: EventSequence(self.sequence),
            digest: self.index.digest(worker),
            blocks: self.index.worker_block_count(worker),
        }
    }

    /// The next frame.
    pub(crate) fn frame(&mut self, event: &BlockEvent) -> v1::EventFrame {
        self.index.apply(WorkerId(self.me.worker), event);
        self.sequence += 1;
        let mark = self.mark();
        v1::EventFrame {
            worker: self.me.worker,
            epoch: self.me.epoch,
            sequence: self.sequence,
            events: vec![event_to_wire(event)],
            digest: mark.digest,
            blocks: mark.blocks,
        }
    }

    /// Everything, told as these events in one part.
    pub(crate) fn snapshot(&self, events: &[BlockEvent]) -> v1::PublishRequest {
        let part = v1::StreamSnapshot {
            worker: self.me.worker,
            epoch: self.me.epoch,
            mark: Some(mark_to_wire(self.mark())),
            part: 0,
            last: true,
            events: events.iter().map(event_to_wire).collect(),
        };
        v1::PublishRequest { snapshot: Some(part), ..publish(&self.me, vec![]) }
    }

    pub(crate) fn message(&self, frame: v1::EventFrame) -> v1::PublishRequest {
        publish(&self.me, vec![frame])
    }
}

pub(crate) fn mark_at(handle: &ControlHandle, told: &Told) -> StreamMark {
    let worker = WorkerId(told.me.worker);
    handle.group().streams().look(|s| StreamMark {
        sequence: EventSequence(
            s.position(worker, Epoch(told.me.epoch)).map_or(0, |next| next.0.saturating_sub(1)),
        ),
        digest: s.index().digest(worker),
        blocks: s.index().worker_block_count(worker),
    })
}

async fn cut_of(handle: &ControlHandle, told: &Told) {
    eventually("a cut", async || {
        let cut = handle.group().read(|m| m.worker(WorkerId(told.me.worker)).and_then(|w| w.cut));
        (cut == Some(told.mark())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_are_applied_anchored_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let mut told = Told::new(register(&mut c, worker("w", 1)).await);
    let first = told.frame(&chain(100, 20));
    let second = told.frame(&BlockEvent::Truncated {
        tail: SequenceHash(119),
        count: 5,
        tier: Tier::Device,
    });
    let early = c.publish(told.message(second.clone())).await.unwrap().into_inner();
    assert_eq!(early.next_sequence, 1, "a gap is named");
    let both = c.publish(publish(&told.me, vec![first, second.clone()])).await.unwrap();
    let both = both.into_inner();
    assert_eq!((both.next_sequence, both.leads, both.members.len()), (3, true, 1));
    assert_eq!(mark_at(&handle, &told).blocks, 15);
    let again = c.publish(told.message(second)).await.unwrap().into_inner();
    assert_eq!(again.next_sequence, 3, "what is known already is nothing new");
    cut_of(&handle, &told).await;

    // A frame whose sum is not what the index has: only a snapshot helps.
    let mut wrong = told.frame(&chain(500, 3));
    wrong.digest ^= 1;
    let reply = c.publish(told.message(wrong)).await.unwrap().into_inner();
    assert_eq!(reply.next_sequence, 0);
    let next = told.frame(&chain(600, 1));
    let reply = c.publish(told.message(next)).await.unwrap().into_inner();
    assert_eq!(reply.next_sequence, 0, "it stays so until the snapshot");
    let content = [chain(100, 15), chain(500, 3), chain(600, 1)];
    let reply = c.publish(told.snapshot(&content)).await.unwrap().into_inner();
    assert_eq!(reply.next_sequence, told.sequence + 1);
    assert_eq!(mark_at(&handle, &told), told.mark());
    let status = c.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((status.index_drift, status.index_blocks), (1, 19));
    cut_of(&handle, &told).await;

    // Another life: what the former one held is gone, and what it says is refused.
    let me = register(&mut c, worker("w", 2)).await;
    let late = told.frame(&chain(700, 1));
    let over = c.publish(told.message(late)).await.unwrap_err();
    assert_eq!(over.code(), Code::FailedPrecondition);
    assert_eq!(mark_at(&handle, &Told::new(me)).blocks, 0);
    handle.shutdown().await;
}

/// A gateway's view, as the gateway keeps it.
struct Viewer {
    machine: Machine,
    streams: Streams,
    images: usize,
    parts: usize,
}

impl Viewer {
    fn new() -> Self {
        let limits = Limits::standard();
        let (machine, streams) = (Machine::new(limits), Streams::new(&limits));
        Self { machine, streams, images: 0, parts: 0 }
    }

    /// Watches until it has all of `told`.
    async fn follow(&mut self, client: &mut ControlClient<Channel>, told: &[&Told]) {
        let position = |p: Position| v1::StreamPosition {
            worker: p.worker.0,
            epoch: p.epoch.0,
            next_sequence: p.next.0,
        };
        let request = v1::WatchRequest {
            from_log_index: if self.images == 0 { 0 } else { self.machine.applied().0 + 1 },
            without_blocks: false,
            positions: self.streams.positions().into_iter().map(position).collect(),
            version: u32::from(mainstay_state::VERSION_NEWEST),
        };
        let mut stream = client.watch(request).await.unwrap().into_inner();
        let mut loader = None;
        while !told.iter().all(|t| self.has(t)) {
            let event = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap();
            match event.unwrap().event.unwrap() {
                Event::Image(image) => {
                    self.machine = Machine::decode(&image.state, Limits::standard()).unwrap();
                    self.streams.follow(&self.machine);
                    self.images += 1;
                }
                Event::Entry(entry) => {
                    let proposal = proposal_from_wire(&entry.proposal.unwrap()).unwrap();
                    self.machine.apply(LogIndex(entry.log_index), &proposal);
                    self.streams.follow(&self.machine);
                }
                Event::Index(part) => {
                    self.parts += 1;
                    let fresh = || IndexLoader::new(Limits::standard());
                    let mut loading: IndexLoader = loader.take().unwrap_or_else(fresh);
                    loading.take(&part.runs).unwrap();
                    if !part.last {
                        loader = Some(loading);
                        continue;
                    }
                    let position = |p: &v1::StreamPosition| Position {
                        worker: WorkerId(p.worker),
                        epoch: Epoch(p.epoch),
                        next: EventSequence(p.next_sequence),
                    };
                    let positions: Vec<_> = part.positions.iter().map(position).collect();
                    self.streams = loading.finish(&positions);
                    self.streams.follow(&self.machine);
                }
                Event::Items(items) => items.items.iter().for_each(|item| self.take(item)),
                Event::Progress(_) => {}
            }
        }
    }

    fn take(&mut self, item: &v1::StreamItem) {
        let taken = match item.item.as_ref().unwrap() {
            Item::Frame(f) => {
                let (worker, epoch, mark, events) = frame_view(f).unwrap();
                self.streams.take_frame(worker, epoch, mark, &events)
            }
            Item::Snapshot(s) => {
                let (worker, epoch, mark, events) = snapshot_view(s).unwrap();
                self.streams.take_snapshot(worker, epoch, mark, (s.part, s.last), &events)
            }
        };
        assert!(matches!(taken, Taken::Applied { .. } | Taken::Known { .. }), "{taken:?}");
    }

    fn has(&self, told: &Told) -> bool {
        let worker = WorkerId(told.me.worker);
        self.streams.position(worker, Epoch(told.me.epoch))
            == Some(EventSequence(told.sequence + 1))
            && self.streams.index().digest(worker) == told.mark().digest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_follows_streams_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let mut a = Told::new(register(&mut c, worker("a", 1)).await);
    let mut viewer = Viewer::new();
    for at in 0..10 {
        let frame = a.frame(&chain(1_000 * at, 50));
        c.publish(a.message(frame)).await.unwrap();
    }
    viewer.follow(&mut c, &[&a]).await;
    assert_eq!((viewer.images, viewer.parts), (1, 1));
    let mut b = Told::new(register(&mut c, worker("b", 1)).await);
    for at in 0..10 {
        let frame = b.frame(&chain(1_000 * at, 70));
        c.publish(b.message(frame)).await.unwrap();
        let frame = a.frame(&chain(1_000 * at + 500, 5));
        c.publish(a.message(frame)).await.unwrap();
    }
    viewer.follow(&mut c, &[&a, &b]).await;
    assert_eq!((viewer.images, viewer.parts), (1, 1), "it resumed");
    assert_eq!(viewer.streams.drift(), 0);
    handle.shutdown().await;
}
