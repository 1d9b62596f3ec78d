//! The engine from outside: through the trait behind the C entry point, its lanes, its promises at
//! the door. What the cache does is tested beside the scheduler.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests; the lint's own exception ends at `#[test]`"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_conformance::reading::{PATIENCE, op, outputs, pins_and_snapshots};
use mainstay_engine_abi::sdk::{Code, Engine, Finish, Health, HostLog, Lanes, Request, Sampling};
use mainstay_sim::SimEngine;

fn open(config: &str) -> (SimEngine, Arc<Lanes>) {
    let lanes = Arc::new(Lanes::new());
    let engine = SimEngine::create(config, Arc::clone(&lanes), HostLog::silent()).unwrap();
    (engine, lanes)
}

fn request(id: u64, tokens: usize, tokens_max: u32) -> Request {
    let sampling = Sampling { tokens_max, ignore_eos: true, ..Sampling::default() };
    let tokens = (0..tokens as u32).map(|n| 50 + (n + id as u32) % 900).collect();
    Request { id, tokens, sampling, ..Request::default() }
}

#[test]
fn it_says_what_it_is() {
    let (engine, _lanes) = open("{}");
    let info = engine.info();
    assert_eq!((info.device.as_str(), info.model.as_str()), ("simulated", "demo"));
    assert_eq!((info.context_tokens_max, info.block_tokens, info.vocab), (1 << 20, 16, 2048));
    assert_eq!(SimEngine::IDENTITY.name, "sim");
    assert_eq!(engine.stats().health, Health::Ok);
}

#[test]
fn requests_end_once_and_ids_are_free_again() {
    let (engine, lanes) = open(r#"{"decode_us_per_token": 1000}"#);
    engine.submit(request(7, 40, 100_000)).unwrap();
    assert_eq!(engine.submit(request(7, 1, 1)).unwrap_err().rc, Code::Exists);
    engine.cancel(7);
    engine.cancel(7);
    engine.cancel(8);
    assert_eq!(outputs(&lanes, 1).last().unwrap().finish, Some(Finish::Cancelled));
    engine.submit(request(7, 40, 3)).unwrap();
    let all = outputs(&lanes, 1);
    assert_eq!(all.iter().map(|o| o.tokens.len()).sum::<usize>(), 3);
    assert_eq!(all.last().unwrap().finish, Some(Finish::Length));
    // An ending that comes after all is over would be a second one.
    std::thread::sleep(Duration::from_millis(20));
    assert!(lanes.take_outputs(10).1.is_empty());
}

#[test]
fn wrong_requests_are_refused_at_the_door() {
    let (engine, _lanes) = open(r#"{"blocks": 4}"#);
    let mut token = request(1, 1, 1);
    token.tokens[0] = 2048;
    for wrong in [request(1, 0, 1), request(1, 65, 1), token, request(1, 1, 0)] {
        assert_eq!(engine.submit(wrong).unwrap_err().rc, Code::Invalid);
    }
    assert_eq!(engine.stats().waiting, 0);
}

#[test]
fn a_full_queue_says_when_to_come_again_and_a_dropped_engine_ends_all() {
    let (engine, lanes) = open(r#"{"requests_max": 1, "decode_us_per_token": 100000}"#);
    let mut accepted = 0u64;
    let error = loop {
        match engine.submit(request(accepted, 20, 400)) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10_000, "the queue is not bounded");
    };
    assert_eq!(error.rc, Code::Exhausted);
    assert!(error.retry_after_ms > 0 && accepted > 1000);
    engine.kv_snapshot(5).unwrap();
    drop(engine);
    let finals = outputs(&lanes, accepted as usize);
    assert_eq!(finals.iter().filter(|o| o.finish.is_some()).count() as u64, accepted);
    assert_eq!(op(&lanes).0, 5);
}

#[test]
fn draining_refuses_waits_and_cancels_what_is_left() {
    let (engine, lanes) = open(r#"{"decode_us_per_token": 1000}"#);
    engine.submit(request(1, 20, 2)).unwrap();
    engine.submit(request(2, 20, 100_000)).unwrap();
    engine.drain(Duration::from_millis(100)).unwrap();
    assert_eq!(engine.submit(request(3, 2, 1)).unwrap_err().rc, Code::Unavailable);
    assert_eq!(engine.stats().health, Health::Draining);
    let all = outputs(&lanes, 2);
    let end = |id| all.iter().rfind(|o| o.id == id).unwrap().finish.clone();
    assert_eq!((end(1), end(2)), (Some(Finish::Length), Some(Finish::Cancelled)));
}

#[test]
fn pins_and_snapshots_are_operations() {
    let (engine, lanes) = open(r#"{"blocks": 64}"#);
    engine.submit(request(1, 100, 1)).unwrap();
    let _ = outputs(&lanes, 1);
    pins_and_snapshots(&engine, &lanes, 6);
}

#[test]
fn a_host_that_does_not_read_holds_it_back() {
    let (engine, lanes) = open(r#"{"requests_max": 8}"#);
    for id in 0..8 {
        engine.submit(request(id, 20, 10_000)).unwrap();
    }
    let started = Instant::now();
    while lanes.output_has_room() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!lanes.output_has_room());
    let said = engine.stats().decode_tokens;
    std::thread::sleep(Duration::from_millis(30));
    assert!(engine.stats().decode_tokens <= said + 64, "it went on");
    let total: usize = outputs(&lanes, 8).iter().map(|o| o.tokens.len()).sum();
    assert_eq!(total, 80_000);
}

#[test]
fn what_is_certain_has_log_probability_zero() {
    let (engine, lanes) = open("{}");
    let mut asked = request(1, 20, 4);
    asked.sampling.logprobs = 4;
    engine.submit(asked).unwrap();
    let all = outputs(&lanes, 1);
    let logprobs: Vec<_> = all.iter().flat_map(|o| &o.logprobs).collect();
    assert_eq!(logprobs.len(), 4 * 4);
    assert!(logprobs.iter().filter(|l| l.rank <= 1).all(|l| l.logprob == 0.0));
    assert!(logprobs.iter().filter(|l| l.rank > 1).all(|l| l.logprob < -20.0));
}
