//! The scheduler on real models: caching, sharing, order of service, ends of every kind.

use mainstay_engine_abi::sdk::types_of_mainstay::{BlockHasher, HashKey, NamespaceId};
use mainstay_engine_abi::sdk::{
    Cause, Code, Finish, KvEvent, Request, RetentionRange, Sampling, TOKENS_TO_END,
};
use mainstay_engine_shell::{Wake, Work};
use serde_json::json;

use crate::common::{Bench, Ending, Golden, golden, request};

const LLAMA: &str = "llama-f32";
const QWEN: &str = "qwen3-f32-sharded";

/// Different prompts of the fixtures' vocabulary.
fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|i| 3 + (seed.wrapping_mul(7919) ^ i.wrapping_mul(2_654_435_761)) % 280)
        .collect()
}

fn sampled(id: u64, tokens: &[u32], tokens_max: u32, seed: u64) -> Request {
    let mut request = request(id, tokens, tokens_max);
    request.sampling = Sampling {
        temperature: 0.9,
        top_p: 0.95,
        top_k: 40,
        repetition_penalty: 1.1,
        presence_penalty: 0.3,
        seed: Some(seed),
        ..request.sampling
    };
    request
}

fn stored(bench: &Bench) -> Vec<u128> {
    let blocks = |event: &KvEvent| match event {
        KvEvent::Stored { blocks, .. } => blocks.clone(),
        _ => Vec::new(),
    };
    bench.events.iter().flat_map(blocks).collect()
}

fn assert_nothing_leaked(bench: &Bench) {
    let stats = bench.scheduler.stats();
    assert_eq!((stats.blocks_used, stats.running, stats.waiting), (0, 0, 0));
    assert_eq!(stats.waiting_prefill_tokens, 0);
}

fn is_error(ending: &Ending, code: Code) -> bool {
    matches!(&ending.finish, Some(Finish::Error { rc, .. }) if *rc == code.rc())
}

#[test]
fn a_prefix_hit_gives_the_same_tokens_and_says_how_many_it_spared() {
    let Golden { input, greedy, .. } = golden(QWEN);
    let mut bench = Bench::new(QWEN, json!({}));
    let cold = bench.run(request(1, &input, 32));
    assert_eq!((&cold.tokens, cold.cached_tokens), (&greedy, 0));
    let warm = bench.run(request(2, &input, 32));
    assert_eq!((&warm.tokens, warm.cached_tokens), (&greedy, 192));
    // The next turn also finds the blocks that were generated: 200 + 31 tokens are 14 full blocks.
    let mut next: Vec<u32> = input.iter().chain(&greedy).copied().collect();
    next.extend(prompt(5, 10));
    let turn = bench.run(request(3, &next, 4));
    assert_eq!(turn.cached_tokens, 14 * 16);
    assert_eq!(turn.tokens, Bench::new(QWEN, json!({})).run(request(1, &next, 4)).tokens);
    // A prompt of whole blocks recomputes the last, for its logits.
    assert_eq!(bench.run(request(4, &input[..192], 1)).cached_tokens, 176);
    let stats = bench.scheduler.stats();
    assert_eq!(stats.hit_tokens, 192 + 224 + 176);
    assert_eq!(stats.query_tokens, 200 + 200 + 242 + 192);
    assert_nothing_leaked(&bench);
}

#[test]
fn namespaces_share_nothing_and_hashes_are_the_canonical_ones() {
    let Golden { input, .. } = golden(LLAMA);
    let mut bench = Bench::new(LLAMA, json!({}));
    bench.run(Request { namespace: 77, ..request(1, &input, 1) });
    let key = HashKey::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
    let hashes = BlockHasher::hash_prompt(key, NamespaceId(77), 16, &input);
    assert_eq!(stored(&bench), hashes.iter().map(|h| h.0).collect::<Vec<_>>());
    let KvEvent::Stored { parent, namespace, .. } = &bench.events[0] else { panic!("not stored") };
    assert_eq!((*parent, *namespace), (77, 77));
    assert_eq!(bench.run(Request { namespace: 78, ..request(2, &input, 1) }).cached_tokens, 0);
    assert_eq!(bench.run(Request { namespace: 77, ..request(3, &input, 1) }).cached_tokens, 192);
}

