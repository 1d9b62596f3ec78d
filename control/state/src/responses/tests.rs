//! Stored responses by hand: chains and their ends, budgets and who makes room, running ones, and what an image shows.

use mainstay_types::Command;

use super::*;
use crate::testing::{Log, end_response, response, response_id, small_limits, tenant};
use crate::{Machine, Outcome};

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

fn put(log: &mut Log, id: u64, previous: Option<u64>, bytes: usize) -> Outcome {
    log.apply(Command::PutResponse(response(id, previous, bytes)))
}

const KEPT: Outcome = Outcome::Response { state: ResponseState::Ended, changed: true };
const KNOWN: Outcome = Outcome::Response { state: ResponseState::Ended, changed: false };

fn ids(machine: &Machine) -> Vec<String> {
    machine.responses().map(|r| r.record.id.to_string()).collect()
}

fn chain(machine: &Machine, id: u64) -> Vec<String> {
    let chain = machine.response_chain(&tenant("acme"), &response_id(id));
    chain.map(|r| r.record.id.to_string()).collect()
}

#[test]
fn a_chain_is_kept_as_long_as_its_last_and_ends_where_one_was_deleted() {
    let mut log = Log::new(small_limits());
    assert_eq!(put(&mut log, 1, None, 10), KEPT);
    assert_eq!(put(&mut log, 1, None, 10), KNOWN);
    assert_eq!(code(&put(&mut log, 1, None, 11)), Some(ErrorCode::AlreadyExists));
    log.pass(900);
    assert_eq!(put(&mut log, 2, Some(1), 10), KEPT);
    log.pass(900);
    assert_eq!(put(&mut log, 3, Some(2), 10), KEPT);
    assert_eq!(chain(&log.machine, 3), ["resp_3", "resp_2", "resp_1"]);
    // Three are the most that a chain may have here.
    assert_eq!(code(&put(&mut log, 4, Some(3), 10)), Some(ErrorCode::FailedPrecondition));
    assert_eq!(code(&put(&mut log, 4, Some(9), 10)), Some(ErrorCode::NotFound));
    let deleted = log.apply(end_response("acme", 2, false));
    assert_eq!(deleted, KEPT);
    assert_eq!(code(&log.apply(end_response("acme", 2, false))), Some(ErrorCode::NotFound));
    assert_eq!(chain(&log.machine, 3), ["resp_3"]);
    assert_eq!(code(&put(&mut log, 4, Some(3), 10)), Some(ErrorCode::NotFound));
    // A new one under a deleted one's id does not mend the chain.
    assert_eq!(put(&mut log, 2, Some(1), 12), KEPT);
    assert_eq!(chain(&log.machine, 3), ["resp_3"]);
    log.pass(10_000);
    assert_eq!(ids(&log.machine), Vec::<String>::new());
    assert_eq!(log.machine.tenant_response_bytes(&tenant("acme")), 0);
}

#[test]
fn the_least_recently_touched_make_room_and_a_chain_never_for_its_own_end() {
    let mut log = Log::new(small_limits());
    // Of 1,500 bytes: each takes 456.
    for id in [1, 2, 3] {
        assert_eq!(put(&mut log, id, None, 200), KEPT);
    }
    assert_eq!(put(&mut log, 4, Some(1), 200), KEPT);
    assert_eq!(ids(&log.machine), ["resp_1", "resp_3", "resp_4"]);
    assert_eq!(put(&mut log, 5, Some(4), 200), KEPT);
    assert_eq!(ids(&log.machine), ["resp_1", "resp_4", "resp_5"]);
    // What continues goes before what it continues, and only as much as is needed.
    assert_eq!(put(&mut log, 6, None, 200), KEPT);
    assert_eq!(ids(&log.machine), ["resp_1", "resp_4", "resp_6"]);
    let mut log = Log::new(Limits { response_bytes_per_tenant_max: 900, ..small_limits() });
    put(&mut log, 1, None, 300);
    let refused = put(&mut log, 2, Some(1), 300);
    assert_eq!(code(&refused), Some(ErrorCode::ResourceExhausted));
    assert_eq!(ids(&log.machine), ["resp_1"]);
}

