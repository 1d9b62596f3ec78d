//! What the server holds, under our names: events go in, what is new to tell comes out. Pure.
//!
//! A block is told only if its first ancestor is known to be of a namespace of ours and every block between is
//! held: so what is told is a subset of what is held, whatever was missed. Of vLLM, whose cache may hold a block
//! twice and tells both, copies are counted.

use std::collections::{HashMap, HashSet};

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_engine_abi::sdk::types_of_mainstay::hash::BlockHashKey;
use mainstay_engine_abi::sdk::{Cause, KvEvent, TIER_DEVICE, TIER_DISK, TIER_HOST, TIER_REMOTE};

use crate::event::{Event, Group, Medium, Native, Salt, Stored};
use crate::salts::Salts;

/// Tiers of the interface.
const TIERS: usize = 4;

/// What became of events that told nothing: a health figure each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Of another client, an adapter, an image.
    pub foreign: u64,
    /// Behind a block that is not known.
    pub orphans: u64,
    /// Of another block size, or with tokens that do not fill the blocks.
    pub misshapen: u64,
    /// Removed where it was not.
    pub strangers: u64,
}

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Event(KvEvent),
    /// Nothing is held any more.
    Cleared,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    name: u128,
    parent: u128,
    namespace: u128,
    /// How many blocks lie before it in its prefix.
    depth: u32,
    copies: [u32; TIERS],
}

/// The server's cache.
#[derive(Debug)]
pub struct Mirror {
    key: BlockHashKey,
    block_tokens: u32,
    counts_copies: bool,
    blocks_max: usize,
    blocks: HashMap<Native, Held>,
    /// The names of all of them.
    names: HashSet<u128>,
    /// The one of several caches that is followed.
    group: Option<u64>,
    passed: Passed,
}

const fn tier_of(medium: Option<Medium>) -> u32 {
    match medium {
        None | Some(Medium::Device) => TIER_DEVICE,
        Some(Medium::Host) => TIER_HOST,
        Some(Medium::Disk) => TIER_DISK,
        Some(Medium::Remote) => TIER_REMOTE,
    }
}

impl Mirror {
    /// Nothing is held. `blocks_max` bounds what is believed.
    pub fn new(key: HashKey, block_tokens: u32, counts_copies: bool, blocks_max: usize) -> Self {
        Self {
            key: BlockHashKey::new(key),
            block_tokens,
            counts_copies,
            blocks_max,
            blocks: HashMap::new(),
            names: HashSet::new(),
            group: None,
            passed: Passed::default(),
        }
    }

    /// Blocks held anywhere.
    pub fn blocks_held(&self) -> usize {
        self.blocks.len()
    }

    pub const fn passed(&self) -> Passed {
        self.passed
    }

    /// How many tokens of a prompt are held, in whole blocks from its first on; the last token is always computed.
    pub fn held_tokens(&self, namespace: u128, tokens: &[u32]) -> u32 {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let mut names = Vec::new();
        self.key.chain(namespace, self.block_tokens, usable, &mut names);
        let held = names.iter().take_while(|name| self.names.contains(&name.0)).count();
        u32::try_from(held).unwrap_or(u32::MAX).saturating_mul(self.block_tokens)
    }

