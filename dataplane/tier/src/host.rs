//! Host memory: one arena, taken when the tier is opened, in slots of one block each.
//!
//! A copy in or out is a `memcpy` under the lock of its slot alone; the table is locked only to find the slot. A
//! slot that was given to another block between the two is seen by its key and is a miss. Checksums are taken with
//! the copy in, or checked if the block came with one, and handed on with the block; whether they are
//! checked again on the way out is a setting, since it is the memory's own error correction that guards it here.

use bytes::BytesMut;
use mainstay_types::SequenceHash;
use parking_lot::{Mutex, RwLock};

use crate::figures::{add, count};
use crate::moves::Moves;
use crate::shelf::Shelf;
use crate::{
    BlockKey, Figures, Get, Held, Layout, Put, Record, Refusal, Retention, SLOTS_MAX, TierError,
    copy_summed,
};

/// Where slots begin: what a disk reads into directly, and what a GPU can be given page by page.
const ALIGN_BYTES: usize = 4096;

/// The settings of a [`HostTier`].
#[derive(Debug, Clone, Copy)]
pub struct HostSettings {
    /// The most bytes of blocks.
    pub budget_bytes: u64,
    /// Whether checksums are checked when blocks are read too.
    pub check_reads: bool,
}

/// A block whose place another one takes.
#[derive(Debug, Clone, Copy)]
pub struct Leaving {
    /// Which.
    pub key: BlockKey,
    /// What is known of it.
    pub held: Held,
    /// How often it was used since it came here.
    pub uses: u32,
}

struct Slot {
    bytes: BytesMut,
    held: Option<(BlockKey, Held)>,
}

struct Table {
    shelf: Shelf,
    free: Vec<u32>,
}

impl Table {
    /// What is known here of the block of a slot; its sum lies with its bytes.
    fn leaving(&self, slot: u32) -> Option<Leaving> {
        let key = *self.shelf.key_of(slot)?;
        let held = Held {
            parent: self.shelf.parent_of(slot)?,
            retention: self.shelf.retention_of(slot)?,
            sum: 0,
        };
        Some(Leaving { key, held, uses: self.shelf.uses_of(slot) })
    }
}

/// See the module.
pub struct HostTier {
    layout: Layout,
    check_reads: bool,
    slots: Vec<RwLock<Slot>>,
    table: Mutex<Table>,
    figures: Figures,
}

impl HostTier {
    /// Takes the memory, all of it.
    pub fn new(layout: Layout, settings: HostSettings) -> Result<Self, TierError> {
        layout.check()?;
        let block_bytes = layout.block_bytes as usize;
        let stride_bytes = block_bytes.next_multiple_of(ALIGN_BYTES);
        let count = settings.budget_bytes / stride_bytes as u64;
        let Some(count) = u32::try_from(count).ok().filter(|c| (1..=SLOTS_MAX).contains(c)) else {
            return Err(TierError::Setting(format!(
                "a host tier of {} bytes has {count} blocks of {stride_bytes} bytes; 1 to {SLOTS_MAX} can be kept",
                settings.budget_bytes
            )));
        };
        let mut arena = BytesMut::zeroed(count as usize * stride_bytes + ALIGN_BYTES);
        let lead = arena.as_ptr().addr().wrapping_neg() % ALIGN_BYTES;
        let _ = arena.split_to(lead);
        // Zeroed memory is not there before it is written to; the first write is not to be a block's.
        arena.iter_mut().step_by(ALIGN_BYTES).for_each(|byte| *byte = 1);
        let slots = (0..count)
            .map(|_| {
                let mut bytes = arena.split_to(stride_bytes);
                bytes.truncate(block_bytes);
                RwLock::new(Slot { bytes, held: None })
            })
            .collect();
        let table = Table { shelf: Shelf::new(count), free: (0..count).rev().collect() };
        let check_reads = settings.check_reads;
        Ok(Self {
            layout,
            check_reads,
            slots,
            table: Mutex::new(table),
            figures: Figures::default(),
        })
    }

    /// The layout of its blocks.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What it has counted.
    #[must_use]
    pub const fn figures(&self) -> &Figures {
        &self.figures
    }

    /// How many blocks it has room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many blocks are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().shelf.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has the block.
    #[must_use]
    pub fn has(&self, key: &BlockKey) -> bool {
        self.table.lock().shelf.find(key).is_some()
    }

