//! The newest entries of the log, in memory.
//!
//! Every entry is read again within milliseconds of its append: once for each follower, and once to be applied. Out
//! of the database each of these reads is a search, a checksum and a copy. What lies here was written by this process
//! and is never read from disk; damage on disk is found when the log is opened.

use std::collections::VecDeque;

use crate::types::{Entry, Payload};

/// The most entries that are kept.
const ENTRIES_MAX: usize = 8_192;
/// The most bytes of bodies that are kept.
const BYTES_MAX: usize = 16 << 20;
/// What an entry costs besides its body, about.
const ENTRY_BYTES: usize = 128;

/// Neighbouring entries up to the last of the log.
#[derive(Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

fn bytes_of(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(body) => ENTRY_BYTES + body.0.len(),
        Payload::Blank | Payload::Membership(_) => ENTRY_BYTES,
    }
}

impl Tail {
    /// Takes the log's next entry.
    pub(super) fn push(&mut self, entry: Entry) {
        // Whoever writes an index again, or leaves one out, makes what was there before it worthless here.
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            self.clear();
        }
        self.bytes += bytes_of(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Drops what lies before `index`, which is gone from the log.
    pub(super) fn purge(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index < index) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// Entries from `start` up to and without `end`, at least one, at most `bytes_max`; `None` if not all of them are
    /// here: the database may know more.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.log_id.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let wanted = usize::try_from(end.saturating_sub(start)).ok()?;
        if skip.checked_add(wanted)? > self.entries.len() {
            return None;
        }
        let mut bytes = 0_usize;
        let mut fits = |entry: &&Entry| {
            let alone = bytes == 0;
            bytes += bytes_of(entry);
            alone || bytes <= bytes_max
        };
        let range = self.entries.range(skip..).take(wanted);
        Some(range.take_while(|entry| fits(entry)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Body, LeaderId, LogId};

    fn entry(index: u64, bytes: usize) -> Entry {
        let leader = LeaderId { term: 1, node_id: 1 };
        let payload = Payload::Normal(Body(Bytes::from(vec![0; bytes])));
        Entry { log_id: LogId { leader_id: leader, index }, payload }
    }

    fn indexes(tail: &Tail, start: u64, end: u64, bytes_max: usize) -> Option<Vec<u64>> {
        let read = tail.read(start, end, bytes_max)?;
        Some(read.iter().map(|e| e.log_id.index).collect())
    }

    #[test]
    fn what_is_there_is_read_and_nothing_else() {
        let mut tail = Tail::default();
        assert_eq!(indexes(&tail, 1, 2, usize::MAX), None);
        (5..=9).for_each(|index| tail.push(entry(index, 10)));
        assert_eq!(indexes(&tail, 5, 8, usize::MAX), Some(vec![5, 6, 7]));
        assert_eq!(indexes(&tail, 8, 10, usize::MAX), Some(vec![8, 9]));
        assert_eq!(indexes(&tail, 8, 11, usize::MAX), None, "the database may have more");
        assert_eq!(indexes(&tail, 4, 8, usize::MAX), None, "the database has it");
        assert_eq!(indexes(&tail, 10, 12, usize::MAX), None);
        assert_eq!(indexes(&tail, 7, 7, usize::MAX), Some(vec![]));
        let two = 2 * (ENTRY_BYTES + 10);
        assert_eq!(indexes(&tail, 5, 9, two), Some(vec![5, 6]));
        assert_eq!(indexes(&tail, 5, 9, 1), Some(vec![5]), "one always");
    }

    #[test]
    fn an_index_that_is_written_again_begins_anew() {
        let mut tail = Tail::default();
        (5..=9).for_each(|index| tail.push(entry(index, 10)));
        tail.push(entry(7, 20));
        assert_eq!(indexes(&tail, 7, 8, usize::MAX), Some(vec![7]));
        assert_eq!(indexes(&tail, 5, 9, usize::MAX), None);
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let mut tail = Tail::default();
        (1..=40).for_each(|index| tail.push(entry(index, 1 << 20)));
        assert!(tail.bytes <= BYTES_MAX);
        assert_eq!(indexes(&tail, 40, 41, usize::MAX), Some(vec![40]));
        assert_eq!(indexes(&tail, 1, 41, usize::MAX), None);
    }
}
