//! A double's cache: blocks by hash, the least recently used goes, tails before heads.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Stored { hashes: Vec<u64>, parent: Option<u64>, tokens: Vec<u32>, salt: Option<String> },
    Removed(Vec<u64>),
    Cleared,
}

#[derive(Debug)]
struct Block {
    users: usize,
    used: u64,
}

#[derive(Debug)]
pub(crate) struct Cache {
    blocks: HashMap<u64, Block>,
    /// Blocks of running requests that are not full yet, or not computed.
    open: usize,
    capacity: usize,
    block_tokens: usize,
    clock: u64,
    pub(crate) changes: Vec<Change>,
}

/// The blocks of one request.
#[derive(Debug)]
pub(crate) struct Table {
    hashes: Vec<u64>,
    registered: usize,
    total: usize,
    pub(crate) cached_tokens: usize,
}

impl Cache {
    pub(crate) fn new(capacity: usize, block_tokens: usize) -> Self {
        let blocks = HashMap::new();
        Self { blocks, open: 0, capacity, block_tokens, clock: 0, changes: Vec::new() }
    }

    fn hashes(&self, salt: &str, tokens: &[u32]) -> Vec<u64> {
        let mut parent = None;
        let name = |block: &[u32]| {
            let mut hasher = DefaultHasher::new();
            (parent, block).hash(&mut hasher);
            if parent.is_none() {
                salt.hash(&mut hasher);
            }
            parent = Some(hasher.finish());
            hasher.finish()
        };
        tokens.chunks_exact(self.block_tokens).map(name).collect()
    }

    /// Room for a prompt and its answer; `None` while there is none.
    pub(crate) fn admit(&mut self, salt: &str, prompt: &[u32], tokens_max: usize) -> Option<Table> {
        let hashes = self.hashes(salt, prompt);
        let usable = (prompt.len() - 1) / self.block_tokens;
        let hits = hashes.iter().take(usable).take_while(|h| self.blocks.contains_key(h)).count();
        let total = (prompt.len() + tokens_max).div_ceil(self.block_tokens).min(self.capacity);
        for hash in &hashes[..hits] {
            if let Some(block) = self.blocks.get_mut(hash) {
                block.users += 1;
            }
        }
        let wanted = total - hits.min(total);
        let used = self.blocks.values().filter(|block| block.users > 0).count();
        if used + self.open + wanted > self.capacity {
            self.unuse(&hashes[..hits]);
            return None;
        }
        self.open += wanted;
        self.evict();
        let cached_tokens = hits * self.block_tokens;
        Some(Table { hashes: hashes[..hits].to_vec(), registered: hits, total, cached_tokens })
    }

    fn evict(&mut self) {
        let mut gone = Vec::new();
        while self.blocks.len() + self.open > self.capacity {
            let free = self.blocks.iter().filter(|(_, block)| block.users == 0);
            let Some((hash, _)) = free.min_by_key(|(_, block)| block.used) else { break };
            let hash = *hash;
            self.blocks.remove(&hash);
            gone.push(hash);
        }
        if !gone.is_empty() {
            self.changes.push(Change::Removed(gone));
        }
    }

    /// These tokens of a request are computed: its full blocks can be hit from now on.
    pub(crate) fn computed(&mut self, table: &mut Table, salt: &str, tokens: &[u32]) {
        let hashes = self.hashes(salt, tokens);
        let parent = table.registered.checked_sub(1).map(|before| hashes[before]);
        let new = &hashes[table.registered..];
        if new.is_empty() {
            return;
        }
        for hash in new {
            let block = self.blocks.entry(*hash).or_insert(Block { users: 0, used: 0 });
            block.users += 1;
            self.open = self.open.saturating_sub(1);
        }
        let from = table.registered * self.block_tokens;
        self.changes.push(Change::Stored {
            hashes: new.to_vec(),
            parent,
            tokens: tokens[from..hashes.len() * self.block_tokens].to_vec(),
            salt: parent.is_none().then(|| salt.to_owned()),
        });
        table.registered = hashes.len();
        table.hashes = hashes;
    }

    fn unuse(&mut self, hashes: &[u64]) {
        for hash in hashes.iter().rev() {
            self.clock += 1;
            if let Some(block) = self.blocks.get_mut(hash) {
                block.users -= 1;
                block.used = self.clock;
            }
        }
    }

    /// The request has ended, whichever way.
    pub(crate) fn release(&mut self, table: &Table) {
        let hashes = table.hashes.clone();
        self.unuse(&hashes);
        self.open = self.open.saturating_sub(table.total.saturating_sub(table.registered));
    }

    pub(crate) fn clear(&mut self) {
        self.blocks.retain(|_, block| block.users > 0);
        self.changes.push(Change::Cleared);
    }
}
