//! The log that a member runs on: RocksDB, or in a simulation the model of a disk.
//!
//! One type for both, so that openraft, machine and barrier above it are the same code in both. Without the
//! feature `simulation` there is only one kind, and this costs nothing.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::LogStore;
#[cfg(feature = "simulation")]
use super::memory::MemoryLog;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// A handle on the log; clones share it.
#[derive(Clone)]
pub(crate) enum Log {
    Rocks(LogStore),
    #[cfg(feature = "simulation")]
    Memory(MemoryLog),
}

/// Asks whichever log it is.
macro_rules! ask {
    ($log:expr, $inner:ident => $call:expr) => {
        match $log {
            Log::Rocks($inner) => $call,
            #[cfg(feature = "simulation")]
            Log::Memory($inner) => $call,
        }
    };
}

impl Log {
    #[cfg(feature = "simulation")]
    pub(crate) fn in_memory(disk: &crate::simulation::Disk) -> Result<Self, crate::GroupError> {
        let failed = |e: io::Error| crate::StoreError::io(std::path::Path::new("memory"), &e);
        Ok(Self::Memory(MemoryLog::open(disk).map_err(failed)?))
    }

    /// Entries from `start` up to and without `end`, at least one if there is one, at most `bytes_max`.
    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        ask!(self, log => log.read(start, end, bytes_max))
    }

    /// Lets go of it, once nobody else holds it.
    pub(crate) async fn close(self) {
        match self {
            Self::Rocks(log) => log.close().await,
            #[cfg(feature = "simulation")]
            Self::Memory(log) => log.close(),
        }
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        ask!(self, log => log.try_get_log_entries(range).await)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        ask!(self, log => log.limited_get_log_entries(start, end).await)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        ask!(self, log => log.read_vote().await)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        ask!(self, log => log.get_log_state().await)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        ask!(self, log => log.save_vote(vote).await)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        ask!(self, log => log.save_committed(committed).await)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        ask!(self, log => log.read_committed().await)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        ask!(self, log => log.append(entries, callback).await)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        ask!(self, log => log.truncate_after(last).await)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        ask!(self, log => log.purge(upto).await)
    }
}
