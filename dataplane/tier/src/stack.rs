//! Host memory and disk as one: reads from the nearest, fills memory from the disk, and writes to the disk what
//! leaves memory and is worth it.
//!
//! Nobody waits for a write. What leaves is copied to a queue of bounded length that threads of this module empty;
//! when they can't keep up, blocks are dropped and counted, and will be computed again. An orderly end
//! ([`Stack::close`]) writes what is worth it of all that memory holds; a crash loses that much of the
//! cache and nothing else. Nobody waits for ever either: an end or a [`Stack::flush`] that a hung disk holds up gives up
//! after a while, and the threads that hang in the disk are left to themselves.
//!
//! The remote tier is not in here: its calls take other times by orders of magnitude, come in packs, and are the
//! business of whoever weighs them against computing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

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
/// Calls of [`Stack::flush`] that may wait for the disk; others are told "no" at once.
const FLUSHES_MAX: usize = 16;
/// The longest that a wait can be set to: a day.
const WAIT_MS_MAX: u64 = 86_400_000;
/// How often those that wait for a thread look again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The settings of a [`Stack`].
#[derive(Debug, Clone, Copy)]
pub struct StackSettings {
    /// Threads that write to the disk.
    pub writers: usize,
    /// Blocks that wait for them.
    pub queue_blocks: usize,
    /// What is worth writing. A stack knows of a block only whether it is the first of its prompt, so the filter's
    /// `depth_at_once` can be 0 or 1.
    pub filter: FilterSettings,
    /// The longest that a flush or an end waits for the disk.
    pub wait_ms: u64,
}

