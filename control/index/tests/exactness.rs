//! Millions of random block operations, and not one answer that differs from the model's.
//!
//! Each phase is a habit of real fleets that has broken an indexer somewhere: holes from random victims, one system
//! prompt on every worker, decoded blocks one at a time, chains of 20,000 blocks, workers that come and go. A phase
//! runs in rounds, each with a fresh index and a seed of its own; a round that fails is cut down to a few operations
//! before it is shown. MAINSTAY_LONG=1 asks for 40 million operations instead of 10, MAINSTAY_OPS=N for N,
//! MAINSTAY_SEED=S and MAINSTAY_PHASE=name for other numbers and for one phase only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mainstay_index::churn::{Churn, ChurnConfig, ChurnOp};
use mainstay_types::{SequenceHash, Tier};

#[path = "support/compare.rs"]
mod compare;
#[path = "support/forest.rs"]
mod forest;
#[path = "support/rng.rs"]
mod rng;

use compare::Checker;
use forest::{ChainSpec, Forest, KeyStyle, Op, Order, Pair, name};
use rng::Rng;

const BLOCK_OPS: u64 = if cfg!(miri) { 2_000 } else { 10_000_000 };
const BLOCK_OPS_LONG: u64 = 40_000_000;
/// Block operations of one round; a failing round has to be small enough to be cut down.
const ROUND_BLOCK_OPS: u64 = 250_000;

struct Phase {
    name: &'static str,
    entries_max: u64,
    forest: fn(&mut Rng) -> Vec<ChainSpec>,
    op: fn(&mut Rng, &mut Memory, &Forest) -> Op,
    /// Block operations between two compared lookups.
    check_every: u64,
}

/// What a phase remembers of its own doings: depths by worker and chain, and the workers of the moment.
#[derive(Default)]
struct Memory {
    depths: std::collections::HashMap<(u32, usize), usize>,
    workers: std::collections::VecDeque<u32>,
    next_worker: u32,
}

fn spec(base: Option<usize>, cut: usize, length: usize) -> ChainSpec {
    ChainSpec { base, cut, length, namespace: 0 }
}

/// Chains of up to `length` blocks; three in four branch off an earlier one.
fn mixed_forest(rng: &mut Rng, chains: usize, length: usize) -> Vec<ChainSpec> {
    (0..chains)
        .map(|i| ChainSpec {
            base: (i > 0 && !rng.one_in(4)).then(|| rng.below(i)),
            cut: rng.below(length),
            length: 1 + rng.below(length),
            namespace: rng.below(3) as u8,
        })
        .collect()
}

/// One shared prompt, and a session of each of many chains behind it.
fn shared_forest(rng: &mut Rng, chains: usize, prompt: usize, length: usize) -> Vec<ChainSpec> {
    let branch = |rng: &mut Rng| {
        // Most sessions hang at the end of the prompt, some inside it.
        let cut = if rng.one_in(5) { rng.below(prompt) } else { prompt };
        spec(Some(0), cut, 1 + rng.below(length))
    };
    let mut specs = vec![spec(None, 0, prompt)];
    specs.extend((1..chains).map(|_| branch(rng)));
    specs
}

fn any_tier(rng: &mut Rng) -> Tier {
    if rng.one_in(3) { Tier::ALL[rng.below(4)] } else { Tier::Device }
}

fn any_order(rng: &mut Rng) -> Order {
    match rng.below(4) {
        0 => Order::RootFirst,
        1 => Order::Shuffled(rng.word()),
        2 => Order::Victims(rng.word(), 2 + rng.below(20)),
        _ => Order::DeepestFirst,
    }
}

fn any_op(rng: &mut Rng, workers: u32) -> Op {
    let (worker, chain) = (rng.below(workers as usize) as u32, rng.below(1 << 20));
    let (from, to, tier) = (rng.below(1 << 20), rng.below(1 << 20), any_tier(rng));
    let step = [1, 3, 16, usize::MAX][rng.below(4)];
    match rng.below(100) {
        0..45 => {
            let from = if rng.one_in(2) { 0 } else { from };
            Op::Store { worker, chain, from, to, step, tier }
        }
        45..85 => Op::Remove { worker, chain, from, to, step, order: any_order(rng), tier },
        85..90 => Op::Hold { worker, chain, from, to, tier },
        90..96 => Op::Release { worker, chain, from, to, tier },
        96..98 => Op::Clear { worker },
        _ => Op::RemoveWorker { worker },
    }
}

