//! Tests of the frame log: the numbers, the marks, what is lost and how it is told again.

use mainstay_index::model::ModelIndex;
use mainstay_proto::convert::{event_from_wire, frame_from_wire};
use mainstay_types::{NamespaceId, SequenceHash, Tier};
use proptest::prelude::*;

use super::*;

const SPACE: NamespaceId = NamespaceId(1);
const WORKER: WorkerId = WorkerId(1);
const SMALL: FrameLimits = FrameLimits {
    frame_blocks_max: 4,
    frame_events_max: 3,
    frame_named_max: 16,
    ring_frames_max: 6,
    ring_weight_max: 60,
    message_frames_max: 3,
    message_weight_max: 20,
    message_named_max: 24,
    plain_window_frames_max: 3,
    part_blocks_max: 8,
    part_events_max: 3,
    waiting_max: 24,
};

fn hs(numbers: &[u128]) -> Vec<SequenceHash> {
    numbers.iter().copied().map(SequenceHash).collect()
}

fn stored(parent: u128, blocks: &[u128]) -> BlockEvent {
    BlockEvent::Stored {
        namespace: SPACE,
        parent: SequenceHash(parent),
        blocks: hs(blocks),
        tier: Tier::Device,
    }
}

fn removed(blocks: &[u128]) -> BlockEvent {
    BlockEvent::Removed { blocks: hs(blocks), tier: Tier::Device }
}

/// A worker's half: the map and the log, fed together.
struct Side {
    map: LocalMap,
    log: FrameLog,
}

impl Side {
    fn new(limits: FrameLimits, plain: bool) -> Self {
        let mut log = FrameLog::new(limits);
        let map = LocalMap::new(usize::MAX);
        log.begin_epoch(WORKER, Epoch(1), plain, &map);
        Self { map, log }
    }

    fn store(&mut self, parent: u128, blocks: &[u128]) {
        self.map.store(SPACE, SequenceHash(parent), &hs(blocks), Tier::Device, |_| {});
        self.log.push(stored(parent, blocks), self.map.sum());
    }

    fn remove(&mut self, blocks: &[u128]) {
        let log = &mut self.log;
        let tell = |event, sum| log.push(event, sum);
        self.map.remove(&hs(blocks), Tier::Device, SMALL.frame_blocks_max, |_| {}, tell);
    }

    fn clear(&mut self) {
        self.map.clear();
        self.log.cleared();
    }

