//! Backups: log and snapshot of one member in one file, and a new group of one member made from it.
//!
//! The file is a row of records, each with a checksum, and the last one has a checksum over all before it, so
//! that a flipped bit, a cut or a swap is noticed before anything is made from it. A backup holds the whole log
//! of its member, entries that the group had not agreed on yet included: no acknowledged pin is missing from it,
//! and one that nobody was told of may be in it.
//!
//! What is made from it goes on at a log index and a term far beyond the old ones, so that a watcher which saw
//! more of the old log than the backup has is told to begin anew.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mainstay_state::{Limits, Machine, Outcome};
use mainstay_types::{Command, LogIndex, NodeId, Proposal, Stamp};
use prost::Message;

use super::existing;
use crate::codec::{LogIdForm, VoteForm};
use crate::error::{OfflineError, StoreError};
use crate::machine::{decode_image, open};
use crate::snapshot::{self, SNAPSHOT_BYTES_MAX, SnapshotStore};
use crate::store::{Folder, LogFile, Marker, Promise, open_record, seed};
use crate::types::{LeaderId, LogId, Membership, Peer, SnapshotMeta, StoredMembership, Vote};

const MAGIC: [u8; 8] = *b"MSTBACK1";
const HEAD: u8 = 1;
const SNAPSHOT: u8 = 2;
const ENTRIES: u8 = 3;
const END: u8 = 4;
/// Entries are gathered up to this size.
const RECORD_BYTES: usize = 4 << 20;
/// The largest record: a snapshot with its own head.
const RECORD_BYTES_MAX: u64 = SNAPSHOT_BYTES_MAX + (1 << 20);
/// How far beyond the old log the new one begins.
const INDEX_GAP: u64 = 1 << 32;

#[derive(Clone, PartialEq, Message)]
struct HeadForm {
    #[prost(uint64, tag = "1")]
    member: u64,
    #[prost(fixed64, tag = "2")]
    instance: u64,
    #[prost(message, optional, tag = "3")]
    vote: Option<VoteForm>,
    #[prost(message, optional, tag = "4")]
    purged: Option<LogIdForm>,
}

