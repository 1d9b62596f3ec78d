//! Streams that lose frames, are told all again, and end equal to the plain form and to a literal model.

use mainstay_index::model::ModelIndex;
use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier};
use proptest::prelude::*;

use super::*;
use crate::testing::{Log, fence, register, small_limits};

/// A worker's side: what it holds, and all that it ever said.
struct Told {
    worker: WorkerId,
    index: BlockIndex,
    frames: Vec<(StreamMark, Vec<BlockEvent>)>,
}

impl Told {
    fn new(worker: u32) -> Self {
        let index = BlockIndex::new(1 << 16);
        Self { worker: WorkerId(worker), index, frames: Vec::new() }
    }

    fn mark(&self) -> StreamMark {
        StreamMark {
            sequence: EventSequence(self.frames.len() as u64),
            digest: self.index.digest(self.worker),
            blocks: self.index.worker_block_count(self.worker),
        }
    }

    fn say(&mut self, events: Vec<BlockEvent>) {
        self.index.apply_all(self.worker, &events);
        let mark =
            StreamMark { sequence: EventSequence(self.frames.len() as u64 + 1), ..self.mark() };
        self.frames.push((mark, events));
    }

    /// Brings one receiver up to date, by what it asks for.
    fn feed(&self, streams: &mut Streams) {
        for _ in 0..10_000 {
            let Some(next) = streams.position(self.worker, Epoch(1)) else { return };
            if next.0 > self.frames.len() as u64 {
                return;
            }
            match next.0.checked_sub(1) {
                Some(at) => {
                    let (mark, events) = &self.frames[at as usize];
                    take(streams, self.worker, *mark, events);
                }
                None => self.snapshot(streams),
            }
        }
        panic!("the receiver does not get on");
    }

    fn snapshot(&self, streams: &mut Streams) {
        let all: Vec<BlockEvent> = snapshot_of(&self.index, self.worker);
        let wire: Vec<Wire> = all.iter().map(Wire::of).collect();
        let count = wire.len().max(1) as u32;
        for part in 0..count {
            let events: Vec<EventView<'_>> =
                wire.get(part as usize).into_iter().map(Wire::view).collect();
            let place = (part, part + 1 == count);
            streams.take_snapshot(self.worker, Epoch(1), self.mark(), place, &events);
        }
    }
}

/// What an index has of one worker, as events.
fn snapshot_of(index: &BlockIndex, worker: WorkerId) -> Vec<BlockEvent> {
    let mut events = Vec::new();
    for run in index.snapshot() {
        for (_, held) in run.holders.iter().filter(|(id, _)| *id == worker) {
            for stretch in held {
                let keys = &run.keys[stretch.from as usize..stretch.to as usize];
                let parent = match stretch.from {
                    0 => run.parent,
                    from => run.keys[from as usize - 1].0,
                };
                for tier in Tier::ALL.into_iter().filter(|tier| stretch.tiers.contains(*tier)) {
                    events.push(BlockEvent::Stored {
                        namespace: run.namespace,
                        parent: SequenceHash(u128::from(parent)),
                        blocks: keys.iter().map(|k| SequenceHash(u128::from(k.0))).collect(),
                        tier,
                    });
                }
            }
        }
    }
    events
}

/// An event in the form of a message.
struct Wire {
    event: BlockEvent,
    blocks: Vec<[u8; 16]>,
}

impl Wire {
    fn of(event: &BlockEvent) -> Self {
        let blocks = match event {
            BlockEvent::Stored { blocks, .. } | BlockEvent::Removed { blocks, .. } => {
                blocks.iter().map(|b| b.0.to_le_bytes()).collect()
            }
            BlockEvent::Truncated { .. } | BlockEvent::Cleared => Vec::new(),
        };
        Self { event: event.clone(), blocks }
    }

    fn view(&self) -> EventView<'_> {
        let blocks = &self.blocks[..];
        match self.event {
            BlockEvent::Stored { namespace, parent, tier, .. } => {
                EventView::Stored { namespace, parent, blocks, tier }
            }
            BlockEvent::Removed { tier, .. } => EventView::Removed { blocks, tier },
            BlockEvent::Truncated { tail, count, tier } => {
                EventView::Truncated { tail, count, tier }
            }
            BlockEvent::Cleared => EventView::Cleared,
        }
    }
}

