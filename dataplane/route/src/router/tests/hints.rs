//! What is known beside a prompt, what was learned, and rules of one's own.

use super::*;
use crate::inputs::Fetch;

/// What questions cost by the columns, and by the formula for one worker alone.
#[test]
fn columns_say_what_one_worker_alone_says() {
    let mut router = Router::default();
    let workers: Vec<_> = (0..97)
        .map(|id| WorkerView {
            draining: id % 11 == 3,
            load: WorkerLoad {
                running: id % 7,
                waiting_prefill_tokens: u64::from(id * 37 % 901),
                blocks_total: (id % 3 > 0).then_some(400),
                blocks_free: (id % 5 > 0).then_some(u64::from(id) * 3),
                ..worker(id).load
            },
            ..worker(id)
        })
        .collect();
    for root in 0..40_u32 {
        let blocks = chain(u128::from(root % 10), 60 + root as usize);
        let held: Vec<_> = (0..97).map(|id| overlap(id, (id * 13 + root) % 80)).collect();
        let inputs = Inputs { random: root.into(), ..ask(&workers, &blocks, &held) };
        let among = router.choose(&inputs).expect("a worker");
        let at = among.worker.0 as usize;
        let alone = Inputs { workers: &workers[at..=at], ..inputs };
        let alone = router.choose(&alone).expect("the same worker");
        assert_eq!((among.cost_ms, among.terms), (alone.cost_ms, alone.terms));
        assert_eq!(among.considered, 88);
        let costs: Vec<_> = among.candidates[1..].iter().map(|c| c.cost_ms).collect();
        assert!(costs.is_sorted() && costs.len() == CANDIDATES_MAX - 1);
        assert!(among.cost_ms <= costs[0] + TIE_MS);
        router.book(1_000, &among, &blocks);
    }
}

#[test]
fn a_cancelled_request_leaves_its_conversation_where_it_was() {
    let workers = [roomy(1, 1_000), roomy(2, 1_000)];
    let mut router = Router::default();
    for length in [50, 60] {
        turn(&mut router, &workers, &chain(1, length), &[overlap(1, length as u32 - 10)]);
    }
    let blocks = chain(1, 70);
    let excluded = [WorkerId(1)];
    let inputs = Inputs { excluded: &excluded, ..ask(&workers, &blocks, &[]) };
    let decision = router.choose(&inputs).expect("the other");
    let before = router.contexts.find(&blocks, 60);
    let booking = router.book(1_000, &decision, &blocks);
    assert_ne!(router.contexts.find(&blocks, 60), before);
    router.cancel(booking);
    assert_eq!(router.contexts.find(&blocks, 60), before);
    assert_eq!((router.prediction_count(), router.booking_count()), (2, 0), "those of the turns");
}

#[test]
fn hints_change_decisions() {
    let blocks = chain(1, 100);
    // The first holds the prompt but many run there; the second is idle.
    let workers = [busy(1, 14, 0), worker(2)];
    let held = [overlap(1, 100)];
    let chosen = |output_tokens| {
        let hints = Hints { output_tokens, ..Hints::default() };
        let inputs = ask(&workers, &blocks, &held);
        Router::default().choose_with(&inputs, &hints).expect("a worker").worker.0
    };
    assert_eq!((chosen(0), chosen(16), chosen(4_000)), (1, 1, 2));
    // The idle one must take blocks from others, the busy one has room.
    let mut full = worker(1);
    full.load.blocks_free = Some(10);
    let workers = [full, busy(2, 0, 1_500)];
    let chosen = |latency_sensitivity| {
        let hints = Hints { latency_sensitivity, ..Hints::default() };
        let inputs = ask(&workers, &blocks, &[]);
        Router::default().choose_with(&inputs, &hints).expect("a worker").worker.0
    };
    assert_eq!((chosen(0.0), chosen(1.0)), (2, 1));
    assert_eq!(chosen(f32::NAN), chosen(0.5));
}

