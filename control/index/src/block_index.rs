//! The index itself: a table of blocks, each with its holders, and a set of blocks per worker.
//!
//! The set per worker makes fencing cost what the worker held and not what the cluster holds. Everything that
//! leaves here as a list is sorted, so that no hash table's order can reach a log, an image or another member.

use std::collections::{BTreeMap, HashMap, HashSet};

use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier, WorkerId};

use crate::TierSet;
use crate::digest::{entry_digest, tiers_digest};
use crate::holders::{Holder, Holders};

#[derive(Debug, Clone)]
struct Block {
    parent: SequenceHash,
    namespace: NamespaceId,
    holders: Holders,
}

#[derive(Debug, Clone, Default)]
struct WorkerBlocks {
    hashes: HashSet<SequenceHash>,
    digest: u128,
}

/// How much of a prompt a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// Who.
    pub worker: WorkerId,
    /// How many of the prompt's leading blocks, in any tier.
    pub blocks: u32,
}

/// What an event changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Blocks that the worker did not hold before.
    pub added: u64,
    /// Blocks that the worker holds no more in any tier.
    pub removed: u64,
    /// Blocks that the index had no room for.
    pub refused: u64,
}

/// A block as one worker holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBlock {
    /// Its hash.
    pub hash: SequenceHash,
    /// The block before it, or the namespace's own number.
    pub parent: SequenceHash,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Where it lies.
    pub tiers: TierSet,
}

/// A block with everybody who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockView<'a> {
    /// Its hash.
    pub hash: SequenceHash,
    /// The block before it, or the namespace's own number.
    pub parent: SequenceHash,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Sorted by worker, never empty.
    pub holders: &'a [Holder],
}

/// Why a block of an image could not be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreError {
    /// The limit on blocks is reached.
    Full,
    /// The block is there already.
    Twice,
    /// No holders, or holders that are not sorted, not distinct, or hold it nowhere.
    Holders,
}

/// Which worker holds which block where.
///
/// Its limit counts a block once for each worker that holds it, which is what memory is spent on.
#[derive(Debug, Clone)]
pub struct BlockIndex {
    blocks: HashMap<SequenceHash, Block>,
    workers: BTreeMap<WorkerId, WorkerBlocks>,
    held_count: u64,
    blocks_max: u64,
    refused_blocks: u64,
}

impl BlockIndex {
    /// An empty index that holds `blocks_max` blocks at most, each counted once per worker that holds it.
    #[must_use]
    pub fn new(blocks_max: u64) -> Self {
        Self {
            blocks: HashMap::new(),
            workers: BTreeMap::new(),
            held_count: 0,
            blocks_max,
            refused_blocks: 0,
        }
    }

    /// Takes in one event of `worker`. What is known already and what was never there changes nothing.
    pub fn apply(&mut self, worker: WorkerId, event: &BlockEvent) -> Applied {
        match event {
            BlockEvent::Stored { namespace, parent, blocks, tier } => {
                self.store(worker, *namespace, *parent, blocks, *tier)
            }
            BlockEvent::Removed { blocks, tier } => self.take_out(worker, blocks, *tier),
            BlockEvent::Cleared => {
                Applied { removed: self.remove_worker(worker), ..Applied::default() }
            }
        }
    }

    fn store(
        &mut self,
        worker: WorkerId,
        namespace: NamespaceId,
        parent: SequenceHash,
        blocks: &[SequenceHash],
        tier: Tier,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut parent = parent;
        for &hash in blocks {
            let before = self.tiers(worker, hash);
            if before.is_empty() && self.held_count >= self.blocks_max {
                applied.refused += 1;
            } else if !before.contains(tier) {
                // The parent that came first stays: equal hashes have equal parents unless a worker lies, and
                // then at least every replica keeps the same answer.
                let block = self.blocks.entry(hash).or_insert_with(|| Block {
                    parent,
                    namespace,
                    holders: Holders::One(Holder { worker, tiers: TierSet::default() }),
                });
                block.holders.set(worker, before.with(tier));
                let held = self.workers.entry(worker).or_default();
                held.digest = held.digest.wrapping_add(entry_digest(hash, tier));
                if held.hashes.insert(hash) {
                    self.held_count += 1;
                    applied.added += 1;
                }
            }
            parent = hash;
        }
        self.refused_blocks = self.refused_blocks.saturating_add(applied.refused);
        applied
    }