fn take(streams: &mut Streams, worker: WorkerId, mark: StreamMark, events: &[BlockEvent]) -> Taken {
    let wire: Vec<Wire> = events.iter().map(Wire::of).collect();
    let views: Vec<EventView<'_>> = wire.iter().map(Wire::view).collect();
    streams.take_frame(worker, Epoch(1), mark, &views)
}

/// The first `length` blocks of a branch; branches part after three.
fn branch(branch: u128, length: usize) -> Vec<SequenceHash> {
    let hash = |at: u128| if at < 3 { 10 + at } else { 1_000 * (branch + 1) + at };
    (0..length as u128).map(|at| SequenceHash(hash(at))).collect()
}

fn stored(of: u128, length: usize, tier: Tier) -> BlockEvent {
    let namespace = NamespaceId(9);
    let blocks = branch(of, length);
    BlockEvent::Stored { namespace, parent: SequenceHash(9), blocks, tier }
}

/// A machine with two live workers, and streams that follow it.
fn cluster() -> (Log, Streams) {
    let mut log = Log::new(Limits { index_blocks_max: 1 << 16, ..small_limits() });
    log.apply(register("a", 1));
    log.apply(register("b", 1));
    let mut streams = Streams::new(log.machine.limits());
    streams.follow(&log.machine);
    (log, streams)
}

#[test]
fn epochs_come_and_go_with_the_log() {
    let (mut log, mut streams) = cluster();
    let mut told = Told::new(1);
    told.say(vec![stored(0, 5, Tier::Device)]);
    let (mark, events) = told.frames[0].clone();
    assert_eq!(streams.take_frame(WorkerId(7), Epoch(1), mark, &[]), Taken::EpochUnknown);
    assert_eq!(streams.take_frame(WorkerId(1), Epoch(2), mark, &[]), Taken::EpochUnknown);
    let next = EventSequence(2);
    assert_eq!(take(&mut streams, WorkerId(1), mark, &events), Taken::Applied { next });
    assert_eq!(take(&mut streams, WorkerId(1), mark, &events), Taken::Known { next });
    let later = StreamMark { sequence: EventSequence(9), ..mark };
    assert_eq!(take(&mut streams, WorkerId(1), later, &events), Taken::Gap { next });
    log.apply(fence(1, 1));
    streams.follow(&log.machine);
    assert_eq!(streams.index().block_count(), 0);
    assert_eq!(take(&mut streams, WorkerId(1), mark, &events), Taken::EpochOver);
    log.apply(register("a", 2));
    streams.follow(&log.machine);
    assert_eq!(streams.position(WorkerId(1), Epoch(2)), Some(EventSequence(1)));
    assert_eq!(take(&mut streams, WorkerId(1), mark, &events), Taken::EpochOver);
}

#[test]
fn a_stream_that_differs_stands_still_until_a_snapshot() {
    let (log, mut streams) = cluster();
    let mut told = Told::new(1);
    told.say(vec![stored(0, 5, Tier::Device)]);
    told.say(vec![stored(1, 8, Tier::Host)]);
    told.feed(&mut streams);
    let cut = streams.cut(&log.machine);
    assert_eq!(cut.len(), 1);
    assert_eq!(streams.check_cut(&cut[0]), CutCheck::Equal);
    let behind = StreamMark { sequence: EventSequence(3), ..cut[0].mark };
    assert_eq!(streams.check_cut(&CutSource { mark: behind, ..cut[0] }), CutCheck::Behind);
    let lie = StreamMark { digest: 1, ..cut[0].mark };
    assert_eq!(streams.check_cut(&CutSource { mark: lie, ..cut[0] }), CutCheck::Differs);
    assert_eq!((streams.drift(), streams.cut(&log.machine).len()), (1, 0));
    told.say(vec![BlockEvent::Truncated { tail: SequenceHash(2_007), count: 3, tier: Tier::Host }]);
    let (mark, events) = told.frames[2].clone();
    assert_eq!(take(&mut streams, WorkerId(1), mark, &events), Taken::SnapshotNeeded);
    told.feed(&mut streams);
    assert_eq!(streams.index().digest(WorkerId(1)), told.mark().digest);
    assert_eq!(streams.drift(), 1);
}

