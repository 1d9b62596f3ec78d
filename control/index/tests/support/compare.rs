//! What has to be equal between the index and the model after any operations: every form of every answer.

use mainstay_index::{BlockIndex, BlockKey, Group, IndexReader, Overlap, TierOverlap};
use mainstay_types::{SequenceHash, WorkerId};

use crate::forest::{Forest, Pair, equal};

/// One reader and its buffers, kept across lookups as a gateway keeps them.
pub(crate) struct Checker {
    reader: IndexReader,
    list: Vec<Overlap>,
    groups: Vec<Group>,
    tiers: Vec<TierOverlap>,
    pub(crate) lookups: u64,
}

impl Checker {
    pub(crate) fn new(index: &BlockIndex) -> Self {
        let reader = index.reader();
        Self { reader, list: Vec::new(), groups: Vec::new(), tiers: Vec::new(), lookups: 0 }
    }

    /// The list form of both readers: cheap enough to run all the time.
    pub(crate) fn list(&mut self, pair: &Pair, prefix: &[SequenceHash]) -> Result<(), String> {
        self.lookups += 1;
        let due = pair.model.lookup(prefix);
        self.reader.lookup_into(prefix, &mut self.list);
        self.list.sort_unstable_by_key(|overlap| overlap.worker);
        equal("lookup_into", &self.list, &due)?;
        equal("lookup", pair.index.lookup(prefix), due)
    }

    /// All forms of the answer to one prefix.
    pub(crate) fn prefix(&mut self, pair: &Pair, prefix: &[SequenceHash]) -> Result<(), String> {
        self.list(pair, prefix)?;
        self.reader.groups_into(prefix, &mut self.groups);
        let listed = listed(&self.reader, &self.groups)?;
        equal("groups_into", &listed, &self.list)?;
        let keys: Vec<BlockKey> = prefix.iter().map(|name| BlockKey(name.0 as u64)).collect();
        let mut by_key = Vec::new();
        self.reader.lookup_into(&keys, &mut by_key);
        by_key.sort_unstable_by_key(|overlap| overlap.worker);
        equal("lookup_into by key", &by_key, &self.list)?;
        self.reader.tiers_into(prefix, &mut self.tiers);
        self.tiers.sort_unstable_by_key(|overlap| overlap.worker);
        equal("tiers_into", &self.tiers, &pair.model.lookup_tiers(prefix))
    }

    /// Several prefixes in one interleaved walk answer as each of them alone.
    pub(crate) fn burst(
        &mut self,
        pair: &Pair,
        prefixes: &[&[SequenceHash]],
    ) -> Result<(), String> {
        let mut out: Vec<Vec<Group>> = vec![Vec::new(); prefixes.len()];
        self.reader.burst_into(prefixes, &mut out);
        for (prefix, groups) in prefixes.iter().zip(&out) {
            self.lookups += 1;
            equal("burst_into", &listed(&self.reader, groups)?, &pair.model.lookup(prefix))?;
        }
        Ok(())
    }

    /// Every chain of the forest: whole, cut, and extended by a block that nobody holds; then all in one burst.
    pub(crate) fn forest(
        &mut self,
        pair: &Pair,
        forest: &Forest,
        cut: usize,
    ) -> Result<(), String> {
        let unknown = forest.clone().fresh();
        let mut longer = Vec::new();
        for chain in &forest.chains {
            self.prefix(pair, &chain.blocks)?;
            let (_, cut) = chain.range(0, cut);
            self.prefix(pair, &chain.blocks[..cut])?;
            let mut blocks = chain.blocks[..cut].to_vec();
            blocks.extend([unknown; 3]);
            self.prefix(pair, &blocks)?;
            longer.push(blocks);
        }
        let mut all: Vec<&[SequenceHash]> = longer.iter().map(Vec::as_slice).collect();
        all.extend(forest.chains.iter().map(|chain| chain.blocks.as_slice()));
        all.push(&[]);
        self.burst(pair, &all)
    }
}

/// The list that groups stand for, sorted by worker. A slot may not come twice, and no group may be empty.
pub(crate) fn listed(reader: &IndexReader, groups: &[Group]) -> Result<Vec<Overlap>, String> {
    let mut list = Vec::new();
    for group in groups {
        if group.bits == 0 || group.depth == 0 {
            return Err(format!("an empty group: {group:?}"));
        }
        for bit in (0..64).filter(|bit| group.bits >> bit & 1 == 1) {
            let slot = group.word * 64 + bit;
            let worker = reader.worker_of_slot(slot);
            let worker = worker.ok_or_else(|| format!("slot {slot} has no worker: {group:?}"))?;
            list.push(Overlap { worker, blocks: group.depth });
        }
    }
    list.sort_unstable_by_key(|overlap| overlap.worker);
    match list.windows(2).find(|pair| pair[0].worker == pair[1].worker) {
        Some(pair) => Err(format!("worker {} is in two groups", pair[0].worker)),
        None => Ok(list),
    }
}

/// Counts and digests.
pub(crate) fn totals(pair: &Pair) -> Result<(), String> {
    let Pair { index, model, .. } = pair;
    equal("held_count", index.held_count(), model.held_count())?;
    equal("block_count", index.block_count(), model.block_count())?;
    let workers: Vec<WorkerId> = model.workers().collect();
    equal("workers", index.workers().collect::<Vec<_>>(), workers.clone())?;
    for worker in workers {
        let (ours, due) = (index.worker_block_count(worker), model.worker_block_count(worker));
        equal("worker_block_count", ours, due)?;
        equal("digest", index.digest(worker), model.digest(worker))?;
    }
    equal("digest of nobody", index.digest(WorkerId(u32::MAX - 1)), 0)
}

/// Who holds each of `blocks` where.
pub(crate) fn holders(pair: &Pair, blocks: &[SequenceHash]) -> Result<(), String> {
    let Pair { index, model, .. } = pair;
    for &block in blocks {
        equal("holders", index.holders(block), model.holders(block))?;
    }
    for worker in model.workers().chain([WorkerId(u32::MAX - 1)]) {
        let held = |block: &&SequenceHash| !model.tiers(worker, **block).is_empty();
        equal("held_of", index.held_of(worker, blocks), blocks.iter().filter(held).count() as u64)?;
        for &block in blocks {
            equal("tiers", index.tiers(worker, block), model.tiers(worker, block))?;
            let holds = !model.tiers(worker, block).is_empty();
            equal("holds", index.holds(worker, block), holds)?;
        }
    }
    Ok(())
}

/// The pair with the index made anew from a snapshot of itself. How much was ever refused does not survive.
pub(crate) fn restored(pair: &Pair, entries_max: u64) -> Result<Pair, String> {
    let mut index = BlockIndex::new(entries_max);
    for run in pair.index.snapshot() {
        index.restore_run(&run).map_err(|error| format!("restore_run: {error:?}"))?;
    }
    Ok(Pair { index, model: pair.model.clone(), block_ops: 0 })
}
