//! The scheduler with a clock that the tests move: what is hit, kept, waited for, given up, and
//! that the same prompt is answered alike wherever it runs.

use mainstay_engine_abi::sdk::{Code, KvEvent, RetentionRange, Sampling, TOKENS_TO_END};

use super::*;

struct Bench {
    scheduler: Scheduler,
    now_us: u64,
    outputs: Vec<Output>,
    events: Vec<KvEvent>,
}

/// What became of a request.
#[derive(Debug, Default, PartialEq)]
struct Ending {
    tokens: Vec<u32>,
    finish: Option<Finish>,
    cached_tokens: u32,
}

impl Bench {
    fn new(config: &str) -> Self {
        let script = r"
            [[rule]]
            when = 'hello'
            words = 20
        ";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        let options = Options::parse(config).unwrap();
        let text = Text::load(&options).unwrap();
        let script = Script::read(file.path()).unwrap();
        let scheduler = Scheduler::new(options, script, text);
        Self { scheduler, now_us: 0, outputs: Vec::new(), events: Vec::new() }
    }

    fn step(&mut self) -> Wake {
        let now_us = self.now_us;
        let wake = self.scheduler.step(&|| now_us, true);
        self.events.extend(self.scheduler.drain_events());
        self.outputs.extend(self.scheduler.drain_outputs());
        wake
    }

    /// Steps, letting time pass as it asks, until nothing is live.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            match self.step() {
                Wake::Now => {}
                Wake::At(at_us) if !self.scheduler.places.is_empty() => self.now_us = at_us,
                _ if self.scheduler.places.is_empty() => return,
                wake => panic!("requests are stuck: {wake:?}"),
            }
        }
        panic!("no end in sight");
    }

    fn run(&mut self, request: Request) -> Ending {
        let id = request.id;
        self.scheduler.submit(request, self.now_us);
        self.finish();
        self.ending(id)
    }

    /// All that was reported of a request, which must have ended exactly once, at its end.
    fn ending(&self, id: u64) -> Ending {
        let mut ending = Ending::default();
        for output in self.outputs.iter().filter(|o| o.id == id) {
            assert!(ending.finish.is_none(), "something follows the final output of {id}");
            ending.tokens.extend(&output.tokens);
            ending.finish.clone_from(&output.finish);
            ending.cached_tokens = output.cached_tokens;
        }
        assert!(ending.finish.is_some(), "request {id} has not ended");
        let firsts = self.outputs.iter().filter(|o| o.id == id && o.first).count();
        assert!(firsts == usize::from(!ending.tokens.is_empty()));
        ending
    }
}

fn request(id: u64, tokens: &[u32], tokens_max: u32) -> Request {
    let sampling = Sampling { tokens_max, ignore_eos: true, ..Sampling::default() };
    Request { id, tokens: tokens.to_vec(), sampling, ..Request::default() }
}

fn prompt(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|n| 100 + (n * 7 + seed * 13) % 1500).collect()
}

#[test]
fn what_was_computed_or_said_is_hit_by_the_next_turn() {
    let mut bench = Bench::new("{}");
    let first = prompt(1, 100);
    let answer = bench.run(request(1, &first, 60));
    assert_eq!((answer.cached_tokens, answer.tokens.len()), (0, 60));
    assert_eq!(answer.finish, Some(Finish::Length));
    let mut second = [first.clone(), answer.tokens].concat();
    second.extend(prompt(2, 40));
    // 160 tokens are ten blocks, but the last one said was never computed.
    assert_eq!(bench.run(request(2, &second, 1)).cached_tokens, 144);
    assert_eq!(bench.run(request(3, &first, 1)).cached_tokens, 96);
    let other = Request { namespace: 9, ..request(4, &first, 1) };
    assert_eq!(bench.run(other).cached_tokens, 0, "namespaces do not share");
}

#[test]
fn a_script_ends_with_the_end_token_and_words_are_seeded() {
    let mut bench = Bench::new("{}");
    let hello = bench.scheduler.text.tokens_of("hello");
    let plain = |id, seed| {
        let sampling = Sampling { tokens_max: 100, seed, ..Sampling::default() };
        Request { id, tokens: hello.clone(), sampling, ..Request::default() }
    };
    let one = bench.run(plain(1, Some(1)));
    assert_eq!((one.tokens.len(), one.tokens[20]), (21, 4));
    assert_eq!(one.finish, Some(Finish::Stop));
    assert_eq!(bench.run(plain(2, Some(1))).tokens, one.tokens);
    assert_ne!(bench.run(plain(3, Some(2))).tokens, one.tokens);
    let tokens = bench.run(request(4, &prompt(3, 5), 400)).tokens;
    let said = bench.scheduler.text.end_of(&tokens);
    assert!(said.starts_with("This answer is simulated"), "{said}");
}