#[test]
fn what_was_learned_chooses_only_where_it_may() {
    let workers = [worker(1), worker(2)];
    let mut router = Router::default();
    let blocks = chain(1, 100);
    for step in 0..200_u64 {
        let now_ms = 1_000 + step * 10;
        let inputs = Inputs { now_ms, random: step, ..ask(&workers, &blocks, &[]) };
        let decision = router.choose(&inputs).expect("a worker");
        let booking = router.book(now_ms, &decision, &[]);
        let slow = if decision.worker == WorkerId(1) { 6.0 } else { 1.0 };
        router.first_token(now_ms + (decision.cost_ms * slow) as u64, booking);
        router.first_token(now_ms + 900_000, booking);
        router.cancel(booking);
    }
    let share = |router: &mut Router, policy| {
        let ask = |random| Inputs { now_ms: 3_000, random, policy, ..ask(&workers, &blocks, &[]) };
        let chosen = (0..200).map(|random| router.choose(&ask(random)).expect("a worker"));
        chosen.filter(|decision| decision.worker == WorkerId(1)).count()
    };
    assert_eq!(share(&mut router, Policy::Kv), 100, "off is off");
    let left = share(&mut router, Policy::KvLearned);
    assert!(left < 20, "{left}");
    // The other one looks quick beside what both had in common.
    workers.iter().for_each(|view| router.forget_worker(view.id));
    let again = share(&mut router, Policy::KvLearned);
    assert!((70..130).contains(&again), "{again}");
}

#[test]
fn a_request_that_belongs_somewhere_stays_softly_or_for_sure() {
    let blocks = chain(1, 100);
    // 300 ms of queue at the first.
    let workers = [busy(1, 0, 3_000), worker(2)];
    let inputs = ask(&workers, &blocks, &[]);
    let chosen = |affinity| {
        let hints = Hints { affinity, ..Hints::default() };
        Router::default().choose_with(&inputs, &hints)
    };
    for (worth_ms, worker) in [(200.0, 2), (400.0, 1), (f64::NAN, 2), (f64::INFINITY, 1)] {
        let decision = chosen(Affinity::Soft { worker: WorkerId(1), worth_ms }).expect("a worker");
        assert_eq!(decision.worker, WorkerId(worker), "{worth_ms}");
        let away: Vec<_> = decision.candidates.iter().map(|c| c.terms.away_ms > 0.0).collect();
        assert_eq!(away.iter().filter(|away| **away).count(), usize::from(!worth_ms.is_nan()));
        assert!((decision.cost_ms - decision.terms.total_ms()).abs() < 1e-9);
    }
    let bound = chosen(Affinity::Hard { worker: WorkerId(1) }).expect("a worker");
    assert_eq!((bound.worker, bound.considered, bound.note), (WorkerId(1), 1, Note::Bound));
    let gone = chosen(Affinity::Hard { worker: WorkerId(7) });
    assert_eq!(gone, Err(RouteError::Unbound { worker: WorkerId(7) }));
}

#[test]
fn a_rule_of_ones_own_chooses_among_the_cheapest() {
    struct Nth(usize);
    impl Rule for Nth {
        fn pick(
            &mut self,
            _: &Inputs<'_>,
            _: &Hints,
            candidates: &[CandidateCost],
        ) -> Option<Draw> {
            assert!(candidates.iter().map(|c| c.cost_ms).is_sorted());
            Some(Draw { at: self.0, propensity: 0.25 })
        }
    }
    let workers: Vec<_> = (0..40).map(|id| busy(id, id, 0)).collect();
    let blocks = chain(1, 10);
    let chosen = |nth| {
        let inputs = ask(&workers, &blocks, &[]);
        let by = Router::default().choose_by(&inputs, &Hints::default(), &mut Nth(nth));
        by.expect("a worker")
    };
    let third = chosen(2);
    assert_eq!((third.worker, third.plain, third.note), (WorkerId(2), WorkerId(0), Note::Rule));
    assert_eq!((third.propensity, third.candidates[0].worker), (0.25, WorkerId(2)));
    let odd = chosen(99);
    assert_eq!((odd.worker, odd.propensity), (WorkerId(0), 1.0));
}

