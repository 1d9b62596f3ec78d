//! Chains that share prefixes, and operations on them, done to the index and to the model alike.
//!
//! Operations name chains by number and blocks by position, so that a failing list of them can be cut down and
//! still makes sense: whatever lies outside is folded back in, nothing is out of bounds.

use mainstay_index::model::ModelIndex;
use mainstay_index::{Applied, BlockIndex};
use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier, WorkerId};

use crate::rng::{Rng, mix};

/// How the keys of a forest look: real ones are spread out, hostile ones meet in a hash table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyStyle {
    Spread,
    /// Only the high half differs.
    SameLow,
    /// Only the low half differs.
    SameHigh,
}

/// One chain to grow: `length` new blocks that hang at block `cut` of an earlier chain, or at the namespace.
#[derive(Debug, Clone)]
pub(crate) struct ChainSpec {
    pub(crate) base: Option<usize>,
    pub(crate) cut: usize,
    pub(crate) length: usize,
    pub(crate) namespace: u8,
}

/// A whole chain from its root.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) namespace: NamespaceId,
    pub(crate) blocks: Vec<SequenceHash>,
}

impl Chain {
    pub(crate) fn parent(&self, at: usize) -> SequenceHash {
        match at {
            0 => SequenceHash(self.namespace.0),
            _ => self.blocks[at - 1],
        }
    }

    /// Two positions in order, from any two numbers.
    pub(crate) fn range(&self, a: usize, b: usize) -> (usize, usize) {
        let (a, b) = (a % (self.blocks.len() + 1), b % (self.blocks.len() + 1));
        (a.min(b), a.max(b))
    }
}

pub(crate) fn name(key: u64) -> SequenceHash {
    SequenceHash(u128::from(mix(key ^ 0x55)) << 64 | u128::from(key))
}

fn key(style: KeyStyle, number: u64) -> u64 {
    let half = (number as u32).wrapping_mul(0x9e37_79b1);
    match style {
        KeyStyle::Spread => mix(number),
        KeyStyle::SameLow => u64::from(half) << 32 | 0x1234_5678,
        KeyStyle::SameHigh => 0x8765_4321 << 32 | u64::from(half),
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Forest {
    pub(crate) chains: Vec<Chain>,
    style: KeyStyle,
    next: u64,
}

impl Forest {
    pub(crate) fn grow(style: KeyStyle, specs: &[ChainSpec]) -> Self {
        let mut forest = Self { chains: Vec::new(), style, next: 1 };
        for spec in specs {
            forest.add(spec);
        }
        forest
    }

    pub(crate) fn add(&mut self, spec: &ChainSpec) {
        let base = spec.base.filter(|_| !self.chains.is_empty());
        let base = base.map(|base| &self.chains[base % self.chains.len()]);
        let (namespace, mut blocks) = match base {
            Some(base) => {
                let cut = spec.cut % (base.blocks.len() + 1);
                // A chain that hangs at the very root is a root of the same namespace.
                (base.namespace, base.blocks[..cut].to_vec())
            }
            None => (NamespaceId(u128::from(mix(u64::from(spec.namespace) + 0xfeed))), Vec::new()),
        };
        for _ in 0..spec.length {
            blocks.push(self.fresh());
        }
        self.chains.push(Chain { namespace, blocks });
    }

    /// A block that belongs to no chain yet.
    pub(crate) fn fresh(&mut self) -> SequenceHash {
        self.next += 1;
        name(key(self.style, self.next - 1))
    }

    pub(crate) fn chain(&self, number: usize) -> &Chain {
        &self.chains[number % self.chains.len()]
    }
}

/// In which order the blocks of a stretch are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    RootFirst,
    DeepestFirst,
    Shuffled(u64),
    /// Only some of them: about one in so many, chosen by the seed.
    Victims(u64, usize),
}

/// One operation. Numbers of workers and chains, and positions, are folded into what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Store {
        worker: u32,
        chain: usize,
        from: usize,
        to: usize,
        step: usize,
        tier: Tier,
    },
    Remove {
        worker: u32,
        chain: usize,
        from: usize,
        to: usize,
        step: usize,
        order: Order,
        tier: Tier,
    },
    /// `count` workers from `worker` on store the chain, each a little less deep than the one before.
    Spread {
        worker: u32,
        count: u32,
        chain: usize,
        to: usize,
        tier: Tier,
    },
    Hold {
        worker: u32,
        chain: usize,
        from: usize,
        to: usize,
        tier: Tier,
    },
    Release {
        worker: u32,
        chain: usize,
        from: usize,
        to: usize,
        tier: Tier,
    },
    Clear {
        worker: u32,
    },
    RemoveWorker {
        worker: u32,
    },
}

/// Worker numbers become ids that lie far apart; number 0 stays 0.
pub(crate) fn worker_id(number: u32) -> WorkerId {
    WorkerId(number.wrapping_mul(0x9e37_79b1))
}

/// The index, the model, and how many block operations both have taken.
pub(crate) struct Pair {
    pub(crate) index: BlockIndex,
    pub(crate) model: ModelIndex,
    pub(crate) block_ops: u64,
}

impl Pair {
    pub(crate) fn new(entries_max: u64) -> Self {
        Self {
            index: BlockIndex::new(entries_max),
            model: ModelIndex::new(entries_max),
            block_ops: 0,
        }
    }