fn mixed(rng: &mut Rng, _: &mut Memory, _: &Forest) -> Op {
    any_op(rng, 24)
}

fn crowd(rng: &mut Rng, _: &mut Memory, _: &Forest) -> Op {
    if rng.one_in(40) {
        let (worker, count) = (rng.below(300) as u32, 1 + rng.below(300) as u32);
        let (chain, to) = (rng.below(1 << 20), rng.below(1 << 20));
        return Op::Spread { worker, count, chain, to, tier: any_tier(rng) };
    }
    any_op(rng, 300)
}

/// Whole chains come, one block in fifty goes, and now and then the chains come again.
fn holes(rng: &mut Rng, _: &mut Memory, forest: &Forest) -> Op {
    let (worker, chain) = (rng.below(32) as u32, rng.below(forest.chains.len()));
    let (to, tier) = (forest.chains[chain].blocks.len(), Tier::Device);
    if rng.one_in(3) {
        return Op::Store { worker, chain, from: 0, to, step: 64, tier };
    }
    let order = Order::Victims(rng.word(), 50);
    Op::Remove { worker, chain, from: 0, to, step: [1, usize::MAX][rng.below(2)], order, tier }
}

/// Sixty-four workers share one system prompt; their sessions come, are cut short, and leave.
fn sharing(rng: &mut Rng, _: &mut Memory, forest: &Forest) -> Op {
    let (worker, chain) = (rng.below(64) as u32, rng.below(forest.chains.len()));
    let (length, tier) = (forest.chains[chain].blocks.len(), Tier::Device);
    let from = rng.below(length);
    let step = usize::MAX;
    match rng.below(20) {
        0..11 => Op::Store { worker, chain, from: 0, to: length, step, tier },
        11..18 => {
            Op::Remove { worker, chain, from, to: length, step, order: Order::DeepestFirst, tier }
        }
        18 => Op::Remove { worker, chain, from, to: length, step, order: any_order(rng), tier },
        _ => Op::Clear { worker },
    }
}

/// Sessions grow block by block, and are evicted from their ends.
fn decode(rng: &mut Rng, memory: &mut Memory, forest: &Forest) -> Op {
    let (worker, chain) = (rng.below(8) as u32, rng.below(forest.chains.len()));
    let length = forest.chains[chain].blocks.len();
    let depth = memory.depths.entry((worker, chain)).or_default();
    let (from, tier) = (*depth, Tier::Device);
    if *depth == length || rng.one_in(6) {
        *depth = rng.below(*depth + 1);
        let (from, to) = (*depth, from);
        return Op::Remove { worker, chain, from, to, step: 4, order: Order::DeepestFirst, tier };
    }
    *depth = length.min(*depth + 1 + rng.below(40));
    Op::Store { worker, chain, from, to: *depth, step: 1, tier }
}

/// Few chains of up to 20,000 blocks.
fn long(rng: &mut Rng, _: &mut Memory, forest: &Forest) -> Op {
    let (worker, chain) = (rng.below(6) as u32, rng.below(forest.chains.len()));
    let length = forest.chains[chain].blocks.len();
    let from = rng.below(length);
    let to = (from + 1 + rng.below(length)).min(length);
    let tier = if rng.one_in(4) { Tier::Host } else { Tier::Device };
    match rng.below(8) {
        0..4 => {
            Op::Store { worker, chain, from: 0, to, step: [512, usize::MAX][rng.below(2)], tier }
        }
        4 => Op::Remove { worker, chain, from, to, step: 512, order: any_order(rng), tier },
        5 => Op::Hold { worker, chain, from, to, tier },
        6 => Op::Release { worker, chain, from, to, tier },
        _ => Op::Remove {
            worker,
            chain,
            from,
            to: length,
            step: 512,
            order: Order::DeepestFirst,
            tier,
        },
    }
}