#[test]
fn equal_prompts_in_flight_are_computed_once() {
    let Golden { input, greedy, .. } = golden(LLAMA);
    let mut bench = Bench::new(LLAMA, json!({ "step_tokens_max": 64, "requests_max": 16 }));
    (0..5).for_each(|id| bench.submit(request(id, &input, 8)));
    bench.finish();
    for id in 0..5 {
        let ending = bench.ending(id);
        assert_eq!(ending.tokens, greedy[..8]);
        assert_eq!(ending.cached_tokens, if id == 0 { 0 } else { 192 });
    }
    let stats = bench.scheduler.stats();
    assert_eq!(stats.prefill_tokens, 200 + 4 * 8);
    assert_nothing_leaked(&bench);
}

#[test]
fn company_changes_nothing() {
    let requests: Vec<Request> = (0..9u32)
        .map(|n| sampled(u64::from(n), &prompt(n, 20 + 13 * n as usize), 24, 1000 + u64::from(n)))
        .collect();
    let alone: Vec<Vec<u32>> = requests
        .iter()
        .map(|r| Bench::new(QWEN, json!({ "threads": 1 })).run(r.clone()).tokens)
        .collect();
    let mut bench =
        Bench::new(QWEN, json!({ "step_tokens_max": 48, "requests_max": 6, "block_tokens": 8 }));
    for request in requests {
        bench.submit(request);
        bench.step();
    }
    bench.finish();
    for (id, tokens) in alone.iter().enumerate() {
        assert_eq!(&bench.ending(id as u64).tokens, tokens);
    }
    assert_nothing_leaked(&bench);
}

#[test]
fn seeds_decide_and_a_migrated_request_goes_on() {
    let start = prompt(1, 40);
    let run = |request: Request| Bench::new(LLAMA, json!({})).run(request).tokens;
    let stayed = run(sampled(1, &start, 30, 5));
    assert_eq!(run(sampled(2, &start, 30, 5)), stayed);
    assert_ne!(run(sampled(1, &start, 30, 6)), stayed);
    for moved_after in [1, 11, 29] {
        let mut tokens = start.clone();
        tokens.extend(&stayed[..moved_after]);
        let rest = 30 - moved_after as u32;
        let moved = Request { sampled_before: moved_after as u32, ..sampled(9, &tokens, rest, 5) };
        assert_eq!(run(moved), stayed[moved_after..]);
    }
    let unseeded = |id| {
        let mut request = sampled(id, &start, 30, 0);
        request.sampling.seed = None;
        request
    };
    let mut bench = Bench::new(LLAMA, json!({}));
    assert_ne!(bench.run(unseeded(1)).tokens, bench.run(unseeded(2)).tokens);
}

#[test]
fn a_full_cache_preempts_the_last_and_loses_nothing() {
    let alone: Vec<Vec<u32>> = (0..6u32)
        .map(|n| Bench::new(QWEN, json!({})).run(request(1, &prompt(n, 30), 60)).tokens)
        .collect();
    // Six sequences of 90 tokens want 36 blocks.
    let mut bench = Bench::new(QWEN, json!({ "blocks": 14 }));
    (0..6u32).for_each(|n| bench.submit(request(u64::from(n), &prompt(n, 30), 60)));
    bench.finish();
    for (id, tokens) in alone.iter().enumerate() {
        let ending = bench.ending(id as u64);
        assert_eq!((&ending.tokens, ending.finish), (tokens, Some(Finish::Length)));
    }
    let stats = bench.scheduler.stats();
    assert!(stats.preemptions > 0 && stats.evictions > 0, "{stats:?}");
    assert_nothing_leaked(&bench);
}

#[test]
fn priority_then_arrival_is_the_order_of_service() {
    let mut bench = Bench::new(LLAMA, json!({ "requests_max": 1 }));
    for (id, priority) in [(1, 0), (2, 0), (3, 5), (4, -1), (5, 5)] {
        bench.submit(Request { priority, ..request(id, &prompt(id as u32, 20), 2) });
    }
    bench.finish();
    let ended: Vec<u64> =
        bench.outputs.iter().filter(|o| o.finish.is_some()).map(|o| o.id).collect();
    assert_eq!(ended, [3, 5, 1, 2, 4]);
}

#[test]
fn a_higher_priority_takes_the_blocks_of_a_lower_one() {
    let mut bench = Bench::new(LLAMA, json!({ "blocks": 8 }));
    bench.submit(request(1, &prompt(1, 90), 20));
    bench.step();
    bench.submit(Request { priority: 1, ..request(2, &prompt(2, 60), 4) });
    bench.submit(Request { priority: 0, ..request(3, &prompt(3, 60), 4) });
    bench.finish();
    let ended: Vec<u64> =
        bench.outputs.iter().filter(|o| o.finish.is_some()).map(|o| o.id).collect();
    assert_eq!(ended, [2, 1, 3], "the third waits for the first");
    assert_eq!(bench.scheduler.stats().preemptions, 1);
    let alone = Bench::new(LLAMA, json!({})).run(request(1, &prompt(1, 90), 20));
    assert_eq!(bench.ending(1).tokens, alone.tokens);
}

