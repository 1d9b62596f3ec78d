//! Decisions by hand for each rule of the cost; `hints` has those of everything else, `chance` what holds of any.

use std::collections::HashMap;

use mainstay_index::Overlap;

use super::*;
use crate::bookings::BOOKINGS_MAX;
use crate::choice::TIE_MS;
use crate::cost::Terms;
use crate::inputs::{WorkerLoad, WorkerView};
use crate::predictions::{PREDICTED_BLOCKS_MAX, PREDICTIONS_MAX};

mod chance;
mod hints;

const BLOCK_TOKENS: u32 = 16;

fn worker(id: u32) -> WorkerView {
    let load = WorkerLoad {
        heard_ms: 1,
        prefill_us_per_token: 100.0,
        decode_us_per_step: 10_000.0,
        ..WorkerLoad::default()
    };
    WorkerView { id: WorkerId(id), epoch: Epoch(1), draining: false, load, abroad: false }
}

fn busy(id: u32, running: u32, waiting_prefill_tokens: u64) -> WorkerView {
    let mut view = worker(id);
    view.load.running = running;
    view.load.waiting_prefill_tokens = waiting_prefill_tokens;
    view
}

fn chain(root: u128, length: usize) -> Vec<SequenceHash> {
    (0..length as u128).map(|depth| SequenceHash(root * 10_000 + depth)).collect()
}

fn overlap(id: u32, blocks: u32) -> Overlap {
    Overlap { worker: WorkerId(id), blocks }
}

fn ask<'a>(
    workers: &'a [WorkerView],
    blocks: &'a [SequenceHash],
    overlaps: &'a [Overlap],
) -> Inputs<'a> {
    Inputs {
        now_ms: 1_000,
        prompt_blocks: blocks,
        prompt_tokens: blocks.len() as u32 * BLOCK_TOKENS + 5,
        block_tokens: BLOCK_TOKENS,
        overlaps,
        stored: &[],
        fetch: None,
        workers,
        excluded: &[],
        priority: 0,
        random: 0,
        policy: Policy::Kv,
        region_penalty_ms: None,
    }
}

#[test]
fn the_worker_that_holds_the_prefix_is_the_cheapest() {
    let workers = [worker(1), worker(2), worker(3)];
    let blocks = chain(1, 100);
    let overlaps = [overlap(1, 20), overlap(2, 90)];
    let decision = Router::default().choose(&ask(&workers, &blocks, &overlaps)).expect("a worker");
    assert_eq!((decision.worker, decision.overlap_blocks), (WorkerId(2), 90));
    assert_eq!(decision.uncached_tokens, 165);
    assert!((decision.terms.prefill_ms - 16.5).abs() < 1e-9, "{decision:?}");
    assert_eq!(decision.note, Note::BestOverlap { blocks: 90 });
    let order: Vec<u32> = decision.candidates.iter().map(|c| c.worker.0).collect();
    assert_eq!(order, [2, 1, 3]);
    assert_eq!(decision.considered, 3);
}

#[test]
fn a_long_queue_outweighs_a_prefix_and_the_note_says_so() {
    let workers = [busy(1, 0, 2_000), worker(2)];
    let blocks = chain(1, 100);
    let overlaps = [overlap(1, 90)];
    let decision = Router::default().choose(&ask(&workers, &blocks, &overlaps)).expect("a worker");
    assert_eq!(decision.worker, WorkerId(2));
    let Note::CheaperThanOverlap { worker, blocks, cost_ms } = decision.note else {
        panic!("{:?}", decision.note);
    };
    assert_eq!((worker, blocks), (WorkerId(1), 90));
    assert!((cost_ms - 216.5).abs() < 1e-9 && decision.cost_ms < cost_ms);
    assert!(decision.note.to_string().contains("cheaper than worker 1"));
}

