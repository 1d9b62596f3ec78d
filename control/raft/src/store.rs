//! The log, the vote and the committed position on disk, in RocksDB.
//!
//! Writes go to RocksDB's write-ahead log at once and are readable at once; one thread of its own makes them
//! durable, many appends with one fsync. An entry carries a checksum over its index and body, so that neither a
//! flipped bit nor an entry at the wrong place is ever applied. Recovery drops a torn tail, which nobody was
//! told about, and refuses damage anywhere else.

mod flusher;
mod folder;
mod log;
#[cfg(feature = "simulation")]
mod memory;
mod promised;
mod reader;
mod tail;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options,
    ReadOptions, WriteBatch,
};

use crate::codec::{CodecError, Coded};
use crate::error::StoreError;
use crate::types::{Entry, LogId, TypeConfig, Vote};
use flusher::Flusher;
pub(crate) use folder::{Folder, Marker};
pub(crate) use log::Log;
pub(crate) use promised::Promise;
use promised::Promised;
pub(crate) use reader::{LogFile, open_record, seed};
use tail::Tail;

const LOG: &str = "log";
const META: &str = "meta";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
/// The most bytes of entries that one replication message carries, unless a single entry is larger.
const READ_BYTES_MAX: usize = 4 << 20;
const WRITE_BUFFER_BYTES: usize = 32 << 20;
const WAL_BYTES_MAX: u64 = 256 << 20;
/// The pace at which full buffers go to disk: well above what a log takes in, and slow enough that fsyncs of the log
/// don't queue behind them.
const FLUSH_BYTES_PER_S: i64 = 64 << 20;
const CHECKSUM_BYTES: usize = 4;
/// How long closing waits for openraft's tasks to let go of the database.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// A handle on the log; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    db: Arc<DB>,
    flusher: Flusher,
    /// What is on disk, read for every batch that is replicated.
    vote: RwLock<Option<Vote>>,
    purged: Mutex<Option<LogId>>,
    tail: Mutex<Tail>,
}

impl LogStore {
    /// Opens or creates the log in `folder`, and reads all of it once, so that damage shows now and not later.
    pub(crate) fn open(folder: &Folder) -> Result<Self, StoreError> {
        let dir = folder.path();
        let db = open_db(dir, &folder.database())?;
        let vote = meta::<Vote>(&db, VOTE).map_err(|e| StoreError::corrupt(dir, e.to_string()))?;
        let purged =
            meta::<LogId>(&db, PURGED).map_err(|e| StoreError::corrupt(dir, e.to_string()))?;
        let promised = Promised::open(folder)?;
        let promise = promised.says();
        let db = Arc::new(db);
        let flusher =
            Flusher::start(Arc::clone(&db), promised).map_err(|e| StoreError::io(dir, &e))?;
        let (vote, purged, tail) = (RwLock::new(vote), Mutex::new(purged), Mutex::default());
        let inner = Inner { db, flusher, vote, purged, tail };
        let store = Self { inner: Arc::new(inner) };
        store.check().map_err(|e| StoreError::corrupt(dir, e.to_string()))?;
        store.check_promise(&promise).map_err(|e| StoreError::corrupt(dir, e.to_string()))?;
        Ok(store)
    }

    /// Whether everything is there that was ever acknowledged.
    fn check_promise(&self, promise: &Promise) -> io::Result<()> {
        let last = self.last()?.max(*self.inner.purged.lock());
        let vote = *self.inner.vote.read();
        let kept = promise.kept(last.as_ref(), vote.as_ref());
        kept.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
    }

    /// Looks at every entry: checksums, and no holes after what was purged.
    fn check(&self) -> io::Result<()> {
        let purged = *self.inner.purged.lock();
        let mut expected = purged.map(|id| id.index + 1);
        for item in self.inner.db.iterator_cf(self.cf(LOG), IteratorMode::Start) {
            let (key, value) = item.map_err(io::Error::other)?;
            let (index, _) = open_entry(&key, &value)?;
            // A crash between truncating and purging may leave entries below the purged position.
            if purged.is_some_and(|id| index <= id.index) {
                continue;
            }
            if expected.is_some_and(|e| e != index) {
                return Err(hole(index));
            }
            expected = Some(index + 1);
        }
        Ok(())
    }

    /// Waits until nobody else holds the database, then lets go of it, so that its lock is free.
    pub(crate) async fn close(self) {
        let inner = self.inner;
        let until = tokio::time::Instant::now() + CLOSE_WAIT;
        while Arc::strong_count(&inner) > 1 && tokio::time::Instant::now() < until {
            tokio::time::sleep(CLOSE_PAUSE).await;
        }
        inner.flusher.stop();
    }

    fn cf(&self, name: &'static str) -> &ColumnFamily {
        column(&self.inner.db, name)
    }

    fn write(&self, batch: WriteBatch) -> io::Result<()> {
        self.inner.db.write(batch).map_err(io::Error::other)
    }