#[test]
fn an_urgent_prompt_has_its_step_alone() {
    let config = || json!({ "step_tokens_max": 128, "requests_max": 8 });
    let mut bench = Bench::new(LLAMA, config());
    let computed = |bench: &Bench| bench.scheduler.stats().prefill_tokens;
    bench.submit(Request { priority: 1, ..request(1, &prompt(1, 20), 1) });
    bench.finish();
    let before = computed(&bench);
    bench.submit(request(2, &prompt(2, 200), 2));
    bench.step();
    assert_eq!(computed(&bench) - before, 16, "an eighth of a step, since an urgent one came");
    let before = computed(&bench);
    bench.submit(Request { priority: 1, ..request(3, &prompt(3, 40), 2) });
    bench.step();
    assert_eq!(computed(&bench) - before, 40, "nothing of the second");
    bench.finish();
    for id in [2, 3] {
        let length = if id == 2 { 200 } else { 40 };
        let alone =
            Bench::new(LLAMA, config()).run(request(id, &prompt(id as u32, length), 2)).tokens;
        assert_eq!(bench.ending(id).tokens, alone, "pieces change nothing");
    }
}

#[test]
fn what_is_kept_for_the_urgent_is_no_room_for_others_while_they_run() {
    let mut bench = Bench::new(LLAMA, json!({ "blocks": 20 }));
    let kept = RetentionRange {
        end: TOKENS_TO_END,
        priority: 95,
        duration_ms: 60_000,
        ..RetentionRange::default()
    };
    let urgent = |id| Request { priority: 1, ..request(id, &prompt(1, 80), 1) };
    bench.run(Request { ranges: vec![kept], ..urgent(1) });
    for id in [2, 3] {
        bench.submit(request(id, &prompt(id as u32, 120), 4));
    }
    bench.step();
    assert_eq!(bench.scheduler.stats().running, 1, "the other one waits");
    bench.finish();
    assert_eq!(bench.run(urgent(4)).cached_tokens, 64, "all but the block of the last token");
    assert_eq!(bench.run(request(5, &prompt(5, 300), 1)).finish, Some(Finish::Length));
}

#[test]
fn a_cancelled_request_ends_once_wherever_it_is() {
    let mut bench = Bench::new(LLAMA, json!({ "requests_max": 2, "step_tokens_max": 32 }));
    for id in 1..=4 {
        bench.submit(request(id, &prompt(id as u32, 100), 50));
    }
    bench.scheduler.cancel(4, 0);
    bench.step();
    bench.scheduler.cancel(2, 0);
    for _ in 0..10 {
        bench.step();
    }
    assert!(bench.outputs.iter().any(|o| o.id == 1 && o.finish.is_none()), "1 decodes");
    for id in [1, 3, 4, 99] {
        bench.scheduler.cancel(id, 0);
    }
    bench.finish();
    for id in 1..=4 {
        assert_eq!(bench.ending(id).finish, Some(Finish::Cancelled));
    }
    assert_nothing_leaked(&bench);
}

#[test]
fn impossible_requests_end_with_an_error() {
    let mut bench = Bench::new(LLAMA, json!({ "blocks": 4 }));
    let limits = *bench.scheduler.limits();
    assert_eq!(limits.context_tokens_max, 64, "the cache bounds the context");
    let cases = [
        request(1, &[], 4),
        request(2, &prompt(2, 65), 4),
        request(3, &[5, 288], 4),
        request(4, &[5, u32::MAX], 4),
        request(5, &[5], 0),
    ];
    for case in cases {
        let id = case.id;
        assert!(is_error(&bench.run(case), Code::Invalid), "{id}");
    }
    let brim = bench.run(request(6, &prompt(6, 64), 9));
    assert_eq!((brim.tokens.len(), brim.finish), (1, Some(Finish::Length)));
    let end = bench.run(request(7, &prompt(7, 60), 100));
    assert_eq!((end.tokens.len(), end.finish), (4, Some(Finish::Length)));
    assert_nothing_leaked(&bench);
}

