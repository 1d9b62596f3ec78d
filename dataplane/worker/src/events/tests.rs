//! Tests of the whole path from an engine's report to an index, without a network: members that follow at their
//! own pace, fall behind, forget and come back must hold what the worker holds after every single frame.

use mainstay_index::BlockIndex;
use mainstay_index::model::ModelIndex;
use mainstay_proto::convert::frame_from_wire;
use mainstay_types::{Epoch, StreamMark, WorkerId};
use proptest::prelude::*;

use super::frames::Frames;
use super::local_map::Sum;
use super::*;

const WORKER: WorkerId = WorkerId(4);
const SPACE: u128 = 7;
/// Blocks that an engine may name.
const NAMES: u8 = 48;
const SMALL: FrameLimits = FrameLimits {
    frame_blocks_max: 5,
    frame_events_max: 3,
    frame_named_max: 20,
    ring_frames_max: 8,
    ring_weight_max: 80,
    message_frames_max: 3,
    message_weight_max: 30,
    message_named_max: 30,
    plain_window_frames_max: 3,
    part_blocks_max: 8,
    part_events_max: 3,
    waiting_max: 40,
};

fn registration(epoch: u64) -> Registration {
    Registration {
        worker: WORKER,
        epoch: Epoch(epoch),
        lease_ttl: Duration::from_secs(1),
        life: 1,
        plain: false,
    }
}

fn worker() -> Events {
    let events = Events::new(SMALL);
    events.engine_began(caps::KNOWN, &Info::default(), 0);
    events.epoch_began(registration(1));
    events
}

fn report(events: &Events, reset: bool, kv: Vec<KvEvent>) {
    events.take(KvBatch { epoch: 1, first_seq: 0, reset, gap: false, events: kv }, 0);
}

/// A member: the literal index, and the real one where hashes are chained.
struct Follower {
    epoch: u64,
    next: u64,
    model: ModelIndex,
    index: Option<BlockIndex>,
    snapshots: usize,
}

impl Follower {
    fn new(chained: bool) -> Self {
        Self {
            epoch: 1,
            next: 1,
            model: ModelIndex::new(u64::MAX),
            index: chained.then(|| BlockIndex::new(u64::MAX)),
            snapshots: 0,
        }
    }

    fn forget(&mut self) {
        let chained = self.index.is_some();
        *self = Self { epoch: self.epoch, snapshots: self.snapshots, ..Self::new(chained) };
    }

    fn apply(&mut self, event: &BlockEvent) {
        self.model.apply(WORKER, event);
        if let Some(index) = &mut self.index {
            index.apply(WORKER, event);
        }
    }

    fn compare(&self, sequence: u64, sum: Sum) {
        let model = Sum {
            digest: self.model.digest(WORKER),
            blocks: self.model.worker_block_count(WORKER),
        };
        assert_eq!(model, sum, "the model after frame {sequence}");
        if let Some(index) = &self.index {
            let real =
                Sum { digest: index.digest(WORKER), blocks: index.worker_block_count(WORKER) };
            assert_eq!(real, sum, "the index after frame {sequence}");
        }
    }

    /// One message. False when there is none.
    fn pull(&mut self, events: &Events) -> bool {
        let mut state = events.lock();
        let state = &mut *state;
        if self.epoch != state.log.epoch().0 {
            self.forget();
            self.epoch = state.log.epoch().0;
        }
        match state.log.frames_from(self.next) {
            Frames::UpToDate => return false,
            Frames::Next(frames) => {
                assert_eq!(frames[0].sequence, self.next);
                for frame in frames {
                    for event in &frame_from_wire(&frame).expect("well formed").events {
                        self.apply(event);
                    }
                    self.next += 1;
                    let sum = Sum { digest: frame.digest, blocks: frame.blocks };
                    self.compare(frame.sequence, sum);
                }
            }
            Frames::Lost => {
                let (mark, copy) = state.log.snapshot(&state.map);
                self.apply(&BlockEvent::Cleared);
                copy.runs(SMALL.part_blocks_max).iter().for_each(|run| self.apply(run));
                let StreamMark { sequence, digest, blocks } = mark;
                self.compare(sequence.0, Sum { digest, blocks });
                self.next = sequence.0 + 1;
                self.snapshots += 1;
            }
        }
        true
    }

