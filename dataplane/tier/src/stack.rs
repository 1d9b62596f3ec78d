//! Host memory and disk as one: reads from the nearest, fills memory from the disk, and writes to the disk what
//! leaves memory and is worth it.
//!
//! Nobody waits for a write. What leaves is copied to a queue of bounded length that threads of this module empty;
//! when they can't keep up, blocks are dropped and counted, and will be computed again. An orderly end
//! ([`Stack::close`]) writes what is worth it of all that memory holds; a crash loses that much of the
//! cache and nothing else.
//!
//! The remote tier is not in here: its calls take other times by orders of magnitude, come in packs, and are the
//! business of whoever weighs them against computing.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use mainstay_types::Tier;
use parking_lot::{Condvar, Mutex};

use crate::figures::count;
use crate::{
    BlockKey, DiskTier, Figures, Filter, FilterSettings, Get, Held, HostTier, Leaving, Put, Record,
    Retention, TierError, Touch, Verdict,
};

/// The most threads that write.
const WRITERS_MAX: usize = 64;
/// The most blocks that wait to be written.
const QUEUE_MAX: usize = 1 << 16;

/// The settings of a [`Stack`].
#[derive(Debug, Clone, Copy)]
pub struct StackSettings {
    /// Threads that write to the disk.
    pub writers: usize,
    /// Blocks that wait for them.
    pub queue_blocks: usize,
    /// What is worth writing.
    pub filter: FilterSettings,
}

impl Default for StackSettings {
    fn default() -> Self {
        Self { writers: 2, queue_blocks: 64, filter: FilterSettings::default() }
    }
}

/// Where a block was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The tier that gave it.
    pub tier: Tier,
    /// What it said about it.
    pub held: Held,
}

/// A block on its way to the disk.
struct Job {
    leaving: Leaving,
    bytes: Vec<u8>,
    now_ms: u64,
}

/// What threads and callers share.
struct Shared {
    host: Arc<HostTier>,
    disk: Arc<DiskTier>,
    filter: Mutex<Filter>,
    /// Buffers that went through the queue.
    spare: Mutex<Vec<Vec<u8>>>,
    spare_max: usize,
    /// Blocks that are in the queue or being written.
    queued: Mutex<usize>,
    empty: Condvar,
    /// Blocks that were worth writing and were dropped.
    figures: Figures,
}

/// See the module.
pub struct Stack {
    shared: Arc<Shared>,
    queue: Option<SyncSender<Job>>,
    writers: Vec<JoinHandle<()>>,
}

impl Stack {
    /// Puts memory above a disk. Both must have one layout.
    pub fn new(
        host: Arc<HostTier>,
        disk: Arc<DiskTier>,
        settings: StackSettings,
    ) -> Result<Self, TierError> {
        if host.layout() != disk.layout() {
            return Err(TierError::WrongLayout);
        }
        let (writers, queue_blocks) = (settings.writers, settings.queue_blocks);
        if !(1..=WRITERS_MAX).contains(&writers) || !(1..=QUEUE_MAX).contains(&queue_blocks) {
            return Err(TierError::Setting(format!(
                "{writers} writers with {queue_blocks} blocks waiting; 1 to {WRITERS_MAX} writers and 1 to {QUEUE_MAX} blocks can be set"
            )));
        }
        let shared = Arc::new(Shared {
            host,
            disk,
            filter: Mutex::new(Filter::new(settings.filter)?),
            spare: Mutex::default(),
            spare_max: queue_blocks,
            queued: Mutex::new(0),
            empty: Condvar::new(),
            figures: Figures::default(),
        });
        let (queue, jobs) = sync_channel(queue_blocks);
        let jobs = Arc::new(Mutex::new(jobs));
        let spawn = |number: usize| {
            let (shared, jobs) = (Arc::clone(&shared), Arc::clone(&jobs));
            std::thread::Builder::new()
                .name(format!("tier-write-{number}"))
                .spawn(move || shared.write_all(&jobs))
        };
        let writers = (0..writers)
            .map(spawn)
            .collect::<Result<Vec<_>, _>>()
            .map_err(TierError::io("start a thread that writes to the disk tier"))?;
        Ok(Self { shared, queue: Some(queue), writers })
    }

    /// The memory.
    #[must_use]
    pub fn host(&self) -> &HostTier {
        &self.shared.host
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &DiskTier {
        &self.shared.disk
    }

    /// What was worth writing and found no room in the queue is `refused` in these.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.shared.figures
    }

    /// How many leading blocks of a chain are in one of the tiers.
    #[must_use]
    pub fn prefix(&self, keys: &[BlockKey]) -> usize {
        let here = |key: &&BlockKey| self.shared.host.has(key) || self.shared.disk.has(key);
        keys.iter().take_while(here).count()
    }

