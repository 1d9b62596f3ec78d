//! Answers with drafts are the answers without, bit for bit, in fewer steps where they repeat.

use mainstay_engine_abi::sdk::{Logprob, Request, Sampling};
use mainstay_engine_shell::Work;
use serde_json::{Value, json};

use crate::common::{Bench, Ending, FIXTURES, golden, request};

/// Prompts that say the same several times, so that guesses are many and some are right.
fn prompts(name: &str) -> Vec<Vec<u32>> {
    let input = golden(name).input;
    let part = &input[..30];
    let loops = |times: usize| -> Vec<u32> { part.iter().cycle().take(times).copied().collect() };
    vec![
        input.clone(),
        loops(70),
        loops(100),
        vec![input[5]; 40],
        [&input[..60], &input[..45]].concat(),
    ]
}

/// All ways of drawing that look at more than one row.
fn requests(name: &str) -> Vec<Request> {
    let ways: [fn(&mut Sampling); 5] = [
        |_| {},
        |s| s.logprobs = 4,
        |s| (s.temperature, s.top_p, s.seed) = (0.7, 0.9, Some(11)),
        |s| (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) = (1.05, 0.1, 0.1),
        |s| (s.temperature, s.seed, s.ignore_eos, s.tokens_min) = (1.0, Some(3), false, 9),
    ];
    let mut all = Vec::new();
    for prompt in prompts(name) {
        for way in ways {
            let mut request = request(all.len() as u64, &prompt, 40);
            way(&mut request.sampling);
            all.push(request);
        }
    }
    all
}

/// Where a token stands in its output is no part of the answer.
fn answer(ending: Ending) -> (Vec<u32>, Vec<Logprob>, Value) {
    let logprobs = ending.logprobs.into_iter().map(|l| Logprob { position: 0, ..l }).collect();
    (ending.tokens, logprobs, json!(format!("{:?}", ending.finish)))
}

#[test]
fn drafts_change_no_answer() {
    for name in FIXTURES {
        for (blocks, at_once) in [(256, 1), (256, 6), (24, 6)] {
            let run = |drafts: usize| {
                let config = json!({
                    "draft_tokens_max": drafts, "blocks": blocks, "requests_max": at_once, "step_tokens_max": 48,
                });
                let mut bench = Bench::new(name, config);
                requests(name).into_iter().for_each(|request| bench.submit(request));
                bench.finish();
                let ids = 0..requests(name).len() as u64;
                let answers: Vec<_> = ids.map(|id| answer(bench.ending(id))).collect();
                for output in &bench.outputs {
                    let tokens = output.tokens.len() as u32;
                    assert!(output.logprobs.iter().all(|l| l.position < tokens));
                }
                (answers, bench.scheduler.stats())
            };
            let (plain, none) = run(0);
            assert_eq!((none.draft_tokens, none.accepted_tokens), (0, 0));
            for drafts in [1, 8, 64] {
                let (answers, stats) = run(drafts);
                assert_eq!(answers, plain, "{name}, {blocks} blocks, {drafts} tokens");
                assert!(stats.accepted_tokens > 0 && stats.draft_tokens > stats.accepted_tokens);
                assert_eq!(stats.decode_tokens, none.decode_tokens);
                assert_eq!((stats.blocks_used, stats.running, stats.waiting), (0, 0, 0));
            }
        }
    }
}

#[test]
fn an_answer_ends_where_it_should_however_much_was_guessed() {
    let prompt = vec![golden("llama-f32").input[5]; 40];
    let run = |drafts: usize, tokens_max: u32, context: usize| {
        let config = json!({ "draft_tokens_max": drafts, "context_tokens_max": context });
        let mut bench = Bench::new("llama-f32", config);
        let tokens = bench.run(request(1, &prompt, tokens_max)).tokens;
        (tokens, bench.scheduler.stats().accepted_tokens)
    };
    let plain = run(0, 150, 500).0;
    let (drafted, accepted) = run(64, 150, 500);
    assert_eq!((plain.len(), &drafted), (150, &plain));
    assert!(accepted > 0);
    for tokens_max in 1..40 {
        assert_eq!(run(64, tokens_max, 500).0, plain[..tokens_max as usize]);
    }
    for context in 41..80 {
        assert_eq!(run(64, 150, context).0, plain[..context - 40], "a context of {context}");
    }
}

#[test]
fn guesses_take_no_block_that_another_was_promised() {
    let prompt = vec![golden("llama-f32").input[5]; 40];
    let run = |drafts: usize| {
        // Three prompts of three blocks and what they say fit exactly.
        let config = json!({ "draft_tokens_max": drafts, "blocks": 12, "requests_max": 3 });
        let mut bench = Bench::new("llama-f32", config);
        for id in 0..3 {
            bench.submit(Request { namespace: u128::from(id), ..request(id, &prompt, 24) });
        }
        bench.finish();
        let answers: Vec<_> = (0..3).map(|id| bench.ending(id).tokens).collect();
        (answers, bench.scheduler.stats().preemptions)
    };
    assert_eq!(run(8), run(0));
}
