//! Room and promises: how slots become free, how blocks become durable, what happens when the disk does not play along.

use std::io;

use parking_lot::MutexGuard;

use super::journal::{Journal, Recovered};
use super::{DiskTier, GROW_BYTES, GROW_LEAST_BYTES, Health, Mark, Table};
use crate::figures::{add, count};
use crate::record::{Header, Kind};
use crate::shelf::Shelf;
use crate::{BlockKey, Put, Record, Refusal, Retention};

/// Victims of one wait for the disk.
const EVICT_MAX: u32 = 64;

impl Table {
    /// The table as the journal tells it. Claims beyond the file or the budget are not there.
    pub(super) fn recover(
        recovered: Recovered,
        slots_there: u64,
        slots_max: u32,
        now_ms: u64,
    ) -> Self {
        let grown = u32::try_from(slots_there).unwrap_or(u32::MAX).min(slots_max);
        let mut table = Self {
            shelf: Shelf::new(slots_max),
            marks: vec![Mark::default(); slots_max as usize],
            free: Vec::new(),
            leaving: Vec::new(),
            written: Vec::new(),
            quarantined: recovered.quarantined.iter().copied().filter(|s| *s < grown).collect(),
            quarantined_told: 0,
            grown,
            grow_at_ms: 0,
            retry_at_ms: 0,
            health: Health::Good,
            generation: recovered.generation,
            forgotten: recovered.forgotten,
        };
        let mut claims: Vec<(u64, Header)> = recovered.claims.into_values().collect();
        claims.sort_unstable_by_key(|(line, _)| *line);
        for (_, claim) in claims {
            let slot = claim.slot;
            let there = slot < grown && !recovered.quarantined.contains(&slot);
            // Of two slots with one block, either would do.
            if there && table.shelf.begin(slot, claim.key, claim.parent, claim.retention, now_ms) {
                table.shelf.publish(slot, now_ms);
                table.marks[slot as usize] = Mark {
                    generation: claim.generation,
                    sum: claim.sum,
                    committed: true,
                    dirty: false,
                };
            }
        }
        for slot in (0..grown).rev() {
            if table.shelf.key_of(slot).is_none() && !recovered.quarantined.contains(&slot) {
                // Claimed until the journal is written anew.
                table.leaving.push(slot);
            }
        }
        table
    }

    /// Takes the block of a slot out. Where the slot goes is the caller's to say.
    pub(super) fn drop_block(&mut self, slot: u32) {
        self.shelf.remove(slot);
        self.marks[slot as usize].dirty = false;
    }

    pub(super) fn set_retention(&mut self, slot: u32, retention: Retention, now_ms: u64) {
        if self.shelf.retention_of(slot) == Some(retention) {
            return;
        }
        self.shelf.retain(slot, retention, now_ms);
        let mark = &mut self.marks[slot as usize];
        if !mark.dirty {
            mark.dirty = true;
            let generation = mark.generation;
            self.written.push((slot, generation));
        }
    }

    /// Whether a block that somebody brings is here or just being written; its retention is merged then.
    fn meet(&mut self, record: &Record<'_>, now_ms: u64) -> bool {
        let Some(slot) = self.shelf.slot_of(&record.key) else { return false };
        let both = self.shelf.retention_of(slot).unwrap_or_default().merge(&record.retention);
        if self.shelf.find(&record.key).is_some() {
            self.shelf.touch(slot);
            self.set_retention(slot, both, now_ms);
        } else {
            // No line may claim it yet; the one that will is written with what is known by then.
            self.shelf.retain(slot, both, now_ms);
        }
        true
    }

    fn line(&self, slot: u32) -> Option<Header> {
        let mut line = Header::of_slot(Kind::Stored, slot);
        line.key = *self.shelf.key_of(slot)?;
        line.parent = self.shelf.parent_of(slot)?;
        line.retention = self.shelf.retention_of(slot)?;
        line.generation = self.marks[slot as usize].generation;
        line.sum = self.marks[slot as usize].sum;
        Some(line)
    }

    fn grow_to(&mut self, slots: u32) {
        self.free.extend((self.grown..slots).rev());
        self.grown = slots;
        if self.health == Health::Small {
            self.health = Health::Good;
        }
    }

    fn takes_nothing(&self) -> bool {
        matches!(self.health, Health::ReadOnly | Health::Failing)
    }
}

/// Whether it is the disk as a whole that takes nothing, which says nothing about a slot.
fn takes_no_writes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// What one batch of lines says.
struct Batch {
    lines: Vec<Header>,
    leaving: usize,
    quarantined: usize,
}

