//! Workers, epochs, frames and time by hand; whole logs by chance.

use mainstay_types::{BlockEvent, ModelSpec, PinState, Stamp};
use proptest::prelude::*;

use super::*;
use crate::WorkerState;
use crate::testing::{
    Log, fence, frame, log, machine, pin, prefix, register, report, small_limits, stamp, stored,
};

fn registered(worker: u32, epoch: u64) -> Outcome {
    Outcome::Registered { worker: WorkerId(worker), epoch: Epoch(epoch) }
}

fn blocks(next_sequence: u64, accepted: bool) -> Outcome {
    Outcome::Blocks { next_sequence: EventSequence(next_sequence), accepted }
}

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

#[test]
fn a_retried_registration_gets_the_same_epoch_and_a_new_life_the_next() {
    let mut log = Log::new(Limits::standard());
    assert_eq!(log.apply(register("a", 7)), registered(1, 1));
    assert_eq!(log.apply(register("a", 7)), registered(1, 1));
    assert_eq!(log.apply(register("b", 7)), registered(2, 1));
    assert_eq!(log.apply(register("a", 8)), registered(1, 2));
    assert_eq!(log.machine.worker_named("a").map(|w| w.epoch), Some(Epoch(2)));
}

#[test]
fn a_new_life_takes_the_blocks_and_pins_of_the_former_along() {
    let mut log = Log::new(Limits::standard());
    log.apply(register("a", 1));
    assert_eq!(log.apply(frame(1, 1, 1, vec![stored(prefix(0, 4))])), blocks(2, true));
    log.apply(Command::PutPin(pin(5, prefix(0, 4))));
    assert_eq!(log.apply(report(1, 1, 5, 4)), Outcome::Reported);
    assert_eq!(log.machine.pin(PinId(5)).map(|p| p.state), Some(PinState::Active));
    log.apply(register("a", 2));
    assert_eq!(log.machine.index().block_count(), 0);
    let pin = log.machine.pin(PinId(5)).expect("still there");
    assert_eq!((pin.state, pin.holders.len()), (PinState::Degraded, 0));
    assert_eq!(code(&log.apply(report(1, 1, 5, 4))), Some(ErrorCode::FailedPrecondition));
    assert_eq!(log.apply(report(1, 2, 5, 4)), Outcome::Reported);
    assert_eq!(log.machine.pin(PinId(5)).map(|p| p.state), Some(PinState::Active));
}

#[test]
fn a_fence_ends_one_epoch_and_leaves_a_newer_one_alone() {
    let mut log = Log::new(Limits::standard());
    log.apply(register("a", 1));
    log.apply(register("a", 2));
    log.apply(frame(1, 2, 1, vec![stored(prefix(0, 4))]));
    assert_eq!(log.apply(fence(1, 1)), Outcome::Fenced);
    assert!(log.machine.worker(WorkerId(1)).expect("known").is_live());
    assert_eq!(log.machine.index().block_count(), 4);
    assert_eq!(code(&log.apply(fence(1, 3))), Some(ErrorCode::FailedPrecondition));
    assert_eq!(code(&log.apply(fence(9, 1))), Some(ErrorCode::NotFound));
    assert_eq!(log.apply(fence(1, 2)), Outcome::Fenced);
    assert_eq!(log.machine.index().block_count(), 0);
    let late = log.apply(frame(1, 2, 2, vec![stored(prefix(0, 4))]));
    assert_eq!(code(&late), Some(ErrorCode::FailedPrecondition));
    assert_eq!(log.apply(fence(1, 2)), Outcome::Fenced);
}

#[test]
fn a_late_retry_does_not_bring_a_fenced_life_back() {
    let mut log = Log::new(Limits::standard());
    log.apply(register("a", 1));
    log.apply(fence(1, 1));
    assert_eq!(code(&log.apply(register("a", 1))), Some(ErrorCode::FailedPrecondition));
    assert_eq!(log.apply(register("a", 2)), registered(1, 2));
}