#[test]
fn pinned_blocks_survive_a_flood_and_others_go() {
    let mut bench = Bench::new(QWEN, json!({ "blocks": 24 }));
    let (kept, loose) = (prompt(1, 100), prompt(2, 100));
    bench.run(request(1, &kept, 1));
    let pinned = stored(&bench);
    assert_eq!(bench.scheduler.pin(1, &pinned, 60_000, bench.now_us), Ok(6));
    bench.run(request(2, &loose, 1));
    for n in 10..30 {
        bench.run(request(u64::from(n), &prompt(n, 100), 3));
    }
    assert_eq!(bench.run(request(3, &kept, 1)).cached_tokens, 96);
    assert_eq!(bench.run(request(4, &loose, 1)).cached_tokens, 0);
    assert!(
        bench.events.iter().any(|e| matches!(e, KvEvent::Removed { cause: Cause::Capacity, .. }))
    );
    bench.now_us += 60_000_000;
    bench.step();
    assert!(bench.events.contains(&KvEvent::PinExpired { pin_id: 1 }));
    for n in 40..60 {
        bench.run(request(u64::from(n), &prompt(n, 100), 3));
    }
    assert_eq!(bench.run(request(5, &kept, 1)).cached_tokens, 0);
}

#[test]
fn requests_that_pins_leave_no_room_for_end_with_an_error() {
    let mut bench = Bench::new(QWEN, json!({ "blocks": 8, "pin_fraction": 1.0 }));
    bench.run(request(1, &prompt(1, 97), 1));
    let pinned = stored(&bench);
    assert_eq!(bench.scheduler.pin(1, &pinned, 60_000, bench.now_us), Ok(6));
    assert!(is_error(&bench.run(request(2, &prompt(2, 60), 1)), Code::Exhausted));
    let outgrown = bench.run(request(3, &prompt(3, 20), 60));
    assert!(is_error(&outgrown, Code::Exhausted) && outgrown.tokens.len() == 13, "{outgrown:?}");
    assert_eq!(bench.run(request(4, &prompt(1, 97), 1)).cached_tokens, 96);
    assert_eq!(bench.scheduler.unpin(1), Some(6));
    assert_eq!(bench.run(request(5, &prompt(2, 60), 1)).finish, Some(Finish::Length));
}

#[test]
fn ranges_decide_what_goes_first() {
    let mut bench = Bench::new(QWEN, json!({ "blocks": 24 }));
    let range =
        |start, end, priority| RetentionRange { start, end, priority, ..RetentionRange::default() };
    let precious = prompt(1, 100);
    let ranges = vec![range(0, 48, 90), range(48, TOKENS_TO_END, 0)];
    bench.run(Request { ranges, ..request(1, &precious, 1) });
    for n in 10..30 {
        bench.run(request(u64::from(n), &prompt(n, 100), 3));
    }
    assert_eq!(bench.run(request(2, &precious, 1)).cached_tokens, 48);
}

#[test]
fn without_room_for_outputs_nothing_is_drawn() {
    let Golden { input, greedy, .. } = golden(LLAMA);
    let mut bench = Bench::new(LLAMA, json!({}));
    bench.submit(request(1, &input, 8));
    assert_eq!(bench.step_with_room(false), Wake::Now, "full blocks of the prompt are computed");
    assert_eq!(bench.step_with_room(false), Wake::Held);
    assert!(bench.outputs.is_empty());
    bench.step();
    bench.step();
    assert_eq!(bench.step_with_room(false), Wake::Held);
    assert_eq!(bench.outputs.len(), 2);
    bench.finish();
    assert_eq!(bench.ending(1).tokens, greedy[..8]);
}

#[test]
fn end_and_stop_tokens_are_in_the_output() {
    let Golden { input, greedy, .. } = golden(LLAMA);
    let stop = greedy[5];
    let at = greedy.iter().position(|t| *t == stop).unwrap();
    let mut stopping = request(1, &input, 32);
    stopping.sampling.stop_tokens = vec![stop];
    let mut bench = Bench::new(LLAMA, json!({}));
    let ending = bench.run(stopping.clone());
    assert_eq!((ending.tokens, ending.finish), (greedy[..=at].to_vec(), Some(Finish::Stop)));
    stopping.id = 2;
    stopping.sampling.tokens_min = at as u32 + 3;
    let longer = bench.run(stopping);
    assert!(longer.tokens.len() >= at + 3 && longer.tokens[at] != stop);
}

