//! A disk that may lose what was not synced.
//!
//! Edits take effect at once for who reads, and for good once they are synced. In a crash a first part of the
//! unsynced edits stays, in the order in which they were written, as with a write-ahead log whose tail is torn.
//! Images are synced as they are written, as the file on a real disk is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::random;

/// A member's disk; clones are the same disk, and it outlives the member.
#[derive(Clone, Default)]
pub struct Disk {
    inner: Arc<Mutex<Medium>>,
}

#[derive(Default)]
struct Medium {
    durable: Contents,
    current: Contents,
    unsynced: Vec<Edit>,
    sync_ms_max: u64,
    stalled_ms: u64,
    /// For whom the last vote was, if it was not confirmed by a quorum yet.
    vote_for: Option<u64>,
}

#[derive(Clone, Default)]
pub(crate) struct Contents {
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) purged: Option<Bytes>,
    pub(crate) log: BTreeMap<u64, Bytes>,
    pub(crate) image: Option<Bytes>,
}

/// One write.
#[derive(Clone)]
pub(crate) enum Edit {
    Vote(Bytes),
    Committed(Option<Bytes>),
    Append(Vec<(u64, Bytes)>),
    /// Removes entries from this index on.
    Truncate(u64),
    /// Removes entries up to this index; the bytes say so.
    Purge(u64, Bytes),
}

impl Contents {
    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Vote(vote) => self.vote = Some(vote.clone()),
            Edit::Committed(committed) => self.committed.clone_from(committed),
            Edit::Append(entries) => self.log.extend(entries.iter().cloned()),
            Edit::Truncate(from) => drop(self.log.split_off(from)),
            Edit::Purge(upto, id) => {
                self.log = self.log.split_off(&upto.saturating_add(1));
                self.purged = Some(id.clone());
            }
        }
    }
}

impl Disk {
    /// An empty disk whose syncs take at most `sync_ms_max`.
    #[must_use]
    pub fn new(sync_ms_max: u64) -> Self {
        let disk = Self::default();
        disk.inner.lock().sync_ms_max = sync_ms_max;
        disk
    }

    /// The machine loses its power: of the unsynced writes the first `kept` stay. All stay if only the process
    /// ends.
    pub fn crash(&self, kept: usize) {
        let medium = &mut *self.inner.lock();
        for edit in medium.unsynced.drain(..).take(kept) {
            medium.durable.apply(&edit);
        }
        medium.current = medium.durable.clone();
        medium.stalled_ms = 0;
        medium.vote_for = None;
    }

    /// How many writes are not synced.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.inner.lock().unsynced.len()
    }

    /// Lets the next sync take that much longer.
    pub fn stall(&self, ms: u64) {
        self.inner.lock().stalled_ms = ms;
    }

    /// For which member's candidacy a vote was written since it was last asked.
    #[must_use]
    pub fn take_vote(&self) -> Option<u64> {
        self.inner.lock().vote_for.take()
    }

    pub(crate) fn note_vote(&self, candidate: u64, committed: bool) {
        self.inner.lock().vote_for = (!committed).then_some(candidate);
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Contents) -> T) -> T {
        look(&self.inner.lock().current)
    }

    pub(crate) fn write(&self, edit: Edit) {
        let medium = &mut *self.inner.lock();
        medium.current.apply(&edit);
        medium.unsynced.push(edit);
    }

    pub(crate) fn image(&self) -> Option<Bytes> {
        self.inner.lock().current.image.clone()
    }

    pub(crate) fn save_image(&self, image: Bytes) {
        let medium = &mut *self.inner.lock();
        medium.durable.image = Some(image.clone());
        medium.current.image = Some(image);
    }

    /// How long the next sync takes.
    pub(crate) fn sync_time(&self) -> Duration {
        let medium = &mut *self.inner.lock();
        let usual = match medium.sync_ms_max {
            0 => 0,
            max => random().unwrap_or(max) % (max + 1),
        };
        Duration::from_millis(usual + std::mem::take(&mut medium.stalled_ms))
    }

    /// Makes the first `written` unsynced writes durable.
    pub(crate) fn sync(&self, written: usize) {
        let medium = &mut *self.inner.lock();
        let written = written.min(medium.unsynced.len());
        for edit in medium.unsynced.drain(..written) {
            medium.durable.apply(&edit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> Edit {
        Edit::Append(vec![(index, Bytes::from_static(b"entry"))])
    }

    fn indexes(disk: &Disk) -> Vec<u64> {
        disk.look(|c| c.log.keys().copied().collect())
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_first_part_of_the_rest() {
        let disk = Disk::new(0);
        (1..=2).for_each(|index| disk.write(entry(index)));
        disk.sync(2);
        disk.write(Edit::Truncate(2));
        (2..=4).for_each(|index| disk.write(entry(index)));
        assert_eq!(indexes(&disk), [1, 2, 3, 4]);
        disk.crash(2);
        assert_eq!(indexes(&disk), [1, 2]);
        disk.write(Edit::Purge(1, Bytes::from_static(b"one")));
        assert_eq!(indexes(&disk), [2]);
        disk.crash(0);
        assert_eq!(indexes(&disk), [1, 2], "an unsynced purge is undone");
        assert_eq!(disk.unsynced(), 0);
    }

    #[test]
    fn a_sync_covers_only_what_was_written_before_it_began() {
        let disk = Disk::new(0);
        disk.write(Edit::Vote(Bytes::from_static(b"first")));
        let written = disk.unsynced();
        disk.write(Edit::Vote(Bytes::from_static(b"second")));
        disk.sync(written);
        assert_eq!(disk.look(|c| c.vote.clone()), Some(Bytes::from_static(b"second")));
        disk.crash(0);
        assert_eq!(disk.look(|c| c.vote.clone()), Some(Bytes::from_static(b"first")));
    }
}