#[test]
fn each_term_counts_what_it_says() {
    let mut view = busy(1, 3, 1_000);
    view.load.waiting = 2;
    view.load.blocks_free = Some(4);
    let blocks = chain(1, 10);
    let workers = [view];
    let inputs = ask(&workers, &blocks, &[]);
    let decision = Router::default().choose(&inputs).expect("a worker");
    // 165 tokens in 11 blocks, 7 of which must be taken from somebody.
    let expected = Terms {
        prefill_ms: 16.5,
        queue_ms: 100.0,
        decode_ms: 50.0,
        memory_ms: 11.2,
        ..Terms::default()
    };
    for (got, want) in [
        (decision.terms.prefill_ms, expected.prefill_ms),
        (decision.terms.queue_ms, expected.queue_ms),
        (decision.terms.decode_ms, expected.decode_ms),
        (decision.terms.memory_ms, expected.memory_ms),
        (decision.cost_ms, expected.total_ms()),
    ] {
        assert!((got - want).abs() < 1e-9, "{:?}", decision.terms);
    }
    assert_eq!(decision.note, Note::OnlyCandidate);
    let urgent = Router::default().choose(&Inputs { priority: 1, ..inputs }).expect("a worker");
    assert!((urgent.terms.queue_ms - 10.0).abs() < 1e-9, "{:?}", urgent.terms);
    let weights = Weights { prefill: 2.0, queue: f64::NAN, decode: -1.0, memory: 0.5 };
    let weighted = Router::new(weights).choose(&inputs).expect("a worker");
    assert!((weighted.cost_ms - 38.6).abs() < 1e-9, "{:?}", weighted.terms);
}

#[test]
fn an_unmeasured_worker_is_taken_to_be_like_its_peers() {
    let mut new = worker(2);
    new.load.prefill_us_per_token = 0.0;
    let mut broken = worker(3);
    broken.load.prefill_us_per_token = f32::NAN;
    let blocks = chain(1, 10);
    let workers = [worker(1), new, broken];
    let decision = Router::default().choose(&ask(&workers, &blocks, &[])).expect("a worker");
    assert!(decision.candidates.iter().all(|c| (c.terms.prefill_ms - 16.5).abs() < 1e-6));
    let alone = [new];
    let decision = Router::default().choose(&ask(&alone, &blocks, &[])).expect("a worker");
    assert!((decision.terms.prefill_ms - 33.0).abs() < 1e-6, "the default of 200 us a token");
}

#[test]
fn nobody_left_is_a_typed_error() {
    let mut router = Router::default();
    let blocks = chain(1, 4);
    assert_eq!(router.choose(&ask(&[], &blocks, &[])), Err(RouteError::NoWorkers));
    let mut workers = [worker(1), worker(2)];
    let tried = [WorkerId(1), WorkerId(2)];
    let inputs = Inputs { excluded: &tried, ..ask(&workers, &blocks, &[]) };
    assert_eq!(router.choose(&inputs), Err(RouteError::AllExcluded { workers: 2 }));
    workers[0].draining = true;
    let inputs = Inputs { excluded: &tried[1..], ..ask(&workers, &blocks, &[]) };
    assert_eq!(router.choose(&inputs), Err(RouteError::AllExcluded { workers: 2 }));
    workers[1].draining = true;
    let inputs = ask(&workers, &blocks, &[]);
    assert_eq!(router.choose(&inputs), Err(RouteError::AllDraining { workers: 2 }));
    assert_eq!(RouteError::NoWorkers.code().name(), "unavailable");
}

#[test]
fn turns_go_round_even_when_workers_come_and_go() {
    let mut router = Router::default();
    let blocks = chain(1, 4);
    let mut turn = |ids: &[u32]| {
        let workers: Vec<_> = ids.iter().map(|id| worker(*id)).collect();
        let inputs = Inputs { policy: Policy::RoundRobin, ..ask(&workers, &blocks, &[]) };
        router.choose(&inputs).expect("a worker").worker.0
    };
    assert_eq!([turn(&[3, 1, 2]), turn(&[3, 1, 2]), turn(&[3, 1, 2])], [1, 2, 3]);
    assert_eq!([turn(&[1, 2, 3]), turn(&[1, 3]), turn(&[2, 1])], [1, 3, 1]);
}

