//! Join tokens by hand: one use, one role, one name, and their end.

use mainstay_types::{Command, ErrorCode, JoinRole};

use crate::Outcome;
use crate::testing::{Log, join, join_token, key_id, small_limits};

fn refused(outcome: Outcome) -> (ErrorCode, String) {
    match outcome {
        Outcome::Refused { code, message } => (code, message),
        other => panic!("{other:?}"),
    }
}

const MADE: Outcome = Outcome::JoinToken { changed: true };
const WORKER: JoinRole = JoinRole::Worker;

#[test]
fn a_token_lets_one_node_in_once() {
    let mut log = Log::new(small_limits());
    assert_eq!(log.apply(join_token("t", 1, WORKER, None)), MADE);
    assert_eq!(log.apply(join_token("t", 1, WORKER, None)), Outcome::JoinToken { changed: false });
    let (code, _) = refused(log.apply(join_token("t", 1, JoinRole::Gateway, None)));
    assert_eq!(code, ErrorCode::AlreadyExists);
    let (code, text) = refused(log.apply(join(2, WORKER, "w1", 7)));
    assert_eq!((code, text.contains("unknown")), (ErrorCode::Unauthenticated, true));
    let (code, text) = refused(log.apply(join(1, JoinRole::Control, "w1", 7)));
    assert_eq!((code, text.contains("for a worker")), (ErrorCode::PermissionDenied, true));
    assert_eq!(log.apply(join(1, WORKER, "w1", 7)), Outcome::Joined);
    assert_eq!(log.apply(join(1, WORKER, "w1", 7)), Outcome::Joined, "a retry");
    for (node, key) in [("w1", 8), ("w2", 7)] {
        let (code, text) = refused(log.apply(join(1, WORKER, node, key)));
        assert_eq!(code, ErrorCode::Unauthenticated);
        assert!(text.contains("used already, by w1"), "{text}");
    }
}

#[test]
fn a_token_with_a_name_is_for_that_node() {
    let mut log = Log::new(small_limits());
    log.apply(join_token("t", 1, WORKER, Some("w7")));
    let (code, text) = refused(log.apply(join(1, WORKER, "w8", 7)));
    assert_eq!((code, text.contains("--name w7")), (ErrorCode::PermissionDenied, true));
    assert_eq!(log.apply(join(1, WORKER, "w7", 7)), Outcome::Joined);
}

#[test]
fn a_tokens_time_is_cluster_time() {
    let mut log = Log::new(small_limits());
    log.apply(join_token("t", 1, WORKER, None));
    log.apply(join_token("u", 2, WORKER, None));
    log.pass(999);
    assert_eq!(log.apply(join(1, WORKER, "w1", 7)), Outcome::Joined);
    log.pass(1);
    for token in [1, 2] {
        let (code, text) = refused(log.apply(join(token, WORKER, "w1", 7)));
        assert_eq!((code, text.contains("expired")), (ErrorCode::Unauthenticated, true));
    }
}

#[test]
fn tokens_that_are_over_make_room_and_open_ones_stay() {
    let mut log = Log::new(small_limits());
    for (id, hash) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(log.apply(join_token(id, hash, WORKER, None)), MADE);
    }
    let (code, _) = refused(log.apply(join_token("d", 4, WORKER, None)));
    assert_eq!(code, ErrorCode::ResourceExhausted);
    log.apply(join(2, WORKER, "w1", 7));
    assert_eq!(log.apply(join_token("d", 4, WORKER, None)), MADE);
    let (_, text) = refused(log.apply(join(2, WORKER, "w1", 7)));
    assert!(text.contains("unknown"), "{text}");
    assert_eq!(log.apply(Command::RemoveJoinToken { id: key_id("a") }), MADE);
    let (_, text) = refused(log.apply(join(1, WORKER, "w1", 7)));
    assert!(text.contains("unknown"), "{text}");
    assert_eq!(log.machine.join_tokens().len(), 2);
}
