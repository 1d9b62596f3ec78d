//! The engine's times against the formula by hand, and its promises under random traffic.

use std::sync::Arc;

use mainstay_engine_abi::sdk::TIER_DEVICE;
use mainstay_types::SequenceHash;

use super::*;

const BLOCK: u32 = 16;

/// The 8B profile with room for about so many tokens.
fn profile(kv_tokens: u64) -> Profile {
    let text = include_str!("../../profiles/h200-8b.toml");
    let bytes = (kv_tokens as f64 + 0.5) * 131_072.0 + 2.0 * 8.03e9 + 6e9;
    let memory = format!("memory_bytes = {:.1}\nmemory_share = 1.0", bytes);
    let text = text.replace("memory_share = 0.90", "").replace("memory_bytes = 141e9", &memory);
    Profile::parse(&text).unwrap()
}

/// A chain that `name` tells apart from the block `shared` on.
fn chain(name: u128, shared: usize, blocks: usize) -> Arc<[SequenceHash]> {
    let hash = |at: usize| ((if at < shared { 1 } else { name + 2 }) << 64) | (at as u128 + 1);
    (0..blocks).map(|at| SequenceHash(hash(at))).collect()
}

fn request(id: u64, chain: &Arc<[SequenceHash]>, prompt: u32, output: u32) -> Request {
    Request {
        id,
        namespace: 7,
        chain: Arc::clone(chain),
        chain_blocks: chain.len() as u32,
        prompt_tokens: prompt,
        output_tokens: output,
        priority: 0,
        claim: None,
        ranges: Vec::new(),
        leases: Vec::new(),
        fetch: None,
    }
}

/// Runs until there is nothing to do; notes with their times.
fn run(engine: &mut Engine, mut now_us: u64) -> Vec<(u64, Note)> {
    let (mut seen, mut notes) = (Vec::new(), Vec::new());
    engine.advance(now_us, &mut notes);
    while let Some(next_us) = engine.next_us() {
        now_us = next_us;
        engine.advance(now_us, &mut notes);
        seen.extend(notes.drain(..).map(|note| (now_us, note)));
    }
    seen
}

#[test]
fn a_cold_prompt_takes_the_steps_of_its_pieces_and_a_warm_one_what_is_new() {
    let profile = profile(100_000);
    let mut engine = Engine::new(profile.clone(), BLOCK);
    let blocks = chain(0, 0, 1_100);
    engine.submit(request(1, &blocks, 16_000, 3), 0);
    let seen = run(&mut engine, 0);
    let first = us(profile.step_us(8_192, 8_192.0 * 4_096.0, 0));
    let rest = 16_000.0 - 8_192.0;
    let second = us(profile.step_us(7_808, rest * (8_192.0 + rest / 2.0), 0));
    assert_eq!(seen[0], (first + second, Note::First { id: 1, cached_tokens: 0, waited_us: 0 }));
    let decoded = us(profile.decode_us(2, 1, 16_001));
    assert_eq!(seen[1], (first + second + decoded, Note::Ended { id: 1 }));

    let now_us = 10_000_000;
    engine.submit(request(2, &blocks, 16_016, 1), now_us);
    let seen = run(&mut engine, now_us);
    let warm = us(profile.step_us(16, 16.0 * 16_008.0, 0));
    assert_eq!(
        seen[0],
        (now_us + warm, Note::First { id: 2, cached_tokens: 16_000, waited_us: 0 })
    );
    assert_eq!(engine.load().blocks_used, 0);
    assert!((engine.load().prefill_us_per_token - warm as f32 / 16.0).abs() > 1.0, "averaged");
}