#[test]
fn the_least_loaded_counts_what_was_just_sent() {
    let mut router = Router::default();
    let blocks = chain(1, 4);
    let workers = [busy(1, 2, 0), busy(2, 1, 0)];
    let inputs = Inputs { policy: Policy::LeastLoaded, ..ask(&workers, &blocks, &[]) };
    let first = router.choose(&inputs).expect("a worker");
    assert_eq!(first.worker, WorkerId(2));
    router.book(1_000, &first, &[]);
    let second = router.choose(&Inputs { random: 0, ..inputs }).expect("a worker");
    assert_eq!((second.worker, second.note), (WorkerId(1), Note::Policy(Policy::LeastLoaded)));
    let third = router.choose(&Inputs { random: 1, ..inputs }).expect("a worker");
    assert_eq!(third.worker, WorkerId(2));
}

#[test]
fn a_burst_of_different_prompts_spreads() {
    let mut router = Router::default();
    let workers: Vec<_> = (1..=4).map(worker).collect();
    let mut sent = [0; 5];
    for root in 0..40 {
        let blocks = chain(root, 50);
        let inputs = Inputs { random: root as u64, ..ask(&workers, &blocks, &[]) };
        let decision = router.choose(&inputs).expect("a worker");
        router.book(1_000, &decision, &blocks);
        sent[decision.worker.0 as usize] += 1;
    }
    assert_eq!(sent, [0, 10, 10, 10, 10]);
}

#[test]
fn a_burst_of_equal_prompts_is_computed_once_until_requests_outweigh_it() {
    let mut router = Router::default();
    let mut workers: Vec<_> = (1..=4).map(worker).collect();
    let blocks = chain(1, 500);
    let mut sent = Vec::new();
    for random in 0..200 {
        let inputs = Inputs { random, ..ask(&workers, &blocks, &[]) };
        let decision = router.choose(&inputs).expect("a worker");
        router.book(1_000, &decision, &blocks);
        sent.push(decision.worker.0);
    }
    // Computing 8,000 tokens takes 800 ms; each request that runs beside costs 10 ms and a little.
    let together = sent.iter().take_while(|id| **id == sent[0]).count();
    assert!((60..90).contains(&together), "{together} went to the first worker");
    sent.sort_unstable();
    sent.dedup();
    assert!(sent.len() >= 2, "a hot prefix replicates");
    // The same once the worker itself says that the tokens wait there.
    let mut router = Router::default();
    let first = router.choose(&ask(&workers, &blocks, &[])).expect("a worker");
    router.book(1_000, &first, &blocks);
    for view in &mut workers {
        view.load.heard_ms = 1_200;
    }
    let at = (first.worker.0 - 1) as usize;
    workers[at].load.waiting_prefill_tokens = 8_005;
    let inputs = Inputs { now_ms: 1_250, random: 3, ..ask(&workers, &blocks, &[]) };
    let next = router.choose(&inputs).expect("a worker");
    assert_eq!(next.worker, first.worker);
    // What others wait for there is not shared.
    workers[at].load.waiting_prefill_tokens = 8_005 + 8_100;
    let inputs = Inputs { now_ms: 1_250, random: 3, ..ask(&workers, &blocks, &[]) };
    assert_ne!(router.choose(&inputs).expect("a worker").worker, first.worker);
}

#[test]
fn the_next_turn_of_a_burst_finds_what_was_just_sent() {
    let mut router = Router::default();
    let workers: Vec<_> = (1..=8).map(worker).collect();
    let turn = chain(1, 300);
    let inputs = Inputs { random: 5, ..ask(&workers, &turn[..200], &[]) };
    let first = router.choose(&inputs).expect("a worker");
    let booking = router.book(1_000, &first, &turn[..200]);
    router.release(booking);
    let inputs = Inputs { random: 2, now_ms: 1_500, ..ask(&workers, &turn, &[]) };
    let next = router.choose(&inputs).expect("a worker");
    assert_eq!((next.worker, next.overlap_blocks), (first.worker, 200));
    assert!(next.candidates[0].predicted);
    // Another conversation with the same first 70 blocks profits from those.
    let mut branch = turn.clone();
    branch[70..].copy_from_slice(&chain(2, 230));
    let next = router.choose(&Inputs { now_ms: 1_600, ..ask(&workers, &branch, &[]) });
    assert_eq!(next.expect("a worker").overlap_blocks, 70);
    // What the index knows counts if it is more.
    let known = [overlap(first.worker.0, 250)];
    let next = router.choose(&ask(&workers, &turn, &known)).expect("a worker");
    assert_eq!((next.overlap_blocks, next.candidates[0].predicted), (250, false));
    let inputs = Inputs { now_ms: 1_000 + MEMORY_MS_MAX, ..ask(&workers, &turn, &[]) };
    assert_eq!(router.choose(&inputs).expect("a worker").overlap_blocks, 0);
    assert_eq!(router.prediction_count(), 0);
}

