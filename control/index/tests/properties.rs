//! The index against the literal model under random histories that shrink when they fail.
//!
//! A history is a forest of honest chains and a list of operations on it; after every few of them each form of
//! each answer has to be the model's. What honest chains promise is not promised to liars, who name a block under
//! two parents: they must not make the index panic, and must leave nothing behind once they are gone.

use mainstay_index::model::ModelIndex;
use mainstay_index::{BlockIndex, IndexLimits};
use mainstay_types::{NamespaceId, SequenceHash, Tier};
use proptest::prelude::*;

#[path = "support/compare.rs"]
mod compare;
#[path = "support/forest.rs"]
mod forest;
#[path = "support/rng.rs"]
mod rng;

use compare::Checker;
use forest::{ChainSpec, Forest, KeyStyle, Op, Order, Pair, name, worker_id};
use rng::Rng;

/// A history: chains, operations, and how many entries fit.
#[derive(Debug, Clone)]
struct History {
    style: KeyStyle,
    chains: Vec<ChainSpec>,
    ops: Vec<Op>,
    entries_max: u64,
}

fn tier() -> impl Strategy<Value = Tier> {
    // Most blocks of a real fleet are on the device, and histories of one tier reach deeper.
    prop_oneof![3 => Just(Tier::Device), 1 => prop::sample::select(Tier::ALL.to_vec())]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::DeepestFirst),
        Just(Order::RootFirst),
        any::<u64>().prop_map(Order::Shuffled),
        (any::<u64>(), 2_usize..20).prop_map(|(seed, one_in)| Order::Victims(seed, one_in)),
    ]
}

fn step() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), 2_usize..8, Just(usize::MAX)]
}

fn op(workers: u32) -> impl Strategy<Value = Op> {
    let at = 0_usize..400;
    let place = (0..workers, 0_usize..8, at.clone(), at, tier()).boxed();
    let store = (place.clone(), step(), any::<bool>()).prop_map(
        |((worker, chain, a, to, tier), step, whole)| {
            // Half of all stores begin at the root, as prompts do; the others leave gaps or go on.
            let from = if whole { 0 } else { a };
            Op::Store { worker, chain, from, to, step, tier }
        },
    );
    let remove = (place.clone(), step(), order()).prop_map(
        |((worker, chain, from, to, tier), step, order)| Op::Remove {
            worker,
            chain,
            from,
            to,
            step,
            order,
            tier,
        },
    );
    let spread = (place.clone(), 2_u32..300).prop_map(|((worker, chain, _, to, tier), count)| {
        Op::Spread { worker, count, chain, to, tier }
    });
    let hold = place.clone().prop_map(|(worker, chain, from, to, tier)| Op::Hold {
        worker,
        chain,
        from,
        to,
        tier,
    });
    let release = place.prop_map(|(worker, chain, from, to, tier)| Op::Release {
        worker,
        chain,
        from,
        to,
        tier,
    });
    prop_oneof![
        8 => store,
        8 => remove,
        1 => spread,
        2 => hold,
        2 => release,
        1 => (0..workers).prop_map(|worker| Op::Clear { worker }),
        1 => (0..workers).prop_map(|worker| Op::RemoveWorker { worker }),
    ]
}

fn chain_spec() -> impl Strategy<Value = ChainSpec> {
    let length = prop_oneof![8 => 0_usize..24, 2 => 24_usize..120, 1 => 120_usize..400];
    (prop::option::weighted(0.8, 0_usize..8), 0_usize..200, length, 0_u8..3)
        .prop_map(|(base, cut, length, namespace)| ChainSpec { base, cut, length, namespace })
}

fn history(ops_max: usize) -> impl Strategy<Value = History> {
    let style = prop_oneof![
        4 => Just(KeyStyle::Spread),
        1 => Just(KeyStyle::SameLow),
        1 => Just(KeyStyle::SameHigh),
    ];
    let entries_max = prop_oneof![4 => Just(u64::MAX), 1 => 0_u64..300];
    let workers = prop_oneof![3 => Just(3_u32), 2 => Just(12), 1 => Just(300)];
    let ops = workers.prop_flat_map(move |workers| prop::collection::vec(op(workers), 0..ops_max));
    (style, prop::collection::vec(chain_spec(), 1..8), ops, entries_max)
        .prop_map(|(style, chains, ops, entries_max)| History { style, chains, ops, entries_max })
}