#[test]
fn who_arrives_in_a_stretch_waits_for_the_step_under_way_only() {
    let profile = profile(100_000);
    let mut engine = Engine::new(profile.clone(), BLOCK);
    engine.submit(request(1, &chain(0, 0, 1), 16, 1_001), 0);
    let mut notes = Vec::new();
    engine.advance(0, &mut notes);
    let start_us = engine.next_us().unwrap();
    engine.advance(start_us, &mut notes);
    let whole_us = engine.next_us().unwrap() - start_us;
    assert_eq!(whole_us, us(profile.decode_us(1_000, 1, 17)));
    // Just after the tenth step has begun.
    let now_us = start_us + us(profile.decode_us(9, 1, 17)) + 5;
    engine.submit(request(2, &chain(1, 0, 1), 16, 1), now_us);
    let cut_us = engine.next_us().unwrap();
    assert_eq!(cut_us, start_us + us(profile.decode_us(10, 1, 17)));
    engine.advance(cut_us, &mut notes);
    let mixed = us(profile.step_us(17, 16.0 * 8.0, 27));
    assert_eq!(engine.next_us(), Some(cut_us + mixed));
    let seen = run(&mut engine, cut_us);
    assert!(matches!(seen[0].1, Note::First { id: 2, cached_tokens: 0, .. }));
    let ends = seen.iter().filter(|(_, note)| matches!(note, Note::Ended { .. }));
    assert_eq!(ends.count(), 2);
}

#[test]
fn a_device_that_throttles_is_slower_from_its_next_step_on() {
    let profile = profile(100_000);
    let blocks = chain(0, 0, 4);
    let took = |throttled_us: Option<u64>| {
        let mut engine = Engine::new(profile.clone(), BLOCK);
        engine.submit(request(1, &blocks, 64, 101), 0);
        let mut notes = Vec::new();
        engine.advance(0, &mut notes);
        let first_us = engine.next_us().unwrap();
        engine.advance(first_us, &mut notes);
        if let Some(after_us) = throttled_us {
            engine.set_speed(0.5, first_us + after_us);
        }
        let mut now_us = first_us;
        while let Some(next_us) = engine.next_us() {
            now_us = next_us;
            engine.advance(now_us, &mut notes);
        }
        assert_eq!(notes.last(), Some(&Note::Ended { id: 1 }));
        (now_us - first_us) as f64
    };
    let (healthy, half) = (took(None), took(None) / 2.0);
    // Half of the tokens at half the speed; a step more or less is at the border.
    let throttled = took(Some(half as u64));
    assert!((throttled - 1.5 * healthy).abs() < healthy / 50.0, "{throttled} {healthy}");
}

#[test]
fn the_least_recently_used_makes_room() {
    let mut engine = Engine::new(profile(4_000), BLOCK);
    let (a, b, c) = (chain(1, 0, 100), chain(2, 0, 100), chain(3, 0, 100));
    let mut cached = |id: u64, blocks: &Arc<[SequenceHash]>| {
        engine.submit(request(id, blocks, 1_600, 1), id * 1_000_000);
        match run(&mut engine, id * 1_000_000)[0].1 {
            Note::First { cached_tokens, .. } => cached_tokens,
            other => panic!("{other:?}"),
        }
    };
    // Two of them fit, and a third does not.
    assert_eq!([cached(1, &a), cached(2, &b), cached(3, &a)], [0, 0, 1_584]);
    assert_eq!(cached(4, &c), 0);
    assert_eq!(cached(5, &a), 1_584, "it was used after b");
    assert!(cached(6, &b) < 1_000, "its end made room for c");
    let removed: u64 = engine
        .drain_events()
        .map(|event| match event {
            KvEvent::Removed { blocks, .. } => blocks.len() as u64,
            _ => 0,
        })
        .sum();
    assert_eq!(engine.counters().evicted_for_room, removed);
    assert!(removed >= 50, "{removed}");
}