#[test]
fn limits_and_stop_tokens_are_kept() {
    let mut bench = Bench::new("{}");
    let hello = bench.scheduler.text.tokens_of("hello");
    let all = bench.run(request(1, &hello, 20)).tokens;
    let sampling = Sampling { tokens_max: 50, stop_tokens: vec![all[5]], ..Sampling::default() };
    let first = all.iter().position(|token| *token == all[5]).unwrap();
    let stopped = bench.run(Request { id: 2, sampling, ..request(2, &hello, 1) });
    assert_eq!(stopped.tokens, all[..=first]);
    assert_eq!(stopped.finish, Some(Finish::Stop));
    let sampling = Sampling { tokens_max: 50, tokens_min: 30, ..Sampling::default() };
    let longer = bench.run(Request { sampling, ..request(3, &hello, 1) });
    assert_eq!((longer.tokens.len(), longer.tokens[30]), (31, 4));
}

#[test]
fn a_moved_request_goes_on_where_it_stopped() {
    let tokens = prompt(1, 50);
    let whole = Bench::new("{}").run(request(1, &tokens, 30)).tokens;
    let moved =
        Request { sampled_before: 12, ..request(2, &[&tokens[..], &whole[..12]].concat(), 18) };
    assert_eq!(Bench::new("{}").run(moved).tokens, whole[12..]);
}