/// Runs a history through the index and the model and compares all there is to compare.
fn run(history: &History) -> Result<(), String> {
    let forest = Forest::grow(history.style, &history.chains);
    let mut pair = Pair::new(history.entries_max);
    let mut checker = Checker::new(&pair.index);
    for (i, op) in history.ops.iter().enumerate() {
        pair.apply(&forest, op).map_err(|error| format!("op {i}: {error}"))?;
        let chain = forest.chain(i);
        checker.list(&pair, &chain.blocks).map_err(|error| format!("after op {i}: {error}"))?;
        if i % 8 == 7 {
            checker.forest(&pair, &forest, i * 7)?;
            compare::totals(&pair)?;
        }
    }
    let blocks: Vec<SequenceHash> =
        forest.chains.iter().flat_map(|chain| chain.blocks.iter().step_by(7).copied()).collect();
    checker.forest(&pair, &forest, 3)?;
    compare::totals(&pair)?;
    compare::holders(&pair, &blocks)?;
    forest::equal("refused", pair.index.refused_blocks(), pair.model.refused_blocks())?;
    let copy = compare::restored(&pair, history.entries_max)?;
    let mut checker = Checker::new(&copy.index);
    checker.forest(&copy, &forest, 5).map_err(|error| format!("restored: {error}"))?;
    compare::totals(&copy).map_err(|error| format!("restored: {error}"))?;
    compare::holders(&copy, &blocks).map_err(|error| format!("restored: {error}"))
}

fn cases(count: u32) -> ProptestConfig {
    // Miri runs thousands of times slower, and has no files to keep failures in.
    if cfg!(miri) {
        return ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() };
    }
    // As everywhere in proptest, PROPTEST_CASES asks for more.
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(count),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

/// One lie: a stretch that names blocks of two chains as if they followed each other.
#[derive(Debug, Clone)]
struct Lie {
    worker: u32,
    from: (usize, usize, usize),
    to: (usize, usize, usize),
    backwards: bool,
    parent: usize,
    tier: Tier,
}

fn lie() -> impl Strategy<Value = Lie> {
    let part = || (0_usize..8, 0_usize..60, 0_usize..60);
    (0_u32..4, part(), part(), any::<bool>(), 0_usize..60, tier()).prop_map(
        |(worker, from, to, backwards, parent, tier)| Lie {
            worker,
            from,
            to,
            backwards,
            parent,
            tier,
        },
    )
}

fn tell(index: &mut BlockIndex, forest: &Forest, lie: &Lie) {
    let part = |(chain, a, b): (usize, usize, usize)| {
        let chain = forest.chain(chain);
        let (a, b) = chain.range(a, b);
        chain.blocks[a..b].to_vec()
    };
    let mut blocks = part(lie.from);
    blocks.extend(part(lie.to));
    if lie.backwards {
        blocks.reverse();
    }
    let chain = forest.chain(lie.from.0);
    let parent = chain.parent(lie.parent % chain.blocks.len().max(1));
    let worker = worker_id(1_000 + lie.worker);
    let parent = parent.0 as u64;
    index.store(worker, chain.namespace, parent, &blocks, lie.tier);
    for block in blocks.iter().take(3) {
        // A circle of parents must end somewhere; whether it is known is not promised.
        let _ = index.hold(worker, block.0 as u64, u32::MAX, lie.tier);
        let _ = index.hold(worker, block.0 as u64, 50, lie.tier);
        let _ = index.release(worker, block.0 as u64, 7, lie.tier);
    }
}

/// Honest and lying workers together: answers are not compared, but sums must come out, and when all workers are
/// gone nothing may be left and honest histories be exact again.
fn run_with_lies(history: &History, lies: &[Lie]) -> Result<(), String> {
    let forest = Forest::grow(history.style, &history.chains);
    let mut pair = Pair::new(history.entries_max);
    let mut checker = Checker::new(&pair.index);
    for (i, op) in history.ops.iter().enumerate() {
        if let Some(lie) = lies.get(i % lies.len().max(1)) {
            tell(&mut pair.index, &forest, lie);
        }
        // What differs here is the liars' doing.
        let _ = pair.apply(&forest, op);
        let _ = checker.forest(&pair, &forest, i);
        let workers: Vec<_> = pair.index.workers().collect();
        let sum: u64 = workers.iter().map(|w| pair.index.worker_block_count(*w)).sum();
        forest::equal("held_count with liars", pair.index.held_count(), sum)?;
    }
    for worker in pair.index.workers().collect::<Vec<_>>() {
        pair.index.remove_worker(worker);
        forest::equal("digest of a worker that is gone", pair.index.digest(worker), 0)?;
    }
    forest::equal("held_count of nobody", pair.index.held_count(), 0)?;
    forest::equal("block_count of nobody", pair.index.block_count(), 0)?;
    pair.model = ModelIndex::new(history.entries_max);
    for (i, op) in history.ops.iter().enumerate() {
        pair.apply(&forest, op).map_err(|error| format!("after the liars, op {i}: {error}"))?;
    }
    checker.forest(&pair, &forest, 4).map_err(|error| format!("after the liars: {error}"))?;
    compare::totals(&pair).map_err(|error| format!("after the liars: {error}"))
}