#[test]
fn the_tenant_that_uses_most_makes_room_for_the_others() {
    let mut log = Log::new(small_limits());
    let of = |name: &str, id: u64| {
        Command::PutResponse(ResponseRecord { tenant: tenant(name), ..response(id, None, 200) })
    };
    // 456 bytes each; 2,400 are for all.
    for id in [1, 2, 3] {
        log.apply(of("zeta", id));
    }
    for id in [4, 5] {
        log.apply(of("acme", id));
    }
    assert_eq!(log.apply(of("c", 6)), KEPT);
    assert_eq!(ids(&log.machine), ["resp_4", "resp_5", "resp_6", "resp_2", "resp_3"]);
    // Each tenant sees its own only.
    assert!(log.machine.response(&tenant("c"), &response_id(4)).is_none());
    assert_eq!(code(&log.apply(end_response("c", 4, false))), Some(ErrorCode::NotFound));
}

#[test]
fn a_running_response_ends_once_or_is_cancelled() {
    let mut log = Log::new(small_limits());
    let running = |id| {
        let record = response(id, None, 5);
        Command::PutResponse(ResponseRecord { state: ResponseState::Running, ..record })
    };
    let state = |log: &Log, id| {
        let found = log.machine.response(&tenant("acme"), &response_id(id));
        found.map(|r| (r.record.state, r.record.payload.bytes()))
    };
    log.apply(running(1));
    assert_eq!(state(&log, 1), Some((ResponseState::Running, 5)));
    assert_eq!(code(&put(&mut log, 2, Some(1), 5)), Some(ErrorCode::FailedPrecondition));
    assert_eq!(put(&mut log, 1, None, 40), KEPT);
    assert_eq!(put(&mut log, 1, None, 40), KNOWN);
    assert_eq!(state(&log, 1), Some((ResponseState::Ended, 40)));
    assert_eq!(put(&mut log, 2, Some(1), 5), KEPT);
    assert_eq!(
        code(&log.apply(end_response("acme", 1, true))),
        Some(ErrorCode::FailedPrecondition)
    );
    log.apply(running(3));
    let cancelled = |changed| Outcome::Response { state: ResponseState::Cancelled, changed };
    assert_eq!(log.apply(end_response("acme", 3, true)), cancelled(true));
    assert_eq!(log.apply(end_response("acme", 3, true)), cancelled(false));
    assert_eq!(code(&put(&mut log, 3, None, 40)), Some(ErrorCode::FailedPrecondition));
    assert_eq!(state(&log, 3), Some((ResponseState::Cancelled, 5)));
    assert_eq!(code(&log.apply(end_response("acme", 9, true))), Some(ErrorCode::NotFound));
}

#[test]
fn odd_records_are_refused() {
    let mut log = Log::new(small_limits());
    for record in [
        response(1, None, 0),
        response(1, None, 301),
        ResponseRecord { ttl_ms: 0, ..response(1, None, 5) },
        ResponseRecord { ttl_ms: 10_001, ..response(1, None, 5) },
        ResponseRecord { state: ResponseState::Cancelled, ..response(1, None, 5) },
    ] {
        let outcome = log.apply(Command::PutResponse(record));
        assert_eq!(code(&outcome), Some(ErrorCode::InvalidArgument), "{outcome:?}");
    }
    assert_eq!(code(&put(&mut log, 1, Some(1), 5)), Some(ErrorCode::NotFound));
}

#[test]
fn only_members_images_show_what_was_said() {
    let mut log = Log::new(small_limits());
    put(&mut log, 1, None, 40);
    put(&mut log, 2, Some(1), 50);
    let machine = &log.machine;
    let held = machine.response(&tenant("acme"), &response_id(2)).expect("kept");
    let held = held.record.payload.held().expect("not withheld").to_vec();
    let shows = |image: &[u8]| image.windows(held.len()).any(|bytes| bytes == held);
    let copy = |image: &[u8]| Machine::decode(image, small_limits()).expect("its own image");
    let full = machine.encode();
    assert!(shows(&full));
    assert_eq!(copy(&full).encode(), full);
    assert_eq!(copy(&full).digest(), machine.digest());
    for bare in [machine.encode_without_tokens(), machine.encode_without_blocks()] {
        assert!(!shows(&bare));
        let copy = copy(&bare);
        assert!(copy.responses().eq(machine.responses()));
        assert!(copy.responses().all(|r| r.record.payload.held().is_none()));
    }
    assert_eq!(copy(&machine.encode_without_tokens()).digest(), machine.digest());
}