    /// Does `op` to both; the answers have to be equal.
    pub(crate) fn apply(&mut self, forest: &Forest, op: &Op) -> Result<(), String> {
        match *op {
            Op::Store { worker, chain, from, to, step, tier } => {
                let chain = forest.chain(chain);
                let (from, to) = chain.range(from, to);
                self.store(worker_id(worker), chain, from, to, step, tier)
            }
            Op::Remove { worker, chain, from, to, step, order, tier } => {
                let chain = forest.chain(chain);
                let (from, to) = chain.range(from, to);
                let blocks = ordered(&chain.blocks[from..to], order);
                self.remove(worker_id(worker), &blocks, step, tier)
            }
            Op::Spread { worker, count, chain, to, tier } => {
                let chain = forest.chain(chain);
                let (_, to) = chain.range(0, to);
                (0..count).try_for_each(|i| {
                    let to = to.saturating_sub(i as usize % 3);
                    self.store(worker_id(worker.wrapping_add(i)), chain, 0, to, usize::MAX, tier)
                })
            }
            Op::Hold { worker, chain, from, to, tier } => {
                let Some((tail, count)) = record(forest, chain, from, to) else { return Ok(()) };
                self.block_ops += u64::from(count);
                let worker = worker_id(worker);
                let ours = self.index.hold(worker, tail, count, tier).ok();
                equal("hold", ours, self.model.hold(worker, tail, count, tier).ok())
            }
            Op::Release { worker, chain, from, to, tier } => {
                let Some((tail, count)) = record(forest, chain, from, to) else { return Ok(()) };
                self.block_ops += u64::from(count);
                let worker = worker_id(worker);
                let ours = self.index.release(worker, tail, count, tier).ok();
                equal("release", ours, self.model.release(worker, tail, count, tier).ok())
            }
            Op::Clear { worker } => self.event(worker_id(worker), &BlockEvent::Cleared),
            Op::RemoveWorker { worker } => {
                let worker = worker_id(worker);
                let removed = self.model.remove_worker(worker);
                self.block_ops += removed;
                equal("remove_worker", self.index.remove_worker(worker), removed)
            }
        }
    }

    /// Stores in events of `step` blocks; every other one goes in as an event of the wire.
    pub(crate) fn store(
        &mut self,
        worker: WorkerId,
        chain: &Chain,
        from: usize,
        to: usize,
        step: usize,
        tier: Tier,
    ) -> Result<(), String> {
        let mut at = from;
        while at < to {
            let end = to.min(at.saturating_add(step.max(1)));
            let (parent, blocks) = (chain.parent(at), &chain.blocks[at..end]);
            if (at ^ to) & 1 == 0 {
                let (namespace, blocks) = (chain.namespace, blocks.to_vec());
                self.event(worker, &BlockEvent::Stored { namespace, parent, blocks, tier })?;
            } else {
                let parent = parent.0 as u64;
                self.index.prefetch(blocks[0].0 as u64);
                self.index.prefetch_runs(blocks[0].0 as u64);
                let ours = self.index.store(worker, chain.namespace, parent, blocks, tier);
                let due = self.model.store(worker, chain.namespace, parent, blocks, tier);
                self.block_ops += blocks.len() as u64;
                equal("store", ours, due)?;
            }
            at = end;
        }
        Ok(())
    }

    pub(crate) fn remove(
        &mut self,
        worker: WorkerId,
        blocks: &[SequenceHash],
        step: usize,
        tier: Tier,
    ) -> Result<(), String> {
        for (i, blocks) in blocks.chunks(step.max(1)).enumerate() {
            if i % 2 == 0 {
                let ours = self.index.remove(worker, blocks, tier);
                self.block_ops += blocks.len() as u64;
                equal("remove", ours, self.model.remove(worker, blocks, tier))?;
            } else {
                self.event(worker, &BlockEvent::Removed { blocks: blocks.to_vec(), tier })?;
            }
        }
        Ok(())
    }

    fn event(&mut self, worker: WorkerId, event: &BlockEvent) -> Result<(), String> {
        let due: Applied = self.model.apply(worker, event);
        self.block_ops += (event.block_count() as u64).max(due.removed);
        equal("apply", self.index.apply(worker, event), due)
    }
}

fn record(forest: &Forest, chain: usize, from: usize, to: usize) -> Option<(u64, u32)> {
    let chain = forest.chain(chain);
    let (from, to) = chain.range(from, to);
    let tail = chain.blocks[..to].last()?.0 as u64;
    Some((tail, (to - from) as u32))
}

fn ordered(blocks: &[SequenceHash], order: Order) -> Vec<SequenceHash> {
    let mut blocks = blocks.to_vec();
    match order {
        Order::RootFirst => {}
        Order::DeepestFirst => blocks.reverse(),
        Order::Shuffled(seed) => shuffle(&mut blocks, seed),
        Order::Victims(seed, one_in) => {
            let mut rng = Rng(seed);
            blocks.retain(|_| rng.one_in(one_in));
            shuffle(&mut blocks, seed);
        }
    }
    blocks
}

fn shuffle(blocks: &mut [SequenceHash], seed: u64) {
    let mut rng = Rng(seed);
    for i in (1..blocks.len()).rev() {
        blocks.swap(i, rng.below(i + 1));
    }
}

pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    ours: T,
    due: T,
) -> Result<(), String> {
    if ours == due {
        return Ok(());
    }
    Err(format!("{what}: the index says {ours:?}, the model {due:?}"))
}