    /// Entries from `start` up to and without `end`, at least one if there is one, at most `bytes_max`.
    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.inner.tail.lock().read(start, end, bytes_max) {
            return Ok(entries);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.to_be_bytes());
        let from = start.to_be_bytes();
        let mode = IteratorMode::From(&from, Direction::Forward);
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0_usize;
        for item in self.inner.db.iterator_cf_opt(self.cf(LOG), options, mode) {
            let (key, value) = item.map_err(io::Error::other)?;
            let (index, body) = open_entry(&key, &value)?;
            let entry = Entry::decode(Bytes::copy_from_slice(body))?;
            if entry.log_id.index != index
                || entries.last().is_some_and(|e| e.log_id.index + 1 != index)
            {
                return Err(hole(index));
            }
            bytes = bytes.saturating_add(value.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn last(&self) -> io::Result<Option<LogId>> {
        match self.inner.db.iterator_cf(self.cf(LOG), IteratorMode::End).next() {
            None => Ok(None),
            Some(item) => {
                let (key, value) = item.map_err(io::Error::other)?;
                let (_, body) = open_entry(&key, &value)?;
                Ok(Some(Entry::decode(Bytes::copy_from_slice(body))?.log_id))
            }
        }
    }
}

fn open_db(dir: &Path, database: &Path) -> Result<DB, StoreError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_keep_log_file_num(4);
    options.set_ratelimiter(FLUSH_BYTES_PER_S, 10_000, 10);
    let column = || {
        let mut column = Options::default();
        column.set_write_buffer_size(WRITE_BUFFER_BYTES);
        // Bodies are hashes for the most part, which do not shrink.
        column.set_compression_type(rocksdb::DBCompressionType::None);
        column
    };
    let columns = [
        ColumnFamilyDescriptor::new("default", Options::default()),
        ColumnFamilyDescriptor::new(LOG, column()),
        ColumnFamilyDescriptor::new(META, column()),
    ];
    DB::open_cf_descriptors(&options, database, columns).map_err(|e| StoreError::rocks(dir, &e))
}

fn column<'a>(db: &'a DB, name: &'static str) -> &'a ColumnFamily {
    db.cf_handle(name).expect("every column family is opened or created with the database")
}

fn meta<T: Coded>(db: &DB, key: &[u8]) -> io::Result<Option<T>> {
    let found = db.get_cf(column(db, META), key).map_err(io::Error::other)?;
    found.map(|sealed| Ok(T::decode(Bytes::copy_from_slice(unseal(key, &sealed)?))?)).transpose()
}

fn hole(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log has a hole before entry {index}"))
}

/// Puts a checksum over key and body before the body.
fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + body.len());
    sealed.extend_from_slice(&checksum(key, body).to_le_bytes());
    sealed.extend_from_slice(body);
    sealed
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> io::Result<&'a [u8]> {
    let (sum, body) =
        sealed.split_first_chunk::<CHECKSUM_BYTES>().ok_or(CodecError("record: too short"))?;
    if u32::from_le_bytes(*sum) != checksum(key, body) {
        return Err(CodecError("record: its checksum is wrong").into());
    }
    Ok(body)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

fn open_entry<'a>(key: &[u8], sealed: &'a [u8]) -> io::Result<(u64, &'a [u8])> {
    let index = u64::from_be_bytes(key.try_into().map_err(|_| CodecError("key of an entry"))?);
    let body = unseal(key, sealed)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("entry {index}: {e}")))?;
    Ok((index, body))
}

/// The half-open range of indexes that `range` means.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
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
        Ok(*self.inner.vote.read())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = *self.inner.purged.lock();
        let last = self.last()?.max(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.cf(META), VOTE, seal(VOTE, &vote.encode()));
        self.write(batch)?;
        self.inner.flusher.vote(*vote).await?;
        *self.inner.vote.write() = Some(*vote);
        Ok(())
    }

    /// Survives the process at once and a power cut after [`flusher::SYNC_LATEST`]: what a power cut takes is
    /// made good by the barrier write that every leadership makes before it serves reads.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        match committed {
            Some(id) => batch.put_cf(self.cf(META), COMMITTED, seal(COMMITTED, &id.encode())),
            None => batch.delete_cf(self.cf(META), COMMITTED),
        }
        self.write(batch)?;
        self.inner.flusher.touch();
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        meta(&self.inner.db, COMMITTED)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        let mut added = Vec::new();
        for entry in entries {
            let key = entry.log_id.index.to_be_bytes();
            batch.put_cf(self.cf(LOG), key, seal(&key, &entry.encode()));
            added.push(entry);
        }
        let written = self.write(batch);
        let last = added.last().map(|entry| entry.log_id.index);
        let mut tail = self.inner.tail.lock();
        match &written {
            Ok(()) => added.into_iter().for_each(|entry| tail.push(entry)),
            // Who knows what of it is there.
            Err(_) => tail.clear(),
        }
        drop(tail);
        written?;
        self.inner.flusher.append(callback, last)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        self.inner.flusher.cut(last.map(|id| id.index)).await?;
        let mut batch = WriteBatch::default();
        // One by one rather than as a range: a log is truncated seldom and by little, and range tombstones
        // over indexes that are written again slow every later read.
        if let Some(end) = self.last()? {
            for index in from..=end.index {
                batch.delete_cf(self.cf(LOG), index.to_be_bytes());
            }
        }
        self.inner.tail.lock().clear();
        self.write(batch)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.cf(META), PURGED, seal(PURGED, &upto.encode()));
        let end = upto.index.saturating_add(1).to_be_bytes();
        batch.delete_range_cf(self.cf(LOG), 0_u64.to_be_bytes(), end);
        self.inner.tail.lock().purge(upto.index.saturating_add(1));
        self.write(batch)?;
        *self.inner.purged.lock() = Some(upto);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