    fn take_out(&mut self, worker: WorkerId, blocks: &[SequenceHash], tier: Tier) -> Applied {
        let mut applied = Applied::default();
        let Some(held) = self.workers.get_mut(&worker) else { return applied };
        for hash in blocks {
            let Some(block) = self.blocks.get_mut(hash) else { continue };
            let before = block.holders.tiers_of(worker);
            if !before.contains(tier) {
                continue;
            }
            let after = before.without(tier);
            held.digest = held.digest.wrapping_sub(entry_digest(*hash, tier));
            if !block.holders.set(worker, after) {
                self.blocks.remove(hash);
            }
            if after.is_empty() {
                held.hashes.remove(hash);
                self.held_count -= 1;
                applied.removed += 1;
            }
        }
        if held.hashes.is_empty() {
            self.workers.remove(&worker);
        }
        applied
    }

    /// Forgets all blocks of a worker; answers how many there were.
    pub fn remove_worker(&mut self, worker: WorkerId) -> u64 {
        let Some(held) = self.workers.remove(&worker) else { return 0 };
        let count = held.hashes.len() as u64;
        for hash in held.hashes {
            if let Some(block) = self.blocks.get_mut(&hash)
                && !block.holders.set(worker, TierSet::default())
            {
                self.blocks.remove(&hash);
            }
        }
        self.held_count -= count;
        count
    }

    /// For each worker that holds the first block of `prefix`, how many leading blocks it holds without a gap,
    /// sorted by worker. Stops at the first block that no worker is left for.
    #[must_use]
    pub fn lookup(&self, prefix: &[SequenceHash]) -> Vec<Overlap> {
        let mut found = Vec::new();
        let Some(first) = prefix.first().and_then(|hash| self.blocks.get(hash)) else {
            return found;
        };
        let mut still: Vec<WorkerId> = first.holders.as_slice().iter().map(|h| h.worker).collect();
        let mut depth = 1_u32;
        for hash in &prefix[1..] {
            let holders = self.blocks.get(hash).map_or(&[][..], |block| block.holders.as_slice());
            drop_missing(&mut still, holders, depth, &mut found);
            if still.is_empty() {
                break;
            }
            depth = depth.saturating_add(1);
        }
        found.extend(still.into_iter().map(|worker| Overlap { worker, blocks: depth }));
        found.sort_unstable_by_key(|overlap| overlap.worker);
        found
    }

    /// Whether `worker` holds the block in any tier.
    #[must_use]
    pub fn holds(&self, worker: WorkerId, hash: SequenceHash) -> bool {
        !self.tiers(worker, hash).is_empty()
    }

    /// Where `worker` holds the block; empty if nowhere.
    #[must_use]
    pub fn tiers(&self, worker: WorkerId, hash: SequenceHash) -> TierSet {
        self.blocks.get(&hash).map_or(TierSet::default(), |block| block.holders.tiers_of(worker))
    }

    /// Everybody who holds the block, sorted by worker.
    #[must_use]
    pub fn holders(&self, hash: SequenceHash) -> &[Holder] {
        self.blocks.get(&hash).map_or(&[], |block| block.holders.as_slice())
    }

    /// How many of `hashes` the worker holds, with gaps or without. A hash named twice counts twice.
    #[must_use]
    pub fn held_of(&self, worker: WorkerId, hashes: &[SequenceHash]) -> u64 {
        let Some(held) = self.workers.get(&worker) else { return 0 };
        hashes.iter().filter(|hash| held.hashes.contains(hash)).count() as u64
    }

    /// How many different blocks are held anywhere.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How many blocks are held, each counted once per worker: what the limit is about.
    #[must_use]
    pub fn held_count(&self) -> u64 {
        self.held_count
    }

    /// The limit on [`BlockIndex::held_count`].
    #[must_use]
    pub fn blocks_max(&self) -> u64 {
        self.blocks_max
    }

    /// How many blocks were refused for want of room, ever. More than 0 means: raise the limit.
    #[must_use]
    pub fn refused_blocks(&self) -> u64 {
        self.refused_blocks
    }