/// Blocks move from tier to tier as caches push them down and pull them up.
fn tiers(rng: &mut Rng, _: &mut Memory, forest: &Forest) -> Op {
    let (worker, chain) = (rng.below(10) as u32, rng.below(forest.chains.len()));
    let (from, to) = (rng.below(1 << 20), rng.below(1 << 20));
    let tier = Tier::ALL[rng.below(4)];
    match rng.below(9) {
        0..4 => Op::Store { worker, chain, from, to, step: usize::MAX, tier },
        4..7 => Op::Remove { worker, chain, from, to, step: 7, order: any_order(rng), tier },
        7 => Op::Hold { worker, chain, from, to, tier },
        _ => Op::Release { worker, chain, from, to, tier },
    }
}

/// Hundreds of workers come, hold a few sessions, and go for ever.
fn comings(rng: &mut Rng, memory: &mut Memory, forest: &Forest) -> Op {
    if memory.workers.len() < 20 || (memory.workers.len() < 150 && rng.one_in(8)) {
        memory.workers.push_back(memory.next_worker);
        memory.next_worker += 1;
    } else if rng.one_in(12) {
        let gone = rng.below(memory.workers.len());
        let worker = memory.workers.remove(gone).unwrap_or_default();
        return Op::RemoveWorker { worker };
    }
    let worker = memory.workers[rng.below(memory.workers.len())];
    let op = any_op(rng, 1);
    let chain = rng.below(forest.chains.len());
    match op {
        Op::Store { from, to, step, tier, .. } => Op::Store { worker, chain, from, to, step, tier },
        Op::Remove { from, to, step, order, tier, .. } => {
            Op::Remove { worker, chain, from, to, step, order, tier }
        }
        _ => Op::Spread { worker, count: 1, chain, to: rng.below(1 << 20), tier: Tier::Device },
    }
}

const PHASES: [Phase; 9] = [
    Phase {
        name: "mixed",
        entries_max: u64::MAX,
        forest: |rng| mixed_forest(rng, 60, 300),
        op: mixed,
        check_every: 1_000,
    },
    Phase {
        name: "holes",
        entries_max: u64::MAX,
        forest: |rng| mixed_forest(rng, 40, 400),
        op: holes,
        check_every: 1_000,
    },
    Phase {
        name: "sharing",
        entries_max: u64::MAX,
        forest: |rng| shared_forest(rng, 120, 400, 300),
        op: sharing,
        check_every: 3_000,
    },
    Phase {
        name: "decode",
        entries_max: u64::MAX,
        forest: |rng| shared_forest(rng, 40, 200, 600),
        op: decode,
        check_every: 500,
    },
    Phase {
        name: "long",
        entries_max: u64::MAX,
        forest: |rng| {
            let mut specs = vec![spec(None, 0, 20_000), spec(None, 0, 3_000 + rng.below(17_000))];
            specs
                .extend((0..6).map(|i| spec(Some(i % 2), rng.below(20_000), 1 + rng.below(8_000))));
            specs
        },
        op: long,
        check_every: 10_000,
    },
    Phase {
        name: "tiers",
        entries_max: u64::MAX,
        forest: |rng| mixed_forest(rng, 20, 120),
        op: tiers,
        check_every: 1_000,
    },
    Phase {
        name: "crowd",
        entries_max: u64::MAX,
        forest: |rng| mixed_forest(rng, 30, 60),
        op: crowd,
        check_every: 2_000,
    },
    Phase {
        name: "comings",
        entries_max: u64::MAX,
        forest: |rng| shared_forest(rng, 40, 60, 100),
        op: comings,
        check_every: 1_000,
    },
    Phase {
        name: "full",
        entries_max: 3_000,
        forest: |rng| mixed_forest(rng, 30, 200),
        op: mixed,
        check_every: 1_000,
    },
];

/// A whole, cut or overlong chain to ask for.
fn question(rng: &mut Rng, forest: &Forest) -> Vec<SequenceHash> {
    let mut blocks = forest.chains[rng.below(forest.chains.len())].blocks.clone();
    match rng.below(4) {
        0 => blocks.truncate(rng.below(blocks.len() + 1)),
        1 => blocks.extend([name(rng.word()), name(rng.word())]),
        _ => {}
    }
    blocks
}

