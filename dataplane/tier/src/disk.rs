//! NVMe: slots of one block each in one file, past the page cache, and a journal of which holds what.
//!
//! **In a slot** the payload comes first, so that it lies as direct I/O and GPUs want it, and a header closes it: key,
//! slot, number of the write, length, checksum. A read believes nothing else. A block that is torn, flipped, stale or
//! in the wrong place is not served; its slot is quarantined, on the disk too.
//!
//! **After a crash** only the journal is read, which takes milliseconds and not the disk's whole length. What it
//! claims is there, because of two rules:
//! 1. A line "slot holds block" is written after the slot's bytes are on the disk for good.
//! 2. A slot is written only while no line claims it: eviction writes "slot freed", many at a time, and waits
//!    for the disk before any of them is used again.
//!
//! Lines of one batch may reach the disk in part. All that is lost then is a claim that was not promised yet, or the
//! freeing of a slot whose bytes are still whole.
//!
//! **When the disk is full or fails**: the file grows in steps, leaves a reserve to others, and does without what
//! it could not get ([`Health::Small`]). When the journal cannot be written, nothing is taken any more until a whole new one could
//! be ([`Health::ReadOnly`]); what is there is served. Too many bad slots end writing for good ([`Health::Failing`]).
//!
//! Calls block on the disk; callers bring the threads, and thereby the depth of its queue.

mod commit;
mod device;
mod journal;
mod read;
#[cfg(test)]
mod sim;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::path::PathBuf;

use aligned_vec::{AVec, ConstAlign};
use parking_lot::Mutex;

use crate::figures::{add, count};
use crate::moves::Moves;
use crate::record::{HEADER_BYTES, Header, Kind};
use crate::shelf::Shelf;
use crate::{
    BlockKey, Figures, Get, Held, Layout, Put, Record, Refusal, Retention, SLOTS_MAX, TierError,
    copy_summed,
};
use device::{ALIGN_BYTES, Device, FileDevice};
use journal::Journal;

/// Bytes by which the file grows, and the fewest by which it tries to when the disk has no more.
const GROW_BYTES: u64 = 64 << 20;
const GROW_LEAST_BYTES: u64 = 1 << 20;
/// Bytes that one read takes, if blocks are smaller and lie beside each other.
const RUN_BYTES: usize = 2 << 20;
/// Bytes after which a commit comes by itself, where no number of blocks is set.
const COMMIT_BYTES: usize = 64 << 20;
/// Blocks that may be written before those before them are committed.
const UNCOMMITTED_MAX: usize = 4096;
/// Buffers that are kept for the next call.
const BUFFERS_MAX: usize = 32;

type Buffer = AVec<u8, ConstAlign<ALIGN_BYTES>>;

/// The settings of a [`DiskTier`].
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// The folder. Each layout and each worker has its own.
    pub folder: PathBuf,
    /// The most bytes of slots; the journal takes 1 KiB a slot besides.
    pub budget_bytes: u64,
    /// Room that blocks leave to others on the same disk.
    pub reserve_bytes: u64,
    /// After how many blocks they are committed, if nobody calls [`DiskTier::flush`] before; 0 for as many as make
    /// it worth the wait.
    pub commit_blocks: u32,
    /// How long to wait before a disk that was full or failed is tried again.
    pub retry_ms: u64,
    /// Bad slots after which the disk is not written to any more.
    pub quarantined_max: u32,
}

impl DiskSettings {
    /// A folder and its budget, else what serves most.
    #[must_use]
    pub const fn new(folder: PathBuf, budget_bytes: u64) -> Self {
        Self {
            folder,
            budget_bytes,
            reserve_bytes: 1 << 30,
            commit_blocks: 0,
            retry_ms: 10_000,
            quarantined_max: 1024,
        }
    }
}

/// What a disk tier can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All.
    Good,
    /// It could not grow to its budget, and works with what it has.
    Small,
    /// It serves what it has and takes nothing; it tries again after a while.
    ReadOnly,
    /// As before, and for good: too many slots are bad.
    Failing,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    generation: u64,
    sum: u64,
    /// The journal says so, for good.
    committed: bool,
    /// The next commit is to say so.
    dirty: bool,
}

struct Table {
    shelf: Shelf,
    marks: Vec<Mark>,
    /// Slots that no line claims.
    free: Vec<u32>,
    /// Slots that a line may claim, and whose freeing is not on the disk.
    leaving: Vec<u32>,
    /// Slots and their writes that the next commit is to name; some may have gone since.
    written: Vec<(u32, u64)>,
    quarantined: Vec<u32>,
    /// How many of those, from the first on, the journal knows.
    quarantined_told: usize,
    grown: u32,
    grow_at_ms: u64,
    retry_at_ms: u64,
    health: Health,
    generation: u64,
    forgotten: u64,
}