#[test]
fn time_passes_at_the_configured_rates() {
    let mut bench = Bench::new(r#"{"prefill_us_per_token": 10, "decode_us_per_token": 1000}"#);
    let tokens = prompt(1, 160);
    bench.run(request(1, &tokens, 5));
    assert_eq!(bench.now_us, 160 * 10 + 4 * 1000);
    let first = bench.outputs.iter().find(|o| o.first).unwrap();
    assert_eq!((first.queue_us, first.prefill_us), (0, 1600));
    let before_us = bench.now_us;
    bench.run(request(2, &tokens, 1));
    // Nine of ten blocks were cached: the last is computed again for its last token.
    assert_eq!(bench.now_us - before_us, 16 * 10);
    // Two prompts are computed one after the other.
    let before_us = bench.now_us;
    bench.scheduler.submit(request(3, &prompt(5, 100), 1), before_us);
    bench.scheduler.submit(request(4, &prompt(6, 100), 1), before_us);
    bench.finish();
    assert_eq!(bench.now_us - before_us, 2000);
}

#[test]
fn the_same_prefix_in_flight_is_computed_once() {
    let mut bench = Bench::new(r#"{"prefill_us_per_token": 10}"#);
    let shared = prompt(1, 320);
    for id in 0..3 {
        let tokens = [&shared[..], &prompt(id as u32 + 2, 20)].concat();
        bench.scheduler.submit(request(id, &tokens, 2), 0);
    }
    bench.finish();
    let cached: Vec<u32> = (0..3).map(|id| bench.ending(id).cached_tokens).collect();
    assert_eq!(cached, [0, 320, 320]);
    assert_eq!(bench.now_us, (340 + 20 + 20) * 10);
}

#[test]
fn nobody_waits_for_a_block_whose_last_token_it_computes_anyway() {
    let mut bench = Bench::new(r#"{"prefill_us_per_token": 10}"#);
    for id in 0..2 {
        bench.scheduler.submit(request(id, &prompt(1, 16), 4), 0);
    }
    bench.step();
    let stats = bench.scheduler.stats();
    assert_eq!((stats.running, stats.waiting), (2, 0));
}

#[test]
fn who_waits_counts_with_what_it_will_compute() {
    let mut bench = Bench::new(r#"{"prefill_us_per_token": 10}"#);
    let long = prompt(1, 320);
    bench.run(request(1, &long, 1));
    // One of 340 tokens is nearly cached, one is new, and a third shares what the second will compute once it runs.
    bench.scheduler.submit(request(2, &[&long[..], &prompt(2, 20)].concat(), 1), bench.now_us);
    bench.scheduler.submit(request(3, &prompt(3, 320), 1), bench.now_us);
    assert_eq!(bench.scheduler.stats().waiting_prefill_tokens, 20 + 320);
    assert_eq!(bench.scheduler.backlog_ms(bench.now_us), 100, "at least");
    bench.step();
    bench.scheduler.submit(request(4, &[&prompt(3, 320)[..], &[7; 9]].concat(), 1), bench.now_us);
    let stats = bench.scheduler.stats();
    assert_eq!((stats.running, stats.waiting), (2, 1));
    assert_eq!(stats.waiting_prefill_tokens, 20 + 320 + 9);
}

#[test]
fn the_cache_evicts_by_priority_and_never_what_is_pinned() {
    let mut bench = Bench::new(r#"{"blocks": 24}"#);
    let run = |bench: &mut Bench, id, seed, priority| {
        let range = RetentionRange { end: TOKENS_TO_END, priority, ..RetentionRange::default() };
        let request = Request { ranges: vec![range], ..request(id, &prompt(seed, 127), 1) };
        bench.run(request).cached_tokens
    };
    run(&mut bench, 1, 1, 90);
    run(&mut bench, 2, 2, 10);
    let stored: Vec<u128> = bench
        .events
        .iter()
        .filter_map(|event| match event {
            KvEvent::Stored { blocks, .. } => Some(blocks.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(stored.len(), 14);
    run(&mut bench, 3, 3, 50);
    run(&mut bench, 4, 4, 50);
    assert!(bench.scheduler.stats().evictions > 0);
    assert_eq!(run(&mut bench, 5, 1, 90), 112, "the important prompt is still there");
    assert_eq!(bench.scheduler.pin(7, &stored[..7], 1000, bench.now_us), Ok(7));
    for seed in 10..20 {
        run(&mut bench, u64::from(seed), seed, 100);
    }
    assert_eq!(run(&mut bench, 30, 1, 100), 112, "the pinned prompt is still there");
    bench.now_us += 1_000_000;
    bench.step();
    assert!(bench.events.contains(&KvEvent::PinExpired { pin_id: 7 }));
}

#[test]
fn requests_that_do_not_fit_together_take_turns() {
    let mut bench = Bench::new(r#"{"blocks": 8, "decode_us_per_token": 100}"#);
    for id in 0..3 {
        let request = Request { priority: id as i32, ..request(id, &prompt(id as u32, 30), 60) };
        bench.scheduler.submit(request, 0);
    }
    bench.finish();
    for id in 0..3 {
        let alone = Bench::new("{}").run(request(9, &prompt(id as u32, 30), 60));
        let ending = bench.ending(id);
        assert_eq!(ending.tokens, alone.tokens, "preemption changes nothing of {id}");
        assert_eq!(ending.finish, Some(Finish::Length));
    }
    let stats = bench.scheduler.stats();
    assert!(stats.preemptions > 0);
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
}

#[test]
fn a_cache_that_pins_fill_refuses_instead_of_waiting_for_ever() {
    let mut bench = Bench::new(r#"{"blocks": 8, "pin_fraction": 1.0}"#);
    bench.run(request(1, &prompt(1, 127), 1));
    let blocks: Vec<u128> = bench.events.iter().fold(Vec::new(), |mut all, event| {
        if let KvEvent::Stored { blocks, .. } = event {
            all.extend(blocks);
        }
        all
    });
    bench.scheduler.pin(1, &blocks, 60_000, 0).unwrap();
    let Some(Finish::Error { rc, .. }) = bench.run(request(2, &prompt(2, 60), 1)).finish else {
        panic!("it was served");
    };
    assert_eq!(rc, Code::Exhausted.rc());
}

#[test]
fn a_million_tokens_are_one_prompt() {
    let mut bench = Bench::new("{}");
    let long = prompt(1, (1 << 20) - 8);
    assert_eq!(bench.run(request(1, &long, 2)).tokens.len(), 2);
    let again = bench.run(request(2, &long, 2));
    assert_eq!(again.cached_tokens as usize, long.len() / 16 * 16);
    let mut told = 0;
    assert_eq!(bench.scheduler.snapshot(|_| told += 1) as usize, long.len() / 16);
    assert!(told < 100, "runs, not single blocks");
}

#[test]
fn an_urgent_prompt_is_computed_before_lesser_ones_that_run() {
    let mut bench = Bench::new(r#"{"prefill_us_per_token": 10}"#);
    bench.scheduler.submit(request(1, &prompt(1, 1_000), 1), 0);
    bench.step();
    bench.now_us = 2_000;
    let urgent = Request { priority: 1, ..request(2, &prompt(2, 100), 1) };
    bench.scheduler.submit(urgent, bench.now_us);
    bench.scheduler.submit(request(3, &prompt(3, 100), 1), bench.now_us);
    let mut ends = Vec::new();
    while ends.len() < 3 {
        if let Wake::At(at_us) = bench.step() {
            bench.now_us = at_us;
        }
        let ended = bench.outputs.drain(..).filter(|output| output.finish.is_some());
        ends.extend(ended.map(|output| (output.id, bench.now_us)));
    }
    assert_eq!(ends.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1, 3]);
    // In all the same work.
    assert_eq!(ends.last().unwrap().1, 12_000);
}

#[test]
fn what_is_kept_for_the_urgent_is_no_room_for_others_while_they_run() {
    let config = r#"{"blocks": 40, "prefill_us_per_token": 10, "decode_us_per_token": 100}"#;
    let mut bench = Bench::new(config);
    let kept = RetentionRange {
        end: TOKENS_TO_END,
        priority: 95,
        duration_ms: 60_000,
        ..RetentionRange::default()
    };
    let urgent = Request { priority: 1, ranges: vec![kept], ..request(1, &prompt(1, 160), 1) };
    bench.run(urgent);
    // 40 blocks, 10 of them kept: one of these fits beside them, the second waits for its end.
    bench.scheduler.submit(request(2, &prompt(2, 300), 40), bench.now_us);
    bench.scheduler.submit(request(3, &prompt(3, 250), 40), bench.now_us);
    bench.step();
    assert_eq!((bench.scheduler.running.len(), bench.scheduler.waiting.len()), (1, 1));
    bench.finish();
    let again = Request { priority: 1, ..request(4, &prompt(1, 160), 1) };
    assert_eq!(bench.run(again).cached_tokens, 144, "all but the block of the last token");
    // Alone it may have all of it.
    assert_eq!(bench.run(request(5, &prompt(5, 600), 1)).finish, Some(Finish::Length));
}