impl Default for StackSettings {
    fn default() -> Self {
        Self { writers: 2, queue_blocks: 64, filter: FilterSettings::default(), wait_ms: 30_000 }
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
    ticket: u64,
    leaving: Leaving,
    bytes: Vec<u8>,
    now_ms: u64,
}

/// Somebody waits until the disk has all for good.
struct Flush {
    now_ms: u64,
    answer: SyncSender<bool>,
}

/// What is in the queue or being written.
#[derive(Default)]
struct Queued {
    next_ticket: u64,
    tickets: BTreeSet<u64>,
    /// How much those blocks are wanted by now, and how often each is on its way.
    wanted: HashMap<BlockKey, (Retention, usize), FixedState>,
}

/// What threads and callers share.
struct Shared {
    host: Arc<HostTier>,
    disk: Arc<DiskTier>,
    filter: Mutex<Filter>,
    /// Buffers that went through the queue.
    spare: Mutex<Vec<Vec<u8>>>,
    spare_max: usize,
    /// Locked before the tables of tiers, never while one is.
    queued: Mutex<Queued>,
    /// A block was written or dropped.
    moved: Condvar,
    wait: Duration,
    /// Blocks that were worth writing and were dropped.
    figures: Figures,
}

/// See the module.
pub struct Stack {
    shared: Arc<Shared>,
    queue: Option<SyncSender<Job>>,
    flushes: Option<SyncSender<Flush>>,
    threads: Vec<JoinHandle<()>>,
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
        if !(1..=WAIT_MS_MAX).contains(&settings.wait_ms) {
            return Err(TierError::Setting(format!(
                "a wait of {} ms for the disk; 1 to {WAIT_MS_MAX} can be set",
                settings.wait_ms
            )));
        }
        if settings.filter.depth_at_once > 1 {
            return Err(TierError::Setting(format!(
                "depth_at_once of {}; a stack knows only the first block of a prompt, so it can be 0 or 1",
                settings.filter.depth_at_once
            )));
        }
        let shared = Arc::new(Shared {
            host,
            disk,
            filter: Mutex::new(Filter::new(settings.filter)?),
            spare: Mutex::default(),
            spare_max: queue_blocks,
            queued: Mutex::default(),
            moved: Condvar::new(),
            wait: Duration::from_millis(settings.wait_ms),
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
        let mut threads = (0..writers)
            .map(spawn)
            .collect::<Result<Vec<_>, _>>()
            .map_err(TierError::io("start a thread that writes to the disk tier"))?;
        let (flushes, asked) = sync_channel(FLUSHES_MAX);
        let flusher = Arc::clone(&shared);
        let flusher = std::thread::Builder::new()
            .name("tier-flush".to_owned())
            .spawn(move || flusher.flush_all(&asked))
            .map_err(TierError::io("start a thread that flushes the disk tier"))?;
        threads.push(flusher);
        Ok(Self { shared, queue: Some(queue), flushes: Some(flushes), threads })
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
                self.send(leaving, bytes, now_ms, None);
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

    /// Says anew, to all tiers and to what is on its way between them, how much a block is wanted; `false` if none
    /// has it.
    pub fn retain(&self, key: &BlockKey, retention: Retention, now_ms: u64) -> bool {
        let above = self.shared.host.retain(key, retention, now_ms);
        let mut queued = self.shared.queued.lock();
        let between = queued.wanted.get_mut(key).map(|(wanted, _)| *wanted = retention).is_some();
        let below = self.shared.disk.retain(key, retention, now_ms);
        above || between || below
    }

    /// Says, to all tiers and to what is on its way between them, that nobody claims a block any more; `false` if none
    /// has it.
    pub fn unclaim(&self, key: &BlockKey, now_ms: u64) -> bool {
        let above = self.shared.host.unclaim(key, now_ms);
        let mut queued = self.shared.queued.lock();
        let between = queued.wanted.get_mut(key);
        let between = between.map(|(wanted, _)| *wanted = wanted.unclaimed()).is_some();
        let below = self.shared.disk.unclaim(key, now_ms);
        above || between || below
    }

    /// Says, to all tiers and to what is on its way between them, until when a block must not go at all; 0 is no longer.
    /// `false` if none has it.
    pub fn pin(&self, key: &BlockKey, until_ms: u64, now_ms: u64) -> bool {
        let above = self.shared.host.pin(key, until_ms, now_ms);
        let mut queued = self.shared.queued.lock();
        let between = queued.wanted.get_mut(key);
        let between = between.map(|(wanted, _)| wanted.pinned_until_ms = until_ms).is_some();
        let below = self.shared.disk.pin(key, until_ms, now_ms);
        above || between || below
    }

    /// Waits until all that left memory before this call is on the disk, for good if it says `true`. `false` may also
    /// mean that the disk took longer than `wait_ms`, or that too many wait for it.
    pub fn flush(&self, now_ms: u64) -> bool {
        let deadline = self.shared.deadline();
        if !self.shared.wait_for_writes(deadline) {
            tracing::warn!("the disk tier is behind its time; a flush gives up");
            return false;
        }
        let (answer, answered) = sync_channel(1);
        let flush = Flush { now_ms, answer };
        if self.flushes.as_ref().is_none_or(|flushes| flushes.try_send(flush).is_err()) {
            return false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        answered.recv_timeout(left).unwrap_or(false)
    }

    /// Reads the leading blocks of a chain from the nearest tiers, one behind the other, into `into`, which must have
    /// room for all of `keys`; what came from the disk is in memory then too. What is behind the last that it tells of
    /// is of no use.
    pub fn get_run(
        &self,
        keys: &[BlockKey],
        into: &mut [u8],
        now_ms: u64,
    ) -> Result<Vec<Found>, TierError> {
        let block_bytes = self.shared.host.layout().block_bytes as usize;
        let want = keys.len() * block_bytes;
        if into.len() != want {
            return Err(TierError::WrongLength { got: into.len(), want });
        }
        let mut found = Vec::with_capacity(keys.len());
        while let Some(key) = keys.get(found.len()) {
            let from = found.len();
            let room = &mut into[from * block_bytes..];
            if let Get::Hit(held) = self.shared.host.get(key, &mut room[..block_bytes])? {
                found.push(Found { tier: Tier::Host, held });
                continue;
            }
            // As far as memory has nothing: the disk reads many at once.
            let below = keys[from..].iter().take_while(|key| !self.shared.host.has(key)).count();
            let run = &keys[from..from + below.max(1)];
            let read =
                self.shared.disk.get_run(run, &mut room[..run.len() * block_bytes], now_ms)?;
            let whole = read.len() == run.len();
            for ((key, held), payload) in run.iter().zip(read).zip(room.chunks_exact(block_bytes)) {
                let record = Record {
                    key: *key,
                    parent: held.parent,
                    retention: held.retention,
                    payload,
                    sum: Some(held.sum),
                };
                // Memory may have no room for it, which changes nothing for the caller.
                let _ = self.put(&record, now_ms)?;
                found.push(Found { tier: Tier::Disk, held });
            }
            if !whole {
                break;
            }
        }
        Ok(found)
    }

    /// Writes what is worth it of all that memory holds, and waits for it; for an orderly end. A disk that takes
    /// none of it for `wait_ms` loses what is left.
    pub fn close(self, now_ms: u64) -> bool {
        self.save(now_ms)
    }

    /// The same of a stack that others still hold: what is put into it from now on may be lost.
    pub fn save(&self, now_ms: u64) -> bool {
        let mut hangs = false;
        self.shared.host.for_each(|leaving, bytes| {
            if !hangs && self.shared.is_worth_at_end(leaving, now_ms) {
                let room_until = Some(self.shared.deadline());
                hangs = !self.send(leaving, bytes, now_ms, room_until);
            }
        });
        !hangs && self.flush(now_ms)
    }

    /// Queues a copy of a block; waits for room until a time, if one is given. `false` if the block was dropped.
    fn send(
        &self,
        leaving: &Leaving,
        bytes: &[u8],
        now_ms: u64,
        room_until: Option<Instant>,
    ) -> bool {
        let Some(queue) = &self.queue else { return false };
        let mut buffer = self.shared.spare.lock().pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        let ticket = self.shared.enter(leaving);
        let mut job = Job { ticket, leaving: *leaving, bytes: buffer, now_ms };
        loop {
            job = match queue.try_send(job) {
                Ok(()) => return true,
                Err(TrySendError::Full(job))
                    if room_until.is_some_and(|at| Instant::now() < at) =>
                {
                    self.shared.moved.wait_for(&mut self.shared.queued.lock(), LOOK_AGAIN);
                    job
                }
                Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                    count(&self.shared.figures.refused);
                    self.shared.done(job, None);
                    return false;
                }
            }
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The threads end when their queues are empty and nobody can fill them.
        self.queue = None;
        self.flushes = None;
        let deadline = self.shared.deadline();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(LOOK_AGAIN);
            }
            if !thread.is_finished() {
                tracing::error!("a thread hangs in the disk of the tier and is left behind");
            } else if thread.join().is_err() {
                tracing::error!("a thread that wrote to the disk tier panicked");
            }
        }
    }
}

impl Shared {
    fn is_worth(&self, leaving: &Leaving, now_ms: u64) -> bool {
        let touch = self.touch_of(leaving, now_ms);
        touch.is_some_and(|touch| self.filter.lock().decide(&touch, now_ms) == Verdict::Write)
    }