/// Two rounds in five have keys that meet in hash tables.
fn style(seed: u64) -> KeyStyle {
    match seed % 5 {
        3 => KeyStyle::SameLow,
        4 => KeyStyle::SameHigh,
        _ => KeyStyle::Spread,
    }
}

fn round(
    phase: &Phase,
    seed: u64,
    block_ops: u64,
    done: &mut Vec<Op>,
) -> Result<(u64, u64), String> {
    let mut rng = Rng(seed);
    let forest = Forest::grow(style(seed), &(phase.forest)(&mut rng));
    let mut pair = Pair::new(phase.entries_max);
    let mut checker = Checker::new(&pair.index);
    let mut memory = Memory::default();
    let mut next_check = phase.check_every;
    while pair.block_ops < block_ops {
        let op = (phase.op)(&mut rng, &mut memory, &forest);
        done.push(op.clone());
        pair.apply(&forest, &op)?;
        // An operation that names no block still is one.
        pair.block_ops += 1;
        if pair.block_ops >= next_check {
            next_check = pair.block_ops + phase.check_every;
            let prefix = question(&mut rng, &forest);
            if rng.one_in(8) {
                checker.prefix(&pair, &prefix)?;
            } else {
                checker.list(&pair, &prefix)?;
            }
            if rng.one_in(100) {
                compare::totals(&pair)?;
            }
        }
    }
    checker.forest(&pair, &forest, 77)?;
    compare::totals(&pair)?;
    forest::equal("refused", pair.index.refused_blocks(), pair.model.refused_blocks())?;
    let sample: Vec<SequenceHash> =
        (0..50).flat_map(|_| question(&mut rng, &forest).pop()).collect();
    compare::holders(&pair, &sample)?;
    let copy = compare::restored(&pair, phase.entries_max)?;
    compare::totals(&copy).map_err(|error| format!("restored: {error}"))?;
    let mut again = Checker::new(&copy.index);
    again.forest(&copy, &forest, 5).map_err(|error| format!("restored: {error}"))?;
    Ok((pair.block_ops, checker.lookups + again.lookups))
}

/// Whether a list of operations goes wrong; panics count.
fn goes_wrong(phase: &Phase, forest: &Forest, ops: &[Op]) -> Option<String> {
    let run = || -> Result<(), String> {
        let mut pair = Pair::new(phase.entries_max);
        let mut checker = Checker::new(&pair.index);
        for op in ops {
            pair.apply(forest, op)?;
        }
        checker.forest(&pair, forest, 77)?;
        compare::totals(&pair)?;
        let copy = compare::restored(&pair, phase.entries_max)?;
        compare::totals(&copy)?;
        Checker::new(&copy.index).forest(&copy, forest, 77)
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.err(),
        Err(panic) => Some(panic_text(&panic)),
    }
}

fn panic_text(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("panic: {}", text.unwrap_or_default())
}

