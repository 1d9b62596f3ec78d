//! Many writers: one index per shard of workers, one reader over all.
//!
//! A worker belongs to one shard, so its events stay in order and writers of different shards share nothing. The
//! price is paid by lookups, which walk every shard, and by prefixes that workers of several shards hold, which are
//! kept once per shard.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mainstay_types::{BlockEvent, NamespaceId, Tier, WorkerId};

use crate::head::WORDS_MAX;
use crate::{Applied, BlockIndex, BlockName, Group, IndexLimits, IndexReader, Overlap};

/// Shards there may be.
pub const SHARDS_MAX: usize = 64;

/// An index for several writers.
#[derive(Debug)]
pub struct ShardedIndex {
    shards: Vec<Mutex<BlockIndex>>,
}

impl ShardedIndex {
    /// So many shards, at least one and [`SHARDS_MAX`] at most, which share the limits evenly.
    #[must_use]
    pub fn new(shards: usize, limits: IndexLimits) -> Self {
        let shards = shards.clamp(1, SHARDS_MAX);
        let part = |all: u64| if all == u64::MAX { all } else { all / shards as u64 };
        let limits = IndexLimits {
            entries_max: part(limits.entries_max),
            bytes_max: part(limits.bytes_max),
        };
        Self { shards: (0..shards).map(|_| Mutex::new(BlockIndex::with_limits(limits))).collect() }
    }

    /// The shard that a worker belongs to.
    #[must_use]
    pub fn shard_of(&self, worker: WorkerId) -> usize {
        worker.0 as usize % self.shards.len()
    }

    /// Works on one shard, with its lock held. A number out of range is taken modulo the shards.
    pub fn with_shard<T>(&self, shard: usize, work: impl FnOnce(&mut BlockIndex) -> T) -> T {
        work(&mut self.lock(shard % self.shards.len()))
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, BlockIndex> {
        // A writer that panicked left its shard between two published states at worst.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`BlockIndex::apply`].
    pub fn apply(&self, worker: WorkerId, event: &BlockEvent) -> Applied {
        self.lock(self.shard_of(worker)).apply(worker, event)
    }

    /// See [`BlockIndex::store`].
    pub fn store<N: BlockName>(
        &self,
        worker: WorkerId,
        namespace: NamespaceId,
        parent: u64,
        blocks: &[N],
        tier: Tier,
    ) -> Applied {
        self.lock(self.shard_of(worker)).store(worker, namespace, parent, blocks, tier)
    }

    /// See [`BlockIndex::remove`].
    pub fn remove<N: BlockName>(&self, worker: WorkerId, blocks: &[N], tier: Tier) -> Applied {
        self.lock(self.shard_of(worker)).remove(worker, blocks, tier)
    }

    /// A reader over all shards.
    #[must_use]
    pub fn reader(&self) -> ShardedReader {
        ShardedReader {
            readers: (0..self.shards.len()).map(|shard| self.lock(shard).reader()).collect(),
        }
    }
}

/// A reader over all shards. What it says of one worker was true at one instant; of workers in different shards, at
/// instants of the same call.
#[derive(Debug, Clone)]
pub struct ShardedReader {
    readers: Vec<IndexReader>,
}

impl ShardedReader {
    /// See [`IndexReader::lookup_into`].
    pub fn lookup_into<N: BlockName>(&self, prefix: &[N], out: &mut Vec<Overlap>) {
        out.clear();
        for reader in &self.readers {
            reader.lookup_behind(prefix, out);
        }
    }

    /// See [`IndexReader::groups_into`]. Slots of shard `n` start at `8192 * n`.
    pub fn groups_into<N: BlockName>(&self, prefix: &[N], out: &mut Vec<Group>) {
        out.clear();
        for (shard, reader) in self.readers.iter().enumerate() {
            reader.groups_behind(prefix, (shard * WORDS_MAX) as u32, out);
        }
    }

    /// The worker of a slot.
    #[must_use]
    pub fn worker_of_slot(&self, slot: u32) -> Option<WorkerId> {
        let per_shard = (WORDS_MAX * 64) as u32;
        self.readers.get((slot / per_shard) as usize)?.worker_of_slot(slot % per_shard)
    }
}