    fn is_worth_at_end(&self, leaving: &Leaving, now_ms: u64) -> bool {
        let touch = self.touch_of(leaving, now_ms);
        touch.is_some_and(|touch| self.filter.lock().decides_at_end(&touch, now_ms))
    }

    /// What the filter is to know of a block that leaves memory; `None` if the disk has it.
    fn touch_of(&self, leaving: &Leaving, now_ms: u64) -> Option<Touch> {
        if self.disk.has(&leaving.key) {
            // There already. Memory may know less of it: a pin that was set while only the disk had the block.
            self.disk.retain_more(&leaving.key, &leaving.held.retention, now_ms);
            return None;
        }
        let root = leaving.held.parent.0 == leaving.key.namespace.0;
        let parent = leaving.key.sibling(leaving.held.parent);
        Some(Touch {
            key: leaving.key,
            retention: leaving.held.retention,
            depth: u32::from(!root),
            uses: leaving.uses,
            // Parents leave after their children, so one that is in memory may still come.
            parent_held: root || self.host.has(&parent) || self.disk.has(&parent),
        })
    }

    fn write_all(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = jobs.lock().recv();
            let Ok(job) = job else { return };
            let wanted = self.queued.lock().wanted.get(&job.leaving.key).copied();
            let retention = wanted.map_or(job.leaving.held.retention, |(retention, _)| retention);
            let record = Record {
                key: job.leaving.key,
                parent: job.leaving.held.parent,
                retention,
                payload: &job.bytes,
                sum: Some(job.leaving.held.sum),
            };
            // Whatever it answers, the disk tier has counted it; the block is a miss then.
            if let Err(error) = self.disk.put(&record, job.now_ms) {
                tracing::error!(%error, "a block of the memory tier does not fit the disk tier");
            }
            self.done(job, Some(retention));
        }
    }

    fn flush_all(&self, asked: &Receiver<Flush>) {
        for flush in asked {
            // Who asked may have given up, and needs no answer then.
            let _ = flush.answer.send(self.disk.flush(flush.now_ms));
        }
    }

    /// When a wait that begins now is over.
    fn deadline(&self) -> Instant {
        Instant::now() + self.wait
    }

    /// Waits for all that is on its way now, and for nothing that comes later; `false` if it is not done in time.
    fn wait_for_writes(&self, deadline: Instant) -> bool {
        let mut queued = self.queued.lock();
        let end = queued.next_ticket;
        while queued.tickets.first().is_some_and(|ticket| *ticket < end) {
            if Instant::now() >= deadline {
                return false;
            }
            let _ = self.moved.wait_until(&mut queued, deadline);
        }
        true
    }

    /// A block is on its way from now on.
    fn enter(&self, leaving: &Leaving) -> u64 {
        let mut queued = self.queued.lock();
        let ticket = queued.next_ticket;
        queued.next_ticket += 1;
        queued.tickets.insert(ticket);
        let said = leaving.held.retention;
        let (wanted, times) = queued.wanted.entry(leaving.key).or_insert((said, 0));
        *wanted = wanted.merge(&said);
        *times += 1;
        ticket
    }

    /// A block is not on its way any more; it was `written` so, or dropped.
    fn done(&self, job: Job, written: Option<Retention>) {
        let key = job.leaving.key;
        let mut spare = self.spare.lock();
        if spare.len() < self.spare_max {
            spare.push(job.bytes);
        }
        drop(spare);
        let mut queued = self.queued.lock();
        queued.tickets.remove(&job.ticket);
        if let Some((wanted, times)) = queued.wanted.get_mut(&key) {
            let wanted = *wanted;
            *times -= 1;
            if *times == 0 {
                queued.wanted.remove(&key);
            }
            // What was said while it was written. The lock is kept, so that what is said next comes after it.
            if written.is_some_and(|written| written != wanted) {
                self.disk.retain(&key, wanted, job.now_ms);
            }
        }
        self.moved.notify_all();
    }
}

#[cfg(test)]
mod tests;
