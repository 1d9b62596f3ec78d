//! Scopes by hand: what counts, what is lacking, and what the coming and going of regions does.

use mainstay_types::{Command, LogIndex, PinId, PinRequest, PinScope, PinState, Region};

use super::MissingCopies;
use crate::testing::{Log, fence, pin, prefix, register_in, report};
use crate::{Limits, Machine};

fn region(name: &str) -> Region {
    Region::new(name).expect("a name")
}

/// Workers 1 and 2 in `a`, 3 in `b`, 4 in `c`.
fn three_regions() -> Log {
    let mut log = Log::new(Limits::standard());
    for (name, place) in [("w1", "a"), ("w2", "a"), ("w3", "b"), ("w4", "c")] {
        log.apply(register_in(name, 1, place));
    }
    log
}

fn put(log: &mut Log, scope: PinScope, copies_min: u32) {
    let request = PinRequest { scope, copies_min, ttl_ms: 60_000, ..pin(1, prefix(0, 4)) };
    log.apply(Command::PutPin(request));
}

fn state(machine: &Machine) -> PinState {
    machine.pin(PinId(1)).expect("it was made").state
}

fn missing(log: &Log) -> Vec<(Option<String>, u32)> {
    let missing = log.machine.missing_copies(PinId(1));
    missing
        .into_iter()
        .map(|MissingCopies { region, copies }| (region.map(|r| r.to_string()), copies))
        .collect()
}

fn some(name: &str, copies: u32) -> (Option<String>, u32) {
    (Some(name.to_owned()), copies)
}

#[test]
fn a_regions_pin_counts_its_own_workers_only() {
    let mut log = three_regions();
    put(&mut log, PinScope::Region(region("a")), 2);
    assert_eq!(missing(&log), [some("a", 2)]);
    log.apply(report(3, 1, 1, 4));
    log.apply(report(4, 1, 1, 4));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Partial, vec![some("a", 2)]));
    log.apply(report(1, 1, 1, 4));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Partial, vec![some("a", 1)]));
    log.apply(report(2, 1, 1, 4));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Active, vec![]));
    log.apply(fence(2, 1));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Degraded, vec![some("a", 1)]));
}

#[test]
fn a_global_pin_wants_two_regions_even_for_one_copy() {
    let mut log = three_regions();
    put(&mut log, PinScope::Global, 1);
    assert_eq!(missing(&log), [some("a", 1), some("b", 1)]);
    log.apply(report(1, 1, 1, 4));
    log.apply(report(2, 1, 1, 4));
    // Both in one region: the loss of `a` would be the loss of the pin. `c` has begun.
    log.apply(report(4, 1, 1, 2));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Partial, vec![some("c", 1)]));
    log.apply(report(4, 1, 1, 4));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Active, vec![]));
}

#[test]
fn a_global_pin_counts_copies_across_regions() {
    let mut log = three_regions();
    put(&mut log, PinScope::Global, 4);
    log.apply(report(1, 1, 1, 4));
    assert_eq!(missing(&log), [some("b", 1), (None, 2)]);
    for worker in [2, 3] {
        log.apply(report(worker, 1, 1, 4));
    }
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Partial, vec![(None, 1)]));
    log.apply(report(4, 1, 1, 4));
    assert_eq!(state(&log.machine), PinState::Active);
}

#[test]
fn one_region_is_enough_while_there_is_no_other() {
    let mut log = Log::new(Limits::standard());
    log.apply(register_in("w1", 1, "a"));
    put(&mut log, PinScope::Global, 1);
    log.apply(report(1, 1, 1, 4));
    assert_eq!(state(&log.machine), PinState::Active);
    log.apply(register_in("w2", 1, "b"));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Degraded, vec![some("b", 1)]));
    let changed = log.machine.pin(PinId(1)).expect("made").changed_index;
    assert_eq!(changed, log.machine.applied());
    // A third region changes nothing.
    log.apply(register_in("w3", 1, "c"));
    assert_eq!(log.machine.pin(PinId(1)).expect("made").changed_index, LogIndex(changed.0));
    log.apply(fence(2, 1));
    assert_eq!(state(&log.machine), PinState::Degraded);
    log.apply(fence(3, 1));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Active, vec![]));
}

#[test]
fn a_worker_that_moves_takes_its_region_along() {
    let mut log = Log::new(Limits::standard());
    log.apply(register_in("w1", 1, "a"));
    log.apply(register_in("w2", 1, "a"));
    put(&mut log, PinScope::Global, 1);
    log.apply(report(1, 1, 1, 4));
    assert_eq!(state(&log.machine), PinState::Active);
    log.apply(register_in("w2", 2, "b"));
    assert_eq!((state(&log.machine), missing(&log)), (PinState::Degraded, vec![some("b", 1)]));
    log.apply(register_in("w2", 3, "a"));
    assert_eq!(state(&log.machine), PinState::Active);
}

#[test]
fn a_pin_of_another_scope_takes_nobodys_place() {
    let mut log = three_regions();
    put(&mut log, PinScope::Region(region("a")), 1);
    let longer = PinRequest { scope: PinScope::Global, ttl_ms: 60_000, ..pin(2, prefix(0, 5)) };
    log.apply(Command::PutPin(longer.clone()));
    assert!(log.machine.pin(PinId(1)).expect("made").is_live());
    log.apply(Command::PutPin(PinRequest { id: PinId(3), blocks: prefix(0, 6), ..longer }));
    assert!(!log.machine.pin(PinId(2)).expect("made").is_live());
    assert!(log.machine.pin(PinId(1)).expect("made").is_live());
}

#[test]
fn regions_and_scopes_are_in_the_image() {
    let mut log = three_regions();
    put(&mut log, PinScope::Global, 2);
    log.apply(report(1, 1, 1, 4));
    log.apply(report(3, 1, 1, 4));
    log.apply(Command::PutPin(PinRequest {
        scope: PinScope::Region(region("b")),
        ..pin(2, prefix(1, 3))
    }));
    let read = Machine::decode(&log.machine.encode(), Limits::standard()).expect("its own image");
    assert_eq!(read.digest(), log.machine.digest());
    assert_eq!(state(&read), PinState::Active);
    let scopes: Vec<String> = read.pins().map(|p| p.request.scope.to_string()).collect();
    assert_eq!(scopes, ["global", "region:b"]);
    let regions: Vec<String> = read.workers().map(|w| w.region.to_string()).collect();
    assert_eq!(regions, ["a", "a", "b", "c"]);
    // Read or built, the next change means the same.
    let mut again = read.clone();
    let mut went_on = log.machine.clone();
    for machine in [&mut again, &mut went_on] {
        let index = machine.applied().next();
        let stamp = crate::testing::stamp(0);
        let command = fence(3, 1);
        machine.apply(index, &mainstay_types::Proposal { stamp, command });
    }
    assert_eq!(again.digest(), went_on.digest());
    assert_eq!(state(&again), PinState::Degraded);
}