    /// Since when it has the block.
    #[must_use]
    pub fn since_ms(&self, key: &BlockKey) -> Option<u64> {
        let table = self.table.lock();
        table.shelf.since_of(table.shelf.find(key)?)
    }

    /// All that it has, the longest unused first, with the block before each.
    #[must_use]
    pub fn keys(&self) -> Vec<(BlockKey, SequenceHash)> {
        let ready = self.table.lock().shelf.ready();
        ready.into_iter().map(|(_, key, parent, _)| (key, parent)).collect()
    }

    /// Keeps up to so many moves from now on, for [`Self::take_moves`].
    pub fn keep_moves(&self, room: usize) {
        self.table.lock().shelf.keep_moves(room);
    }

    /// What came and went since the last call.
    #[must_use]
    pub fn take_moves(&self) -> Moves {
        self.table.lock().shelf.take_moves()
    }

    /// Counts a use of the leading blocks that are here: somebody found them in a nearer tier.
    pub fn touch(&self, keys: &[BlockKey]) {
        let mut table = self.table.lock();
        for key in keys {
            let Some(slot) = table.shelf.find(key) else { return };
            table.shelf.touch(slot);
        }
    }

    /// Keeps a block, at the expense of one that is wanted no more than this.
    pub fn put(&self, record: &Record<'_>, now_ms: u64) -> Result<Put, TierError> {
        self.put_with(record, now_ms, |_, _| {})
    }

    /// The same, and shows the block that goes, with its bytes, to whoever may want to keep it elsewhere.
    pub fn put_with(
        &self,
        record: &Record<'_>,
        now_ms: u64,
        leaving: impl FnOnce(&Leaving, &[u8]),
    ) -> Result<Put, TierError> {
        self.layout.check_block(&record.key, record.payload.len())?;
        let (slot, gone) = match self.reserve(record, now_ms) {
            Ok(taken) => taken,
            Err(answer) => return Ok(answer),
        };
        let mut place = self.slots[slot as usize].write();
        if let Some(gone) = gone
            && let Some((_, held)) = place.held.filter(|(key, _)| *key == gone.key)
        {
            let held = Held { retention: gone.held.retention, ..held };
            leaving(&Leaving { held, ..gone }, &place.bytes);
        }
        let sum = copy_summed(record.payload, &mut place.bytes);
        let whole = record.sum.is_none_or(|given| given == sum);
        let held = Held { parent: record.parent, retention: record.retention, sum };
        place.held = whole.then_some((record.key, held));
        drop(place);
        let mut table = self.table.lock();
        if whole {
            table.shelf.publish(slot, now_ms);
            count(&self.figures.stored);
            add(&self.figures.written_bytes, record.payload.len() as u64);
            return Ok(Put::Stored);
        }
        table.shelf.remove(slot);
        table.free.push(slot);
        count(&self.figures.bad_sums);
        Ok(Put::Refused(Refusal::Broken))
    }

    /// Copies a block into `into`, which must have the layout's length.
    pub fn get(&self, key: &BlockKey, into: &mut [u8]) -> Result<Get, TierError> {
        self.layout.check_block(key, into.len())?;
        let found = {
            let mut table = self.table.lock();
            let found = table.shelf.find(key);
            if let Some(slot) = found {
                table.shelf.touch(slot);
            }
            found.map(|slot| (slot, table.shelf.retention_of(slot).unwrap_or_default()))
        };
        let Some((slot, retention)) = found else {
            count(&self.figures.misses);
            return Ok(Get::Miss);
        };
        let place = self.slots[slot as usize].read();
        let Some((_, held)) = place.held.filter(|(own, _)| own == key) else {
            count(&self.figures.misses);
            return Ok(Get::Miss);
        };
        if self.check_reads {
            if copy_summed(&place.bytes, into) != held.sum {
                drop(place);
                into.fill(0);
                self.quarantine(key, slot);
                return Ok(Get::Bad);
            }
        } else {
            into.copy_from_slice(&place.bytes);
        }
        count(&self.figures.hits);
        add(&self.figures.read_bytes, into.len() as u64);
        Ok(Get::Hit(Held { retention, ..held }))
    }