impl DiskTier {
    /// A slot for a new block, marked as being written, and the number of the write.
    pub(super) fn reserve(&self, record: &Record<'_>, now_ms: u64) -> Result<(u32, u64), Put> {
        let mut table = self.table.lock();
        table.shelf.expire(now_ms);
        if table.meet(record, now_ms) {
            return Err(Put::Present);
        }
        if table.takes_nothing() || table.free.is_empty() {
            drop(table);
            self.make_room(record, now_ms)?;
            table = self.table.lock();
        }
        // Others may have been quicker in between, with this block or with the room.
        if table.meet(record, now_ms) {
            return Err(Put::Present);
        }
        let Some(slot) = table.free.pop() else { return Err(Put::Refused(Refusal::Full)) };
        table.generation += 1;
        let generation = table.generation;
        table.marks[slot as usize] = Mark { generation, ..Mark::default() };
        let began = table.shelf.begin(slot, record.key, record.parent, record.retention, now_ms);
        debug_assert!(began, "the slot is free and the block is not here");
        Ok((slot, generation))
    }

    fn make_room(&self, record: &Record<'_>, now_ms: u64) -> Result<(), Put> {
        let mut journal = self.journal.lock();
        let table = self.table.lock();
        if table.takes_nothing() {
            let again = table.health == Health::ReadOnly && now_ms >= table.retry_at_ms;
            drop(table);
            if !again || !self.rewrite(&mut journal, now_ms) {
                return Err(Put::Refused(Refusal::ReadOnly));
            }
        } else {
            drop(table);
        }
        let freed_meanwhile = !self.table.lock().free.is_empty();
        if freed_meanwhile || self.grow(now_ms) {
            return Ok(());
        }
        let worth = record.retention.worth_at(now_ms);
        self.evict(worth, &record.key.sibling(record.parent));
        if !self.table.lock().leaving.is_empty() {
            self.commit(&mut journal, now_ms);
        }
        let table = self.table.lock();
        match table.free.is_empty() {
            false => Ok(()),
            true if table.takes_nothing() => Err(Put::Refused(Refusal::ReadOnly)),
            true => Err(Put::Refused(Refusal::Full)),
        }
    }

    /// Takes more of the budget; `false` if there is none, or the disk has none.
    fn grow(&self, now_ms: u64) -> bool {
        let table = self.table.lock();
        let (grown, waits) = (table.grown, now_ms < table.grow_at_ms);
        drop(table);
        if grown >= self.slots_max || waits {
            return false;
        }
        let slots_of = |bytes: u64| {
            let step = u32::try_from((bytes / self.slot_bytes as u64).max(1)).unwrap_or(u32::MAX);
            grown.saturating_add(step).min(self.slots_max)
        };
        let mut bytes = GROW_BYTES;
        let mut taken = self.data.allocate(self.offset(slots_of(bytes)));
        while taken.is_err() && bytes > GROW_LEAST_BYTES {
            bytes /= 2;
            taken = self.data.allocate(self.offset(slots_of(bytes)));
        }
        let slots = slots_of(bytes);
        let mut table = self.table.lock();
        match taken {
            Ok(()) => table.grow_to(slots),
            Err(error) => {
                count(&self.figures.faults);
                table.grow_at_ms = now_ms.saturating_add(self.settings.retry_ms);
                if table.health == Health::Good {
                    table.health = Health::Small;
                    tracing::warn!(%error, slots = grown, "the disk tier cannot grow; it works with what it has");
                }
            }
        }
        !table.free.is_empty()
    }

    fn evict(&self, worth: u8, parent: &BlockKey) {
        let mut table = self.table.lock();
        let most = EVICT_MAX.min(table.grown / 16).max(1);
        let mut evicted = 0;
        while evicted < most
            && let Some(slot) = table.shelf.victim(worth, Some(parent))
        {
            let committed = table.marks[slot as usize].committed;
            table.drop_block(slot);
            // The journal's lock is held, so nobody is just about to claim it.
            if committed {
                table.leaving.push(slot);
            } else {
                table.free.push(slot);
            }
            evicted += 1;
        }
        add(&self.figures.evicted, u64::from(evicted));
    }

    /// Makes durable what was written, and free what left. `false` if the disk refuses.
    pub(super) fn commit(&self, journal: &mut MutexGuard<'_, Journal>, now_ms: u64) -> bool {
        let mut table = self.table.lock();
        if table.health == Health::ReadOnly {
            return false;
        }
        let batch = table.batch();
        drop(table);
        if batch.lines.is_empty() {
            return true;
        }
        if !journal.has_room(batch.lines.len()) {
            return self.rewrite(journal, now_ms);
        }
        let done = self.data.sync().and_then(|()| journal.append(&batch.lines));
        self.settle(&batch, done, now_ms)
    }

