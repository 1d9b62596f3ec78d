//! What goes wrong in an executor, by a double that does it on purpose.

use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, Finish, Health, RetentionRange, TIER_HOST, TOKENS_TO_END, caps,
};
use mainstay_trtllm::TrtllmEngine;
use serde_json::json;

use crate::rig::{BLOCK, NAMESPACE, Rig, Said, names, prompt, request};

const OTHER: &str = "no standard type";

fn error(said: &Said) -> (i32, &str) {
    match &said.finish {
        Finish::Error { rc, message } => (*rc, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_executor_that_cannot_be_made_says_why() {
    let error = |settings: &[(&str, i64)], config| match Rig::try_new(settings, config) {
        Err(error) => (error.rc, error.message),
        Ok(_) => panic!("it was made"),
    };
    for (fault, words) in
        [("open_throws_std", "told to fail at its start"), ("open_throws_other", OTHER)]
    {
        let (rc, message) = error(&[(fault, 1)], json!({}));
        assert!(rc == Code::Precondition && message.contains(words), "{fault}: {message}");
    }
    assert_eq!(error(&[], json!({"block_tokens": 0})).0, Code::Invalid);
    // One that does not say how large its cache is can be told.
    let silent = Rig::try_new(&[("tells_no_cache", 1)], json!({"blocks": 33})).unwrap();
    assert_eq!(silent.engine.info().blocks_total, 33);
}

#[test]
fn it_claims_what_it_can_keep_and_says_that_it_is_a_double() {
    let rig = Rig::new(&[]);
    assert_eq!(rig.engine.caps() & (caps::PIN | caps::LOGPROBS | caps::RESUME | caps::GUIDED), 0);
    assert_ne!(rig.engine.caps() & caps::RETENTION, 0);
    let info = rig.engine.info();
    assert!(
        info.device.contains("computes nothing") && info.model.starts_with("double-"),
        "{info:?}"
    );
    assert_eq!((TrtllmEngine::IDENTITY.name, info.blocks_total), ("trtllm-double", 192));
    let mut logprobs = request(1, 1, vec![1], 1);
    logprobs.sampling.logprobs = 1;
    assert_eq!(rig.engine.submit(logprobs).unwrap_err().rc, Code::Invalid);
}

#[test]
fn an_exception_at_one_request_is_that_requests_error() {
    for (fault, words) in
        [("enqueue_throws_std_at", "told to refuse"), ("enqueue_throws_other_at", OTHER)]
    {
        let mut rig = Rig::new(&[(fault, 2)]);
        assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
        let said = rig.ask(|_| {});
        let (rc, message) = error(&said);
        assert!(rc == Code::Internal.rc() && message.contains(words), "{fault}: {message}");
        assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
        let stats = rig.engine.stats();
        assert_eq!((stats.health, stats.running, stats.waiting), (Health::Ok, 0, 0));
    }
}

#[test]
fn a_response_with_an_error_ends_its_request_with_its_words() {
    let mut rig = Rig::new(&[("error_response_at", 2)]);
    assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
    let said = rig.ask(|_| {});
    let (rc, message) = error(&said);
    assert!(rc == Code::Internal.rc() && message.contains("TensorRT-LLM: the double"), "{message}");
    assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
}

/// Every live request ends, the engine is at its end, and its lanes with it.
fn dies(fault: &str, words: &str) {
    let mut rig = Rig::new(&[(fault, 2), ("step_us", 3000)]);
    for _ in 0..3 {
        rig.submit(|request| {
            (request.tokens, request.sampling.tokens_max) = (prompt(1, 40), 1000);
        });
    }
    for _ in 0..3 {
        let outputs = rig.outputs();
        let Some(Finish::Error { rc, message }) = &outputs[outputs.len() - 1].finish else {
            panic!("{fault}: {outputs:?}")
        };
        assert!(*rc == Code::Unavailable.rc() && message.contains(words), "{fault}: {message}");
    }
    assert_eq!(rig.engine.stats().health, Health::Fatal);
    let refused = rig.engine.submit(request(99, 1, vec![1], 1)).unwrap_err();
    assert!(refused.rc == Code::Unavailable && refused.fatal, "{refused:?}");
    // The thread that found out closes them last.
    let until = Instant::now() + Duration::from_secs(10);
    while !rig.lanes.is_closed() {
        assert!(Instant::now() < until, "lanes stay open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_exception_while_awaited_is_the_engines_end() {
    dies("await_throws_std_at", "told to fail while it is awaited");
    dies("await_throws_other_at", OTHER);
}

#[test]
fn an_exception_of_the_events_is_the_engines_end() {
    // The first batch says how large the cache is, and comes while the engine is made.
    dies("events_throw_other_at", OTHER);
}

#[test]
fn an_executor_that_shuts_down_is_the_engines_end() {
    let mut rig = Rig::new(&[("shuts_down_after", 1)]);
    assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
    rig.wait("it is seen", |engine| engine.stats().health == Health::Fatal);
    assert_eq!(rig.engine.submit(request(9, 1, vec![1], 1)).unwrap_err().rc, Code::Unavailable);
}

#[test]
fn lost_events_begin_a_new_epoch_and_never_claim_too_much() {
    // Room for one event: a step that tells of a removal and of what took its place loses the first.
    let mut rig = Rig::try_new(&[("blocks", 24)], json!({"event_buffer": 1})).unwrap();
    let mut seed = 0;
    while rig.told.resets < 3 {
        seed += 1;
        assert!(seed < 200, "no event was lost");
        rig.tell(NAMESPACE, &prompt(seed, 96), 1);
        rig.settle();
    }
    for seed in 1..=seed {
        let tokens = prompt(seed, 96);
        let due = names(NAMESPACE, &tokens[..95]);
        let told = due.iter().take_while(|name| rig.told.held.contains_key(*name)).count();
        let hit = rig.tell(NAMESPACE, &tokens, 1).cached as usize / BLOCK;
        assert!(told <= hit, "{told} blocks are told, {hit} are held");
        rig.settle();
    }
}

#[test]
fn what_is_told_is_what_is_hit_turn_by_turn() {
    let mut rig = Rig::new(&[("tokens_per_step", 3)]);
    let mut tokens = prompt(1, 40);
    for turn in 0..12 {
        let due = names(NAMESPACE, &tokens);
        let told = due.iter().take_while(|name| rig.told.held.contains_key(*name)).count() * BLOCK;
        let said = rig.tell(NAMESPACE, &tokens, 20);
        assert_eq!((said.cached as usize, said.tokens.len()), (told, 20), "turn {turn}");
        assert!(said.outputs < 20, "several tokens in a step are one output");
        tokens.extend(&said.tokens);
        let whole = names(NAMESPACE, &tokens[..tokens.len() - 1]);
        rig.wait_held("the turn's blocks", |held| whole.iter().all(|name| held.contains_key(name)));
        assert_eq!(rig.told.held.len(), whole.len(), "and no block that is not full");
        tokens.extend([5, 6, 7]);
    }
    let stats = rig.engine.stats();
    assert_eq!((stats.decode_tokens, stats.blocks_cached), (240, rig.told.held.len() as u64));
}

#[test]
fn blocks_go_to_the_hosts_memory_and_come_back() {
    let mut rig = Rig::new(&[("blocks", 24), ("host_blocks", 200)]);
    let first = prompt(1, 97);
    rig.tell(NAMESPACE, &first, 1);
    for seed in 2..8 {
        rig.tell(NAMESPACE, &prompt(seed, 97), 1);
    }
    let due = names(NAMESPACE, &first);
    rig.wait_held("below", |held| due.iter().all(|name| held.get(name) == Some(&(1 << TIER_HOST))));
    assert_eq!(rig.tell(NAMESPACE, &first, 1).cached, 96);
    rig.wait_held("above", |held| due.iter().all(|name| held.get(name) == Some(&1)));
    // What may not go below is gone.
    let low = RetentionRange { end: TOKENS_TO_END, priority: 10, ..RetentionRange::default() };
    let tokens = prompt(50, 97);
    rig.ask(|request| {
        (request.tokens, request.ranges) = (tokens.clone(), vec![low]);
    });
    for seed in 60..66 {
        rig.tell(NAMESPACE, &prompt(seed, 97), 1);
    }
    let due = names(NAMESPACE, &tokens);
    rig.wait_held("gone", |held| {
        !held.is_empty() && !due.iter().any(|name| held.contains_key(name))
    });
    assert_eq!(rig.tell(NAMESPACE, &tokens, 1).cached, 0);
}

#[test]
fn namespaces_share_nothing_and_each_ones_blocks_are_told() {
    let mut rig = Rig::new(&[]);
    let tokens = prompt(3, 49);
    for namespace in 1..5 {
        assert_eq!(rig.tell(namespace, &tokens, 1).cached, 0, "{namespace}");
        let due = names(namespace, &tokens);
        rig.wait_held("its own", |held| due.iter().all(|name| held.contains_key(name)));
    }
    assert_eq!((rig.tell(2, &tokens, 1).cached, rig.told.held.len()), (48, 12));
}

#[test]
fn cancels_race_with_ends_and_each_request_has_one() {
    let mut rig = Rig::new(&[("step_us", 200)]);
    let mut cancelled = 0;
    for round in 0..150_u64 {
        let id = rig.submit(|request| request.sampling.tokens_max = 1 + (round % 7) as u32);
        std::thread::sleep(Duration::from_micros(round * 37 % 2000));
        rig.engine.cancel(id);
        rig.engine.cancel(id);
        let outputs = rig.outputs();
        let last = outputs[outputs.len() - 1].clone();
        assert_eq!(outputs.iter().filter(|output| output.finish.is_some()).count(), 1);
        match last.finish {
            Some(Finish::Cancelled) => cancelled += 1,
            Some(Finish::Length) => {}
            other => panic!("{other:?}"),
        }
        rig.engine.cancel(id);
    }
    assert!(cancelled > 0, "none was cancelled");
    assert_eq!(rig.ask(|_| {}).finish, Finish::Length);
    assert!(rig.lanes.take_outputs(10).1.is_empty());
}

#[test]
fn the_end_token_is_in_the_answer_though_the_executor_leaves_it_out() {
    let free = Rig::new(&[]).ask(|request| request.sampling.tokens_max = 6).tokens;
    let end = free[2];
    let until = free.iter().position(|token| *token == end).unwrap() + 1;
    for hides in [0, 1] {
        let mut rig = Rig::try_new(&[("hides_end", hides)], json!({"end_tokens": [end]})).unwrap();
        let said = rig.ask(|request| {
            (request.sampling.ignore_eos, request.sampling.tokens_max) = (false, 6);
        });
        assert_eq!((said.finish, &said.tokens[..]), (Finish::Stop, &free[..until]), "{hides}");
    }
}

#[test]
fn a_request_that_takes_too_long_is_ended_by_the_executor() {
    let config = json!({"request_seconds_max": 1});
    let mut rig = Rig::try_new(&[("step_us", 20_000)], config).unwrap();
    let said = rig.ask(|request| request.sampling.tokens_max = 1000);
    let (rc, message) = error(&said);
    assert!(rc == Code::Exhausted.rc() && message.contains("request_seconds_max"), "{message}");
    assert!(!said.tokens.is_empty());
}

#[test]
fn retention_goes_back_to_the_usual_when_its_time_is_over() {
    let kept = |duration_ms: u32| {
        let mut rig = Rig::new(&[("blocks", 24)]);
        let tokens = prompt(1, 97);
        let range = RetentionRange {
            end: TOKENS_TO_END,
            priority: 90,
            duration_ms,
            ..RetentionRange::default()
        };
        rig.ask(|request| (request.tokens, request.ranges) = (tokens.clone(), vec![range]));
        std::thread::sleep(Duration::from_millis(20));
        for seed in 2..12 {
            rig.tell(NAMESPACE, &prompt(seed, 97), 1);
        }
        rig.tell(NAMESPACE, &tokens, 1).cached
    };
    assert_eq!((kept(0), kept(600_000), kept(1)), (96, 96, 0));
}