#[test]
fn a_prediction_ends_soon_after_the_first_token() {
    let mut router = Router::default();
    let workers: Vec<_> = (1..=8).map(worker).collect();
    let blocks = chain(1, 200);
    let mut first = router.choose(&ask(&workers, &blocks, &[])).expect("a worker");
    // It was expected to take long.
    first.cost_ms = 1e6;
    let booking = router.book(1_000, &first, &blocks);
    let overlap = |router: &mut Router, now_ms| {
        let inputs = Inputs { now_ms, random: 2, ..ask(&workers, &blocks, &[]) };
        router.choose(&inputs).expect("a worker").overlap_blocks
    };
    assert_eq!(overlap(&mut router, 30_000), 200);
    router.first_token(30_000, booking);
    assert_eq!(overlap(&mut router, 30_000 + MEMORY_MS_MIN - 1), 200);
    assert_eq!(overlap(&mut router, 30_000 + MEMORY_MS_MIN), 0);
    assert_eq!(router.prediction_count(), 0);
}

#[test]
fn predictions_end_with_their_worker_their_epoch_or_a_cancelled_request() {
    let blocks = chain(1, 100);
    let workers = [worker(1), worker(2)];
    let inputs = ask(&workers, &blocks, &[]);
    let overlap_after = |end: &dyn Fn(&mut Router, BookingId), workers: &[WorkerView]| {
        let mut router = Router::default();
        let decision = router.choose(&inputs).expect("a worker");
        let booking = router.book(1_000, &decision, &blocks);
        end(&mut router, booking);
        let found = router.choose(&Inputs { workers, ..inputs }).expect("a worker");
        let most = found.candidates.iter().map(|c| c.overlap_blocks).max();
        (most, found.candidates.iter().any(|c| c.terms.queue_ms > 0.0))
    };
    assert_eq!(overlap_after(&|_, _| {}, &workers), (Some(100), true));
    assert_eq!(overlap_after(&|r, id| r.release(id), &workers), (Some(100), false));
    assert_eq!(overlap_after(&|r, id| r.cancel(id), &workers), (Some(0), false));
    assert_eq!(overlap_after(&|r, _| r.forget_worker(WorkerId(1)), &workers), (Some(0), false));
    let reborn = workers.map(|view| WorkerView { epoch: Epoch(2), ..view });
    assert_eq!(overlap_after(&|_, _| {}, &reborn), (Some(0), false));
}

#[test]
fn a_booking_counts_until_the_load_includes_it_or_its_time_is_over() {
    let mut router = Router::default();
    let blocks = chain(1, 100);
    let mut workers = [worker(1)];
    let first = router.choose(&ask(&workers, &blocks, &[])).expect("a worker");
    router.book(1_000, &first, &[]);
    let mut queue_ms = |router: &mut Router, heard_ms, now_ms| {
        workers[0].load.heard_ms = heard_ms;
        let inputs = Inputs { now_ms, ..ask(&workers, &blocks, &[]) };
        router.choose(&inputs).expect("a worker").terms.queue_ms
    };
    assert!((queue_ms(&mut router, 900, 1_000) - 160.5).abs() < 1e-9);
    assert!((queue_ms(&mut router, 1_050, 1_060) - 160.5).abs() < 1e-9, "too early to include it");
    let mut silent = router.clone();
    assert_eq!(queue_ms(&mut router, 1_101, 1_110), 0.0);
    assert_eq!(queue_ms(&mut router, 900, 2_999), 0.0, "it was included once");
    assert!(queue_ms(&mut silent, 900, 2_999) > 0.0);
    assert_eq!(queue_ms(&mut silent, 900, 3_000), 0.0);
    assert_eq!(silent.booking_count(), 0);
}