#[derive(Clone, PartialEq, Message)]
struct EntriesForm {
    #[prost(uint64, tag = "1")]
    first: u64,
    /// As they lie on disk, each with its checksum.
    #[prost(bytes = "vec", repeated, tag = "2")]
    sealed: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct EndForm {
    #[prost(uint64, tag = "1")]
    entries: u64,
    #[prost(fixed32, tag = "2")]
    sum: u32,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUp {
    /// Whose it is.
    pub member: u64,
    /// Entries of the log in it.
    pub entries: u64,
    /// The last entry in log or snapshot.
    pub last_index: u64,
    /// The size of the file.
    pub bytes: u64,
}

/// What a backup is made into.
#[derive(Debug, Clone)]
pub struct RestoreTo {
    /// The id of the only member.
    pub member: NodeId,
    /// Where others reach it, as `host:port`.
    pub address: String,
    /// The limits of the state; those of the group that was backed up.
    pub limits: Limits,
}

/// What was made from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whose backup it was.
    pub from_member: u64,
    /// The last entry of the backup.
    pub last_index: u64,
    /// The entry with which the new log begins.
    pub index: u64,
    /// The number of the new data directory.
    pub instance: u64,
    /// Live pins at that entry.
    pub pins_live: u64,
}

/// Copies log and snapshot in `dir` into the new file `file`; changes nothing in `dir`.
pub fn backup(dir: &Path, file: &Path) -> Result<BackedUp, OfflineError> {
    let (folder, Marker { member, .. }) = existing(dir)?;
    // Before the log: of a member that runs, the log that is read has what was promised before.
    let promise = Promise::read(&folder)?;
    let log = LogFile::open(&folder)?;
    // Under its own name from the start: a backup that is cut off is noticed by what reads it.
    let archive = Archive::create(file)?;
    let done = write_archive(&folder, member, &log, &promise, archive)
        .and_then(|done| sync_parent(file).map(|()| done));
    if done.is_err() {
        // The error that is told says more than one of this.
        let _ = fs::remove_file(file);
    }
    done
}

fn write_archive(
    folder: &Folder,
    member: u64,
    log: &LogFile,
    promise: &Promise,
    mut out: Archive,
) -> Result<BackedUp, OfflineError> {
    let dir = folder.path();
    let corrupt = |e: std::io::Error| OfflineError::Store(StoreError::corrupt(dir, e.to_string()));
    let vote = log.vote().map_err(corrupt)?;
    let purged = log.purged().map_err(corrupt)?;
    let head = HeadForm {
        member,
        instance: folder.instance(),
        vote: vote.as_ref().map(VoteForm::from),
        purged: purged.as_ref().map(LogIdForm::from),
    };
    out.record(HEAD, &head.encode_to_vec())?;
    let mut last = purged.map_or(0, |id| id.index);
    let mut chunk = EntriesForm::default();
    let (mut bytes, mut entries) = (0, 0);
    let mut expected = purged.map(|id| id.index + 1);
    let mut newest = purged;
    for record in log.records() {
        let record = record.map_err(corrupt)?;
        if purged.is_some_and(|id| record.index <= id.index) {
            continue;
        }
        newest = newest.max(Some(record.entry.map_err(corrupt)?.log_id));
        if expected.is_some_and(|e| e != record.index) {
            let detail = format!("the log has a hole before entry {}", record.index);
            return Err(StoreError::corrupt(dir, detail).into());
        }
        if bytes >= RECORD_BYTES {
            out.record(ENTRIES, &std::mem::take(&mut chunk).encode_to_vec())?;
            bytes = 0;
        }
        if chunk.sealed.is_empty() {
            chunk.first = record.index;
        }
        bytes += record.sealed.len();
        chunk.sealed.push(record.sealed.into_vec());
        entries += 1;
        last = last.max(record.index);
        expected = Some(record.index + 1);
    }
    out.record(ENTRIES, &chunk.encode_to_vec())?;
    promise
        .kept(newest.as_ref(), vote.as_ref())
        .map_err(|short| StoreError::corrupt(dir, short.to_string()))?;
    // After the log: entries go only once a snapshot has them, so that a member that runs leaves no hole.
    let snapshot = SnapshotStore::new(folder.snapshot()).load().map_err(corrupt)?;
    if purged > snapshot.as_ref().and_then(|s| s.meta.last_log_id) {
        return Err(StoreError::corrupt(dir, "its snapshot ends before its log begins").into());
    }
    if let Some(snapshot) = snapshot {
        last = last.max(snapshot.meta.last_log_id.map_or(0, |id| id.index));
        let whole = snapshot::close(&snapshot.meta, &snapshot.snapshot)
            .map_err(|e| OfflineError::io(&out.path, &e))?;
        out.record(SNAPSHOT, &whole)?;
    }
    let bytes = out.end(entries)?;
    Ok(BackedUp { member, entries, last_index: last, bytes })
}

/// A file that is being written.
struct Archive {
    path: PathBuf,
    out: BufWriter<File>,
    sum: crc32fast::Hasher,
    bytes: u64,
}

impl Archive {
    fn create(path: &Path) -> Result<Self, OfflineError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => OfflineError::Exists { path: path.to_owned() },
            _ => OfflineError::io(path, &e),
        })?;
        let (path, sum) = (path.to_owned(), crc32fast::Hasher::new());
        let mut archive = Self { path, out: BufWriter::new(file), sum, bytes: 0 };
        archive.put(&MAGIC)?;
        Ok(archive)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), OfflineError> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| OfflineError::io(&self.path, &e))
    }

    fn record(&mut self, kind: u8, body: &[u8]) -> Result<(), OfflineError> {
        self.put(&[kind])?;
        self.put(&(body.len() as u64).to_le_bytes())?;
        self.put(&record_sum(kind, body).to_le_bytes())?;
        self.put(body)
    }

    fn end(mut self, entries: u64) -> Result<u64, OfflineError> {
        let end = EndForm { entries, sum: self.sum.clone().finalize() };
        self.record(END, &end.encode_to_vec())?;
        let path = self.path;
        let file = self.out.into_inner().map_err(|e| OfflineError::io(&path, e.error()))?;
        file.sync_all().map_err(|e| OfflineError::io(&path, &e))?;
        Ok(self.bytes)
    }
}