/// Under a limit on bytes the index knows less than the model, and never more.
fn run_short_of_bytes(history: &History, bytes_max: u64) -> Result<(), String> {
    let forest = Forest::grow(KeyStyle::Spread, &history.chains);
    let mut pair = Pair::new(u64::MAX);
    pair.index = BlockIndex::with_limits(IndexLimits { bytes_max, ..IndexLimits::default() });
    for op in &history.ops {
        // A record of blocks that were forgotten is refused, and then the blocks are sent themselves.
        let op = match *op {
            Op::Release { worker, chain, from, to, tier } => {
                let (step, order) = (usize::MAX, Order::DeepestFirst);
                Op::Remove { worker, chain, from, to, step, order, tier }
            }
            ref op => op.clone(),
        };
        // The index may have refused or forgotten what the model took.
        let _ = pair.apply(&forest, &op);
        let workers: Vec<_> = pair.index.workers().collect();
        let sum: u64 = workers.iter().map(|w| pair.index.worker_block_count(*w)).sum();
        forest::equal("held_count", pair.index.held_count(), sum)?;
        for chain in &forest.chains {
            let due = pair.model.lookup(&chain.blocks);
            for found in pair.index.lookup(&chain.blocks) {
                let most = due.iter().find(|due| due.worker == found.worker);
                if most.is_none_or(|most| most.blocks < found.blocks) {
                    return Err(format!("{found:?}, where the model has {most:?}"));
                }
            }
        }
    }
    for worker in pair.index.workers().collect::<Vec<_>>() {
        pair.index.remove_worker(worker);
        forest::equal("digest of a worker that is gone", pair.index.digest(worker), 0)?;
    }
    forest::equal("held_count of nobody", pair.index.held_count(), 0)?;
    forest::equal("block_count of nobody", pair.index.block_count(), 0)
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn an_index_short_of_bytes_only_forgets(history in history(30), bytes_max in 0_u64..60_000) {
        run_short_of_bytes(&history, bytes_max).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn every_answer_is_the_models(history in history(60)) {
        run(&history).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn liars_break_nothing_and_leave_nothing(
        history in history(24),
        lies in prop::collection::vec(lie(), 0..12),
    ) {
        run_with_lies(&history, &lies).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn digests_forget_the_order_of_events(seed in any::<u64>(), lengths in prop::collection::vec(1_usize..20, 1..6)) {
        let specs: Vec<ChainSpec> = lengths
            .iter()
            .enumerate()
            .map(|(i, &length)| ChainSpec { base: i.checked_sub(1), cut: i * 3, length, namespace: 0 })
            .collect();
        let forest = Forest::grow(KeyStyle::Spread, &specs);
        let whole = |chain| Op::Store { worker: 1, chain, from: 0, to: usize::MAX - 1, step: 5, tier: Tier::Disk };
        let mut numbers: Vec<usize> = (0..specs.len()).collect();
        let mut digest = Vec::new();
        for round in 0..2 {
            let mut pair = Pair::new(u64::MAX);
            for &chain in &numbers {
                pair.apply(&forest, &whole(chain)).map_err(TestCaseError::fail)?;
            }
            digest.push(pair.index.digest(worker_id(1)));
            let mut rng = Rng(seed ^ round);
            numbers.sort_by_key(|_| rng.word());
        }
        prop_assert_eq!(digest[0], digest[1]);
    }
}

/// The numbers that a table might keep for itself are keys like any other to the wire.
#[test]
fn keys_of_all_zeroes_and_all_ones_break_nothing() {
    let special = [0, 1, u64::MAX, u64::MAX - 1, u64::from(u32::MAX), 1 << 32, u64::MAX << 32];
    for &first in &special {
        for &second in &special {
            let mut index = BlockIndex::new(u64::MAX);
            let blocks = [name(first), name(second), name(77)];
            let worker = worker_id(5);
            index.store(worker, NamespaceId(9), 9, &blocks, Tier::Device);
            let found = index.lookup(&blocks);
            assert!(found.iter().all(|overlap| overlap.blocks <= 3), "{found:?}");
            index.remove(worker, &blocks, Tier::Device);
            index.remove_worker(worker);
            assert_eq!((index.held_count(), index.block_count()), (0, 0));
            assert_eq!(index.lookup(&blocks), []);
        }
    }
}
