//! The log of a member that is down: read without changing a byte of its directory, or written whole for a member
//! that has never run.
//!
//! Reading opens the database for reading only, which neither takes its lock nor writes to it; of a member that
//! runs it shows what was on disk at that moment. Damage is handed to the reader piece by piece, so that one bad
//! entry does not hide the others.

use std::io;

use bytes::Bytes;
use rocksdb::{ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch, WriteOptions};

use super::{
    COMMITTED, DBRecoveryMode, Folder, LOG, META, PURGED, VOTE, column, meta, open_db, open_entry,
    seal,
};
use crate::codec::{CodecError, Coded};
use crate::error::StoreError;
use crate::types::{Entry, LogId, Vote};

/// An entry as it lies on disk.
pub(crate) struct Record {
    pub(crate) index: u64,
    /// Checksum and body.
    pub(crate) sealed: Box<[u8]>,
    /// The body's meaning, or what is wrong with it.
    pub(crate) entry: io::Result<Entry>,
}

/// A log that is only looked at.
pub(crate) struct LogFile {
    db: DB,
}

impl LogFile {
    pub(crate) fn open(folder: &Folder) -> Result<Self, StoreError> {
        let dir = folder.path();
        let database = folder.database();
        if !database.join("CURRENT").exists() {
            return Err(StoreError::corrupt(dir, "it has no log"));
        }
        let mut options = Options::default();
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let columns =
            ["default", LOG, META].map(|n| ColumnFamilyDescriptor::new(n, Options::default()));
        DB::open_cf_descriptors_read_only(&options, database, columns, false)
            .map(|db| Self { db })
            .map_err(|e| StoreError::rocks(dir, &e))
    }

    pub(crate) fn vote(&self) -> io::Result<Option<Vote>> {
        meta(&self.db, VOTE)
    }

    pub(crate) fn committed(&self) -> io::Result<Option<LogId>> {
        meta(&self.db, COMMITTED)
    }

    pub(crate) fn purged(&self) -> io::Result<Option<LogId>> {
        meta(&self.db, PURGED)
    }

    /// All entries in their order, those that purging has left behind too. An error is the database's own and
    /// ends the walk.
    pub(crate) fn records(&self) -> impl Iterator<Item = io::Result<Record>> {
        let items = self.db.iterator_cf(column(&self.db, LOG), IteratorMode::Start);
        items.map(|item| {
            let (key, sealed) = item.map_err(io::Error::other)?;
            let index =
                u64::from_be_bytes(key[..].try_into().map_err(|_| CodecError("key of an entry"))?);
            let entry = open_record(index, &sealed);
            Ok(Record { index, sealed, entry })
        })
    }
}

/// The entry at `index`, from its checksum and body.
pub(crate) fn open_record(index: u64, sealed: &[u8]) -> io::Result<Entry> {
    let (_, body) = open_entry(&index.to_be_bytes(), sealed)?;
    let entry = Entry::decode(Bytes::copy_from_slice(body))?;
    if entry.log_id.index != index {
        return Err(CodecError("entry: it lies at another's place").into());
    }
    Ok(entry)
}

/// Writes the log of a member that has a snapshot up to `purged` and nothing after it. Durable on return.
pub(crate) fn seed(folder: &Folder, vote: &Vote, purged: &LogId) -> Result<(), StoreError> {
    let db = open_db(folder.path(), &folder.database())?;
    let mut batch = WriteBatch::default();
    batch.put_cf(column(&db, META), VOTE, seal(VOTE, &vote.encode()));
    batch.put_cf(column(&db, META), PURGED, seal(PURGED, &purged.encode()));
    batch.put_cf(column(&db, META), COMMITTED, seal(COMMITTED, &purged.encode()));
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(|e| StoreError::rocks(folder.path(), &e))
}
