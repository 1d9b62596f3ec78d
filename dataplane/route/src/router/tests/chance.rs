//! Any inputs at all, and what must hold of every decision.

use proptest::prelude::*;

use super::*;
use crate::cost::{Standing, There};
use crate::inputs::Fetch;

fn load() -> impl Strategy<Value = WorkerLoad> {
    let counts = (any::<u32>(), any::<u32>(), any::<u64>(), proptest::option::of(any::<u64>()));
    let small = (0_u32..50, 0_u32..50, 0_u64..100_000, proptest::option::of(0_u64..500));
    let rates = (proptest::num::f32::ANY, proptest::num::f32::ANY, any::<u64>());
    let total = proptest::option::of(prop_oneof![any::<u64>(), 0_u64..500]);
    let lower = (proptest::num::f32::ANY, any::<u64>());
    (prop_oneof![1 => counts, 3 => small], rates, total, lower).prop_map(
        |(counts, (prefill, decode, heard_ms), blocks_total, lower)| {
            let (load_us_per_token, loading_tokens) = lower;
            let (running, waiting, waiting_prefill_tokens, blocks_free) = counts;
            WorkerLoad {
                blocks_total,
                heard_ms,
                running,
                waiting,
                waiting_prefill_tokens,
                prefill_us_per_token: prefill,
                decode_us_per_step: decode,
                blocks_free,
                load_us_per_token,
                loading_tokens,
            }
        },
    )
}

fn views() -> impl Strategy<Value = Vec<WorkerView>> {
    let chance = proptest::bool::weighted;
    let view = (0_u32..12, 0_u64..3, chance(0.2), load(), chance(0.4));
    let view = view.prop_map(|(id, epoch, draining, load, abroad)| WorkerView {
        id: WorkerId(id),
        epoch: Epoch(epoch),
        draining,
        load,
        abroad,
    });
    proptest::collection::vec(view, 0..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any inputs lead to somebody who may be chosen, at a finite cost, or to an error if there is nobody.
    #[test]
    fn only_those_who_may_be_chosen_are(
        workers in views(),
        excluded in proptest::collection::vec((0_u32..12).prop_map(WorkerId), 0..4),
        overlaps in proptest::collection::vec((0_u32..12, any::<u32>()), 0..8),
        stored in proptest::collection::vec((0_u32..12, any::<u32>()), 0..8),
        fetch in proptest::option::of((any::<u32>(), proptest::num::f32::ANY)),
        tokens in any::<u32>(),
        block_tokens in any::<u32>(),
        questions in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<i32>(), 0_usize..5, proptest::option::of(any::<f64>())), 1..6),
    ) {
        let blocks = chain(1, 20);
        let all = |of: Vec<(u32, u32)>| -> Vec<_> {
            of.into_iter().map(|(id, n)| overlap(id, n)).collect()
        };
        let (overlaps, stored) = (all(overlaps), all(stored));
        let fetch = fetch.map(|(blocks, us_per_token)| Fetch { blocks, us_per_token });
        let mut router = Router::default();
        for (random, now_ms, priority, policy, region_penalty_ms) in questions {
            let inputs = Inputs {
                now_ms,
                prompt_tokens: tokens,
                block_tokens,
                excluded: &excluded,
                priority,
                random,
                policy: Policy::ALL[policy],
                region_penalty_ms,
                stored: &stored,
                fetch,
                ..ask(&workers, &blocks, &overlaps)
            };
            let good = |view: &WorkerView| !view.draining && !excluded.contains(&view.id);
            match router.choose(&inputs) {
                Ok(decision) => {
                    prop_assert!(workers.iter().any(|view| good(view) && view.id == decision.worker));
                    prop_assert!(decision.overlap_blocks <= 20);
                    prop_assert!(decision.candidates.len() <= CANDIDATES_MAX);
                    for candidate in &decision.candidates {
                        prop_assert!(candidate.cost_ms.is_finite() && candidate.cost_ms >= 0.0);
                    }
                    let near = workers.iter().any(|view| good(view) && !view.abroad);
                    if region_penalty_ms.is_none() && near {
                        prop_assert!(!decision.candidates[0].abroad);
                    }
                    prop_assert!(decision.propensity > 0.0 && decision.propensity <= 1.0);
                    if inputs.policy == Policy::Kv {
                        let aside = |c: &&CandidateCost| {
                            region_penalty_ms.is_some() || c.abroad == decision.candidates[0].abroad
                        };
                        let least = decision.candidates.iter().filter(aside).map(|c| c.cost_ms);
                        let least = least.fold(f64::INFINITY, f64::min);
                        prop_assert!(decision.cost_ms <= least + TIE_MS);
                    }
                    router.book(now_ms, &decision, &blocks);
                }
                Err(_) => prop_assert!(!workers.iter().any(good)),
            }
        }
    }

    #[test]
    fn more_overlap_never_costs_more(
        load in load(),
        tokens in 0_u32..200_000,
        block_tokens in 0_u32..300,
        overlap_blocks in 0_u32..2_000,
        more in 0_u32..2_000,
        blocks in prop_oneof![any::<u64>(), 0_u64..1_000],
        expected_blocks in prop_oneof![any::<u64>(), 0_u64..1_000],
    ) {
        let workers = [WorkerView { load, ..worker(1) }];
        let inputs = Inputs { prompt_tokens: tokens, block_tokens, ..ask(&workers, &[], &[]) };
        let question =
            Question::new(&inputs, &Hints::default(), Some(expected_blocks), Weights::default());
        let mut fleet = Fleet::default();
        fleet.take(&workers);
        let standing: Standing = fleet.row(0).0;
        let cost = |known_blocks: u32| {
            let there = There {
                known_blocks: f64::from(known_blocks),
                predicted_blocks: 0.0,
                stored_blocks: 0.0,
                booked_tokens: 0.0,
                booked_requests: 0.0,
                warm_blocks: blocks as f64,
            };
            question.terms(standing, there).total_ms()
        };
        prop_assert!(cost(overlap_blocks + more) <= cost(overlap_blocks));
    }

    #[test]
    fn equal_workers_share_equally(count in 2_u32..10, seed in any::<u64>()) {
        let workers: Vec<_> = (0..count).map(worker).collect();
        let blocks = chain(1, 10);
        let mut sent = vec![0_u32; count as usize];
        let mut router = Router::default();
        for step in 0..u64::from(count) * 20 {
            let random = seed.wrapping_add(step);
            let inputs = Inputs { random, ..ask(&workers, &blocks, &[]) };
            sent[router.choose(&inputs).expect("a worker").worker.0 as usize] += 1;
        }
        prop_assert!(sent.iter().all(|n| (19..=21).contains(n)), "{:?}", sent);
    }
}
