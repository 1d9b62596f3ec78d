//! The literal reference of the index: one hash table of blocks, each with a sorted map of its holders.
//!
//! The index proper earns its speed with runs, segments and sums that telescope, and each of those can be wrong
//! in ways that no reader would notice for days. This one walks block by block and adds up from scratch, so that
//! tests and benchmarks have something to be equal to. It is slow on purpose, honours the limit on entries and
//! none on bytes, and keeps the first parent that a block was stored with, lies included.

use std::collections::{BTreeMap, HashMap};

use mainstay_types::{BlockEvent, NamespaceId, Tier, WorkerId};

use crate::{
    Applied, BlockName, Holder, Overlap, TierOverlap, TierSet, UnknownBlock, entry_digest,
};

#[derive(Debug, Clone)]
struct Block {
    parent: u64,
    namespace: NamespaceId,
    holders: BTreeMap<WorkerId, TierSet>,
}

/// Which worker holds which block where, in the most obvious form.
#[derive(Debug, Clone)]
pub struct ModelIndex {
    blocks: HashMap<u64, Block>,
    /// How many blocks each worker holds; workers that hold none are not in it.
    workers: BTreeMap<WorkerId, u64>,
    held_count: u64,
    entries_max: u64,
    refused_blocks: u64,
}

impl ModelIndex {
    /// An empty model of an index that takes `entries_max` entries: blocks, each counted once per holder.
    #[must_use]
    pub fn new(entries_max: u64) -> Self {
        Self {
            blocks: HashMap::new(),
            workers: BTreeMap::new(),
            held_count: 0,
            entries_max,
            refused_blocks: 0,
        }
    }

    /// Takes in one event of `worker`.
    pub fn apply(&mut self, worker: WorkerId, event: &BlockEvent) -> Applied {
        match event {
            BlockEvent::Stored { namespace, parent, blocks, tier } => {
                self.store(worker, *namespace, parent.key(), blocks, *tier)
            }
            BlockEvent::Removed { blocks, tier } => self.remove(worker, blocks, *tier),
            BlockEvent::Truncated { tail, count, tier } => {
                self.release(worker, tail.key(), *count, *tier).unwrap_or_default()
            }
            BlockEvent::Cleared => {
                Applied { removed: self.remove_worker(worker), ..Applied::default() }
            }
        }
    }

    /// Takes in that `worker` holds `blocks`, which follow each other after `parent`.
    pub fn store<N: BlockName>(
        &mut self,
        worker: WorkerId,
        namespace: NamespaceId,
        parent: u64,
        blocks: &[N],
        tier: Tier,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut parent = parent;
        for name in blocks {
            self.put(worker, namespace, parent, name.key(), tier, &mut applied);
            parent = name.key();
        }
        self.refused_blocks += applied.refused;
        applied
    }

    fn put(
        &mut self,
        worker: WorkerId,
        namespace: NamespaceId,
        parent: u64,
        key: u64,
        tier: Tier,
        applied: &mut Applied,
    ) {
        let before = self.tiers_of(worker, key);
        if before.is_empty() {
            if self.held_count >= self.entries_max {
                applied.refused += 1;
                return;
            }
            applied.added += 1;
            self.held_count += 1;
            *self.workers.entry(worker).or_default() += 1;
        }
        let fresh = || Block { parent, namespace, holders: BTreeMap::new() };
        let block = self.blocks.entry(key).or_insert_with(fresh);
        block.holders.insert(worker, before.with(tier));
    }

    /// Takes in that `worker` holds `blocks` in `tier` no more.
    pub fn remove<N: BlockName>(&mut self, worker: WorkerId, blocks: &[N], tier: Tier) -> Applied {
        let mut applied = Applied::default();
        for name in blocks {
            self.take(worker, name.key(), tier, &mut applied);
        }
        applied
    }

