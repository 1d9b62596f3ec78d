//! The keeper's decisions, one rule a test, and all of them together over random clusters.

use mainstay_types::{Command, KeptTokens, PinRequest, PinScope};
use proptest::prelude::*;

use super::*;
use crate::testing::{Log, fence, pin, prefix, register, register_in, report, small_limits};
use crate::{Limits, Outcome};

const NOBODY: fn(&[SequenceHash]) -> Vec<(WorkerId, u32)> = |_| Vec::new();

fn limits() -> Limits {
    Limits {
        workers_max: 6,
        pins_per_tenant_max: 20,
        pins_max: 20,
        pinned_blocks_max: 400,
        pinned_blocks_per_tenant_max: 400,
        kept_token_bytes_max: 20_000,
        kept_token_bytes_per_tenant_max: 20_000,
        pin_token_bytes_max: 1_000,
        ttl_ms_max: 10_000_000,
        ..small_limits()
    }
}

/// A pin of branch `id` with tokens, for an hour, without an owner.
fn kept(id: u128, blocks: usize, copies_min: u32) -> PinRequest {
    let tokens: Vec<u32> = (0..blocks as u32 * 16).collect();
    PinRequest {
        owner: None,
        ttl_ms: 3_600_000,
        copies_min,
        tokens: Some(KeptTokens::new("tiny", "1", &tokens)),
        ..pin(id, prefix(id, blocks))
    }
}

/// Workers 1 to n, each in its first epoch.
fn cluster(workers: u32) -> Log {
    let mut log = Log::new(limits());
    for worker in 1..=workers {
        log.apply(register(&format!("w{worker}"), 1));
    }
    log
}

fn put(log: &mut Log, request: PinRequest) {
    let outcome = log.apply(Command::PutPin(request));
    assert!(matches!(outcome, Outcome::Pin { .. }), "{outcome:?}");
}

fn look(log: &Log) -> Vec<(u128, u32)> {
    let orders = decide(&log.machine, log.machine.time().now_ms, NOBODY);
    orders.iter().map(|order| (order.id.0, order.worker.0)).collect()
}

/// Puts the keeper's orders through the log, as the leader does.
fn obey(log: &mut Log) -> Vec<(u128, u32)> {
    let orders = decide(&log.machine, log.machine.time().now_ms, NOBODY);
    for KeeperOrder { id, worker, epoch } in &orders {
        let command = Command::OrderPin { id: *id, worker: *worker, epoch: *epoch };
        assert_eq!(log.apply(command), Outcome::Ordered);
    }
    orders.iter().map(|order| (order.id.0, order.worker.0)).collect()
}

#[test]
fn a_lost_pin_goes_at_once_to_whoever_holds_most_of_it() {
    let mut log = cluster(3);
    put(&mut log, kept(7, 6, 1));
    log.apply(report(1, 1, 7, 6));
    assert!(look(&log).is_empty(), "it is whole");
    log.apply(report(3, 1, 7, 2));
    log.apply(fence(1, 1));
    assert_eq!(look(&log), [(7, 3)]);
    let index = |_: &[SequenceHash]| vec![(WorkerId(2), 4), (WorkerId(9), 6)];
    let now_ms = log.machine.time().now_ms;
    let order = KeeperOrder { id: PinId(7), worker: WorkerId(2), epoch: Epoch(1) };
    assert_eq!(decide(&log.machine, now_ms, index), [order], "the index knows of a longer part");
    assert_eq!(obey(&mut log), [(7, 3)]);
    assert!(look(&log).is_empty(), "one copy is missing and one is on its way");
    log.apply(report(3, 1, 7, 6));
    let made = log.machine.pin(PinId(7)).expect("it lives");
    assert_eq!((made.state, made.keeping.orders.len()), (PinState::Active, 0));
    assert!(look(&log).is_empty());
}

#[test]
fn a_new_pin_is_left_to_its_request_for_a_while_and_one_without_tokens_always() {
    let mut log = cluster(1);
    put(&mut log, kept(1, 3, 1));
    put(&mut log, PinRequest { tokens: None, ..kept(2, 3, 1) });
    log.pass(SETTLE_MS - 1);
    assert!(look(&log).is_empty());
    // A part that came is progress.
    log.apply(report(1, 1, 1, 1));
    log.pass(SETTLE_MS - 1);
    assert!(look(&log).is_empty());
    log.pass(1);
    assert_eq!(look(&log), [(1, 1)]);
}