#[test]
fn parts_out_of_order_ask_for_the_first_again() {
    let (_, mut streams) = cluster();
    let mark = StreamMark { sequence: EventSequence(4), digest: 0, blocks: 0 };
    let mut part =
        |part, last| streams.take_snapshot(WorkerId(1), Epoch(1), mark, (part, last), &[]);
    assert_eq!(part(1, false), Taken::SnapshotNeeded);
    assert_eq!(part(0, false), Taken::Applied { next: EventSequence(0) });
    assert_eq!(part(2, true), Taken::SnapshotNeeded);
    assert_eq!(part(0, true), Taken::Applied { next: EventSequence(5) });
}

#[test]
fn parts_of_the_index_give_the_streams_again() {
    let (log, mut streams) = cluster();
    for worker in [1, 2] {
        let mut told = Told::new(worker);
        for at in 0..40 {
            let tier = Tier::ALL[at % 4];
            told.say(vec![stored(at as u128 % 11, 4 + at, tier)]);
        }
        told.feed(&mut streams);
    }
    for bytes in [1, 300, 1 << 20] {
        let mut loader = crate::IndexLoader::new(*log.machine.limits());
        let parts = streams.encode_parts(bytes);
        assert_eq!(parts.len() == 1, bytes == 1 << 20);
        for part in &parts {
            loader.take(part).expect("our own parts");
        }
        let mut read = loader.finish(&streams.positions());
        read.follow(&log.machine);
        assert_eq!(read.positions(), streams.positions());
        for worker in [WorkerId(1), WorkerId(2)] {
            assert_eq!(read.index().digest(worker), streams.index().digest(worker));
        }
    }
    let mut damaged = streams.encode_parts(1 << 20).remove(0);
    damaged[40] ^= 1;
    assert!(crate::IndexLoader::new(*log.machine.limits()).take(&damaged).is_err());
}

fn event() -> impl Strategy<Value = BlockEvent> {
    let place = (0_u128..5, 0_usize..14, 0_usize..4);
    let remove = (0_u128..5, 0_usize..14, 0_usize..4).prop_map(|(of, at, tier)| {
        let blocks = branch(of, 14).split_off(at);
        BlockEvent::Removed { blocks, tier: Tier::ALL[tier] }
    });
    prop_oneof![
        8 => place.prop_map(|(of, length, tier)| stored(of, length, Tier::ALL[tier])),
        4 => remove,
        1 => Just(BlockEvent::Cleared),
    ]
}

proptest! {
    /// Two receivers, of which one hears everything and the other now and then loses its way, end like the plain
    /// form, which had every frame as an entry, and like the model.
    #[test]
    fn all_forms_agree(
        said in proptest::collection::vec(
            (1_u32..3, proptest::collection::vec(event(), 0..4), 0_u8..10), 1..60,
        ),
    ) {
        let (mut log, mut steady) = cluster();
        let mut shaky = Streams::new(log.machine.limits());
        shaky.follow(&log.machine);
        let mut told = [Told::new(1), Told::new(2)];
        let mut model = ModelIndex::new(1 << 16);
        for (worker, events, luck) in said {
            let one = &mut told[worker as usize - 1];
            for event in &events {
                model.apply(WorkerId(worker), event);
            }
            one.say(events.clone());
            let sequence = EventSequence(one.frames.len() as u64);
            let (id, epoch) = (WorkerId(worker), Epoch(1));
            let frame = mainstay_types::EventFrame { worker: id, epoch, sequence, events };
            log.apply(mainstay_types::Command::Blocks(frame));
            one.feed(&mut steady);
            match luck {
                // It misses frames, or takes one for another.
                0..3 => {}
                3 => {
                    let mark = StreamMark { sequence: EventSequence(2), digest: 5, blocks: 5 };
                    take(&mut shaky, id, mark, &[]);
                }
                _ => one.feed(&mut shaky),
            }
            let cut = steady.cut(&log.machine);
            log.apply(mainstay_types::Command::Cut(cut.clone()));
            for source in &cut {
                prop_assert_ne!(steady.check_cut(source), CutCheck::Differs);
                prop_assert_ne!(shaky.check_cut(source), CutCheck::Differs);
            }
        }
        for one in &told {
            one.feed(&mut shaky);
            let worker = one.worker;
            let digest = log.machine.index().digest(worker);
            prop_assert_eq!(steady.index().digest(worker), digest);
            prop_assert_eq!(shaky.index().digest(worker), digest);
            prop_assert_eq!(model.digest(worker), digest);
            prop_assert_eq!(steady.index().worker_block_count(worker), one.mark().blocks);
        }
        prop_assert_eq!(steady.drift(), 0);
    }
}