#[test]
fn without_blocks_the_last_one_computes_again_and_all_end() {
    let mut engine = Engine::new(profile(2_000), BLOCK);
    for id in 0..3 {
        engine.submit(request(id, &chain(u128::from(id), 0, 40), 640, 400), id);
    }
    let seen = run(&mut engine, 2);
    let ended: Vec<u64> = seen
        .iter()
        .filter_map(|(_, n)| if let Note::Ended { id } = n { Some(*id) } else { None })
        .collect();
    assert_eq!(ended.len(), 3);
    assert!(engine.counters().preemptions > 0);
    let firsts = seen.iter().filter(|(_, note)| matches!(note, Note::First { .. })).count();
    assert_eq!((firsts, engine.load().blocks_used), (3, 0));
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut engine = Engine::new(profile(2_000), BLOCK);
    let blocks = chain(0, 0, 10);
    assert_eq!(engine.submit(request(1, &blocks, 1_900, 200), 0), Some(Note::Refused { id: 1 }));
    let endless = request(2, &blocks, u32::MAX, u32::MAX);
    assert_eq!(engine.submit(endless, 0), Some(Note::Refused { id: 2 }));
    assert_eq!(engine.submit(request(3, &blocks, 0, 0), 0), None);
    assert_eq!(run(&mut engine, 0).len(), 2);
}

#[test]
fn random_traffic_ends_once_each_and_the_same_way_each_time() {
    let play = |seed: u64| {
        let mut engine = Engine::new(profile(6_000), BLOCK);
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut seen, mut notes, mut now_us) = (Vec::new(), Vec::new(), 0);
        for id in 0..400 {
            let due_us = now_us + draw(30_000);
            while let Some(next_us) = engine.next_us().filter(|next| *next <= due_us) {
                engine.advance(next_us, &mut notes);
                assert!(engine.next_us().is_none_or(|next| next > next_us));
            }
            now_us = due_us;
            let blocks = chain(u128::from(draw(12)), 20, 200);
            let (prompt, output) = (1 + draw(2_500) as u32, 1 + draw(300) as u32);
            let priority = draw(3) as i32;
            engine.submit(Request { priority, ..request(id, &blocks, prompt, output) }, now_us);
            engine.advance(now_us, &mut notes);
            seen.extend(notes.drain(..).map(|note| (now_us, note)));
        }
        seen.extend(run(&mut engine, now_us));
        let load = engine.load();
        assert_eq!((load.running, load.waiting, load.waiting_prefill_tokens), (0, 0, 0));
        assert_eq!(load.blocks_used, 0);
        for id in 0..400 {
            let first =
                seen.iter().filter(|(_, n)| matches!(n, Note::First { id: i, .. } if *i == id));
            let ended = seen.iter().filter(|(_, n)| *n == Note::Ended { id });
            assert_eq!((first.count(), ended.count()), (1, 1), "request {id}");
        }
        assert!(engine.counters().preemptions > 0);
        seen
    };
    assert_eq!(play(1), play(1));
    assert_ne!(play(1), play(2));
}

/// A profile with room for so many tokens in the device and as many in host memory.
fn tiered(kv_tokens: u64) -> Profile {
    profile(kv_tokens).with_host(4.0)
}

#[test]
fn what_was_evicted_comes_back_from_host_memory_and_is_not_computed() {
    let profile = tiered(20_000);
    let mut engine = Engine::new(profile.clone(), BLOCK);
    let (first, second) = (chain(1, 0, 1_000), chain(2, 0, 1_000));
    for (id, blocks, at_us) in [(1, &first, 0), (2, &second, 10_000_000)] {
        engine.submit(request(id, blocks, 16_000, 1), at_us);
        run(&mut engine, at_us);
    }
    let computed = engine.counters().prefill_tokens;
    engine.drain_events().for_each(drop);
    assert!(engine.counters().evicted_for_room > 0, "one pushes the other out");
    let now_us = 20_000_000;
    engine.submit(request(3, &first, 16_000, 1), now_us);
    let expected = engine.load().waiting_prefill_tokens;
    assert_eq!(expected, 16, "what lies in host memory is not to be computed");
    let seen = run(&mut engine, now_us);
    let Note::First { cached_tokens: 15_984, .. } = seen[0].1 else { panic!("{:?}", seen[0]) };
    assert_eq!(engine.counters().prefill_tokens, computed + 16);
    let loaded = engine.counters().loaded_tokens;
    assert!(loaded > 10_000 && loaded < 15_985, "{loaded}: the rest was still in the device");
    // 131,072 bytes a token over 50 GB/s, then a step of one block.
    let load_us = loaded as f64 * 131_072.0 / 50e9 * 1e6;
    let step_us = profile.step_us(16, 16.0 * 15_992.0, 0);
    let took_us = (seen[0].0 - now_us) as f64;
    assert!((took_us - load_us - step_us).abs() < 3.0, "{took_us} {load_us} {step_us}");
    let events: Vec<KvEvent> = engine.drain_events().collect();
    let back = |e: &KvEvent| matches!(e, KvEvent::Stored { tier: TIER_DEVICE, .. });
    assert!(events.iter().any(back), "the index hears that it is near again");
}

