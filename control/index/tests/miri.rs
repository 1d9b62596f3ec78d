//! The same comparisons in miniature, sized for an interpreter that checks every access: tens of operations.
//!
//! `MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p mainstay-index --test miri` (with a target folder
//! of its own) finds data races, reads out of bounds and reads of what nobody wrote; natively it takes no time, and
//! keeps this file honest.

use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_index::{BlockIndex, Overlap};
use mainstay_types::{NamespaceId, Tier};

#[path = "support/compare.rs"]
mod compare;
#[path = "support/forest.rs"]
mod forest;
#[path = "support/rng.rs"]
mod rng;

use compare::Checker;
use forest::{ChainSpec, Forest, KeyStyle, Op, Order, Pair, name, worker_id};
use rng::Rng;

fn op(rng: &mut Rng) -> Op {
    let (worker, chain) = (rng.below(4) as u32, rng.below(8));
    let (from, to, step) = (rng.below(100), rng.below(100), 1 + rng.below(5));
    let tier = if rng.one_in(3) { Tier::Host } else { Tier::Device };
    let orders = [
        Order::RootFirst,
        Order::DeepestFirst,
        Order::Shuffled(rng.word()),
        Order::Victims(rng.word(), 3),
    ];
    match rng.below(16) {
        0..6 => Op::Store { worker, chain, from: 0, to, step, tier },
        6 => Op::Store { worker, chain, from, to, step, tier },
        7..12 => Op::Remove { worker, chain, from, to, step, order: orders[rng.below(4)], tier },
        12 => Op::Spread { worker, count: 3, chain, to, tier },
        13 => Op::Hold { worker, chain, from, to, tier },
        14 => Op::Release { worker, chain, from, to, tier },
        _ if rng.one_in(2) => Op::Clear { worker },
        _ => Op::RemoveWorker { worker },
    }
}

#[test]
fn small_histories_are_answered_as_the_model_does() {
    let histories = [(1, KeyStyle::Spread), (2, KeyStyle::SameLow), (3, KeyStyle::SameHigh)];
    let (histories, ops) = if cfg!(miri) { (&histories[..1], 25) } else { (&histories[..], 200) };
    for &(seed, style) in histories {
        let mut rng = Rng(seed);
        let specs: Vec<ChainSpec> = (0..4)
            .map(|i: usize| ChainSpec {
                base: i.checked_sub(1),
                cut: rng.below(8),
                length: 1 + rng.below(10),
                namespace: 0,
            })
            .collect();
        let forest = Forest::grow(style, &specs);
        let mut pair = Pair::new(u64::MAX);
        let mut checker = Checker::new(&pair.index);
        for i in 0..ops {
            let op = op(&mut rng);
            let done = pair.apply(&forest, &op);
            if cfg!(miri) {
                println!("op {i} of {ops}: {op:?}");
            }
            done.unwrap_or_else(|error| panic!("seed {seed}, op {i}, {op:?}: {error}"));
            let looked = checker.list(&pair, &forest.chain(i).blocks);
            looked.unwrap_or_else(|error| panic!("seed {seed}, after op {i}, {op:?}: {error}"));
        }
        let blocks = &forest.chains[0].blocks;
        let result = checker.forest(&pair, &forest, 5).and_then(|()| compare::totals(&pair));
        let result = result.and_then(|()| compare::holders(&pair, blocks));
        let result = result.and_then(|()| compare::totals(&compare::restored(&pair, u64::MAX)?));
        result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(pair.block_ops > 50);
    }
}

#[test]
fn a_reader_beside_a_writer_sees_one_of_two_states() {
    let mut index = BlockIndex::new(u64::MAX);
    let reader = index.reader();
    let over = AtomicBool::new(false);
    let chain: Vec<_> = (100..112).map(name).collect();
    let other: Vec<_> = (200..230).map(name).collect();
    let (stays, comes) = (worker_id(1), worker_id(2));
    let namespace = NamespaceId(9);
    index.store(stays, namespace, 9, &chain, Tier::Device);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut found, mut looks): (Vec<Overlap>, u32) = (Vec::new(), 0);
            while !over.load(Ordering::Acquire) || looks < 20 {
                reader.lookup_into(&chain, &mut found);
                found.sort_unstable_by_key(|overlap| overlap.worker);
                let seen: Vec<_> = found.iter().map(|o| (o.worker, o.blocks)).collect();
                let allowed = [vec![(stays, 12)], vec![(stays, 12), (comes, 12)]];
                let mut sorted = allowed[1].clone();
                sorted.sort_unstable();
                assert!(seen == allowed[0] || seen == sorted, "{seen:?}");
                looks += 1;
            }
        });
        for _ in 0..10 {
            index.store(comes, namespace, 9, &chain, Tier::Device);
            index.store(comes, namespace, 9, &other, Tier::Device);
            let gone: Vec<_> = other.iter().rev().copied().collect();
            index.remove(comes, &gone, Tier::Device);
            index.remove_worker(comes);
        }
        over.store(true, Ordering::Release);
        reading.join().expect("the reader finds nothing wrong");
    });
}
