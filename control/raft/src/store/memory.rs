//! The log of a simulated member, on the model of a disk: the same promises as the one in RocksDB, in virtual
//! time and without a thread.
//!
//! Writes are readable at once. A task makes them durable, as long after as the simulated disk takes; whatever was
//! written before one sync began is covered by it. A member that crashes takes the task with it, so that nothing
//! is acknowledged after its end.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::flusher::SYNC_LATEST;
use super::{READ_BYTES_MAX, bounds, hole};
use crate::codec::Coded;
use crate::simulation::{Disk, Edit, Safeguard, lacks};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// A handle on the log; clones share it.
#[derive(Clone)]
pub(crate) struct MemoryLog {
    disk: Disk,
    queue: Arc<Queue>,
    /// Ends the flusher with the last handle.
    _flusher: Arc<Flusher>,
}

struct Flusher(AbortHandle);

impl Drop for Flusher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Queue {
    waiters: Mutex<Vec<Waiter>>,
    wake: Notify,
}

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Sync(oneshot::Sender<()>),
}

impl Queue {
    fn push(&self, waiter: Waiter) {
        self.waiters.lock().push(waiter);
        self.wake.notify_one();
    }
}

impl MemoryLog {
    /// Opens the log that `disk` holds; to be called inside a runtime.
    pub(crate) fn open(disk: &Disk) -> io::Result<Self> {
        let purged: Option<LogId> = disk.look(|c| decode(c.purged.as_ref()))?;
        let mut expected = purged.map(|id| id.index + 1);
        for index in disk.look(|c| c.log.keys().copied().collect::<Vec<_>>()) {
            if expected.is_some_and(|e| e != index) {
                return Err(hole(index));
            }
            expected = Some(index + 1);
        }
        let queue = Arc::new(Queue::default());
        let flusher = tokio::spawn(flush(disk.clone(), Arc::clone(&queue)));
        let flusher = Arc::new(Flusher(flusher.abort_handle()));
        Ok(Self { disk: disk.clone(), queue, _flusher: flusher })
    }

    /// An end in good order leaves nothing unsynced behind.
    pub(crate) fn close(self) {
        self.disk.sync(self.disk.unsynced());
    }

    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0_usize;
        let found = self.disk.look(|c| {
            let range = if start < end { start..end } else { start..start };
            c.log.range(range).map(|(i, b)| (*i, b.clone())).collect::<Vec<_>>()
        });
        for (index, body) in found {
            bytes = bytes.saturating_add(body.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            let entry = Entry::decode(body)?;
            if entries.last().is_some_and(|e| e.log_id.index + 1 != index) {
                return Err(hole(index));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn last(&self) -> io::Result<Option<LogId>> {
        let body = self.disk.look(|c| c.log.last_key_value().map(|(_, body)| body.clone()));
        body.map(|b| Ok(Entry::decode(b)?.log_id)).transpose()
    }
}

fn decode<T: Coded>(bytes: Option<&bytes::Bytes>) -> io::Result<Option<T>> {
    bytes.map(|b| Ok(T::decode(b.clone())?)).transpose()
}

async fn flush(disk: Disk, queue: Arc<Queue>) {
    loop {
        // Writes that nobody waits for are synced by the clock.
        let woken = tokio::time::timeout(SYNC_LATEST, queue.wake.notified()).await;
        let written = disk.unsynced();
        if written == 0 && woken.is_err() {
            continue;
        }
        let waiters = std::mem::take(&mut *queue.waiters.lock());
        tokio::time::sleep(disk.sync_time()).await;
        disk.sync(written);
        for waiter in waiters {
            match waiter {
                Waiter::Append(callback) => callback.io_completed(Ok(())),
                // The one who asked may have gone.
                Waiter::Sync(done) => drop(done.send(())),
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.disk.look(|c| decode(c.vote.as_ref()))
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.disk.look(|c| decode(c.purged.as_ref()))?;
        let last = self.last()?.max(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.disk.note_vote(vote.leader_id.node_id, vote.committed);
        self.disk.write(Edit::Vote(vote.encode()));
        if lacks(Safeguard::VoteSync) {
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        self.queue.push(Waiter::Sync(done));
        wait.await.map_err(|_| io::Error::other("the log's flusher has stopped"))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.disk.write(Edit::Committed(committed.map(|id| id.encode())));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.disk.look(|c| decode(c.committed.as_ref()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let bodies = entries.into_iter().map(|e| (e.log_id.index, e.encode())).collect();
        self.disk.write(Edit::Append(bodies));
        if lacks(Safeguard::AppendSync) {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        self.queue.push(Waiter::Append(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.disk.write(Edit::Truncate(last.map_or(0, |id| id.index + 1)));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.disk.write(Edit::Purge(upto.index, upto.encode()));
        Ok(())
    }
}