#[test]
fn a_worker_has_room_until_enough_waits_there_or_is_on_its_way() {
    let blocks = chain(1, 100);
    let mut workers = [busy(1, 9, 5_000), busy(2, 9, 3_000), worker(3)];
    workers[2].draining = true;
    let mut router = Router::default();
    let inputs = ask(&workers, &blocks, &[]);
    let excluded = [WorkerId(2)];
    assert!(router.has_room(&inputs, 3_000.0) && !router.has_room(&inputs, 2_999.0));
    assert!(!router.has_room(&Inputs { excluded: &excluded, ..inputs }, 4_999.0));
    let decision = router.choose(&inputs).expect("the second");
    router.book(1_000, &decision, &blocks);
    assert!(!router.has_room(&inputs, 4_604.0) && router.has_room(&inputs, 4_605.0));
}

#[test]
fn room_is_where_the_request_may_go() {
    let blocks = chain(1, 100);
    let workers = [busy(1, 9, 5_000), WorkerView { abroad: true, ..worker(2) }, busy(3, 0, 900)];
    let mut router = Router::default();
    let two = ask(&workers[..2], &blocks, &[]);
    assert!(!router.has_room(&two, 4_999.0) && router.has_room(&two, 5_000.0));
    // A penalty lets it go abroad; so does a region where nobody takes anything.
    assert!(router.has_room(&Inputs { region_penalty_ms: Some(50.0), ..two }, 0.0));
    assert!(router.has_room(&Inputs { excluded: &[WorkerId(1)], ..two }, 0.0));
    let all = ask(&workers, &blocks, &[]);
    let mut bound = |id, room_tokens| {
        let affinity = Affinity::Hard { worker: WorkerId(id) };
        router.has_room_with(&all, &Hints { affinity, ..Hints::default() }, room_tokens)
    };
    assert!(!bound(1, 1_000.0) && bound(3, 1_000.0) && bound(2, 0.0) && !bound(7, 1e9));
}

#[test]
fn who_hangs_teaches_though_no_first_token_comes() {
    let workers = [worker(1), worker(2)];
    let blocks = chain(1, 100);
    let run = |hears: bool| {
        let mut router = Router::default();
        for step in 0..60_u64 {
            let now_ms = 1_000 + step * 100;
            let inputs = Inputs { now_ms, random: step, ..ask(&workers, &blocks, &[]) };
            let decision = router.choose(&inputs).expect("a worker");
            let booking = router.book(now_ms, &decision, &[]);
            if decision.worker == WorkerId(2) && hears {
                router.first_token(now_ms + decision.cost_ms as u64, booking);
                router.release(booking);
            }
        }
        let inputs = Inputs { now_ms: 12_000, ..ask(&workers, &blocks, &[]) };
        router.choose(&inputs).expect("a worker");
        router.learner().belief(12_000, WorkerId(1), Epoch(1)).0
    };
    assert!(run(true) > 1.5, "{}", run(true));
    assert_eq!(
        run(false),
        1.0,
        "whoever never says when they come is not taken to have slow workers"
    );
}

#[test]
fn a_conversation_is_not_put_back_into_a_cleared_cache() {
    let workers = [roomy(1, 1_000), roomy(2, 1_000)];
    let mut router = Router::default();
    turn(&mut router, &workers, &chain(1, 50), &[overlap(1, 50)]);
    let blocks = chain(1, 70);
    let excluded = [WorkerId(1)];
    let inputs = Inputs { excluded: &excluded, ..ask(&workers, &blocks, &[]) };
    let decision = router.choose(&inputs).expect("the other");
    let booking = router.book(1_000, &decision, &blocks);
    router.clear_worker(WorkerId(1));
    router.cancel(booking);
    assert_eq!(router.conversation_count(), 0);
}

