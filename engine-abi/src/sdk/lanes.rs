//! The three bounded lanes between an engine's threads and the host's pollers.
//!
//! They keep the header's rule R8 for the engine. OUT never drops: past [`OUT_ITEMS_SOFT`] queued
//! outputs [`Lanes::output_has_room`] is false, the shims refuse new requests, and further tokens of
//! a request are merged into its last queued output, so that even an engine which does not throttle
//! stays within one item per live request. KV may overflow: the queue is replaced by one RESET under
//! a new epoch and events are dropped until [`Lanes::begin_snapshot`]. OP never drops and is bounded
//! by the [`OPS_MAX`] operations that may be outstanding.
//!
//! The reading half (`wait`, `take_*`) is what the shims use; an engine's own tests may use it too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kv::KvQueue;
use super::op::OpQueue;
use super::out::OutQueue;
use super::{Info, KvEvent, Output};

pub use super::kv::KvTaken;
pub use super::op::{OPS_MAX, OpDone};
pub use super::out::OUT_ITEMS_SOFT;

/// What a wait on a lane ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Ready,
    TimedOut,
    /// The lanes are closed and this one is empty.
    Closed,
}

struct Lane<Q> {
    queue: Mutex<Q>,
    filled: Condvar,
}

impl<Q> Lane<Q> {
    fn new(queue: Q) -> Self {
        Self { queue: Mutex::new(queue), filled: Condvar::new() }
    }

    // A panic while the lock is held leaves a queue that is whole (each change is one push or one
    // clear), so the poison is ignored: the host must still be able to read what is there.
    fn lock(&self) -> MutexGuard<'_, Q> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(
        &self,
        timeout: Duration,
        closed: &AtomicBool,
        is_empty: impl Fn(&Q) -> bool,
    ) -> Waited {
        // A timeout beyond what the clock can add is as good as a day.
        let deadline = Instant::now() + timeout.min(Duration::from_secs(86_400));
        let mut queue = self.lock();
        loop {
            if !is_empty(&queue) {
                return Waited::Ready;
            }
            if closed.load(Ordering::Acquire) {
                return Waited::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            let waited = self.filled.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The lanes of one engine, shared by its threads and the C entry points.
pub struct Lanes {
    out: Lane<OutQueue>,
    kv: Lane<KvQueue>,
    op: Lane<OpQueue>,
    closed: AtomicBool,
}

impl Default for Lanes {
    fn default() -> Self {
        Self::new()
    }
}

impl Lanes {
    pub fn new() -> Self {
        Self {
            out: Lane::new(OutQueue::default()),
            kv: Lane::new(KvQueue::default()),
            op: Lane::new(OpQueue::default()),
            closed: AtomicBool::new(false),
        }
    }

    /// Reports tokens of a request, or its end. Never blocks, never drops.
    pub fn output(&self, output: Output) {
        self.out.lock().push(output);
        self.out.filled.notify_one();
    }

    /// Whether the host keeps up. While false, the engine holds decoding back.
    pub fn output_has_room(&self) -> bool {
        self.out.lock().has_room()
    }

    /// Reports a change of the cache. Never blocks; see [`Lanes::kv_overflowed`].
    pub fn kv(&self, event: KvEvent) {
        self.kv.lock().push(event);
        self.kv.filled.notify_one();
    }

    /// Whether events were lost. The engine must then call [`Lanes::begin_snapshot`] and emit again
    /// everything that is stored; what it reports before that is dropped.
    pub fn kv_overflowed(&self) -> bool {
        self.kv.lock().overflowed()
    }

    /// Starts a new epoch: what was queued is void, the first item is a RESET, and the engine emits
    /// everything stored. Call it from the thread that emits events, so that none slips in between.
    pub fn begin_snapshot(&self) {
        self.kv.lock().begin_epoch();
        self.kv.filled.notify_one();
    }

    /// Ends the operation `op_id`: `rc` is 0 or one of the header's codes.
    pub fn op(&self, op_id: u64, rc: i32, done: u32) {
        self.op.lock().push(OpDone { op_id, rc, done });
        self.op.filled.notify_one();
    }

    /// Ends all three lanes once they are empty; the host takes that as the end of the engine. Call
    /// it when the engine's thread dies; the shims call it before the engine is dropped.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Taking each lock once makes a waiter either see the flag or be woken.
        drop(self.out.lock());
        drop(self.kv.lock());
        drop(self.op.lock());
        self.out.filled.notify_all();
        self.kv.filled.notify_all();
        self.op.filled.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The current epoch and the sequence number that the next cache event will get.
    pub fn kv_position(&self) -> (u64, u64) {
        self.kv.lock().position()
    }

    /// Waits until there are outputs.
    pub fn wait_outputs(&self, timeout: Duration) -> Waited {
        self.out.wait(timeout, &self.closed, OutQueue::is_empty)
    }

    /// Waits until there are cache events.
    pub fn wait_kv(&self, timeout: Duration) -> Waited {
        self.kv.wait(timeout, &self.closed, KvQueue::is_empty)
    }

    /// Waits until an operation has ended.
    pub fn wait_ops(&self, timeout: Duration) -> Waited {
        self.op.wait(timeout, &self.closed, OpQueue::is_empty)
    }

    /// Takes up to `items_max` outputs, oldest first, and the sequence number of the first.
    pub fn take_outputs(&self, items_max: usize) -> (u64, Vec<Output>) {
        self.out.lock().take(items_max)
    }

    /// Takes up to `items_max` cache events of the current epoch, oldest first.
    pub fn take_kv(&self, items_max: usize) -> KvTaken {
        self.kv.lock().take(items_max)
    }

    /// Takes up to `items_max` ended operations, and the sequence number of the first.
    pub fn take_ops(&self, items_max: usize) -> (u64, Vec<OpDone>) {
        self.op.lock().take(items_max)
    }

    /// Sizes the KV lane for a cache, so that a whole snapshot fits.
    pub(crate) fn size_for(&self, info: &Info) {
        self.kv.lock().size_for(info.blocks_total);
    }

    /// Counts an operation in, unless too many are outstanding.
    pub(crate) fn begin_op(&self) -> bool {
        self.op.lock().begin()
    }

    /// Takes back a `begin_op` whose operation the engine refused.
    pub(crate) fn abandon_op(&self) {
        self.op.lock().abandon();
    }
}