#[test]
fn logprobs_are_those_of_the_golden_logits() {
    let Golden { input, logits, greedy } = golden(LLAMA);
    let mut asking = request(1, &input, 1);
    asking.sampling.logprobs = 4;
    let ending = Bench::new(LLAMA, json!({})).run(asking);
    let row: Vec<f64> = logits[199 * 288..].iter().map(|l| f64::from(*l)).collect();
    let sum = row.iter().map(|l| l.exp()).sum::<f64>().ln();
    let mut order: Vec<usize> = (0..288).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    assert_eq!(ending.logprobs.len(), 4);
    assert_eq!((ending.logprobs[0].token, ending.logprobs[0].rank), (greedy[0], 0));
    for (logprob, token) in ending.logprobs[1..].iter().zip(&order) {
        assert_eq!(logprob.token as usize, *token);
        assert!((f64::from(logprob.logprob) - (row[*token] - sum)).abs() < 1e-3);
    }
}

#[test]
fn a_snapshot_tells_what_the_events_told() {
    let mut bench = Bench::new(QWEN, json!({ "blocks": 20 }));
    for n in 0..12u32 {
        let mut tokens = prompt(0, 40);
        tokens.extend(prompt(n, 50));
        bench.run(request(u64::from(n), &tokens, 8));
    }
    let mut held: std::collections::BTreeSet<u128> = stored(&bench).into_iter().collect();
    held.clear();
    for event in &bench.events {
        match event {
            KvEvent::Stored { blocks, .. } => held.extend(blocks),
            KvEvent::Removed { blocks, .. } => blocks.iter().for_each(|b| assert!(held.remove(b))),
            KvEvent::PinExpired { .. } => {}
        }
    }
    let mut told = std::collections::BTreeSet::new();
    let count = bench.scheduler.snapshot(|event| {
        let KvEvent::Stored { blocks, snapshot: true, .. } = event else { panic!("{event:?}") };
        blocks.into_iter().for_each(|block| assert!(told.insert(block)));
    });
    assert_eq!((told, count as u64), (held, bench.scheduler.stats().blocks_cached));
}

/// Arrivals, cancellations, pins and priorities at random on a cache that is too small for them:
/// every request ends once, what ran to its end said what it says alone, and nothing is lost.
#[test]
fn chaos_leaks_nothing_and_changes_no_token() {
    const REQUESTS: u64 = 120;
    let mut dice = 12_345u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let mut alone = Bench::new(LLAMA, json!({ "blocks": 4096 }));
    let mut bench = Bench::new(
        LLAMA,
        json!({ "blocks": 22, "step_tokens_max": 40, "requests_max": 7, "pin_fraction": 0.4 }),
    );
    let mut requests = Vec::new();
    let mut cancelled = std::collections::HashSet::new();
    while (requests.len() as u64) < REQUESTS || bench.scheduler.has_requests() {
        if (requests.len() as u64) < REQUESTS && roll(3) == 0 {
            let id = requests.len() as u64;
            let mut tokens = prompt(roll(4) as u32, 1 + roll(120) as usize);
            tokens.extend(prompt(roll(1000) as u32, roll(40) as usize));
            let mut request = sampled(id, &tokens, 1 + roll(40) as u32, id);
            request.priority = roll(3) as i32 - 1;
            let priority = roll(101) as u8;
            request.ranges = vec![RetentionRange {
                start: roll(50) as u32,
                end: TOKENS_TO_END,
                priority,
                duration_ms: roll(200) as u32,
                ..RetentionRange::default()
            }];
            requests.push(request.clone());
            bench.submit(request);
        }
        if roll(20) == 0 && !requests.is_empty() {
            let id = roll(requests.len() as u64);
            if !bench.outputs.iter().any(|o| o.id == id && o.finish.is_some()) {
                bench.scheduler.cancel(id, bench.now_us);
                cancelled.insert(id);
            }
        }
        if roll(10) == 0 {
            let hashes = stored(&bench);
            let from = roll(hashes.len() as u64 + 1) as usize;
            let blocks = &hashes[from..(from + 4).min(hashes.len())];
            let _ = bench.scheduler.pin(u128::from(roll(4)), blocks, 1 + roll(100), bench.now_us);
        }
        bench.step_with_room(roll(8) > 0);
        assert!(bench.now_us < 1_000_000_000, "no end in sight");
    }
    let mut compared = 0;
    for request in requests {
        let id = request.id;
        let ending = bench.ending(id);
        match &ending.finish {
            Some(Finish::Cancelled) => assert!(cancelled.contains(&id)),
            Some(Finish::Error { rc, .. }) => assert_eq!(*rc, Code::Exhausted.rc()),
            _ => {
                assert_eq!(ending.tokens, alone.run(request).tokens, "request {id}");
                compared += 1;
            }
        }
    }
    assert!(compared > 80, "only {compared} ran to their end");
    assert!(bench.scheduler.stats().preemptions > 0);
    assert_nothing_leaked(&bench);
}