    /// Says anew how much a block is wanted; `false` if it is not here.
    pub fn retain(&self, key: &BlockKey, retention: Retention, now_ms: u64) -> bool {
        self.want(key, now_ms, |_| retention)
    }

    /// The same, but takes nothing back that was said before: the most of both counts.
    pub fn retain_more(&self, key: &BlockKey, retention: &Retention, now_ms: u64) -> bool {
        self.want(key, now_ms, |known| known.merge(retention))
    }

    /// Says that nobody claims a block any more; `false` if it is not here.
    pub fn unclaim(&self, key: &BlockKey, now_ms: u64) -> bool {
        self.want(key, now_ms, |known| known.unclaimed())
    }

    /// Says until when a block must not go at all; 0 is no longer. `false` if it is not here.
    pub fn pin(&self, key: &BlockKey, until_ms: u64, now_ms: u64) -> bool {
        self.want(key, now_ms, |known| Retention { pinned_until_ms: until_ms, ..known })
    }

    /// Changes what is known of how much a block is wanted.
    fn want(
        &self,
        key: &BlockKey,
        now_ms: u64,
        change: impl FnOnce(Retention) -> Retention,
    ) -> bool {
        let mut table = self.table.lock();
        let found = table.shelf.find(key);
        if let Some(slot) = found {
            let known = table.shelf.retention_of(slot).unwrap_or_default();
            table.shelf.retain(slot, change(known), now_ms);
        }
        found.is_some()
    }

    /// Forgets a block; `false` if it is not here.
    pub fn remove(&self, key: &BlockKey) -> bool {
        let mut table = self.table.lock();
        let found = table.shelf.find(key);
        if let Some(slot) = found {
            table.shelf.remove(slot);
            table.free.push(slot);
        }
        found.is_some()
    }

    /// Shows all blocks, the longest unused first, as they would be shown when they go; for an orderly end.
    pub fn for_each(&self, mut show: impl FnMut(&Leaving, &[u8])) {
        let ready = self.table.lock().shelf.ready();
        for (slot, key, _, retention) in ready {
            let uses = self.table.lock().shelf.uses_of(slot);
            let place = self.slots[slot as usize].read();
            if let Some((_, held)) = place.held.filter(|(own, _)| *own == key) {
                let held = Held { retention, ..held };
                show(&Leaving { key, held, uses }, &place.bytes);
            }
        }
    }

    fn reserve(&self, record: &Record<'_>, now_ms: u64) -> Result<(u32, Option<Leaving>), Put> {
        let mut table = self.table.lock();
        table.shelf.expire(now_ms);
        // Also while it is written: what is said of it then must not be lost.
        if let Some(slot) = table.shelf.slot_of(&record.key) {
            let both = table.shelf.retention_of(slot).unwrap_or_default().merge(&record.retention);
            table.shelf.retain(slot, both, now_ms);
            table.shelf.touch(slot);
            count(&self.figures.present);
            return Err(Put::Present);
        }
        let (slot, gone) = match table.free.pop() {
            Some(slot) => (slot, None),
            None => {
                let worth = record.retention.worth_at(now_ms);
                let parent = record.key.sibling(record.parent);
                let Some(slot) = table.shelf.victim(worth, Some(&parent)) else {
                    count(&self.figures.refused);
                    return Err(Put::Refused(Refusal::Full));
                };
                let gone = table.leaving(slot);
                table.shelf.remove(slot);
                count(&self.figures.evicted);
                (slot, gone)
            }
        };
        let began = table.shelf.begin(slot, record.key, record.parent, record.retention, now_ms);
        debug_assert!(began, "the slot is empty and the block is not here");
        Ok((slot, gone))
    }

    /// The memory under a slot is not what it was: neither the block nor the slot is used again.
    fn quarantine(&self, key: &BlockKey, slot: u32) {
        count(&self.figures.bad_sums);
        let mut table = self.table.lock();
        // Somebody may have been quicker, or the slot may have another block by now.
        if table.shelf.key_of(slot) == Some(key) {
            table.shelf.remove(slot);
            count(&self.figures.quarantined);
        }
    }

    /// Breaks a bit of a block, for tests.
    #[cfg(test)]
    fn flip(&self, key: &BlockKey, bit: usize) {
        let slot = self.table.lock().shelf.find(key).expect("the block is here");
        self.slots[slot as usize].write().bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests;