#[test]
fn copies_are_made_where_the_scope_wants_them() {
    let mut log = Log::new(limits());
    log.apply(register_in("w1", 1, "near"));
    log.apply(register_in("w2", 1, "far"));
    log.apply(register_in("w3", 1, "near"));
    let far = PinScope::Region(Region::new("far").expect("a name"));
    put(&mut log, PinRequest { scope: far, ..kept(1, 4, 1) });
    put(&mut log, PinRequest { scope: PinScope::Global, ..kept(2, 4, 1) });
    log.apply(report(1, 1, 1, 4));
    log.apply(report(1, 1, 2, 4));
    log.pass(SETTLE_MS);
    assert_eq!(obey(&mut log), [(1, 2), (2, 2)], "a copy elsewhere is none there");
    assert!(look(&log).is_empty(), "they are under way");
    log.apply(report(2, 1, 1, 4));
    log.apply(report(2, 1, 2, 4));
    for id in 1..=2 {
        assert_eq!(log.machine.pin(PinId(id)).expect("it lives").state, PinState::Active);
    }
    // The other region is lost: nobody there can be asked, and one region is all there is.
    log.apply(fence(2, 1));
    assert!(look(&log).is_empty());
    assert_eq!(log.machine.pin(PinId(1)).expect("it lives").state, PinState::Degraded);
    assert_eq!(log.machine.pin(PinId(2)).expect("it lives").state, PinState::Active);
    // It comes back with another worker.
    log.apply(register_in("w4", 1, "far"));
    assert_eq!(look(&log), [(1, 4), (2, 4)]);
}

#[test]
fn copies_are_spread_and_never_more_than_are_missing() {
    let mut log = cluster(4);
    for id in 1..=2 {
        put(&mut log, kept(id, 4, 3));
        log.apply(report(1, 1, id, 4));
    }
    log.pass(SETTLE_MS);
    let orders = obey(&mut log);
    assert_eq!(orders.len(), 4, "{orders:?}");
    for worker in 2..=4 {
        let of = orders.iter().filter(|(_, to)| *to == worker).count();
        assert!((1..=2).contains(&of), "{orders:?}");
    }
    for (id, worker) in orders {
        log.apply(report(worker, 1, id, 4));
    }
    assert!(look(&log).is_empty());
    assert!(log.machine.pins().all(|pin| pin.copies() == 3 && pin.state == PinState::Active));
}

#[test]
fn an_order_that_lapses_goes_elsewhere_and_one_that_moves_does_not() {
    let mut log = cluster(3);
    put(&mut log, kept(1, 6, 1));
    log.apply(report(3, 1, 1, 6));
    log.apply(fence(3, 1));
    assert_eq!(obey(&mut log), [(1, 1)]);
    log.pass(ORDER_MS - 1);
    log.apply(report(1, 1, 1, 2));
    log.pass(ORDER_MS - 1);
    assert!(look(&log).is_empty(), "it came a part further");
    log.pass(1);
    assert_eq!(obey(&mut log), [(1, 2)]);
    // That worker dies with its order.
    log.apply(fence(2, 1));
    log.pass(ORDER_MS);
    assert_eq!(obey(&mut log), [(1, 1)], "there is nobody else");
    assert_eq!(log.machine.pin(PinId(1)).expect("it lives").keeping.attempts, 3);
}

#[test]
fn rounds_take_ever_longer_and_never_end() {
    let mut log = cluster(2);
    put(&mut log, kept(1, 6, 1));
    log.pass(SETTLE_MS);
    let mut asked = Vec::new();
    for _ in 0..6_000 {
        let at_ms = log.machine.time().now_ms;
        asked.extend(obey(&mut log).iter().map(|(_, worker)| (at_ms, *worker)));
        log.pass(100);
    }
    let gaps: Vec<u64> = asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.is_sorted() && gaps[0] == ORDER_MS, "{gaps:?}");
    assert_eq!(gaps.last(), Some(&ROUND_MS_MAX), "{gaps:?}");
    assert!(asked.windows(2).all(|pair| pair[0].1 != pair[1].1), "turns are taken: {asked:?}");
}

#[test]
fn whoever_holds_the_pin_already_is_not_waited_for() {
    let mut log = cluster(2);
    put(&mut log, kept(1, 6, 2));
    log.apply(report(1, 1, 1, 6));
    log.pass(SETTLE_MS);
    let mut asked = 0;
    for _ in 0..600 {
        asked += obey(&mut log).len();
        log.pass(100);
    }
    // Worker 2 does nothing: it is asked after 0, 3, 9, 21 and 45 s of this minute, not every three.
    assert!((4..=7).contains(&asked), "{asked} orders in a minute");
}

#[test]
fn workers_of_other_models_sizes_and_contexts_are_not_asked() {
    let mut log = cluster(0);
    let other = |change: fn(&mut mainstay_types::ModelSpec), name: &str| {
        let mut command = register(name, 1);
        if let Command::RegisterWorker { model, .. } = &mut command {
            change(model);
        }
        command
    };
    log.apply(other(|m| m.name = "big".into(), "a"));
    log.apply(other(|m| m.revision = "2".into(), "b"));
    log.apply(other(|m| m.block_tokens = 32, "c"));
    log.apply(other(|m| m.context_tokens_max = 96, "d"));
    put(&mut log, kept(1, 6, 1));
    log.pass(SETTLE_MS);
    assert!(look(&log).is_empty());
    log.apply(other(|m| m.context_tokens_max = 97, "e"));
    assert_eq!(look(&log), [(1, 5)]);
}