#[test]
fn others_are_served_while_blocks_come_in() {
    let mut engine = Engine::new(tiered(20_000), BLOCK);
    let (first, second) = (chain(1, 0, 1_000), chain(2, 0, 1_000));
    for (id, blocks, at_us) in [(1, &first, 0), (2, &second, 10_000_000)] {
        engine.submit(request(id, blocks, 16_000, 1), at_us);
        run(&mut engine, at_us);
    }
    let now_us = 20_000_000;
    engine.submit(request(3, &first, 16_000, 1), now_us);
    let mut notes = Vec::new();
    engine.advance(now_us, &mut notes);
    assert_eq!((engine.load().running, engine.load().loading_tokens > 0), (1, true));
    engine.submit(request(4, &chain(3, 0, 4), 64, 1), now_us + 1_000);
    let seen = run(&mut engine, now_us + 1_000);
    let order: Vec<u64> =
        seen.iter().map(|(_, note)| first_of(note)).filter(|id| *id > 0).collect();
    assert_eq!(order, [4, 3]);
    assert_eq!((engine.load().loading_tokens, engine.load().blocks_used), (0, 0));
}

/// Whose first token it is; 0 for other notes.
fn first_of(note: &Note) -> u64 {
    if let Note::First { id, .. } = note { *id } else { 0 }
}

#[test]
fn what_another_engine_gives_takes_its_link_and_comes_behind_what_is_there() {
    let profile = profile(40_000);
    let mut engine = Engine::new(profile, BLOCK);
    let blocks = chain(1, 0, 1_000);
    let from_us = 7_000;
    let fetch = Some(crate::Fetch { blocks: 900, from_us });
    engine.submit(Request { fetch, ..request(1, &blocks, 16_000, 1) }, 0);
    let seen = run(&mut engine, 0);
    let Note::First { cached_tokens, .. } = seen[0].1 else { panic!("{:?}", seen[0]) };
    assert_eq!((cached_tokens, engine.counters().fetched_tokens), (14_400, 14_400));
    assert_eq!(engine.counters().prefill_tokens, 1_600);
    assert!(seen[0].0 as f64 > 7_000.0 + 14_400.0 * 131_072.0 / 40e9 * 1e6);
}

#[test]
fn blocks_of_the_urgent_stay_for_a_while() {
    let blocks = [chain(1, 0, 500), chain(2, 0, 500), chain(3, 0, 600)];
    let left = |claim: Option<Claim>, last_us: u64| {
        let mut engine = Engine::new(profile(20_000), BLOCK);
        let urgent = Request { claim, ..request(1, &blocks[0], 8_000, 1) };
        engine.submit(urgent, 0);
        run(&mut engine, 0);
        for (id, at_us) in [(2, 10_000_000), (3, last_us)] {
            engine.submit(request(id, &blocks[id as usize - 1], 8_000, 1), at_us);
            run(&mut engine, at_us);
        }
        engine.submit(request(4, &blocks[0], 8_000, 1), last_us + 10_000_000);
        let seen = run(&mut engine, last_us + 10_000_000);
        let Note::First { cached_tokens, .. } = seen[0].1 else { panic!("{:?}", seen[0]) };
        cached_tokens
    };
    let claim = Claim { priority: 60, duration_ms: Some(60_000) };
    assert_eq!(left(Some(claim), 20_000_000), 7_984);
    assert!(left(None, 20_000_000) < 7_984, "the oldest goes first");
    assert_eq!(left(Some(claim), 200_000_000), left(None, 200_000_000), "not for good");
}

