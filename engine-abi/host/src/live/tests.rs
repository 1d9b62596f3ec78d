//! Each accepted request ends exactly once: with the engine's word, or with ours.

use super::*;

fn output(id: u64, finish: Option<Finish>) -> Output {
    Output { id, finish, ..Output::default() }
}

fn passed(live: &Live, outputs: Vec<Output>) -> usize {
    let mut outputs = outputs;
    live.pass(&mut outputs);
    outputs.len()
}

#[test]
fn what_comes_after_the_end_of_a_request_is_dropped() {
    let live = Live::default();
    live.enter(1).unwrap();
    live.accept(1).unwrap();
    assert_eq!(passed(&live, vec![output(1, None), output(1, Some(Finish::Stop))]), 2);
    assert_eq!(passed(&live, vec![output(1, Some(Finish::Stop)), output(2, None)]), 0);
    assert!(live.close(&ExitReason::Closed).is_empty());
}

#[test]
fn an_id_is_live_once() {
    let live = Live::default();
    live.enter(1).unwrap();
    assert_eq!(live.enter(1).unwrap_err().code(), Code::Exists);
    live.refuse(1);
    live.enter(1).unwrap();
}

#[test]
fn live_requests_are_bounded() {
    let live = Live::default();
    for id in 0..REQUESTS_MAX as u64 {
        live.enter(id).unwrap();
    }
    assert_eq!(live.enter(u64::MAX).unwrap_err().code(), Code::Exhausted);
}

#[test]
fn at_the_end_the_accepted_are_owed_an_end_and_the_unanswered_an_error() {
    let live = Live::default();
    for id in 1..=4 {
        live.enter(id).unwrap();
    }
    live.accept(1).unwrap();
    // An output is as good as an answer.
    assert_eq!(passed(&live, vec![output(2, None)]), 1);
    let owed: Vec<u64> = {
        let mut ids: Vec<u64> = live.close(&ExitReason::Closed).into_iter().map(|o| o.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(owed, [1, 2]);
    assert!(live.unanswered(2), "its end was sent");
    assert!(!live.unanswered(3));
    assert_eq!(live.accept(4), Err(HostError::Ended(ExitReason::Closed)));
    assert_eq!(live.enter(5), Err(HostError::Ended(ExitReason::Closed)));
    assert!(live.close(&ExitReason::Stopped).is_empty());
}

#[test]
fn a_cancellation_is_passed_on_once_and_not_before_the_request() {
    let live = Live::default();
    assert!(!live.cancel(1), "it is not live");
    live.enter(1).unwrap();
    assert_eq!(live.accept(1), Ok(false));
    assert!(live.cancel(1));
    assert!(!live.cancel(1));
    live.enter(2).unwrap();
    assert!(!live.cancel(2), "the engine does not know it yet");
    assert_eq!(live.accept(2), Ok(true));
    assert!(!live.cancel(2));
    live.enter(3).unwrap();
    assert!(!live.cancel(3));
    assert_eq!(passed(&live, vec![output(3, None)]), 1);
    assert_eq!(live.accept(3), Ok(true), "an output does not swallow it");
}
