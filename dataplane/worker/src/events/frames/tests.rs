//! Tests of the frame log against a control plane that loses frames and answers.

use mainstay_proto::convert::frame_from_wire;
use mainstay_types::{NamespaceId, SequenceHash, Tier};
use proptest::prelude::*;

use super::*;

const SPACE: NamespaceId = NamespaceId(1);
const SMALL: FrameLimits = FrameLimits {
    frame_blocks_max: 4,
    frame_events_max: 3,
    frames_unacknowledged_max: 3,
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
    fn new(limits: FrameLimits) -> Self {
        let mut log = FrameLog::new(limits);
        log.begin_epoch(WorkerId(1), Epoch(1));
        Self { map: LocalMap::new(usize::MAX), log }
    }

    fn event(&mut self, event: BlockEvent) {
        apply(&mut self.map, &event);
        self.log.push(event);
    }

    fn sequences(&mut self) -> Vec<u64> {
        self.log.frames(&self.map).iter().map(|f| f.sequence).collect()
    }
}

fn apply(map: &mut LocalMap, event: &BlockEvent) {
    match event {
        BlockEvent::Stored { namespace, parent, blocks, tier } => {
            map.store(*namespace, *parent, blocks, *tier, |_| {});
        }
        BlockEvent::Removed { blocks, tier } => map.remove(blocks, *tier, |_| {}),
        BlockEvent::Cleared => map.clear(),
    }
}

fn content(map: &LocalMap) -> Vec<String> {
    let mut runs: Vec<String> = map.runs().iter().map(|run| format!("{run:?}")).collect();
    runs.sort();
    runs
}

/// The other half, with the state machine's rules.
struct Control {
    next: u64,
    map: LocalMap,
}

impl Control {
    fn new() -> Self {
        Self { next: 1, map: LocalMap::new(usize::MAX) }
    }

    fn publish(&mut self, frames: &[v1::EventFrame]) -> u64 {
        for frame in frames {
            if frame.sequence == self.next {
                self.next += 1;
                for event in &frame_from_wire(frame).expect("well formed").events {
                    apply(&mut self.map, event);
                }
            }
        }
        self.next
    }
}

#[test]
fn an_epoch_begins_with_a_clearing_frame_1() {
    let mut side = Side::new(SMALL);
    side.event(stored(1, &[10, 11]));
    let frames = side.log.frames(&side.map);
    assert_eq!(frames.len(), 1);
    let frame = frame_from_wire(&frames[0]).expect("well formed");
    assert_eq!(frame.sequence.0, 1);
    assert_eq!(frame.events, [BlockEvent::Cleared, stored(1, &[10, 11])]);
    assert_eq!(side.log.acknowledge(2), Acknowledged::All);
    assert!(!side.log.due());
}

#[test]
fn numbers_have_no_holes_and_unacknowledged_frames_are_sent_again_as_they_were() {
    let mut side = Side::new(SMALL);
    assert_eq!(side.sequences(), [1]);
    side.log.acknowledge(2);
    side.event(stored(1, &[10, 11, 12, 13, 14]));
    let first = side.log.frames(&side.map);
    assert_eq!(first.iter().map(|f| f.sequence).collect::<Vec<_>>(), [2, 3], "4 blocks, then 1");
    side.event(removed(&[14]));
    let second = side.log.frames(&side.map);
    assert_eq!(second[..2], first[..], "a number never changes its content");
    assert_eq!(second.len(), 3);
    assert_eq!(side.log.acknowledge(3), Acknowledged::Gap);
    assert_eq!(side.sequences(), [3, 4]);
    assert_eq!(side.log.acknowledge(5), Acknowledged::All);
}

#[test]
fn a_split_run_goes_on_where_it_was_cut() {
    let mut side = Side::new(SMALL);
    side.sequences();
    side.log.acknowledge(2);
    side.event(stored(1, &[10, 11, 12, 13, 14, 15]));
    let frames = side.log.frames(&side.map);
    let second = frame_from_wire(&frames[1]).expect("well formed");
    assert_eq!(second.events, [stored(13, &[14, 15])]);
}