#[test]
fn an_urgent_prompt_has_its_step_alone_and_the_one_before_is_short() {
    let profile = profile(400_000);
    let mut engine = Engine::new(profile.clone(), BLOCK);
    let warm = Request { priority: 1, ..request(1, &chain(1, 0, 2), 32, 1) };
    engine.submit(warm, 0);
    run(&mut engine, 0);
    // An urgent one came lately: the prompt goes on in eighths of a step.
    let start_us = 1_000_000;
    engine.submit(request(2, &chain(2, 0, 1_250), 20_000, 1), start_us);
    engine.advance(start_us, &mut Vec::new());
    let short_us = us(profile.step_us(1_024, 1_024.0 * 512.0, 0));
    assert_eq!(engine.next_us(), Some(start_us + short_us));
    let urgent = Request { priority: 1, ..request(3, &chain(3, 0, 64), 1_024, 1) };
    engine.submit(urgent, start_us + 1);
    let seen = run(&mut engine, start_us + 1);
    let own_us = us(profile.step_us(1_024, 1_024.0 * 512.0, 0));
    assert_eq!(seen[0].0, start_us + short_us + own_us, "{:?}", seen[0]);
    assert!(matches!(seen[0].1, Note::First { id: 3, .. }));
    // Where nobody urgent came for long, a step is whole again.
    let late_us = 100_000_000;
    engine.submit(request(4, &chain(4, 0, 1_250), 20_000, 1), late_us);
    engine.advance(late_us, &mut Vec::new());
    let whole_us = us(profile.step_us(8_192, 8_192.0 * 4_096.0, 0));
    assert_eq!(engine.next_us(), Some(late_us + whole_us));
}

#[test]
fn lesser_prompts_go_on_however_many_urgent_ones_come() {
    let mut engine = Engine::new(profile(400_000), BLOCK);
    engine.submit(request(1, &chain(1, 0, 200), 3_200, 1), 0);
    let (mut now_us, mut notes, mut id) = (0, Vec::new(), 2);
    // A new urgent prompt waits at every step.
    while !notes.iter().any(|note| matches!(note, Note::First { id: 1, .. })) {
        assert!(id < 200, "the first is never served");
        let urgent =
            Request { priority: 1, ..request(id, &chain(u128::from(id), 0, 600), 9_600, 1) };
        engine.submit(urgent, now_us);
        id += 1;
        engine.advance(now_us, &mut notes);
        now_us = engine.next_us().unwrap();
    }
}

#[test]
fn blocks_of_the_urgent_are_no_room_for_others_that_run_beside_others() {
    let claim = Some(Claim { priority: 95, duration_ms: Some(60_000) });
    let cached = |claim: Option<Claim>| {
        let mut engine = Engine::new(profile(20_000), BLOCK);
        let blocks = chain(1, 0, 500);
        engine.submit(Request { priority: 1, claim, ..request(1, &blocks, 8_000, 1) }, 0);
        run(&mut engine, 0);
        let at_us = 5_000_000;
        // Two of these do not fit beside what is kept.
        for id in [2, 3] {
            engine.submit(request(id, &chain(u128::from(id), 0, 600), 9_600, 500), at_us);
        }
        run(&mut engine, at_us);
        let at_us = 40_000_000;
        engine.submit(Request { priority: 1, ..request(4, &blocks, 8_000, 1) }, at_us);
        let seen = run(&mut engine, at_us);
        let Note::First { cached_tokens, .. } = seen[0].1 else { panic!("{:?}", seen[0]) };
        cached_tokens
    };
    assert_eq!(cached(claim), 7_984);
    assert!(cached(None) < 4_000, "{}", cached(None));
}