#[test]
fn frames_count_without_holes() {
    let mut log = Log::new(Limits::standard());
    let outcome = log.apply(frame(1, 1, 1, vec![]));
    assert_eq!(code(&outcome), Some(ErrorCode::FailedPrecondition));
    log.apply(register("a", 1));
    assert_eq!(log.apply(frame(1, 1, 1, vec![stored(prefix(0, 2))])), blocks(2, true));
    assert_eq!(log.apply(frame(1, 1, 3, vec![stored(prefix(0, 9))])), blocks(2, false));
    assert_eq!(log.apply(frame(1, 1, 1, vec![BlockEvent::Cleared])), blocks(2, true));
    assert_eq!(log.apply(frame(1, 1, 0, vec![BlockEvent::Cleared])), blocks(2, true));
    assert_eq!(log.machine.index().worker_block_count(WorkerId(1)), 2);
    let rest = vec![BlockEvent::Cleared, stored(prefix(0, 5))];
    assert_eq!(log.apply(frame(1, 1, 2, rest)), blocks(3, true));
    assert_eq!(log.machine.index().worker_block_count(WorkerId(1)), 5);
    assert_eq!(code(&log.apply(frame(1, 2, 1, vec![]))), Some(ErrorCode::FailedPrecondition));
}

#[test]
fn a_full_table_forgets_the_longest_fenced_worker_and_never_a_live_one() {
    let mut log = Log::new(small_limits());
    for name in ["a", "b", "c", "d"] {
        log.apply(register(name, 1));
    }
    assert_eq!(code(&log.apply(register("e", 1))), Some(ErrorCode::ResourceExhausted));
    log.apply(fence(3, 1));
    log.apply(fence(2, 1));
    assert_eq!(log.apply(register("e", 1)), registered(5, 1));
    assert!(log.machine.worker(WorkerId(3)).is_none());
    assert!(log.machine.worker(WorkerId(2)).is_some());
    assert_eq!(log.apply(register("c", 1)), registered(6, 1));
    assert!(log.machine.worker_named("b").is_none());
}

#[test]
fn odd_registrations_are_refused() {
    let mut log = Log::new(Limits::standard());
    let model = |name: &str, block_tokens| ModelSpec {
        name: name.to_owned(),
        revision: String::new(),
        block_tokens,
        context_tokens_max: 1,
    };
    for (name, address, model) in [
        ("", "x:1", model("m", 16)),
        ("a\u{7}", "x:1", model("m", 16)),
        ("a", "", model("m", 16)),
        ("a", "x:1", model("", 16)),
        ("a", "x:1", model("m", 0)),
        (&*"n".repeat(129), "x:1", model("m", 16)),
    ] {
        let (name, address) = (name.to_owned(), address.to_owned());
        let command = Command::RegisterWorker {
            name,
            address,
            incarnation: 1,
            model,
            blocks_total: 1,
            region: Region::default(),
        };
        assert_eq!(code(&log.apply(command)), Some(ErrorCode::InvalidArgument));
    }
    assert_eq!(log.machine.workers().count(), 0);
}

#[test]
fn the_hash_key_is_set_once() {
    let mut log = Log::new(Limits::standard());
    let set = |byte| Command::Bootstrap { hash_key: [byte; 16] };
    let done = Outcome::Bootstrapped { hash_key: HashKey([1; 16]) };
    assert_eq!(log.machine.hash_key(), None);
    assert_eq!(log.apply(set(1)), done);
    assert_eq!(log.apply(set(1)), done);
    assert_eq!(code(&log.apply(set(2))), Some(ErrorCode::AlreadyExists));
    assert_eq!(log.machine.hash_key(), Some(HashKey([1; 16])));
}