fn record_sum(kind: u8, body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[kind]);
    sum.update(&(body.len() as u64).to_le_bytes());
    sum.update(body);
    sum.finalize()
}

/// Makes `dir`, which must not exist or be empty, the data directory of a group of one member from `file`.
pub fn restore(file: &Path, dir: &Path, to: &RestoreTo) -> Result<Restored, OfflineError> {
    if to.member.0 == 0 {
        return Err(OfflineError::Request("a member's id must not be 0; pass --member ID".into()));
    }
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(OfflineError::Exists { path: dir.to_owned() });
    }
    let read = read_archive(file, &to.limits)?;
    let temporary = beside(dir, "restoring");
    let done = write_folder(&temporary, read, to).and_then(|done| {
        fs::rename(&temporary, dir).map_err(|e| OfflineError::io(dir, &e))?;
        sync_parent(dir).map(|()| done)
    });
    if done.is_err() {
        // What is half made must not be taken for a member's; it is gone already if the last step failed.
        let _ = fs::remove_dir_all(&temporary);
    }
    done
}

/// What a backup amounts to.
struct State {
    from_member: u64,
    term: u64,
    last: Option<LogId>,
    machine: Machine,
}

fn read_archive(file: &Path, limits: &Limits) -> Result<State, OfflineError> {
    let damaged = |detail: &dyn std::fmt::Display| OfflineError::damaged(file, detail);
    let mut records = Records::open(file)?;
    let mut head = None;
    let mut chunks: Vec<EntriesForm> = Vec::new();
    let mut image = None;
    let entries = loop {
        match records.next()? {
            (HEAD, body) if head.is_none() => {
                head = Some(HeadForm::decode(body).map_err(|e| damaged(&e))?);
            }
            (ENTRIES, body) => chunks.push(EntriesForm::decode(body).map_err(|e| damaged(&e))?),
            (SNAPSHOT, body) if image.is_none() => {
                image = Some(snapshot::open(&body).map_err(|e| damaged(&e))?);
            }
            (END, body) => break EndForm::decode(body).map_err(|e| damaged(&e))?.entries,
            (kind, _) => return Err(damaged(&format!("an unexpected record of kind {kind}"))),
        }
    };
    let head = head.ok_or_else(|| damaged(&"it has no head"))?;
    if chunks.iter().map(|c| c.sealed.len() as u64).sum::<u64>() != entries {
        return Err(damaged(&"entries are missing"));
    }
    let (mut last, mut machine) = match image {
        Some((meta, image)) => {
            (meta.last_log_id, decode_image(&image, limits).map_err(|e| damaged(&e))?)
        }
        None => (None, Machine::new(*limits)),
    };
    for chunk in chunks {
        for (index, sealed) in (chunk.first..).zip(&chunk.sealed) {
            replay(index, sealed, &mut last, &mut machine).map_err(|e| damaged(&e))?;
        }
    }
    let purged = head.purged.as_ref().map(LogIdForm::open).transpose().map_err(|e| damaged(&e))?;
    if purged > last {
        return Err(damaged(&"its snapshot ends before its log begins"));
    }
    let vote = head.vote.as_ref().map(VoteForm::open).transpose().map_err(|e| damaged(&e))?;
    let voted = vote.map_or(0, |v| v.leader_id.term);
    let term = voted.max(last.map_or(0, |id| id.leader_id.term));
    Ok(State { from_member: head.member, term, last, machine })
}

fn replay(
    index: u64,
    sealed: &[u8],
    last: &mut Option<LogId>,
    machine: &mut Machine,
) -> std::io::Result<()> {
    let next = last.map_or(0, |id| id.index.saturating_add(1));
    if index < next {
        return Ok(());
    }
    if index > next {
        return Err(std::io::Error::other(format!("it lacks entry {next}")));
    }
    let entry = open_record(index, sealed)?;
    if let Some(opened) = open(&entry)? {
        let _: Outcome = machine.apply(LogIndex(index), &opened.words);
    }
    *last = Some(entry.log_id);
    Ok(())
}