    /// Everything that there is, and then block by block.
    fn settle(&mut self, events: &Events, name: impl Fn(u8) -> u128) {
        events.lock().log.seal();
        let messages = (0..1_000).take_while(|_| self.pull(events)).count();
        assert!(messages < 1_000, "the stream never settles");
        let state = events.lock();
        self.compare(self.next - 1, state.map.sum());
        for block in (0..NAMES).map(|n| SequenceHash(name(n))) {
            for tier in Tier::ALL {
                let held = state.map.holds(block, tier);
                assert_eq!(self.model.tiers(WORKER, block).contains(tier), held, "{block:?}");
                if let Some(index) = &self.index {
                    assert_eq!(index.tiers(WORKER, block).contains(tier), held, "{block:?}");
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Namespace, parent, blocks, tier: whatever an engine may say.
    Store(u8, u8, Vec<u8>, u32),
    /// The chain up to a block, or the part of it after so many.
    StoreChain(u8, u8, u32),
    Remove(Vec<u8>, u32),
    /// Upwards from a block, so many.
    RemoveChain(u8, u8, u32),
    /// Downwards to a block.
    RemoveRootFirst(u8, u32),
    Reset,
    Seal,
    Pull(usize),
    Forget(usize),
    NewEpoch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = 0..NAMES;
    let some = || prop::collection::vec(0..NAMES, 0..12);
    let step = prop_oneof![
        3 => (0_u8..2, block.clone(), some(), 0_u32..4).prop_map(|(n, p, b, t)| Step::Store(n, p, b, t)),
        8 => (block.clone(), 0_u8..6, 0_u32..4).prop_map(|(b, f, t)| Step::StoreChain(b, f, t)),
        2 => (some(), 0_u32..4).prop_map(|(b, t)| Step::Remove(b, t)),
        5 => (block.clone(), 1_u8..12, 0_u32..4).prop_map(|(b, n, t)| Step::RemoveChain(b, n, t)),
        1 => (block, 0_u32..4).prop_map(|(b, t)| Step::RemoveRootFirst(b, t)),
        1 => Just(Step::Reset),
        8 => Just(Step::Seal),
        8 => (0_usize..3).prop_map(Step::Pull),
        1 => (0_usize..3).prop_map(Step::Forget),
        1 => Just(Step::NewEpoch),
    ];
    prop::collection::vec(step, 0..160)
}

/// Blocks form a tree; a block's parent is a function of it, as with chained hashes.
fn chain(mut block: u8) -> Vec<u8> {
    let mut chain = vec![block];
    while block > 3 {
        // Mostly long chains, and a branch here and there.
        block -= if block.is_multiple_of(5) { 3 } else { 1 };
        chain.push(block);
    }
    chain.reverse();
    chain
}

fn name(block: u8) -> u128 {
    (u128::from(block) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

fn names(blocks: &[u8]) -> Vec<u128> {
    blocks.iter().map(|block| name(*block)).collect()
}

fn kv_events(step: &Step, chained: bool) -> Vec<KvEvent> {
    let cause = Cause::Capacity;
    let removed =
        |blocks: &[u8], tier: u32| KvEvent::Removed { blocks: names(blocks), tier, cause };
    match step {
        Step::Store(space, parent, blocks, tier) if !chained => {
            let (namespace, parent) = (SPACE + u128::from(*space), name(*parent));
            let blocks = names(blocks);
            vec![KvEvent::Stored { namespace, parent, blocks, tier: *tier, snapshot: false }]
        }
        Step::StoreChain(block, from, tier) => {
            let all = chain(*block);
            let from = usize::from(*from).min(all.len() - 1);
            let parent = if from == 0 { SPACE } else { name(all[from - 1]) };
            let blocks = names(&all[from..]);
            vec![KvEvent::Stored { namespace: SPACE, parent, blocks, tier: *tier, snapshot: false }]
        }
        Step::Remove(blocks, tier) => vec![removed(blocks, *tier)],
        Step::RemoveChain(block, count, tier) => {
            let mut all = chain(*block);
            all.reverse();
            all.truncate(usize::from(*count));
            // One at a time, as engines do.
            all.iter().map(|block| removed(&[*block], *tier)).collect()
        }
        Step::RemoveRootFirst(block, tier) => vec![removed(&chain(*block), *tier)],
        _ => Vec::new(),
    }
}

fn history(steps: &[Step], chained: bool) -> Result<(), TestCaseError> {
    let events = worker();
    events.lock().map.set_blocks_max(40);
    let mut followers: Vec<Follower> = (0..3).map(|_| Follower::new(chained)).collect();
    let mut epoch = 1;
    for step in steps {
        match step {
            Step::Reset => report(&events, true, Vec::new()),
            Step::Seal => events.lock().log.seal(),
            Step::Pull(who) => drop(followers[*who].pull(&events)),
            Step::Forget(who) => followers[*who].forget(),
            Step::NewEpoch => {
                epoch += 1;
                events.epoch_began(registration(epoch));
            }
            step => report(&events, false, kv_events(step, chained)),
        }
        let state = events.lock();
        prop_assert!(state.log.ring_frames() <= SMALL.ring_frames_max);
    }
    for follower in &mut followers {
        follower.settle(&events, name);
    }
    Ok(())
}

proptest! {
    // Parents are arbitrary: rings, self-parents, blocks under other parents than before.
    #[test]
    fn whatever_an_engine_says_all_members_hold_it_after_every_frame(steps in steps()) {
        history(&steps, false)?;
    }

    // Chained hashes, through the real index.
    #[test]
    fn chained_blocks_are_held_by_the_real_index_after_every_frame(steps in steps()) {
        history(&steps, true)?;
    }
}

fn stored(parent: u128, blocks: Vec<u128>) -> KvEvent {
    KvEvent::Stored { namespace: SPACE, parent, blocks, tier: 0, snapshot: false }
}

fn frames(events: &Events, from: u64) -> Vec<Vec<BlockEvent>> {
    let mut state = events.lock();
    state.log.seal();
    let Frames::Next(frames) = state.log.frames_from(from) else { panic!("frames") };
    frames.iter().map(|frame| frame_from_wire(frame).expect("well formed").events).collect()
}

#[test]
fn what_is_held_already_is_not_told_again() {
    let events = worker();
    report(&events, false, vec![stored(SPACE, vec![10, 11, 12])]);
    report(&events, false, vec![stored(SPACE, vec![10, 11, 12, 13])]);
    report(&events, false, vec![stored(SPACE, vec![10, 11])]);
    let run = |parent: u128, blocks: &[u128]| BlockEvent::Stored {
        namespace: NamespaceId(SPACE),
        parent: SequenceHash(parent),
        blocks: hashes(blocks.to_vec()),
        tier: Tier::Device,
    };
    assert_eq!(frames(&events, 1), [vec![run(SPACE, &[10, 11, 12, 13])]]);
}

#[test]
fn single_removals_of_one_report_are_one_record() {
    let events = worker();
    report(&events, false, vec![stored(SPACE, (10..20).collect())]);
    let frames_so_far = frames(&events, 1).len() as u64;
    let cause = Cause::Capacity;
    let one = |block: u128| KvEvent::Removed { blocks: vec![block], tier: 0, cause };
    report(&events, false, (12..20).rev().map(one).collect());
    let (tail, count, tier) = (SequenceHash(19), 8, Tier::Device);
    let record = BlockEvent::Truncated { tail, count, tier };
    assert_eq!(frames(&events, frames_so_far + 1), [vec![record]]);
}

#[test]
fn what_waits_is_sealed_once_it_has_lingered() {
    let events = worker();
    report(&events, false, vec![stored(SPACE, vec![10])]);
    let now = Instant::now();
    let mut state = events.lock();
    let due = state.seal_due(now).expect("something waits");
    assert!(due <= now + LINGER && state.log.next_sequence() == 1);
    assert_eq!(state.seal_due(now + LINGER), None);
    assert_eq!(state.log.next_sequence(), 2);
    assert_eq!(state.seal_due(now + LINGER), None, "nothing waits");
}

#[tokio::test]
async fn members_that_need_everything_at_once_share_one_snapshot() {
    use std::sync::Arc;
    let events = worker();
    events.lock().map.set_blocks_max(40);
    report(&events, false, vec![stored(SPACE, (10..30).collect())]);
    let first = events.snapshot(registration(1)).await.expect("made");
    assert_eq!((first.mark.blocks, first.parts.len()), (20, 3));
    report(&events, false, vec![stored(29, vec![30])]);
    events.lock().log.seal();
    let second = events.snapshot(registration(1)).await.expect("known");
    assert!(Arc::ptr_eq(&first, &second), "frames go on from it");
    for n in 100..150 {
        report(&events, false, vec![stored(SPACE, vec![n])]);
        events.lock().log.seal();
    }
    let third = events.snapshot(registration(1)).await.expect("made");
    assert!(!Arc::ptr_eq(&first, &third), "the ring has let go of what follows the first");
    assert_eq!(third.mark.blocks, 40, "the map is held to its limit");
    assert!(events.snapshot(registration(2)).await.is_none(), "another epoch");
}