    /// Keeps a block in memory.
    pub fn put(&self, record: &Record<'_>, now_ms: u64) -> Result<Put, TierError> {
        self.shared.host.put_with(record, now_ms, |leaving, bytes| {
            if self.shared.is_worth(leaving, now_ms) {
                self.send(leaving, bytes, now_ms);
            }
        })
    }

    /// Reads a block from the nearest tier; what came from the disk is in memory then too. `None` is a miss.
    pub fn get(
        &self,
        key: &BlockKey,
        into: &mut [u8],
        now_ms: u64,
    ) -> Result<Option<Found>, TierError> {
        if let Get::Hit(held) = self.shared.host.get(key, into)? {
            return Ok(Some(Found { tier: Tier::Host, held }));
        }
        let Get::Hit(held) = self.shared.disk.get(key, into, now_ms)? else { return Ok(None) };
        let record = Record {
            key: *key,
            parent: held.parent,
            retention: held.retention,
            payload: into,
            sum: Some(held.sum),
        };
        // Memory may have no room for it, which changes nothing for the caller.
        let _ = self.put(&record, now_ms)?;
        Ok(Some(Found { tier: Tier::Disk, held }))
    }

    /// Says anew, to all tiers, how much a block is wanted; `false` if none has it.
    pub fn retain(&self, key: &BlockKey, retention: Retention, now_ms: u64) -> bool {
        let above = self.shared.host.retain(key, retention, now_ms);
        let below = self.shared.disk.retain(key, retention, now_ms);
        above || below
    }

    /// Waits until all that left memory before this call is on the disk, for good if it says `true`.
    pub fn flush(&self, now_ms: u64) -> bool {
        let mut queued = self.shared.queued.lock();
        while *queued > 0 {
            self.shared.empty.wait(&mut queued);
        }
        drop(queued);
        self.shared.disk.flush(now_ms)
    }

    /// Writes what is worth it of all that memory holds, and waits for it; for an orderly end.
    pub fn close(self, now_ms: u64) -> bool {
        self.shared.host.for_each(|leaving, bytes| {
            if self.shared.is_worth(leaving, now_ms) {
                self.shared.write(leaving, bytes, now_ms);
            }
        });
        self.flush(now_ms)
    }

    fn send(&self, leaving: &Leaving, bytes: &[u8], now_ms: u64) {
        let Some(queue) = &self.queue else { return };
        let mut buffer = self.shared.spare.lock().pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        *self.shared.queued.lock() += 1;
        let job = Job { leaving: *leaving, bytes: buffer, now_ms };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = queue.try_send(job)
        {
            count(&self.shared.figures.refused);
            self.shared.done(job.bytes);
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The writers end when the queue is empty and nobody can fill it.
        self.queue = None;
        for writer in self.writers.drain(..) {
            if writer.join().is_err() {
                tracing::error!("a thread that wrote to the disk tier panicked");
            }
        }
    }
}

impl Shared {
    fn is_worth(&self, leaving: &Leaving, now_ms: u64) -> bool {
        if self.disk.has(&leaving.key) {
            // There already; what memory knows of it is newer.
            self.disk.retain(&leaving.key, leaving.held.retention, now_ms);
            return false;
        }
        let root = leaving.held.parent.0 == leaving.key.namespace.0;
        let parent = leaving.key.sibling(leaving.held.parent);
        let touch = Touch {
            key: leaving.key,
            retention: leaving.held.retention,
            depth: u32::from(!root),
            uses: leaving.uses,
            // Parents leave after their children, so one that is in memory may still come.
            parent_held: root || self.host.has(&parent) || self.disk.has(&parent),
        };
        self.filter.lock().decide(&touch, now_ms) == Verdict::Write
    }

    fn write_all(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = jobs.lock().recv();
            let Ok(job) = job else { return };
            self.write(&job.leaving, &job.bytes, job.now_ms);
            self.done(job.bytes);
        }
    }

    fn write(&self, leaving: &Leaving, bytes: &[u8], now_ms: u64) {
        let record = Record {
            key: leaving.key,
            parent: leaving.held.parent,
            retention: leaving.held.retention,
            payload: bytes,
            sum: Some(leaving.held.sum),
        };
        // Whatever it answers, the disk tier has counted it; the block is a miss then.
        if let Err(error) = self.disk.put(&record, now_ms) {
            tracing::error!(%error, "a block of the memory tier does not fit the disk tier");
        }
    }

    fn done(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock();
        if spare.len() < self.spare_max {
            spare.push(buffer);
        }
        drop(spare);
        let mut queued = self.queued.lock();
        *queued -= 1;
        if *queued == 0 {
            self.empty.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