#[test]
fn memory_is_bounded() {
    let mut router = Router::default();
    let workers = [worker(1)];
    let blocks = chain(1, 3);
    let decision = router.choose(&ask(&workers, &blocks, &[])).expect("a worker");
    for _ in 0..BOOKINGS_MAX + 10 {
        router.book(1_000, &decision, &blocks);
    }
    assert_eq!(router.booking_count(), BOOKINGS_MAX);
    assert_eq!(router.prediction_count(), PREDICTIONS_MAX);
    let long = chain(7, PREDICTED_BLOCKS_MAX + 5);
    router.book(1_000, &decision, &long);
    assert_eq!(router.prediction_count(), 1);
    router.book(1_000, &decision, &blocks);
    assert_eq!(router.prediction_count(), 1);
    assert_eq!(router.choose(&ask(&workers, &blocks, &[])).expect("a worker").overlap_blocks, 3);
}

#[test]
fn an_explanation_is_short_and_begins_with_the_chosen_one() {
    let mut router = Router::default();
    let workers: Vec<_> = (0..100).map(|id| busy(id, 100 - id, 0)).collect();
    let blocks = chain(1, 3);
    let inputs = Inputs { policy: Policy::Random, random: 3, ..ask(&workers, &blocks, &[]) };
    let decision = router.choose(&inputs).expect("a worker");
    assert_eq!((decision.worker, decision.considered), (WorkerId(3), 100));
    assert_eq!(decision.candidates.len(), CANDIDATES_MAX);
    assert_eq!(decision.candidates[0].worker, WorkerId(3));
    assert_eq!(decision.candidates[1].worker, WorkerId(99));
}

fn abroad(id: u32) -> WorkerView {
    WorkerView { abroad: true, ..worker(id) }
}

#[test]
fn another_region_is_asked_only_when_nobody_of_this_one_can_be() {
    let blocks = chain(1, 100);
    let overlaps = [overlap(2, 100)];
    // The worker abroad has all of the prompt and nothing to do; the near one is busy.
    let workers = [busy(1, 20, 50_000), abroad(2)];
    for policy in Policy::ALL {
        for random in 0..4 {
            let inputs = Inputs { policy, random, ..ask(&workers, &blocks, &overlaps) };
            let decision = Router::default().choose(&inputs).expect("a worker");
            assert_eq!(decision.worker, WorkerId(1), "{policy:?}");
            let shown: Vec<_> =
                decision.candidates.iter().map(|c| (c.worker.0, c.abroad)).collect();
            assert_eq!(shown, [(1, false), (2, true)]);
        }
    }
    let excluded = [WorkerId(1)];
    let inputs = Inputs { excluded: &excluded, ..ask(&workers, &blocks, &overlaps) };
    let decision = Router::default().choose(&inputs).expect("a worker");
    assert_eq!((decision.worker, decision.note), (WorkerId(2), Note::NoneInRegion));
    let draining = [WorkerView { draining: true, ..worker(1) }, abroad(2), abroad(3)];
    let decision = Router::default().choose(&ask(&draining, &blocks, &overlaps)).expect("a worker");
    assert_eq!((decision.worker, decision.note), (WorkerId(2), Note::NoneInRegion));
    assert!(decision.note.to_string().contains("another region"));
}

