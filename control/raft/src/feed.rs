//! Applied entries, kept for a while for those who watch.
//!
//! The ring is bounded by entries and by bytes; a watcher that falls behind it is told so and takes a fresh
//! image. Entries that carry no proposal are kept as their index only, so that indexes have no holes.

use std::collections::VecDeque;
use std::sync::Arc;

use mainstay_proto::v1;
use parking_lot::Mutex;
use tokio::sync::watch;

/// The most entries the ring keeps.
pub(crate) const ENTRIES_MAX: usize = 16_384;
/// The most bytes of encoded proposals the ring keeps.
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// One applied entry.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Where in the log.
    pub index: u64,
    /// What it carried; `None` for Raft's own entries.
    pub proposal: Option<Arc<v1::Proposal>>,
    /// The proposal's encoded size.
    pub bytes: usize,
}

/// What [`Feed::read`] answers.
#[derive(Debug)]
pub enum Read {
    /// The entries from the asked index on, as many as were asked for.
    Entries(Vec<Applied>),
    /// Nothing at or after that index yet.
    UpToDate,
    /// That index has left the ring.
    Lagged,
}

pub(crate) struct Feed {
    ring: Mutex<Ring>,
    applied: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Applied>,
    bytes: usize,
    /// The index after the last entry that was pushed or that an image stands for.
    next: u64,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), applied: watch::Sender::new(0) }
    }

    /// Takes entries in the order of their indexes.
    pub(crate) fn push(&self, batch: Vec<Applied>) {
        let Some(last) = batch.last().map(|e| e.index) else { return };
        {
            let mut ring = self.ring.lock();
            for entry in batch {
                if entry.index != ring.next {
                    ring.clear();
                }
                ring.next = entry.index + 1;
                ring.bytes += entry.bytes;
                ring.entries.push_back(entry);
            }
            while ring.entries.len() > ENTRIES_MAX || ring.bytes > BYTES_MAX {
                let Some(oldest) = ring.entries.pop_front() else { break };
                ring.bytes -= oldest.bytes;
            }
        }
        self.applied.send_replace(last);
    }

    /// Forgets all entries: the state was replaced by an image at `index`.
    pub(crate) fn reset(&self, index: u64) {
        {
            let mut ring = self.ring.lock();
            ring.clear();
            ring.next = index + 1;
        }
        self.applied.send_replace(index);
    }

    /// At most `max` entries from `from` on.
    pub(crate) fn read(&self, from: u64, max: usize) -> Read {
        let ring = self.ring.lock();
        if from >= ring.next {
            return Read::UpToDate;
        }
        let first = ring.entries.front().map_or(ring.next, |e| e.index);
        let Some(skip) = from.checked_sub(first) else { return Read::Lagged };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Read::Entries(ring.entries.iter().skip(skip).take(max).cloned().collect())
    }

    /// Wakes whenever the applied index moves.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }
}

impl Ring {
    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests;