#[test]
fn an_entry_is_applied_once() {
    let mut machine = Machine::new(Limits::standard());
    let entry = Proposal { stamp: stamp(500), command: register("a", 1) };
    assert_eq!(machine.apply(LogIndex(7), &entry), registered(1, 1));
    let digest = machine.digest();
    let again = Proposal { stamp: stamp(900), command: register("b", 1) };
    assert_eq!(code(&machine.apply(LogIndex(7), &again)), Some(ErrorCode::FailedPrecondition));
    assert_eq!(code(&machine.apply(LogIndex(0), &again)), Some(ErrorCode::FailedPrecondition));
    assert_eq!((machine.digest(), machine.applied()), (digest, LogIndex(7)));
    assert_eq!(machine.apply(LogIndex(9), &again), registered(2, 1));
}

#[test]
fn numbers_at_their_ends_do_not_panic() {
    let mut machine = Machine::new(Limits::standard());
    let last = Stamp { mono_ms: u64::MAX, wall_ms: u64::MAX, ..Stamp::default() };
    let mut apply =
        |index, command| machine.apply(LogIndex(index), &Proposal { stamp: last, command });
    apply(1, register("a", u64::MAX));
    assert_eq!(apply(2, frame(1, 1, u64::MAX, vec![])), blocks(1, false));
    // Time stands at its end, where every expiry is now.
    apply(3, Command::PutPin(pin(1, prefix(0, 3))));
    apply(u64::MAX, Command::Tick);
    assert_eq!(machine.live_pin_count(), 0);
}

/// What must hold after every entry, from scratch.
fn check_invariants(machine: &Machine) -> Result<(), TestCaseError> {
    for worker in machine.workers() {
        let held = machine.index().worker_block_count(worker.id);
        prop_assert!(worker.is_live() || held == 0, "a fenced worker holds blocks");
        prop_assert!(worker.is_live() == (worker.state == WorkerState::Live));
        let all = machine.index().keys_of(worker.id);
        prop_assert_eq!(all.len() as u64, held);
        prop_assert_eq!(machine.index().held_of(worker.id, &all), held);
    }
    let live = |id: &WorkerId| machine.worker(*id).is_some_and(Worker::is_live);
    for pin in machine.pins() {
        prop_assert!(pin.holders.keys().all(live), "a fenced worker holds a pin");
        prop_assert!(pin.is_live() || pin.holders.is_empty());
        prop_assert_eq!(pin.is_live(), pin.reason.is_empty());
    }
    prop_assert!(machine.workers().count() <= machine.limits().workers_max as usize);
    prop_assert!(machine.index().held_count() <= machine.limits().index_blocks_max);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn equal_logs_make_equal_machines_and_a_snapshot_replaces_its_log(
        log in log(120),
        cut in any::<prop::sample::Index>(),
        old in any::<bool>(),
    ) {
        let begin = if old { Machine::new } else { machine };
        let (mut one, mut two) = (begin(small_limits()), begin(small_limits()));
        let cut = cut.index(log.len() + 1);
        for (at, proposal) in log.iter().enumerate() {
            if at == cut {
                let image = two.encode();
                two = Machine::decode(&image, small_limits()).expect("its own image");
                prop_assert_eq!(two.encode(), image);
            }
            let index = LogIndex(at as u64 + 1);
            let before = one.time().now_ms;
            let outcome = one.apply(index, proposal);
            prop_assert_eq!(&outcome, &two.apply(index, proposal));
            prop_assert!(one.time().now_ms >= before);
            prop_assert_eq!(one.digest(), two.digest());
            check_invariants(&one)?;
        }
        prop_assert_eq!(one.encode(), two.encode());
        prop_assert_eq!(one.encode_without_blocks(), two.encode_without_blocks());
    }

    #[test]
    fn a_refused_command_changes_nothing_but_time(log in log(80)) {
        let mut machine = machine(small_limits());
        for (at, proposal) in log.iter().enumerate() {
            let index = LogIndex(at as u64 + 1);
            let mut ticked = machine.clone();
            let outcome = machine.apply(index, proposal);
            if code(&outcome).is_some() {
                ticked.apply(index, &Proposal { command: Command::Tick, ..proposal.clone() });
                prop_assert_eq!(machine.encode(), ticked.encode());
            }
        }
    }
}