/// See the module.
pub struct DiskTier {
    layout: Layout,
    settings: DiskSettings,
    commit_blocks: usize,
    slot_bytes: usize,
    /// Slots that one read takes at most.
    run_slots: usize,
    slots_max: u32,
    data: Box<dyn Device>,
    // Locked before the table, where both are, and while the disk is waited for; the table never is.
    journal: Mutex<Journal>,
    table: Mutex<Table>,
    buffers: Mutex<Vec<Buffer>>,
    figures: Figures,
    /// Keeps others out of the folder while this lives.
    _lock: Option<File>,
}

impl DiskTier {
    /// Opens the folder and finds what is in it. A full disk is no error: see [`DiskTier::health`].
    pub fn open(layout: Layout, settings: DiskSettings, now_ms: u64) -> Result<Self, TierError> {
        let folder = &settings.folder;
        std::fs::create_dir_all(folder).map_err(TierError::io("make the folder of the tier"))?;
        let lock = File::create(folder.join("lock"))
            .map_err(TierError::io("make the lock of the tier's folder"))?;
        lock.try_lock().map_err(|_| TierError::Locked)?;
        let open = |name: &str, direct, reserve| -> Result<Box<dyn Device>, TierError> {
            let device = FileDevice::open(&folder.join(name), direct, reserve)
                .map_err(TierError::io("open a file of the tier"))?;
            Ok(Box::new(device))
        };
        let data = open("blocks", true, settings.reserve_bytes)?;
        let journals = [open("journal-a", false, 0)?, open("journal-b", false, 0)?];
        Self::with_devices(layout, settings, data, journals, Some(lock), now_ms)
    }