    fn take(&mut self, worker: WorkerId, key: u64, tier: Tier, applied: &mut Applied) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let Some(tiers) = block.holders.get_mut(&worker) else { return };
        *tiers = tiers.without(tier);
        if !tiers.is_empty() {
            return;
        }
        block.holders.remove(&worker);
        if block.holders.is_empty() {
            self.blocks.remove(&key);
        }
        applied.removed += 1;
        self.forget(worker, 1);
    }

    fn forget(&mut self, worker: WorkerId, blocks: u64) {
        self.held_count -= blocks;
        if let Some(count) = self.workers.get_mut(&worker) {
            *count -= blocks;
            if *count == 0 {
                self.workers.remove(&worker);
            }
        }
    }

    /// Takes in a run record: `worker` holds the `count` blocks that end at `tail`.
    ///
    /// # Errors
    /// If anything of the stretch is held by nobody; then nothing has changed.
    pub fn hold(
        &mut self,
        worker: WorkerId,
        tail: u64,
        count: u32,
        tier: Tier,
    ) -> Result<Applied, UnknownBlock> {
        let stretch = self.stretch(tail, count)?;
        let mut applied = Applied::default();
        for key in stretch {
            let (parent, namespace) = (self.blocks[&key].parent, self.blocks[&key].namespace);
            self.put(worker, namespace, parent, key, tier, &mut applied);
        }
        self.refused_blocks += applied.refused;
        Ok(applied)
    }

    /// Takes in that `worker` holds the `count` blocks that end at `tail` in `tier` no more.
    ///
    /// # Errors
    /// If anything of the stretch is held by nobody; then nothing has changed.
    pub fn release(
        &mut self,
        worker: WorkerId,
        tail: u64,
        count: u32,
        tier: Tier,
    ) -> Result<Applied, UnknownBlock> {
        let stretch = self.stretch(tail, count)?;
        let mut applied = Applied::default();
        for key in stretch {
            self.take(worker, key, tier, &mut applied);
        }
        Ok(applied)
    }

    /// The keys of the stretch, first block first.
    fn stretch(&self, tail: u64, count: u32) -> Result<Vec<u64>, UnknownBlock> {
        // No honest stretch is longer than the index; a liar's circle would be walked for ever.
        if u64::from(count) > self.block_count() {
            return Err(UnknownBlock);
        }
        let mut keys = Vec::new();
        let mut key = tail;
        for _ in 0..count {
            let block = self.blocks.get(&key).ok_or(UnknownBlock)?;
            keys.push(key);
            key = block.parent;
        }
        keys.reverse();
        Ok(keys)
    }

    /// Forgets all blocks of a worker; answers how many there were.
    pub fn remove_worker(&mut self, worker: WorkerId) -> u64 {
        let Some(&count) = self.workers.get(&worker) else { return 0 };
        self.blocks.retain(|_, block| {
            block.holders.remove(&worker);
            !block.holders.is_empty()
        });
        self.forget(worker, count);
        count
    }

    /// For each worker that holds the first block of `prefix`, how many leading blocks it holds without a gap,
    /// sorted by worker.
    #[must_use]
    pub fn lookup<N: BlockName>(&self, prefix: &[N]) -> Vec<Overlap> {
        let mut found = Vec::new();
        let mut still = prefix.first().map(|name| self.workers_of(name.key())).unwrap_or_default();
        let mut depth = 0_u32;
        for name in prefix {
            let block = self.blocks.get(&name.key());
            still.retain(|worker| {
                let holds = block.is_some_and(|b| b.holders.contains_key(worker));
                if !holds {
                    found.push(Overlap { worker: *worker, blocks: depth });
                }
                holds
            });
            if still.is_empty() {
                break;
            }
            depth += 1;
        }
        found.extend(still.into_iter().map(|worker| Overlap { worker, blocks: depth }));
        found.sort_unstable_by_key(|overlap| overlap.worker);
        found
    }

    /// The same per tier: `blocks[t]` counts the leading blocks that lie in tier `t` or in a nearer one.
    #[must_use]
    pub fn lookup_tiers<N: BlockName>(&self, prefix: &[N]) -> Vec<TierOverlap> {
        let workers = prefix.first().map(|name| self.workers_of(name.key())).unwrap_or_default();
        let depth = |worker: WorkerId, farthest: Tier| {
            let reachable = |name: &&N| {
                self.tiers_of(worker, name.key())
                    .iter()
                    .any(|tier| tier.number() <= farthest.number())
            };
            prefix.iter().take_while(reachable).count() as u32
        };
        let overlap = |worker| TierOverlap {
            worker,
            blocks: Tier::ALL.map(|farthest| depth(worker, farthest)),
        };
        workers.into_iter().map(overlap).collect()
    }

    fn workers_of(&self, key: u64) -> Vec<WorkerId> {
        self.blocks.get(&key).map(|b| b.holders.keys().copied().collect()).unwrap_or_default()
    }

    fn tiers_of(&self, worker: WorkerId, key: u64) -> TierSet {
        let holders = self.blocks.get(&key).map(|block| &block.holders);
        holders.and_then(|h| h.get(&worker).copied()).unwrap_or_default()
    }

    /// Where `worker` holds the block; empty if nowhere.
    #[must_use]
    pub fn tiers<N: BlockName>(&self, worker: WorkerId, block: N) -> TierSet {
        self.tiers_of(worker, block.key())
    }

    /// Everybody who holds the block, sorted by worker.
    #[must_use]
    pub fn holders<N: BlockName>(&self, block: N) -> Vec<Holder> {
        let Some(block) = self.blocks.get(&block.key()) else { return Vec::new() };
        block.holders.iter().map(|(&worker, &tiers)| Holder { worker, tiers }).collect()
    }

    /// The sum of [`entry_digest`] over what the worker holds, added up anew.
    #[must_use]
    pub fn digest(&self, worker: WorkerId) -> u64 {
        let mut sum = 0_u64;
        for (&key, block) in &self.blocks {
            let tiers = block.holders.get(&worker).copied().unwrap_or_default();
            for tier in tiers.iter() {
                sum = sum.wrapping_add(entry_digest(key, block.parent, tier));
            }
        }
        sum
    }

    /// How many different blocks are held anywhere.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How many blocks are held, each counted once per worker.
    #[must_use]
    pub fn held_count(&self) -> u64 {
        self.held_count
    }

    /// How many blocks a worker holds.
    #[must_use]
    pub fn worker_block_count(&self, worker: WorkerId) -> u64 {
        self.workers.get(&worker).copied().unwrap_or(0)
    }

    /// How many blocks were refused for want of room, ever.
    #[must_use]
    pub fn refused_blocks(&self) -> u64 {
        self.refused_blocks
    }

    /// The workers that hold something, in order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.keys().copied()
    }
}