    fn sequences(&self, from: u64) -> Vec<u64> {
        match self.log.frames_from(from) {
            Frames::Next(frames) => frames.iter().map(|frame| frame.sequence).collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// The other half.
struct Member {
    next: u64,
    index: ModelIndex,
}

impl Member {
    fn new() -> Self {
        Self { next: 1, index: ModelIndex::new(u64::MAX) }
    }

    /// Takes frames in and compares after each.
    fn take(&mut self, frames: &[Arc<v1::EventFrame>]) {
        for frame in frames {
            if frame.sequence != self.next {
                continue;
            }
            self.next += 1;
            for event in &frame_from_wire(frame).expect("well formed").events {
                self.index.apply(WORKER, event);
            }
            let here = Sum {
                digest: self.index.digest(WORKER),
                blocks: self.index.worker_block_count(WORKER),
            };
            let told = Sum { digest: frame.digest, blocks: frame.blocks };
            assert_eq!(here, told, "after frame {}", frame.sequence);
        }
    }

    fn take_snapshot(&mut self, mark: StreamMark, runs: &[BlockEvent]) {
        self.index.remove_worker(WORKER);
        for run in runs {
            self.index.apply(WORKER, run);
        }
        assert_eq!(self.index.digest(WORKER), mark.digest);
        assert_eq!(self.index.worker_block_count(WORKER), mark.blocks);
        self.next = mark.sequence.0 + 1;
    }

    fn follow(&mut self, side: &mut Side) {
        for _ in 0..100 {
            match side.log.frames_from(self.next) {
                Frames::Next(frames) => self.take(&frames),
                Frames::UpToDate => return,
                Frames::Lost => {
                    let (mark, copy) = side.log.snapshot(&side.map);
                    self.take_snapshot(mark, &copy.runs(4));
                }
            }
        }
        panic!("the stream never settles");
    }

    fn equals(&self, map: &LocalMap) -> bool {
        let sum = map.sum();
        (self.index.digest(WORKER), self.index.worker_block_count(WORKER))
            == (sum.digest, sum.blocks)
    }
}

#[test]
fn numbers_count_from_1_and_frames_never_change() {
    let mut side = Side::new(SMALL, false);
    assert_eq!(side.log.frames_from(1), Frames::UpToDate);
    side.store(1, &[10, 11, 12, 13]);
    side.store(13, &[14]);
    assert_eq!(side.log.frames_from(1), Frames::UpToDate, "what waits is no frame yet");
    side.log.seal();
    assert_eq!(side.sequences(1), [1, 2], "4 blocks, then 1");
    let first = side.log.frames_from(1);
    side.remove(&[14]);
    side.log.seal();
    let Frames::Next(second) = side.log.frames_from(1) else { panic!("frames") };
    let Frames::Next(first) = first else { panic!("frames") };
    assert_eq!(second[..2], first[..]);
    assert_eq!(side.sequences(3), [3]);
    assert_eq!(side.log.frames_from(4), Frames::UpToDate);
    assert_eq!(side.log.frames_from(5), Frames::Lost, "never made");
    assert_eq!(side.log.frames_from(0), Frames::Lost, "asked for by who has nothing");
}

#[test]
fn events_that_follow_each_other_are_joined_within_a_frame() {
    let mut side = Side::new(FrameLimits::standard(), false);
    for n in 10..20 {
        side.store(n - 1, &[n]);
    }
    side.remove(&[19]);
    side.remove(&[15]);
    side.log.seal();
    let Frames::Next(frames) = side.log.frames_from(1) else { panic!("frames") };
    let run: Vec<u128> = (10..20).collect();
    let frame = frame_from_wire(&frames[0]).expect("well formed");
    assert_eq!(frame.events, [stored(9, &run), removed(&[19, 15])]);
}

#[test]
fn run_records_weigh_little_and_name_only_so_many() {
    let mut side = Side::new(FrameLimits { frame_events_max: 100, ..SMALL }, false);
    let mut member = Member::new();
    for chain in 1..=6 {
        let run: Vec<u128> = (0..10).map(|n| chain * 100 + n).collect();
        for four in run.chunks(4) {
            let parent = if four[0] == chain * 100 { 1 } else { four[0] - 1 };
            side.store(parent, four);
            side.log.seal();
            member.follow(&mut side);
        }
    }
    let from = member.next;
    for chain in 1..=6 {
        let leaf_first: Vec<u128> = (0..10).rev().map(|n| chain * 100 + n).collect();
        side.remove(&leaf_first);
    }
    side.log.seal();
    let Frames::Next(frames) = side.log.frames_from(from) else { panic!("frames") };
    assert_eq!(frames.len(), 2, "a message names 24 blocks, a frame 16");
    assert!(frames.iter().all(|frame| frame.events.len() == 1));
    member.follow(&mut side);
    assert_eq!(side.map.sum(), Sum::default());
}

#[test]
fn a_message_holds_so_many_frames_and_so_much() {
    let mut side = Side::new(SMALL, false);
    for n in 1..=6 {
        side.store(1, &[n * 10]);
        side.log.seal();
    }
    assert_eq!(side.sequences(1), [1, 2, 3], "frames");
    let mut side = Side::new(SMALL, false);
    for n in 1..=6 {
        side.store(1, &[n * 10, n * 10 + 1, n * 10 + 2, n * 10 + 3]);
        side.store(1, &[n * 10 + 4]);
        side.log.seal();
    }
    assert_eq!(side.log.next_sequence(), 13);
    assert_eq!(side.sequences(7), [7, 8, 9]);
    let tight = FrameLimits { message_weight_max: 8, ..SMALL };
    side.log.limits = tight;
    assert_eq!(side.sequences(7), [7, 8], "weight");
}

#[test]
fn who_falls_out_of_the_ring_needs_everything() {
    let mut side = Side::new(SMALL, false);
    for n in 1..=8 {
        side.store(1, &[n * 10]);
        side.log.seal();
    }
    assert_eq!(side.log.ring_frames(), 6);
    assert_eq!(side.log.frames_from(2), Frames::Lost);
    assert_eq!(side.sequences(3), [3, 4, 5]);
    side.store(1, &[500]);
    let (mark, copy) = side.log.snapshot(&side.map);
    assert_eq!(mark.sequence.0, 9, "what waited is in it");
    let mut member = Member::new();
    member.take_snapshot(mark, &copy.runs(4));
    assert_eq!(side.log.frames_from(10), Frames::UpToDate);
    assert!(member.equals(&side.map));
}

#[test]
fn the_ring_is_bounded_by_weight_too() {
    let mut side = Side::new(FrameLimits { ring_frames_max: 1_000, ..SMALL }, false);
    for n in 1..=100 {
        side.store(1, &[n * 10, n * 10 + 1, n * 10 + 2, n * 10 + 3]);
        side.log.seal();
        assert!(side.log.ring_weight <= SMALL.ring_weight_max);
    }
    assert_eq!(side.log.ring_frames(), 12);
}

#[test]
fn an_overflow_moves_the_sequence_on_by_one_and_everybody_needs_everything() {
    let mut side = Side::new(SMALL, false);
    let (mut one, mut two) = (Member::new(), Member::new());
    side.store(1, &[10]);
    side.log.seal();
    one.follow(&mut side);
    two.follow(&mut side);
    assert_eq!((one.next, two.next), (2, 2));
    for n in 0..100 {
        side.store(1, &[100 + n]);
        assert!(side.log.waiting_weight <= SMALL.waiting_max);
    }
    assert_eq!(side.log.resyncs, 1, "what is forgotten is forgotten once");
    assert_eq!(side.log.frames_from(2), Frames::Lost, "even who had everything");
    assert!(side.log.newest().is_none());
    one.follow(&mut side);
    assert_eq!(one.next, 3, "frame 2 is the one that was never made");
    assert_eq!(side.log.frames_from(2), Frames::Lost, "the other still is behind");
    side.store(1, &[500]);
    side.log.seal();
    two.follow(&mut side);
    one.follow(&mut side);
    assert!(one.equals(&side.map) && two.equals(&side.map));
    assert_eq!((one.next, two.next), (4, 4));
}

#[test]
fn a_new_epoch_over_a_full_map_is_told_by_a_snapshot_and_over_an_empty_one_by_nothing() {
    let mut side = Side::new(SMALL, false);
    side.store(1, &[10, 11]);
    side.log.begin_epoch(WORKER, Epoch(2), false, &side.map);
    assert_eq!(side.log.epoch(), Epoch(2));
    assert_eq!(side.log.frames_from(1), Frames::Lost);
    let mut member = Member::new();
    member.follow(&mut side);
    assert_eq!(member.next, 2);
    assert!(member.equals(&side.map));
    side.map.clear();
    side.log.begin_epoch(WORKER, Epoch(3), false, &side.map);
    assert_eq!(side.log.frames_from(1), Frames::UpToDate);
    assert!(side.log.newest().is_none());
    let (mark, copy) = side.log.snapshot(&side.map);
    assert_eq!((mark.sequence.0, mark.digest, mark.blocks), (0, 0, 0));
    assert!(copy.runs(4).is_empty());
}

#[test]
fn the_newest_frame_can_be_sent_again_even_when_none_is_kept() {
    let mut side = Side::new(SMALL, false);
    side.store(1, &[10]);
    side.log.seal();
    assert_eq!(side.log.newest().expect("one").sequence, 1);
    side.log.begin_epoch(WORKER, Epoch(2), false, &side.map);
    let mut member = Member::new();
    member.follow(&mut side);
    assert_eq!(side.log.ring_frames(), 0);
    let newest = side.log.newest().expect("an empty one is made");
    assert_eq!((newest.sequence, newest.events.len()), (2, 0));
    member.follow(&mut side);
    assert_eq!(member.next, 3);
}

#[test]
fn a_clear_replaces_what_waits() {
    let mut side = Side::new(SMALL, false);
    side.store(1, &[10, 11]);
    side.log.seal();
    side.store(11, &[12]);
    side.clear();
    side.store(1, &[20]);
    side.log.seal();
    let Frames::Next(frames) = side.log.frames_from(2) else { panic!("frames") };
    let frame = frame_from_wire(&frames[0]).expect("well formed");
    assert_eq!(frame.events, [BlockEvent::Cleared, stored(1, &[20])]);
    let mut member = Member::new();
    member.follow(&mut side);
    assert!(member.equals(&side.map));
}

#[test]
fn a_state_is_cut_into_parts() {
    use super::super::snapshots::parts;
    use crate::shared::Registration;
    let registration = Registration {
        worker: WORKER,
        epoch: Epoch(3),
        lease_ttl: std::time::Duration::from_secs(1),
        life: 1,
        plain: false,
    };
    let mut side = Side::new(SMALL, false);
    let all: Vec<u128> = (10..30).collect();
    side.map.store(SPACE, SequenceHash(1), &hs(&all), Tier::Device, |_| {});
    side.log.begin_epoch(WORKER, Epoch(3), false, &side.map);
    let (mark, copy) = side.log.snapshot(&side.map);
    let cut = parts(registration, mark, &copy.runs(4), &SMALL);
    assert_eq!(cut.iter().map(|part| part.part).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(cut.iter().map(|part| part.last).collect::<Vec<_>>(), [false, false, true]);
    assert!(cut.iter().all(|part| part.events.len() <= 2 && (part.epoch, part.worker) == (3, 1)));
    let runs: Vec<BlockEvent> = cut
        .iter()
        .flat_map(|part| &part.events)
        .map(|event| event_from_wire(event).expect("well formed"))
        .collect();
    Member::new().take_snapshot(mark, &runs);
    let empty = parts(registration, mark, &[], &SMALL);
    assert_eq!((empty.len(), empty[0].part, empty[0].last), (1, 0, true));
}

#[test]
fn the_plain_form_tells_what_the_map_has_behind_a_clearing_frame_1() {
    let mut side = Side::new(SMALL, true);
    side.store(1, &[10, 11]);
    side.log.begin_epoch(WORKER, Epoch(2), true, &side.map);
    let frames = side.log.plain_frames(1, &side.map);
    let frame = frame_from_wire(&frames[0]).expect("well formed");
    assert_eq!((frames.len(), frame.sequence.0), (1, 1));
    assert_eq!(frame.events, [BlockEvent::Cleared, stored(1, &[10, 11])]);
    assert!(!side.log.plain_due(2));
    assert!(side.log.plain_due(1), "not acknowledged");
}

#[test]
fn the_plain_window_is_bounded_and_an_overflow_tells_everything_again_under_the_next_number() {
    let mut side = Side::new(SMALL, true);
    let mut leader = Member::new();
    side.store(1, &[10]);
    let kept = side.log.plain_frames(1, &side.map);
    for n in 0..100 {
        side.store(1, &[100 + n]);
        assert!(side.log.plain_frames(1, &side.map).len() <= 3, "the window");
    }
    assert!(side.log.resyncs >= 1);
    assert_eq!(
        side.log.plain_frames(1, &side.map)[0],
        kept[0],
        "may still arrive, so never changes"
    );
    while side.log.plain_due(leader.next) {
        leader.take(&side.log.plain_frames(leader.next, &side.map));
    }
    assert!(leader.equals(&side.map));
}

#[test]
fn what_is_told_again_is_no_overflow() {
    let mut side = Side::new(SMALL, true);
    for n in 0..200 {
        side.map.store(SPACE, SequenceHash(1), &hs(&[100 + n]), Tier::Device, |_| {});
    }
    side.log.begin_epoch(WORKER, Epoch(2), true, &side.map);
    let mut leader = Member::new();
    for pass in 0..200 {
        leader.take(&side.log.plain_frames(leader.next, &side.map));
        if pass % 4 == 0 {
            side.store(1, &[1_000 + pass]);
        }
    }
    assert!(leader.equals(&side.map));
    assert_eq!(side.log.resyncs, 0, "news behind it still fit");
}

#[derive(Debug, Clone)]
enum Step {
    Store(u8, u8),
    Remove(u8),
    Clear,
    Arrives,
    AnswerLost,
    Lost,
    /// Only the first frame of the batch arrives.
    Cut,
    /// The leader starts again from an older state.
    Forgets,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..60, 0_u8..60).prop_map(|(p, b)| Step::Store(p, b)),
        2 => (0_u8..60).prop_map(Step::Remove),
        2 => Just(Step::Arrives),
        2 => Just(Step::AnswerLost),
        1 => Just(Step::Lost),
        1 => Just(Step::Cut),
        1 => Just(Step::Clear),
        1 => Just(Step::Forgets),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    // The plain form: whatever is lost on the way, once everything arrives both sides hold the same.
    #[test]
    fn losses_never_part_the_two_sides(steps in steps()) {
        let mut side = Side::new(SMALL, true);
        let mut leader = Member::new();
        // What the worker believes that the leader expects.
        let mut cursor = 1;
        for step in steps {
            match step {
                Step::Store(parent, block) => side.store(u128::from(parent) + 100, &[u128::from(block)]),
                Step::Remove(block) => side.remove(&[u128::from(block)]),
                Step::Clear => side.clear(),
                Step::Lost => drop(side.log.plain_frames(cursor, &side.map)),
                Step::AnswerLost => leader.take(&side.log.plain_frames(cursor, &side.map)),
                Step::Arrives => {
                    leader.take(&side.log.plain_frames(cursor, &side.map));
                    cursor = leader.next;
                }
                Step::Cut => {
                    let frames = side.log.plain_frames(cursor, &side.map);
                    leader.take(&frames[..frames.len().min(1)]);
                    cursor = leader.next;
                }
                Step::Forgets => {
                    leader = Member::new();
                    cursor = 1;
                }
            }
            prop_assert!(cursor <= side.log.next_sequence());
        }
        for _ in 0..1_000 {
            cursor = leader.next;
            if !side.log.plain_due(cursor) {
                break;
            }
            leader.take(&side.log.plain_frames(cursor, &side.map));
        }
        prop_assert!(!side.log.plain_due(cursor), "the stream never settles");
        prop_assert!(leader.equals(&side.map));
    }
}