    /// Writes the journal anew with all that holds; also the way back from a disk that failed.
    pub(super) fn rewrite(&self, journal: &mut MutexGuard<'_, Journal>, now_ms: u64) -> bool {
        let table = self.table.lock();
        let blocks = table.shelf.ready().into_iter().filter_map(|(slot, ..)| table.line(slot));
        let bad = table.quarantined.iter().map(|s| Header::of_slot(Kind::Quarantined, *s));
        let batch = Batch {
            lines: blocks.chain(bad).collect(),
            leaving: table.leaving.len(),
            quarantined: table.quarantined.len(),
        };
        drop(table);
        let done = self.data.sync().and_then(|()| journal.rewrite(&batch.lines));
        self.settle(&batch, done, now_ms)
    }

    fn settle(&self, batch: &Batch, done: io::Result<()>, now_ms: u64) -> bool {
        let mut table = self.table.lock();
        if let Err(error) = done {
            self.read_only(&mut table, &error, now_ms);
            return false;
        }
        for line in batch.lines.iter().filter(|line| line.kind == Kind::Stored) {
            let same = table.shelf.key_of(line.slot) == Some(&line.key);
            let mark = &mut table.marks[line.slot as usize];
            if same && mark.generation == line.generation {
                mark.committed = true;
            }
        }
        let freed: Vec<u32> = table.leaving.drain(..batch.leaving).collect();
        table.free.extend(freed.into_iter().rev());
        table.quarantined_told = table.quarantined_told.max(batch.quarantined);
        if table.health == Health::ReadOnly {
            table.health = Health::Good;
            tracing::info!("the disk tier takes blocks again");
        }
        true
    }

    /// The disk did not take a promise: what was not promised yet is dropped, since nobody knows what is there.
    fn read_only(&self, table: &mut Table, error: &io::Error, now_ms: u64) {
        count(&self.figures.faults);
        if table.health != Health::Failing {
            tracing::warn!(%error, "the disk tier cannot write; it serves what it has");
            table.health = Health::ReadOnly;
        }
        table.retry_at_ms = now_ms.saturating_add(self.settings.retry_ms);
        table.written.clear();
        for (slot, ..) in table.shelf.ready() {
            // A whole new journal says what these lines would have. A mark that stayed would keep all that
            // is said about the block later from being written down.
            table.marks[slot as usize].dirty = false;
            if !table.marks[slot as usize].committed {
                table.drop_block(slot);
                table.leaving.push(slot);
            }
        }
    }

    /// A write did not come to be: the slot holds nothing, and with a fault it is not used again.
    pub(super) fn take_back(&self, slot: u32, error: Option<&io::Error>, now_ms: u64) {
        let mut table = self.table.lock();
        match error {
            None => {
                table.drop_block(slot);
                table.free.push(slot);
            }
            Some(error) if takes_no_writes(error) => {
                table.drop_block(slot);
                table.free.push(slot);
                self.read_only(&mut table, error, now_ms);
            }
            Some(_) => {
                count(&self.figures.faults);
                self.quarantine(&mut table, slot);
            }
        }
    }

    /// Takes a slot out of use, and the block in it out of the tier. The next commit says so.
    pub(super) fn quarantine(&self, table: &mut Table, slot: u32) {
        table.drop_block(slot);
        table.quarantined.push(slot);
        count(&self.figures.quarantined);
        tracing::warn!(slot, "a slot of the disk tier is bad and is not used any more");
        if table.quarantined.len() > self.settings.quarantined_max as usize {
            tracing::error!("too many slots of the disk tier are bad; it takes nothing any more");
            table.health = Health::Failing;
        }
    }
}

impl Table {
    /// All that the journal is to be told, taken so that it is told once.
    fn batch(&mut self) -> Batch {
        let mut lines = Vec::new();
        for (slot, generation) in std::mem::take(&mut self.written) {
            let mark = &mut self.marks[slot as usize];
            if mark.generation == generation && std::mem::take(&mut mark.dirty) {
                lines.extend(self.line(slot));
            }
        }
        let told = self.quarantined_told;
        lines.extend(
            self.quarantined[told..].iter().map(|s| Header::of_slot(Kind::Quarantined, *s)),
        );
        lines.extend(self.leaving.iter().map(|s| Header::of_slot(Kind::Freed, *s)));
        Batch { lines, leaving: self.leaving.len(), quarantined: self.quarantined.len() }
    }
}