    fn with_devices(
        layout: Layout,
        settings: DiskSettings,
        data: Box<dyn Device>,
        journals: [Box<dyn Device>; 2],
        lock: Option<File>,
        now_ms: u64,
    ) -> Result<Self, TierError> {
        layout.check()?;
        let slot_bytes = (layout.block_bytes as usize + HEADER_BYTES).next_multiple_of(ALIGN_BYTES);
        let count = settings.budget_bytes / slot_bytes as u64;
        let Some(slots_max) = u32::try_from(count).ok().filter(|c| (1..=SLOTS_MAX).contains(c))
        else {
            return Err(TierError::Setting(format!(
                "a disk tier of {} bytes has {count} slots of {slot_bytes} bytes; 1 to {SLOTS_MAX} can be kept",
                settings.budget_bytes
            )));
        };
        let (journal, recovered) = Journal::open(journals, layout, slot_bytes as u32, slots_max)
            .map_err(TierError::io("read the journal of the tier"))?;
        let length = data.len().map_err(TierError::io("find the size of the tier's file"))?;
        let table = Table::recover(recovered, length / slot_bytes as u64, slots_max, now_ms);
        let figures = Figures::default();
        add(&figures.recovered, table.shelf.len() as u64);
        add(&figures.forgotten, table.forgotten);
        add(&figures.quarantined, table.quarantined.len() as u64);
        let commit_blocks = match settings.commit_blocks {
            0 => (COMMIT_BYTES / slot_bytes).clamp(16, UNCOMMITTED_MAX / 4),
            given => given as usize,
        };
        let tier = Self {
            layout,
            settings,
            commit_blocks,
            slot_bytes,
            run_slots: (RUN_BYTES / slot_bytes).clamp(1, slots_max as usize),
            slots_max,
            data,
            journal: Mutex::new(journal),
            table: Mutex::new(table),
            buffers: Mutex::new(Vec::new()),
            figures,
            _lock: lock,
        };
        // A journal of its own for this life: what a crash left half-written is never appended to.
        let mut journal = tier.journal.lock();
        tier.rewrite(&mut journal, now_ms);
        drop(journal);
        Ok(tier)
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

    /// What it can do.
    #[must_use]
    pub fn health(&self) -> Health {
        self.table.lock().health
    }

    /// How many blocks its budget has room for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.slots_max
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

    /// Since when it has the block; since it was opened, for one that was there before.
    #[must_use]
    pub fn since_ms(&self, key: &BlockKey) -> Option<u64> {
        let table = self.table.lock();
        table.shelf.since_of(table.shelf.find(key)?)
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

    /// All that it has, the longest unused first, with the block before each.
    #[must_use]
    pub fn keys(&self) -> Vec<(BlockKey, Held)> {
        let table = self.table.lock();
        let told = table.shelf.ready().into_iter().map(|(slot, key, parent, retention)| {
            (key, Held { parent, retention, sum: table.marks[slot as usize].sum })
        });
        told.collect()
    }

    /// Keeps a block. It can be read when this returns, and is there after a crash once it is committed.
    pub fn put(&self, record: &Record<'_>, now_ms: u64) -> Result<Put, TierError> {
        self.layout.check_block(&record.key, record.payload.len())?;
        let (slot, generation) = match self.reserve(record, now_ms) {
            Ok(place) => place,
            Err(answer) => {
                let present = matches!(answer, Put::Present);
                count(if present { &self.figures.present } else { &self.figures.refused });
                return Ok(answer);
            }
        };
        let mut buffer = self.buffer();
        let slot_bytes = &mut buffer[..self.slot_bytes];
        let (payload, rest) = slot_bytes.split_at_mut(record.payload.len());
        let sum = copy_summed(record.payload, payload);
        let mut header = Header::of_slot(Kind::Block, slot);
        header.key = record.key;
        header.parent = record.parent;
        header.retention = record.retention;
        header.generation = generation;
        header.length = record.payload.len() as u32;
        header.sum = sum;
        let (padding, end) = rest.split_at_mut(rest.len() - HEADER_BYTES);
        padding.fill(0);
        end.copy_from_slice(&header.encode());
        let answer = if record.sum.is_some_and(|given| given != sum) {
            count(&self.figures.bad_sums);
            self.take_back(slot, None, now_ms);
            Put::Refused(Refusal::Broken)
        } else {
            match self.data.write_at(&buffer[..self.slot_bytes], self.offset(slot)) {
                Ok(()) => self.publish(slot, sum, now_ms),
                Err(error) => {
                    self.take_back(slot, Some(&error), now_ms);
                    Put::Refused(Refusal::Failed)
                }
            }
        };
        self.give_buffer(buffer);
        Ok(answer)
    }

    fn publish(&self, slot: u32, sum: u64, now_ms: u64) -> Put {
        let mut table = self.table.lock();
        table.shelf.publish(slot, now_ms);
        let mark = &mut table.marks[slot as usize];
        mark.sum = sum;
        mark.dirty = true;
        let generation = mark.generation;
        table.written.push((slot, generation));
        let waiting = table.written.len();
        drop(table);
        count(&self.figures.stored);
        add(&self.figures.written_bytes, self.slot_bytes as u64);
        if waiting >= UNCOMMITTED_MAX {
            self.flush(now_ms);
        } else if waiting >= self.commit_blocks
            && let Some(mut journal) = self.journal.try_lock()
        {
            self.commit(&mut journal, now_ms);
        }
        Put::Stored
    }

    /// Reads a block into `into`, which must have the layout's length.
    pub fn get(&self, key: &BlockKey, into: &mut [u8], now_ms: u64) -> Result<Get, TierError> {
        self.layout.check_block(key, into.len())?;
        let Some(place) = self.table.lock().take_hold(key) else {
            count(&self.figures.misses);
            return Ok(Get::Miss);
        };
        Ok(self.read_one(key, place, into, now_ms))
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
            table.set_retention(slot, change(known), now_ms);
        }
        found.is_some()
    }

    /// Forgets a block; `false` if it is not here. After a crash it may be here again unless that was committed.
    ///
    /// It does not wait for those that read it: they get it whole, or a miss once its slot is written again.
    pub fn remove(&self, key: &BlockKey) -> bool {
        let mut table = self.table.lock();
        let found = table.shelf.find(key);
        if let Some(slot) = found {
            table.drop_block(slot);
            table.leaving.push(slot);
        }
        found.is_some()
    }

    /// Commits what was written: once it says `true`, a crash does not take it away.
    pub fn flush(&self, now_ms: u64) -> bool {
        self.commit(&mut self.journal.lock(), now_ms)
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot_bytes as u64
    }

    fn buffer(&self) -> Buffer {
        let kept = self.buffers.lock().pop();
        kept.unwrap_or_else(|| {
            let bytes = self.slot_bytes * self.run_slots;
            let mut fresh = Buffer::with_capacity(ALIGN_BYTES, bytes);
            fresh.resize(bytes, 0);
            fresh
        })
    }

    fn give_buffer(&self, buffer: Buffer) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    }
}