#[test]
fn a_worker_without_room_comes_last_and_none_is_flooded() {
    let mut log = cluster(2);
    for id in 1..=10 {
        // Worker 1 keeps 100 blocks, which is all that it has.
        put(&mut log, PinRequest { tokens: None, ..kept(id, 10, 1) });
        log.apply(report(1, 1, id, 10));
    }
    for id in 11..=19 {
        put(&mut log, kept(id, 8, 1));
    }
    log.pass(SETTLE_MS);
    let orders = obey(&mut log);
    let first: Vec<u32> = orders.iter().take(4).map(|(_, worker)| *worker).collect();
    assert_eq!(first, [2; 4], "{orders:?}");
    for worker in 1..=2 {
        let of = orders.iter().filter(|(_, to)| *to == worker).count();
        assert_eq!(of, WORKER_ORDERS_MAX, "{orders:?}");
    }
    assert!(look(&log).is_empty(), "all hands are full");
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Put(u128, usize, u32),
    Report(u32, u128, usize),
    Fence(u32),
    Register(u32),
    Release(u128),
    Obey,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_u64..4_000).prop_map(Event::Pass),
        3 => (0_u128..8, 1_usize..6, 1_u32..4).prop_map(|(id, b, c)| Event::Put(id, b, c)),
        4 => (1_u32..5, 0_u128..8, 0_usize..6).prop_map(|(w, id, b)| Event::Report(w, id, b)),
        2 => (1_u32..5).prop_map(Event::Fence),
        2 => (1_u32..5).prop_map(Event::Register),
        1 => (0_u128..8).prop_map(Event::Release),
        6 => Just(Event::Obey),
    ]
}

fn check(log: &Log, orders: &[KeeperOrder]) -> Result<(), TestCaseError> {
    let now_ms = log.machine.time().now_ms;
    for order in orders {
        let pin = log.machine.pin(order.id).expect("orders are about known pins");
        let worker = log.machine.worker(order.worker).expect("and known workers");
        prop_assert!(worker.is_live() && worker.epoch == order.epoch);
        prop_assert!(pin.lacks_copies() && pin.request.tokens.is_some());
        prop_assert!(!pin.holds_all(order.worker));
        let force = |w: &WorkerId| pin.keeping.orders.get(w).is_some_and(|o| o.in_force(now_ms));
        prop_assert!(!force(&order.worker), "it has this order already");
        let new = orders.iter().filter(|o| o.id == order.id).count();
        let in_force = pin.keeping.orders.keys().filter(|w| force(w)).count();
        prop_assert!(pin.copies() + in_force + new <= pin.request.copies_min as usize);
        let same = |o: &&KeeperOrder| o.id == order.id && o.worker == order.worker;
        prop_assert_eq!(orders.iter().filter(same).count(), 1);
        let to = log.machine.pins().filter(|pin| {
            pin.keeping.orders.get(&order.worker).is_some_and(|o| o.in_force(now_ms))
        });
        let given = orders.iter().filter(|o| o.worker == order.worker).count();
        prop_assert!(to.count() + given <= WORKER_ORDERS_MAX);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn orders_are_sound_and_whoever_obeys_makes_every_pin_whole(
        events in proptest::collection::vec(event(), 0..80),
    ) {
        let mut log = cluster(4);
        let mut incarnation = 1;
        for event in events {
            match event {
                Event::Pass(ms) => log.pass(ms),
                Event::Put(id, blocks, copies) => {
                    log.apply(Command::PutPin(kept(id, blocks, copies)));
                }
                Event::Report(worker, id, held) => {
                    let epoch = log.machine.worker(WorkerId(worker)).expect("one of four").epoch;
                    log.apply(report(worker, epoch.0, id, held as u32));
                }
                Event::Fence(worker) => {
                    let epoch = log.machine.worker(WorkerId(worker)).expect("one of four").epoch;
                    log.apply(fence(worker, epoch.0));
                }
                Event::Register(worker) => {
                    incarnation += 1;
                    log.apply(register(&format!("w{worker}"), incarnation));
                }
                Event::Release(id) => {
                    log.apply(Command::ReleasePin { id: PinId(id) });
                }
                Event::Obey => {
                    let orders = decide(&log.machine, log.machine.time().now_ms, NOBODY);
                    check(&log, &orders)?;
                    obey(&mut log);
                }
            }
        }
        // From here on everybody lives and does what is asked: all pins get their copies.
        for worker in 1..=4 {
            incarnation += 1;
            log.apply(register(&format!("w{worker}"), incarnation));
        }
        for _ in 0..40 {
            for (id, worker) in obey(&mut log) {
                let epoch = log.machine.worker(WorkerId(worker)).expect("one of four").epoch;
                let blocks = log.machine.pin(PinId(id)).expect("it lives").request.blocks.len();
                log.apply(report(worker, epoch.0, id, blocks as u32));
            }
            log.pass(SETTLE_MS);
        }
        let live: Vec<_> = log.machine.pins().filter(|pin| pin.is_live()).collect();
        prop_assert!(live.iter().all(|pin| pin.state == PinState::Active), "{live:?}");
    }
}