/// Chance names any of a hundred equals, and the propensity says how likely it was to be named and then chosen.
#[test]
fn of_many_equals_any_are_named_and_propensities_say_so() {
    let equal: Vec<_> = (0..100).map(worker).collect();
    let mut uneven = equal.clone();
    // Four that are cheaper than the rest, and 96 equals for the last twelve places.
    for view in uneven.iter_mut().skip(4) {
        view.load.running = 1;
    }
    let blocks = chain(1, 30);
    for (workers, policy) in [(&equal, Policy::KvLearned), (&uneven, Policy::Kv)] {
        let (mut named, mut weight) = (vec![0_u32; 100], 0.0);
        for step in 0..2_000_u64 {
            let random = step.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let inputs = Inputs { policy, random, ..ask(workers, &blocks, &[]) };
            let decision = Router::default().choose(&inputs).expect("a worker");
            assert_eq!(decision.candidates.len(), CANDIDATES_MAX);
            decision.candidates.iter().for_each(|c| named[c.worker.0 as usize] += 1);
            weight += 1.0 / decision.propensity / 2_000.0;
        }
        let sure = if policy == Policy::Kv { 4 } else { 0 };
        let share = 2_000.0 * (16 - sure) as f64 / (100 - sure) as f64;
        assert!(named[..sure].iter().all(|count| *count == 2_000), "{named:?}");
        let rest = named[sure..].iter().map(|count| f64::from(*count) / share);
        assert!(rest.clone().all(|ratio| (0.7..1.3).contains(&ratio)), "{named:?}");
        // As many as could have been chosen.
        let chosen_of = if policy == Policy::Kv { 4.0 } else { 100.0 };
        assert!((weight / chosen_of - 1.0_f64).abs() < 0.05, "{weight} of {chosen_of}");
    }
}

#[test]
fn a_rule_that_takes_one_of_many_equals_is_told_how_likely_it_was() {
    struct Last;
    impl Rule for Last {
        fn pick(
            &mut self,
            _: &Inputs<'_>,
            _: &Hints,
            candidates: &[CandidateCost],
        ) -> Option<Draw> {
            Some(Draw { at: candidates.len() - 1, propensity: 0.5 })
        }
    }
    let workers: Vec<_> = (0..100).map(|id| busy(id, u32::from(id >= 4), 0)).collect();
    let blocks = chain(1, 10);
    let by =
        Router::default().choose_by(&ask(&workers, &blocks, &[]), &Hints::default(), &mut Last);
    assert!((by.expect("a worker").propensity - 0.5 * 12.0 / 96.0).abs() < 1e-9);
}

#[test]
fn models_that_ask_by_turns_do_not_see_each_others_workers() {
    let small: Vec<_> = (1..=3).map(worker).collect();
    // Ids that no table of places holds, in another order, and one that both models have.
    let large = [worker(u32::MAX), worker(70_000), worker(2), worker(65_536)];
    let mut router = Router::default();
    let blocks = chain(1, 100);
    for round in 0..6 {
        let held = [overlap(65_536, 90), overlap(u32::MAX, 40), overlap(3, 70), overlap(9, 99)];
        let of_small = router.choose(&ask(&small, &blocks, &held)).expect("a worker");
        assert_eq!((of_small.worker, of_small.overlap_blocks), (WorkerId(3), 70), "{round}");
        let of_large = router.choose(&ask(&large, &blocks, &held)).expect("a worker");
        assert_eq!((of_large.worker, of_large.overlap_blocks), (WorkerId(65_536), 90));
        let shown: Vec<_> = of_large.candidates.iter().map(|c| c.overlap_blocks).collect();
        assert_eq!(shown, [90, 40, 0, 0]);
    }
    // What is on its way to one of them counts there and nowhere else.
    let excluded = [WorkerId(u32::MAX), WorkerId(2), WorkerId(65_536)];
    let inputs = Inputs { excluded: &excluded, ..ask(&large, &blocks, &[]) };
    let decision = router.choose(&inputs).expect("the only one");
    router.book(1_000, &decision, &[]);
    for _ in 0..2 {
        let queues = |router: &mut Router, workers: &[WorkerView]| -> Vec<WorkerId> {
            let decision = router.choose(&ask(workers, &blocks, &[])).expect("a worker");
            let waits = decision.candidates.iter().filter(|c| c.terms.queue_ms > 0.0);
            waits.map(|c| c.worker).collect()
        };
        assert_eq!(queues(&mut router, &small), []);
        assert_eq!(queues(&mut router, &large), [WorkerId(70_000)]);
    }
}