    /// Forgets all blocks; what there was to tell of them is void.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.names.clear();
        self.group = None;
    }

    /// Takes one event in.
    pub fn apply(&mut self, event: Event, salts: &Salts, mut tell: impl FnMut(Change)) {
        match event {
            Event::Stored(stored) => {
                if !self.follows(stored.group) {
                    return;
                }
                if self.blocks.len() + stored.blocks.len() > self.blocks_max {
                    // More than the server can hold: removals were missed, or it lies.
                    self.clear();
                    tell(Change::Cleared);
                }
                self.store(&stored, salts, &mut tell);
            }
            Event::Removed { blocks, medium, group } => {
                if self.follows(group) {
                    self.remove(&blocks, tier_of(medium), &mut tell);
                }
            }
            Event::Dropped(blocks) => self.drop_all(&blocks, &mut tell),
            Event::Moved { block, from, to } => {
                self.shift(block, tier_of(Some(from)), tier_of(Some(to)), &mut tell);
            }
            Event::Cleared => {
                self.clear();
                tell(Change::Cleared);
            }
        }
    }

    /// Whether an event is about the cache in which whole prefixes live.
    fn follows(&mut self, group: Group) -> bool {
        if group.is_partial {
            return false;
        }
        match (self.group, group.index) {
            (None, Some(index)) => {
                self.group = Some(index);
                true
            }
            (Some(own), Some(index)) => own == index,
            (_, None) => true,
        }
    }

    /// The namespace, the name before the first block and its depth.
    fn place(&mut self, stored: &Stored, salts: &Salts) -> Option<(u128, u128, u32)> {
        if stored.salt == Salt::Foreign {
            self.passed.foreign += 1;
            return None;
        }
        if let Some(parent) = &stored.parent {
            let Some(held) = self.blocks.get(parent) else {
                self.passed.orphans += 1;
                return None;
            };
            return Some((held.namespace, held.name, held.depth + 1));
        }
        let namespace = match &stored.salt {
            Salt::Text(salt) => salts.namespace_of(salt),
            Salt::Untold => self.owner(stored, salts),
            Salt::None | Salt::Foreign => None,
        };
        if namespace.is_none() {
            self.passed.foreign += 1;
        }
        namespace.map(|namespace| (namespace, namespace, 0))
    }

    /// Whose a first block is that comes without a salt. One that is held already is its holder's; a second one of the
    /// same tokens is somebody else's, since the salt is in the server's hash.
    fn owner(&self, stored: &Stored, salts: &Salts) -> Option<u128> {
        if let Some(held) = self.blocks.get(&stored.blocks[0]) {
            return Some(held.namespace);
        }
        let first = &stored.tokens[..self.block_tokens as usize];
        let name_in = |namespace| {
            let mut names = Vec::with_capacity(1);
            self.key.chain(namespace, self.block_tokens, first, &mut names);
            names[0].0
        };
        salts.only_asker(first, |namespace| self.names.contains(&name_in(namespace)))
    }

    fn store(&mut self, stored: &Stored, salts: &Salts, tell: &mut impl FnMut(Change)) {
        let tokens_due = stored.blocks.len().checked_mul(self.block_tokens as usize);
        if stored.blocks.is_empty()
            || stored.block_tokens != self.block_tokens
            || tokens_due != Some(stored.tokens.len())
        {
            self.passed.misshapen += 1;
            return;
        }
        let Some((namespace, mut parent, mut depth)) = self.place(stored, salts) else { return };
        let tier = tier_of(stored.medium);
        let mut names = Vec::with_capacity(stored.blocks.len());
        self.key.chain(parent, self.block_tokens, &stored.tokens, &mut names);
        let ours = stored.foreign_from.unwrap_or(stored.blocks.len());
        if ours < stored.blocks.len() {
            self.passed.foreign += 1;
        }
        let mut run = Run { namespace, tier, parent, blocks: Vec::new() };
        for (native, name) in stored.blocks.iter().zip(&names).take(ours) {
            let told = Held { name: name.0, parent, namespace, depth, copies: [0; TIERS] };
            let held = self.blocks.entry(*native).or_insert(told);
            if held.name != name.0 {
                // One name of theirs for two of ours: nothing behind it can be believed.
                self.passed.misshapen += 1;
                break;
            }
            let copies = &mut held.copies[tier as usize];
            let is_new = *copies == 0;
            *copies = if self.counts_copies { copies.saturating_add(1) } else { 1 };
            self.names.insert(name.0);
            if is_new {
                run.blocks.push(name.0);
            } else {
                run.tell(name.0, tell);
            }
            parent = name.0;
            depth = depth.saturating_add(1);
        }
        run.tell(parent, tell);
    }

    fn remove(&mut self, natives: &[Native], tier: u32, tell: &mut impl FnMut(Change)) {
        let mut gone = Vec::new();
        for native in natives {
            let Some(held) = self.blocks.get_mut(native) else {
                self.passed.strangers += 1;
                continue;
            };
            let copies = &mut held.copies[tier as usize];
            if *copies == 0 {
                self.passed.strangers += 1;
                continue;
            }
            *copies -= 1;
            if *copies > 0 {
                continue;
            }
            gone.push(held.name);
            if held.copies == [0; TIERS] {
                self.names.remove(&held.name);
                self.blocks.remove(native);
            }
        }
        if !gone.is_empty() {
            let cause = Cause::Capacity;
            tell(Change::Event(KvEvent::Removed { blocks: gone, tier, cause }));
        }
    }

    fn drop_all(&mut self, natives: &[Native], tell: &mut impl FnMut(Change)) {
        let mut gone: [Vec<u128>; TIERS] = Default::default();
        for native in natives {
            let Some(held) = self.blocks.remove(native) else {
                self.passed.strangers += 1;
                continue;
            };
            self.names.remove(&held.name);
            for (gone, copies) in gone.iter_mut().zip(held.copies) {
                if copies > 0 {
                    gone.push(held.name);
                }
            }
        }
        for (tier, blocks) in gone.into_iter().enumerate().filter(|(_, gone)| !gone.is_empty()) {
            let cause = Cause::Capacity;
            tell(Change::Event(KvEvent::Removed { blocks, tier: tier as u32, cause }));
        }
    }

    /// A block that lies elsewhere now: there first, so that it is never said to be nowhere.
    fn shift(&mut self, native: Native, from: u32, to: u32, tell: &mut impl FnMut(Change)) {
        let Some(held) = self.blocks.get_mut(&native) else {
            self.passed.strangers += 1;
            return;
        };
        if from == to || held.copies[from as usize] == 0 {
            self.passed.strangers += u64::from(from != to);
            return;
        }
        let is_new = held.copies[to as usize] == 0;
        held.copies[to as usize] += 1;
        held.copies[from as usize] -= 1;
        let Held { name, parent, namespace, copies, .. } = *held;
        if is_new {
            let blocks = vec![name];
            let event = KvEvent::Stored { namespace, parent, blocks, tier: to, snapshot: false };
            tell(Change::Event(event));
        }
        if copies[from as usize] == 0 {
            let (blocks, cause) = (vec![name], Cause::Capacity);
            tell(Change::Event(KvEvent::Removed { blocks, tier: from, cause }));
        }
    }

    /// Tells everything that is held, ancestors first, and answers with how many blocks that are.
    pub fn snapshot(&self, mut tell: impl FnMut(KvEvent)) -> u32 {
        let mut held: Vec<&Held> = self.blocks.values().collect();
        held.sort_unstable_by_key(|held| held.depth);
        for held in &held {
            for tier in 0..TIERS as u32 {
                if held.copies[tier as usize] > 0 {
                    tell(KvEvent::Stored {
                        namespace: held.namespace,
                        parent: held.parent,
                        blocks: vec![held.name],
                        tier,
                        snapshot: true,
                    });
                }
            }
        }
        u32::try_from(held.len()).unwrap_or(u32::MAX)
    }
}

/// Blocks in a row that are new to a tier.
struct Run {
    namespace: u128,
    tier: u32,
    parent: u128,
    blocks: Vec<u128>,
}

impl Run {
    /// Tells the row, if it is one; the next begins behind `next`.
    fn tell(&mut self, next: u128, tell: &mut impl FnMut(Change)) {
        let blocks = std::mem::take(&mut self.blocks);
        let parent = std::mem::replace(&mut self.parent, next);
        if !blocks.is_empty() {
            let (namespace, tier) = (self.namespace, self.tier);
            let event = KvEvent::Stored { namespace, parent, blocks, tier, snapshot: false };
            tell(Change::Event(event));
        }
    }
}

#[cfg(test)]
mod tests;