/// A file that is being read; every record was checked before it is handed out.
struct Records {
    path: PathBuf,
    input: BufReader<File>,
    sum: crc32fast::Hasher,
}

impl Records {
    fn open(path: &Path) -> Result<Self, OfflineError> {
        let file = File::open(path).map_err(|e| OfflineError::io(path, &e))?;
        let (path, sum) = (path.to_owned(), crc32fast::Hasher::new());
        let mut records = Self { path, input: BufReader::new(file), sum };
        if *records.take::<8>()? != MAGIC {
            return Err(OfflineError::damaged(&records.path, "it does not begin like one"));
        }
        Ok(records)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, OfflineError> {
        let mut bytes = Vec::new();
        // A length that lies costs no more than the file is long.
        let read = (&mut self.input).take(count).read_to_end(&mut bytes);
        read.map_err(|e| OfflineError::io(&self.path, &e))?;
        if bytes.len() as u64 != count {
            return Err(OfflineError::damaged(&self.path, "it is cut off"));
        }
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<Box<[u8; N]>, OfflineError> {
        let bytes = self.bytes(N as u64)?;
        self.sum.update(&bytes);
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    fn next(&mut self) -> Result<(u8, Bytes), OfflineError> {
        let before = self.sum.clone().finalize();
        let [kind] = *self.take::<1>()?;
        let length = u64::from_le_bytes(*self.take::<8>()?);
        let sum = u32::from_le_bytes(*self.take::<4>()?);
        if length > RECORD_BYTES_MAX {
            return Err(OfflineError::damaged(&self.path, "a record is too large"));
        }
        let body = self.bytes(length)?;
        self.sum.update(&body);
        if record_sum(kind, &body) != sum {
            return Err(OfflineError::damaged(&self.path, "a checksum is wrong"));
        }
        if kind == END {
            let end = EndForm::decode(&body[..]);
            if !end.is_ok_and(|end| end.sum == before) {
                return Err(OfflineError::damaged(&self.path, "its last checksum is wrong"));
            }
            if !self.bytes(1).is_err_and(|e| matches!(e, OfflineError::Damaged { .. })) {
                return Err(OfflineError::damaged(&self.path, "something follows its end"));
            }
        }
        Ok((kind, body.into()))
    }
}

/// Writes the directory of a member whose log has been compacted into one snapshot.
fn write_folder(dir: &Path, read: State, to: &RestoreTo) -> Result<Restored, OfflineError> {
    let State { from_member, term, last, mut machine } = read;
    let member = to.member.0;
    let leader_id = LeaderId { term: term.saturating_add(1), node_id: member };
    let last_index = last.map_or(0, |id| id.index);
    let index = last_index.saturating_add(INDEX_GAP);
    // Brings the state to the new index; time stands still.
    let time = machine.time();
    let stamp = Stamp { tenure: time.tenure, mono_ms: time.mono_ms, wall_ms: 0 };
    let tick = Proposal { stamp, command: Command::Tick };
    let _: Outcome = machine.apply(LogIndex(index), &tick);

    let folder = Folder::claim(dir, member)?;
    folder.stamp(machine.version())?;
    let at = LogId::new(leader_id, index);
    seed(&folder, &Vote { leader_id, committed: false }, &at)?;
    let peer = Peer { address: to.address.clone(), instance: folder.instance() };
    let peers = BTreeMap::from([(member, peer)]);
    let membership = Membership::new(vec![[member].into()], peers)
        .map_err(|e| OfflineError::Request(e.to_string()))?;
    let last_membership = StoredMembership::new(Some(at), membership);
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership };
    SnapshotStore::new(folder.snapshot())
        .save(&meta, &machine.encode())
        .map_err(|e| OfflineError::io(dir, &e))?;
    let pins_live = machine.live_pin_count() as u64;
    Ok(Restored { from_member, last_index, index, instance: folder.instance(), pins_live })
}

/// A name for what is not finished yet, in the same folder, so that it can be renamed.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}-{}", std::process::id()));
    path.with_file_name(name)
}

fn sync_parent(path: &Path) -> Result<(), OfflineError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|e| OfflineError::io(parent, &e))
}