#[test]
fn a_life_that_comes_back_late_is_borne() {
    let mut router = Router::default();
    let blocks = chain(1, 100);
    let at = |epoch| [WorkerView { epoch: Epoch(epoch), ..worker(1) }];
    let mut booked = Vec::new();
    for epoch in [1, 2, 1, 2, 1] {
        let workers = at(epoch);
        let decision = router.choose(&ask(&workers, &blocks, &[])).expect("it");
        booked.push(router.book(1_000, &decision, &blocks));
        if epoch == 2 {
            router.release(*booked.last().expect("it was just booked"));
        }
    }
    for id in booked {
        router.cancel(id);
    }
    let workers = at(1);
    let decision = router.choose(&ask(&workers, &blocks, &[])).expect("it");
    assert_eq!((router.booking_count(), decision.terms.queue_ms), (0, 0.0));
}

#[test]
fn what_lies_in_lower_tiers_or_with_others_costs_its_way_and_not_its_computation() {
    let blocks = chain(1, 100);
    let mut tiered = worker(1);
    // A tenth of what computing takes.
    (tiered.load.load_us_per_token, tiered.load.loading_tokens) = (10.0, 500);
    let workers = [tiered, worker(2)];
    let near = [overlap(1, 10)];
    let stored = [overlap(1, 60), overlap(2, 90)];
    let inputs = Inputs { stored: &stored, ..ask(&workers, &blocks, &near) };
    let decision = Router::default().choose(&inputs).expect("a worker");
    // 50 blocks come from its memory, behind 500 tokens; 40 blocks and five tokens are computed.
    assert_eq!((decision.worker, decision.stored_blocks), (WorkerId(1), 60));
    assert_eq!((decision.fetched_blocks, decision.uncached_tokens), (60, 645));
    assert!((decision.terms.load_ms - (800.0 + 500.0) * 0.01).abs() < 1e-9, "{decision:?}");
    assert!((decision.terms.prefill_ms - 64.5).abs() < 1e-9, "{decision:?}");
    // The second never told how quickly its tiers are: what they hold is computed.
    assert_eq!(decision.candidates[1].terms.load_ms, 0.0);
    let fetch = |us_per_token| {
        let fetch = Some(Fetch { blocks: 90, us_per_token });
        let inputs = Inputs { fetch, ..inputs };
        Router::default().choose(&inputs).expect("a worker")
    };
    let (quick, slow) = (fetch(20.0), fetch(100.0));
    // The busy tier of the first is worth it all the same: what it has itself comes cheaper.
    assert_eq!((quick.worker, quick.fetched_blocks), (WorkerId(1), 90));
    assert!((quick.terms.load_ms - 13.0 - 480.0 * 0.02).abs() < 1e-9, "{quick:?}");
    assert_eq!((slow.fetched_blocks, slow.terms), (60, decision.terms));
    for us_per_token in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(fetch(us_per_token).terms, decision.terms, "{us_per_token}");
    }
}

#[test]
fn a_busy_holder_is_left_where_its_blocks_can_be_fetched() {
    let blocks = chain(1, 100);
    let workers = [busy(1, 0, 1_000), worker(2)];
    let held = [overlap(1, 100)];
    let alone = ask(&workers, &blocks, &held);
    let there = Router::default().choose(&alone).expect("a worker");
    let fetch = Some(Fetch { blocks: 100, us_per_token: 10.0 });
    let copied = Router::default().choose(&Inputs { fetch, ..alone }).expect("a worker");
    assert_eq!((there.worker.0, copied.worker.0, copied.fetched_blocks), (1, 2, 100));
}