#[test]
fn runs_that_follow_each_other_are_joined() {
    let mut side = Side::new(FrameLimits::standard());
    side.sequences();
    side.log.acknowledge(2);
    for n in 10..20 {
        side.event(stored(n - 1, &[n]));
    }
    side.event(removed(&[19]));
    side.event(removed(&[18]));
    let frames = side.log.frames(&side.map);
    let frame = frame_from_wire(&frames[0]).expect("well formed");
    let run: Vec<u128> = (10..20).collect();
    assert_eq!(frame.events, [stored(9, &run), removed(&[19, 18])]);
}

#[test]
fn the_window_is_bounded_and_an_overflow_tells_everything_again() {
    let mut side = Side::new(SMALL);
    let mut control = Control::new();
    control.publish(&side.log.frames(&side.map));
    side.log.acknowledge(control.next);
    for n in 0..100 {
        side.event(stored(1, &[100 + n]));
        assert!(side.sequences().len() <= 3, "the window");
        assert!(side.log.waiting_weight <= SMALL.waiting_max);
    }
    assert_eq!(side.log.resyncs, 1);
    while side.log.due() {
        control.publish(&side.log.frames(&side.map));
        side.log.acknowledge(control.next);
    }
    assert_eq!(content(&control.map), content(&side.map));
}

#[test]
fn a_snapshot_larger_than_the_queue_is_no_overflow() {
    let mut side = Side::new(SMALL);
    for n in 0..200 {
        side.event(stored(1, &[100 + n]));
    }
    let mut control = Control::new();
    for pass in 0..200 {
        control.publish(&side.log.frames(&side.map));
        side.log.acknowledge(control.next);
        // The window lets 9 of 201 events go in a pass, so that 6 news gather behind the snapshot.
        if pass % 4 == 0 {
            side.event(stored(1, &[1_000 + pass]));
        }
    }
    assert_eq!(content(&control.map), content(&side.map));
    assert_eq!(side.log.resyncs, 0, "news behind a snapshot still fit");
}

#[test]
fn a_control_plane_that_forgot_is_told_everything_from_the_number_that_it_wants() {
    let mut side = Side::new(SMALL);
    side.event(stored(1, &[10]));
    side.sequences();
    side.log.acknowledge(2);
    side.event(stored(10, &[11]));
    side.sequences();
    assert_eq!(side.log.acknowledge(1), Acknowledged::Resync);
    let mut control = Control::new();
    control.publish(&side.log.frames(&side.map));
    assert_eq!(content(&control.map), content(&side.map));
    assert_eq!(side.log.acknowledge(99), Acknowledged::Ahead);
}

#[derive(Debug, Clone)]
enum Step {
    Store(u8, u8),
    Remove(u8),
    Arrives,
    AnswerLost,
    Lost,
    /// Only the first frame of the batch arrives.
    Cut,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..60, 0_u8..60).prop_map(|(p, b)| Step::Store(p, b)),
        2 => (0_u8..60).prop_map(Step::Remove),
        2 => Just(Step::Arrives),
        2 => Just(Step::AnswerLost),
        1 => Just(Step::Lost),
        1 => Just(Step::Cut),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    // Whatever is lost on the way, once everything arrives both sides hold the same.
    #[test]
    fn losses_never_part_the_two_sides(steps in steps()) {
        let mut side = Side::new(SMALL);
        let mut control = Control::new();
        for step in steps {
            match step {
                Step::Store(parent, block) => side.event(stored(u128::from(parent) + 100, &[u128::from(block)])),
                Step::Remove(block) => side.event(removed(&[u128::from(block)])),
                Step::Lost => drop(side.log.frames(&side.map)),
                Step::AnswerLost => drop(control.publish(&side.log.frames(&side.map))),
                Step::Arrives => {
                    let next = control.publish(&side.log.frames(&side.map));
                    prop_assert_ne!(side.log.acknowledge(next), Acknowledged::Ahead);
                }
                Step::Cut => {
                    let frames = side.log.frames(&side.map);
                    let next = control.publish(&frames[..frames.len().min(1)]);
                    prop_assert_ne!(side.log.acknowledge(next), Acknowledged::Resync);
                }
                Step::Reset => {
                    side.map.clear();
                    side.log.tell_all_again();
                }
            }
        }
        for _ in 0..1_000 {
            if !side.log.due() {
                break;
            }
            let next = control.publish(&side.log.frames(&side.map));
            side.log.acknowledge(next);
        }
        prop_assert!(!side.log.due(), "the stream never settles");
        prop_assert_eq!(content(&control.map), content(&side.map));
    }
}
