//! The table of a tier's slots: which block is in which, and which goes next.
//!
//! Leaves go first, since a block without its parent serves nobody: prefixes are used from their start. Among leaves
//! the lowest priority goes first, then what was not used for longest. Pinned blocks and those that somebody
//! reads do not go. It holds no bytes and does no I/O, so that host memory and disk stand on the same rules and
//! the same tests.
//!
//! A chain that runs in a circle has no leaf. Nobody should store one, but whoever does must not fill a tier
//! for good: where no leaf is left, the rest is asked in the same order.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;
use mainstay_types::SequenceHash;

use crate::moves::{Move, MoveLog, Moves};
use crate::{BlockKey, Retention};

/// Above all priorities: such a block does not go.
const LEVEL_PINNED: u8 = u8::MAX;

#[derive(Debug, Clone)]
struct Entry {
    key: BlockKey,
    parent: SequenceHash,
    retention: Retention,
    level: u8,
    stamp: u64,
    change_ms: Option<u64>,
    readers: u32,
    ready: bool,
    /// How often it was used since it came.
    uses: u32,
    /// When it came.
    since_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shelf {
    entries: Vec<Option<Entry>>,
    slots: HashMap<BlockKey, u32, FixedState>,
    /// How many blocks here name a key as their parent, whether that one is here or not.
    children: HashMap<BlockKey, u32, FixedState>,
    leaves: BTreeSet<(u8, u64, u32)>,
    inner: BTreeSet<(u8, u64, u32)>,
    changes: BTreeSet<(u64, u32)>,
    stamp: u64,
    log: MoveLog,
}

impl Shelf {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            entries: vec![None; slots as usize],
            slots: HashMap::default(),
            children: HashMap::default(),
            leaves: BTreeSet::new(),
            inner: BTreeSet::new(),
            changes: BTreeSet::new(),
            stamp: 0,
            log: MoveLog::default(),
        }
    }

    /// Keeps so many moves for whoever reads them from now on.
    pub(crate) fn keep_moves(&mut self, room: usize) {
        self.log.keep(room);
    }

    /// What moved since the last reading.
    pub(crate) fn take_moves(&mut self) -> Moves {
        self.log.take()
    }

    /// How many blocks are here, those being written included.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a block that can be read.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<u32> {
        let slot = *self.slots.get(key)?;
        self.entry(slot)?.ready.then_some(slot)
    }

    /// The slot of a block that is here or being written.
    pub(crate) fn slot_of(&self, key: &BlockKey) -> Option<u32> {
        self.slots.get(key).copied()
    }

    /// The block of a slot, also while it is written.
    pub(crate) fn key_of(&self, slot: u32) -> Option<&BlockKey> {
        self.entry(slot).map(|entry| &entry.key)
    }

    pub(crate) fn retention_of(&self, slot: u32) -> Option<Retention> {
        self.entry(slot).map(|entry| entry.retention)
    }

    /// Gives an empty slot to a block that is about to be written; `false` if the slot is taken or the block here.
    pub(crate) fn begin(
        &mut self,
        slot: u32,
        key: BlockKey,
        parent: SequenceHash,
        retention: Retention,
        now_ms: u64,
    ) -> bool {
        let free = self.entries.get(slot as usize).is_some_and(Option::is_none);
        if !free || self.slots.contains_key(&key) {
            return false;
        }
        self.stamp += 1;
        self.slots.insert(key, slot);
        let entry = Entry {
            key,
            parent,
            retention,
            level: level(&retention, now_ms),
            stamp: self.stamp,
            change_ms: None,
            readers: 0,
            ready: false,
            uses: 0,
            since_ms: now_ms,
        };
        self.entries[slot as usize] = Some(entry);
        let parent_key = key.sibling(parent);
        let had_child = self.children.contains_key(&parent_key);
        *self.children.entry(parent_key).or_insert(0) += 1;
        if !had_child {
            self.relist_key(&parent_key, true);
        }
        true
    }

    /// The block is written: it can be read, and can go.
    pub(crate) fn publish(&mut self, slot: u32, now_ms: u64) {
        self.change(slot, |entry| {
            entry.ready = true;
            entry.since_ms = now_ms;
            entry.level = level(&entry.retention, now_ms);
        });
        self.watch(slot, now_ms);
        if let Some(Some(Entry { key, parent, .. })) = self.entries.get(slot as usize) {
            self.log.note(Move::Came { key: *key, parent: *parent });
        }
    }

    /// Takes a block out; its slot is empty then.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<BlockKey> {
        self.unlist(slot);
        let entry = self.entries.get_mut(slot as usize)?.take()?;
        if let Some(at_ms) = entry.change_ms {
            self.changes.remove(&(at_ms, slot));
        }
        self.slots.remove(&entry.key);
        if entry.ready {
            self.log.note(Move::Went { key: entry.key, since_ms: entry.since_ms });
        }
        let parent_key = entry.key.sibling(entry.parent);
        if let Some(count) = self.children.get_mut(&parent_key) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&parent_key);
                self.relist_key(&parent_key, false);
            }
        }
        Some(entry.key)
    }

    /// Somebody used the block.
    pub(crate) fn touch(&mut self, slot: u32) {
        self.stamp += 1;
        let stamp = self.stamp;
        self.change(slot, |entry| {
            entry.stamp = stamp;
            entry.uses = entry.uses.saturating_add(1);
        });
    }

    /// Somebody reads its bytes: it does not go until as many said that they are done.
    pub(crate) fn hold(&mut self, slot: u32) {
        self.change(slot, |entry| entry.readers += 1);
    }

    /// One that read is done.
    pub(crate) fn unhold(&mut self, slot: u32) {
        self.change(slot, |entry| entry.readers = entry.readers.saturating_sub(1));
    }

    /// The slots of all blocks that can be read, the longest unused first, with what is known of them.
    pub(crate) fn ready(&self) -> Vec<(u32, BlockKey, SequenceHash, Retention)> {
        let mut ready: Vec<(u64, u32)> = (0..)
            .zip(&self.entries)
            .filter_map(|(slot, entry)| Some((entry.as_ref().filter(|e| e.ready)?.stamp, slot)))
            .collect();
        ready.sort_unstable();
        let told = ready.into_iter().filter_map(|(_, slot)| {
            let entry = self.entry(slot)?;
            Some((slot, entry.key, entry.parent, entry.retention))
        });
        told.collect()
    }

    /// How often the block of a slot was used since it came.
    pub(crate) fn uses_of(&self, slot: u32) -> u32 {
        self.entry(slot).map_or(0, |entry| entry.uses)
    }

    /// Since when the block of a slot is here.
    pub(crate) fn since_of(&self, slot: u32) -> Option<u64> {
        self.entry(slot).map(|entry| entry.since_ms)
    }

    /// The block before that of a slot.
    pub(crate) fn parent_of(&self, slot: u32) -> Option<SequenceHash> {
        self.entry(slot).map(|entry| entry.parent)
    }

    /// Says anew how much the block is wanted.
    pub(crate) fn retain(&mut self, slot: u32, retention: Retention, now_ms: u64) {
        self.change(slot, |entry| {
            entry.retention = retention;
            entry.level = level(&retention, now_ms);
        });
        self.watch(slot, now_ms);
    }

    /// Lets priorities and pins end whose time is over.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some(&(at_ms, slot)) = self.changes.first()
            && at_ms <= now_ms
        {
            self.changes.pop_first();
            self.change(slot, |entry| {
                entry.change_ms = None;
                entry.level = level(&entry.retention, now_ms);
            });
            self.watch(slot, now_ms);
        }
    }

    /// The next block to go, if it is wanted no more than `priority`. What comes before the block that the room is for
    /// does not go: `parent` is the nearest of those.
    pub(crate) fn victim(&self, priority: u8, parent: Option<&BlockKey>) -> Option<u32> {
        let parent = parent.and_then(|key| self.slot_of(key));
        let wanted = |place: &&(u8, u64, u32)| place.0 <= priority;
        if !self.leaves.is_empty() {
            // All ancestors but the nearest have a child here.
            let other = self.leaves.iter().find(|(.., slot)| Some(*slot) != parent);
            return other.filter(wanted).map(|&(.., slot)| slot);
        }
        let ancestors = self.chain_up(parent);
        let other = self.inner.iter().find(|(.., slot)| !ancestors.contains(slot));
        other.filter(wanted).map(|&(.., slot)| slot)
    }

    /// The slots of a block and of all before it, as far as they are here.
    fn chain_up(&self, from: Option<u32>) -> BTreeSet<u32> {
        let mut chain = BTreeSet::new();
        let mut next = from;
        // One that is met again closes a circle.
        while let Some(slot) = next.filter(|slot| chain.insert(*slot)) {
            let before = self.entry(slot).map(|entry| entry.key.sibling(entry.parent));
            next = before.and_then(|key| self.slot_of(&key));
        }
        chain
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn change(&mut self, slot: u32, how: impl FnOnce(&mut Entry)) {
        self.unlist(slot);
        if let Some(Some(entry)) = self.entries.get_mut(slot as usize) {
            how(entry);
        }
        self.list(slot);
    }

    fn watch(&mut self, slot: u32, now_ms: u64) {
        let Some(Some(entry)) = self.entries.get_mut(slot as usize) else { return };
        if let Some(at_ms) = entry.change_ms.take() {
            self.changes.remove(&(at_ms, slot));
        }
        entry.change_ms = entry.retention.next_change_ms(now_ms);
        if let Some(at_ms) = entry.change_ms {
            self.changes.insert((at_ms, slot));
        }
    }

    fn list(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot) else { return };
        if !entry.ready || entry.readers > 0 || entry.level == LEVEL_PINNED {
            return;
        }
        let place = (entry.level, entry.stamp, slot);
        if self.children.contains_key(&entry.key) {
            self.inner.insert(place);
        } else {
            self.leaves.insert(place);
        }
    }

    fn unlist(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot) else { return };
        let place = (entry.level, entry.stamp, slot);
        if !self.leaves.remove(&place) {
            self.inner.remove(&place);
        }
    }

    /// A block got its first child, or lost its last one.
    fn relist_key(&mut self, key: &BlockKey, has_child: bool) {
        let Some(&slot) = self.slots.get(key) else { return };
        let Some(entry) = self.entry(slot) else { return };
        let place = (entry.level, entry.stamp, slot);
        let listed = if has_child { self.leaves.remove(&place) } else { self.inner.remove(&place) };
        if listed {
            self.list(slot);
        }
    }
}

fn level(retention: &Retention, now_ms: u64) -> u8 {
    if retention.pinned_at(now_ms) { LEVEL_PINNED } else { retention.priority_at(now_ms) }
}

#[cfg(test)]
mod tests;