/// Leaves out what can be left out, big pieces first, for a minute at most.
fn cut_down(phase: &Phase, forest: &Forest, ops: &[Op]) -> (Vec<Op>, String) {
    let until = Instant::now() + Duration::from_secs(60);
    let mut ops = ops.to_vec();
    let Some(mut why) = goes_wrong(phase, forest, &ops) else {
        return (Vec::new(), "it goes wrong only in passing: no final state differs".to_owned());
    };
    let mut piece = ops.len().div_ceil(2);
    while piece > 0 && Instant::now() < until {
        let mut at = 0;
        while at < ops.len() && Instant::now() < until {
            let mut fewer = ops.clone();
            fewer.drain(at..ops.len().min(at + piece));
            match goes_wrong(phase, forest, &fewer) {
                Some(reason) => (ops, why) = (fewer, reason),
                None => at += piece,
            }
        }
        piece /= 2;
    }
    (ops, why)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn block_ops_in_all() -> u64 {
    let long = std::env::var("MAINSTAY_LONG").is_ok_and(|text| text == "1");
    number("MAINSTAY_OPS").unwrap_or(if long { BLOCK_OPS_LONG } else { BLOCK_OPS })
}

#[test]
fn no_answer_in_ten_million_operations_differs() {
    let first_seed = number("MAINSTAY_SEED").unwrap_or(1);
    let only = std::env::var("MAINSTAY_PHASE").ok();
    let share = block_ops_in_all() / PHASES.len() as u64;
    let (mut block_ops, mut lookups) = (0, 0);
    for phase in PHASES.iter().filter(|phase| only.as_deref().is_none_or(|name| name == phase.name))
    {
        let start = Instant::now();
        let (mut phase_ops, mut seed) = (0, first_seed);
        while phase_ops < share {
            let mut done = Vec::new();
            let budget = ROUND_BLOCK_OPS.min(share - phase_ops);
            let result = catch_unwind(AssertUnwindSafe(|| round(phase, seed, budget, &mut done)));
            match result.unwrap_or_else(|panic| Err(panic_text(&panic))) {
                Ok((ops, compared)) => {
                    phase_ops += ops;
                    lookups += compared;
                }
                Err(error) => {
                    let forest = Forest::grow(style(seed), &(phase.forest)(&mut Rng(seed)));
                    let (few, why) = cut_down(phase, &forest, &done);
                    let lengths: Vec<usize> =
                        forest.chains.iter().map(|c| c.blocks.len()).collect();
                    panic!(
                        "phase {}, seed {seed}, op {}: {error}\ncut down to {} ops ({why}): {few:#?}\nchain lengths {lengths:?}",
                        phase.name,
                        done.len(),
                        few.len()
                    );
                }
            }
            seed += 1;
        }
        block_ops += phase_ops;
        println!("{}: {phase_ops} block operations in {:?}", phase.name, start.elapsed());
    }
    println!("{block_ops} block operations, {lookups} lookups, no answer differs");
}

/// The stream that soak tests and benchmarks run on, checked against the model as well.
#[test]
fn the_churn_of_agents_is_answered_exactly() {
    let seed = number("MAINSTAY_SEED").unwrap_or(1);
    let budget = block_ops_in_all() / 10;
    let config = ChurnConfig {
        seed,
        workers: 16,
        worker_blocks_max: 4_096,
        sessions: 64,
        hole_permille: 100,
    };
    let mut churn = Churn::new(config);
    let mut pair = Pair::new(u64::MAX);
    let mut checker = Checker::new(&pair.index);
    let (mut rng, mut next_check, mut prompt) = (Rng(seed), 0, Vec::new());
    while pair.block_ops < budget {
        let op = churn.next_op();
        pair.block_ops += op.block_count();
        let (ours, due) = match op {
            ChurnOp::Stored { worker, namespace, parent, blocks } => (
                pair.index.store(worker, namespace, parent, blocks, Tier::Device),
                pair.model.store(worker, namespace, parent, blocks, Tier::Device),
            ),
            ChurnOp::Removed { worker, blocks } => (
                pair.index.remove(worker, blocks, Tier::Device),
                pair.model.remove(worker, blocks, Tier::Device),
            ),
            ChurnOp::Cleared { worker } => {
                let removed = (pair.index.remove_worker(worker), pair.model.remove_worker(worker));
                assert_eq!(removed.0, removed.1, "seed {seed}, after {} blocks", pair.block_ops);
                continue;
            }
        };
        assert_eq!(ours, due, "seed {seed}, after {} block operations", pair.block_ops);
        if pair.block_ops >= next_check {
            next_check += 1_000;
            churn.prompt_into(rng.below(churn.session_count() as usize) as u32, &mut prompt);
            let names: Vec<SequenceHash> = prompt.iter().map(|key| name(key.0)).collect();
            let result = checker.prefix(&pair, &names);
            result.unwrap_or_else(|error| panic!("seed {seed}, after {}: {error}", pair.block_ops));
        }
    }
    compare::totals(&pair).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let capacity = u64::from(config.worker_blocks_max) * u64::from(config.workers);
    assert!(
        pair.model.held_count() > capacity / 2,
        "only {} blocks are held",
        pair.model.held_count()
    );
    println!("{} block operations of agents, {} lookups", pair.block_ops, checker.lookups);
}
