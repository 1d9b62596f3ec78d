//! What this member has acknowledged, beside its log, so that a log that lost its end says so.
//!
//! RocksDB takes what follows a broken length in the last block of its write-ahead log for the torn end of a write that
//! nobody was told about, and drops it in silence. This file says how far the log reached when that was last
//! acknowledged, and the newest vote. A log that opens with less has forgotten a promise, and its member must not
//! come back under its old id.
//!
//! It is a lower bound: written after the log's fsync and without one of its own, so that a power cut leaves an older
//! record and never a false one. Before the log is cut on purpose it is lowered, durably. Directories without it are
//! older than it is, and get one.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::folder::{Folder, place};
use super::{seal, unseal};
use crate::codec::CodecError;
use crate::error::StoreError;
use crate::types::{LeaderId, LogId, Vote};

pub(super) const NAME: &str = "PROMISED";
/// A checksum; the last index and one, or 0; whether there is a vote, and whether it is committed; its term and node.
const RECORD_BYTES: usize = 4 + 8 + 1 + 8 + 8;
const VOTED: u8 = 1;
const VOTE_COMMITTED: u8 = 2;

/// How far a log must reach, and the vote that it must know.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Promise {
    pub(super) last: Option<u64>,
    pub(super) vote: Option<Vote>,
}

/// What a log has less than was promised.
#[derive(Debug, PartialEq)]
pub(crate) enum Shortfall {
    Entries { promised: u64, last: Option<u64> },
    Vote { promised: u64, term: Option<u64> },
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, promised, found) = match self {
            Self::Entries { promised, last } => ("its log", promised, last.map(|i| ("entry", i))),
            Self::Vote { promised, term } => ("its vote", promised, term.map(|t| ("term", t))),
        };
        match found {
            Some((unit, n)) => write!(f, "{what} ends at {unit} {n}")?,
            None => write!(f, "{what} is empty")?,
        }
        write!(f, ", and {promised} was acknowledged")
    }
}

impl Promise {
    /// The promise of `folder`; nothing in one that is older than promises.
    pub(crate) fn read(folder: &Folder) -> Result<Self, StoreError> {
        let dir = folder.path();
        let bytes = match fs::read(dir.join(NAME)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(StoreError::io(dir, &e)),
        };
        Self::decode(&bytes).map_err(|e| StoreError::corrupt(dir, format!("its {NAME} file: {e}")))
    }

    /// What a log up to `last`, purged entries included, with the vote `vote` has forgotten.
    pub(crate) fn kept(&self, last: Option<&LogId>, vote: Option<&Vote>) -> Result<(), Shortfall> {
        let last = last.map(|id| id.index);
        if let Some(promised) = self.last.filter(|_| last < self.last) {
            return Err(Shortfall::Entries { promised, last });
        }
        match &self.vote {
            Some(promised) if vote.is_none_or(|vote| vote < promised) => {
                let (promised, term) = (promised.leader_id.term, vote.map(|v| v.leader_id.term));
                Err(Shortfall::Vote { promised, term })
            }
            _ => Ok(()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(RECORD_BYTES);
        body.extend_from_slice(&self.last.map_or(0, |i| i.saturating_add(1)).to_le_bytes());
        let (flags, term, node) = match &self.vote {
            None => (0, 0, 0),
            Some(Vote { leader_id, committed }) => {
                let committed = if *committed { VOTE_COMMITTED } else { 0 };
                (VOTED | committed, leader_id.term, leader_id.node_id)
            }
        };
        body.push(flags);
        body.extend_from_slice(&term.to_le_bytes());
        body.extend_from_slice(&node.to_le_bytes());
        seal(NAME.as_bytes(), &body)
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let record: &[u8; RECORD_BYTES] =
            bytes.try_into().map_err(|_| CodecError("record: its length is wrong"))?;
        let body = unseal(NAME.as_bytes(), record)?;
        let number = |at: usize| {
            let bytes = body.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or(CodecError("record: too short"))
        };
        let leader_id = LeaderId { term: number(9)?, node_id: number(17)? };
        let flags = body[8];
        let vote = Vote { leader_id, committed: flags & VOTE_COMMITTED != 0 };
        Ok(Self { last: number(0)?.checked_sub(1), vote: (flags & VOTED != 0).then_some(vote) })
    }
}

/// The file, open, and what it says.
pub(super) struct Promised {
    file: File,
    says: Promise,
}

impl Promised {
    /// Opens the file of `folder` or makes one that promises nothing.
    pub(super) fn open(folder: &Folder) -> Result<Self, StoreError> {
        let dir = folder.path();
        let says = Promise::read(folder)?;
        let path = dir.join(NAME);
        let file = open_or_place(dir, &path, &says).map_err(|e| StoreError::io(dir, &e))?;
        Ok(Self { file, says })
    }

    pub(super) fn says(&self) -> Promise {
        self.says
    }

    /// Says `now` from here on. Only one that promises less has to be `durable`.
    pub(super) fn say(&mut self, now: Promise, durable: bool) -> io::Result<()> {
        if now != self.says {
            self.file.write_all_at(&now.encode(), 0)?;
            self.says = now;
        }
        if durable { self.file.sync_data() } else { Ok(()) }
    }
}

fn open_or_place(dir: &Path, path: &Path, says: &Promise) -> io::Result<File> {
    if !path.exists() {
        place(dir, NAME, &says.encode())?;
    }
    OpenOptions::new().write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64, committed: bool) -> Vote {
        Vote { leader_id: LeaderId { term, node_id: 2 }, committed }
    }

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: 1 }, index)
    }

    #[test]
    fn a_promise_reads_back_and_a_flipped_bit_is_told() {
        for last in [None, Some(0), Some(59)] {
            for vote in [None, Some(vote(0, false)), Some(vote(7, true))] {
                let promise = Promise { last, vote };
                let bytes = promise.encode();
                assert_eq!(bytes.len(), RECORD_BYTES);
                assert_eq!(Promise::decode(&bytes).unwrap(), promise);
                for bit in 0..RECORD_BYTES * 8 {
                    let mut bent = bytes.clone();
                    bent[bit / 8] ^= 1 << (bit % 8);
                    Promise::decode(&bent).unwrap_err();
                }
                Promise::decode(&bytes[1..]).unwrap_err();
            }
        }
    }

    #[test]
    fn less_than_promised_is_told_and_more_is_not() {
        let promise = Promise { last: Some(5), vote: Some(vote(3, false)) };
        let vote_then = vote(3, false);
        assert_eq!(promise.kept(Some(&id(5)), Some(&vote_then)), Ok(()));
        assert_eq!(promise.kept(Some(&id(9)), Some(&vote(3, true))), Ok(()));
        assert_eq!(promise.kept(Some(&id(9)), Some(&vote(4, false))), Ok(()));
        let short = promise.kept(Some(&id(4)), Some(&vote_then)).unwrap_err();
        assert_eq!(short.to_string(), "its log ends at entry 4, and 5 was acknowledged");
        let empty = promise.kept(None, Some(&vote_then)).unwrap_err();
        assert_eq!(empty.to_string(), "its log is empty, and 5 was acknowledged");
        let old = promise.kept(Some(&id(5)), Some(&vote(2, true))).unwrap_err();
        assert_eq!(old.to_string(), "its vote ends at term 2, and 3 was acknowledged");
        assert!(promise.kept(Some(&id(5)), None).is_err());
        assert_eq!(Promise::default().kept(None, None), Ok(()));
    }
}