#[test]
fn a_penalty_weighs_regions_against_the_rest() {
    let blocks = chain(1, 100);
    let overlaps = [overlap(2, 100)];
    let workers = [worker(1), abroad(2)];
    // 160.5 ms of prefill here, 0.5 ms there.
    for (penalty_ms, chosen) in [(100.0, 2), (159.0, 2), (161.0, 1), (f64::INFINITY, 1)] {
        let inputs =
            Inputs { region_penalty_ms: Some(penalty_ms), ..ask(&workers, &blocks, &overlaps) };
        let decision = Router::default().choose(&inputs).expect("a worker");
        assert_eq!(decision.worker, WorkerId(chosen), "{penalty_ms}");
        let away = decision.candidates.iter().find(|c| c.abroad).expect("it is shown");
        assert!((away.terms.region_ms - penalty_ms.min(3_600_000.0)).abs() < 1e-9);
        assert!((away.cost_ms - away.terms.total_ms()).abs() < 1e-9);
    }
    for odd in [f64::NAN, -5.0] {
        let inputs = Inputs { region_penalty_ms: Some(odd), ..ask(&workers, &blocks, &overlaps) };
        let decision = Router::default().choose(&inputs).expect("a worker");
        assert_eq!((decision.worker, decision.terms.region_ms), (WorkerId(2), 0.0));
    }
}

/// A worker whose cache has so many blocks.
fn roomy(id: u32, blocks_total: u64) -> WorkerView {
    let mut view = worker(id);
    view.load.blocks_total = Some(blocks_total);
    view
}

/// Asks and books what a turn of so many blocks does.
fn turn(
    router: &mut Router,
    workers: &[WorkerView],
    blocks: &[SequenceHash],
    cached: &[Overlap],
) -> WorkerId {
    let decision = router.choose(&ask(workers, blocks, cached)).expect("a worker");
    let booking = router.book(1_000, &decision, blocks);
    router.release(booking);
    decision.worker
}

#[test]
fn conversations_begin_where_the_fewest_are_kept_warm() {
    let workers = [roomy(1, 1_000), roomy(2, 1_000), roomy(3, 1_000)];
    let mut router = Router::default();
    // What nobody has come back to does not count; once many have, those who begin are expected to.
    let mut name = 100;
    let mut begin = |router: &mut Router, seen: &mut HashMap<WorkerId, u32>| {
        name += 1;
        let first = turn(router, &workers, &chain(name, 150), &[]);
        let held = [overlap(first.0, 150)];
        let second = turn(router, &workers, &chain(name, 200), &held);
        assert_eq!(second, first, "it stays");
        *seen.entry(first).or_default() += 1;
    };
    let mut seen: HashMap<WorkerId, u32> = HashMap::new();
    (0..12).for_each(|_| begin(&mut router, &mut seen));
    assert!(seen.values().all(|count| *count == 4), "{seen:?}");
    assert_eq!(router.conversation_count(), 12);
    // A cache that was cleared is the emptiest.
    router.clear_worker(WorkerId(2));
    seen.clear();
    (0..3).for_each(|_| begin(&mut router, &mut seen));
    assert_eq!(seen, HashMap::from([(WorkerId(2), 3)]));
    // Without knowing how large caches are, there is nothing to go by.
    let unknown = [worker(1), worker(2)];
    let terms = Router::default().choose(&ask(&unknown, &chain(1, 200), &[])).expect("one").terms;
    assert!(terms.memory_ms.abs() < 1e-9);
}

#[test]
fn a_conversation_goes_on_where_it_is_though_it_is_full_there() {
    let workers = [roomy(1, 1_000), roomy(2, 1_000)];
    let mut router = Router::default();
    let excluded = [WorkerId(2)];
    for (name, length) in (0..6).flat_map(|name| [(name, 150), (name, 190)]) {
        let blocks = chain(name + 1, length);
        let inputs = Inputs { excluded: &excluded, ..ask(&workers, &blocks, &[]) };
        let decision = router.choose(&inputs).expect("the first");
        let booking = router.book(1_000, &decision, &blocks);
        router.release(booking);
    }
    assert_eq!(turn(&mut router, &workers, &chain(1, 200), &[overlap(1, 192)]), WorkerId(1));
    assert_eq!(turn(&mut router, &workers, &chain(9, 200), &[overlap(1, 40)]), WorkerId(2));
}

#[test]
fn policies_have_names() {
    for policy in Policy::ALL {
        assert_eq!(Policy::from_name(policy.name()), Some(policy));
    }
    assert_eq!(Policy::from_name("psychic"), None);
}