    /// How many blocks a worker holds.
    #[must_use]
    pub fn worker_block_count(&self, worker: WorkerId) -> u64 {
        self.workers.get(&worker).map_or(0, |held| held.hashes.len() as u64)
    }

    /// The workers that hold something, in order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.keys().copied()
    }

    /// The sum of [`entry_digest`] over what a worker holds; 0 for nothing. Order does not matter.
    #[must_use]
    pub fn digest(&self, worker: WorkerId) -> u128 {
        self.workers.get(&worker).map_or(0, |held| held.digest)
    }

    /// All blocks of one worker, sorted by hash. Sorting makes it an affair of images and tools, not of requests.
    pub fn blocks_of(&self, worker: WorkerId) -> impl Iterator<Item = HeldBlock> {
        let mut hashes: Vec<SequenceHash> = self
            .workers
            .get(&worker)
            .map(|held| held.hashes.iter().copied().collect())
            .unwrap_or_default();
        hashes.sort_unstable();
        hashes.into_iter().filter_map(move |hash| {
            let block = self.blocks.get(&hash)?;
            let tiers = block.holders.tiers_of(worker);
            Some(HeldBlock { hash, parent: block.parent, namespace: block.namespace, tiers })
        })
    }

    /// All blocks, sorted by namespace and then by hash.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockView<'_>> {
        let mut all: Vec<BlockView<'_>> = self
            .blocks
            .iter()
            .map(|(hash, block)| BlockView {
                hash: *hash,
                parent: block.parent,
                namespace: block.namespace,
                holders: block.holders.as_slice(),
            })
            .collect();
        all.sort_unstable_by_key(|view| (view.namespace, view.hash));
        all
    }

    /// Puts back one block of an image.
    ///
    /// # Errors
    /// If it does not fit, is there already, or its holders are not a sorted list without repetition.
    pub fn restore(&mut self, view: BlockView<'_>) -> Result<(), RestoreError> {
        let BlockView { hash, parent, namespace, holders } = view;
        let sorted = holders.windows(2).all(|pair| pair[0].worker < pair[1].worker);
        if holders.is_empty() || !sorted || holders.iter().any(|h| h.tiers.is_empty()) {
            return Err(RestoreError::Holders);
        }
        if self.blocks_max.saturating_sub(self.held_count) < holders.len() as u64 {
            return Err(RestoreError::Full);
        }
        if self.blocks.contains_key(&hash) {
            return Err(RestoreError::Twice);
        }
        for holder in holders {
            let held = self.workers.entry(holder.worker).or_default();
            held.hashes.insert(hash);
            held.digest = held.digest.wrapping_add(tiers_digest(hash, holder.tiers));
        }
        self.held_count += holders.len() as u64;
        let holders = match holders {
            [only] => Holders::One(*only),
            many => Holders::Many(many.to_vec()),
        };
        self.blocks.insert(hash, Block { parent, namespace, holders });
        Ok(())
    }

    /// Puts back the counter of an image.
    pub fn restore_refused(&mut self, refused_blocks: u64) {
        self.refused_blocks = refused_blocks;
    }

    /// An estimate of the memory in use. Walks all blocks: for status pages, not for requests.
    #[must_use]
    pub fn bytes_estimate(&self) -> u64 {
        // One control byte stands beside every slot of a hash table.
        let table = self.blocks.capacity() * (size_of::<(SequenceHash, Block)>() + 1);
        let lists: usize = self.blocks.values().map(|block| block.holders.heap_bytes()).sum();
        let per_hash = size_of::<SequenceHash>() + 1;
        let sets: usize = self.workers.values().map(|held| held.hashes.capacity() * per_hash).sum();
        (table + lists + sets) as u64
    }
}

/// Keeps in `still` who is also in `holders`; the others held `depth` blocks. Both lists are sorted.
fn drop_missing(
    still: &mut Vec<WorkerId>,
    holders: &[Holder],
    depth: u32,
    found: &mut Vec<Overlap>,
) {
    let mut rest = holders;
    still.retain(|&worker| {
        let skip = rest.iter().take_while(|h| h.worker < worker).count();
        rest = &rest[skip..];
        let stays = rest.first().is_some_and(|h| h.worker == worker);
        if !stays {
            found.push(Overlap { worker, blocks: depth });
        }
        stays
    });
}

#[cfg(test)]
mod tests;
