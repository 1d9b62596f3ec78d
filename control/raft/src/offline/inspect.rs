//! What a data directory holds, in numbers.
//!
//! Damage is listed, not fatal: somebody who looks into a directory often does so because it is damaged. Only a
//! folder that is no member's, or of another format, is an error.

use std::collections::BTreeMap;
use std::path::Path;

use mainstay_proto::v1;
use mainstay_proto::v1::command::Command;
use mainstay_state::{Limits, Pin};
use openraft::EntryPayload;

use super::existing;
use crate::error::{OfflineError, StoreError};
use crate::machine::{decode_image, open};
use crate::snapshot::SnapshotStore;
use crate::store::{Folder, LogFile, Promise};
use crate::types::{Entry, LogId, Membership, StoredMembership};

/// Problems that are listed one by one; more are only counted.
const PROBLEMS_MAX: usize = 100;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The term in which it was written.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl From<&LogId> for Position {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

/// The vote on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteSeen {
    /// The term.
    pub term: u64,
    /// For whom.
    pub member: u64,
    /// Whether a quorum is known to have given the same.
    pub committed: bool,
}

/// The log on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSeen {
    /// The first entry that is kept.
    pub first: Option<Position>,
    /// The last one.
    pub last: Option<Position>,
    /// How many there are.
    pub entries: u64,
    /// Their size, checksums included.
    pub bytes: u64,
    /// How many commands of each kind; `membership` and `blank` are the log's own.
    pub kinds: BTreeMap<&'static str, u64>,
}

/// The state's image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSeen {
    /// The last entry that it holds; none in an image from before the first.
    pub at: Option<Position>,
    /// The size of the image.
    pub bytes: u64,
    /// The version of the cluster in it.
    pub version: u8,
    /// The digest of the state, equal on members with equal states.
    pub digest: u128,
    /// Cluster time in it.
    pub time_ms: u64,
    /// Its pins, ended ones that are remembered too.
    pub pins: Vec<Pin>,
}

/// A member as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSeen {
    /// Its id.
    pub id: u64,
    /// Where it is.
    pub address: String,
    /// The number of its data directory; 0 if not known.
    pub instance: u64,
    /// Whether it votes.
    pub voter: bool,
}

/// What a data directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Whose it is.
    pub member: u64,
    /// Its own number; 0 in directories from before these numbers.
    pub instance: u64,
    /// The format of the directory, which goes up with the cluster's version.
    pub format: u32,
    /// The vote.
    pub vote: Option<VoteSeen>,
    /// How far entries are known to be agreed on; it may lag.
    pub committed: Option<Position>,
    /// The last entry that was taken off the log.
    pub purged: Option<Position>,
    /// The log.
    pub log: LogSeen,
    /// The snapshot.
    pub snapshot: Option<SnapshotSeen>,
    /// The newest membership in log or snapshot.
    pub members: Vec<MemberSeen>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// Problems beyond those.
    pub problems_more: u64,
}

impl Inspection {
    fn problem(&mut self, text: impl ToString) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text.to_string());
        } else {
            self.problems_more += 1;
        }
    }

    /// The value, or nothing and a problem.
    fn noted<T, E: ToString>(&mut self, what: &str, read: Result<Option<T>, E>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.problem(format!("{what}: {}", error.to_string()));
            None
        })
    }
}

/// Looks at `dir` and changes nothing in it.
pub fn inspect(dir: &Path, limits: &Limits) -> Result<Inspection, OfflineError> {
    let (folder, marker) = existing(dir)?;
    let mut seen = Inspection {
        member: marker.member,
        instance: folder.instance(),
        format: marker.format,
        vote: None,
        committed: None,
        purged: None,
        log: LogSeen::default(),
        snapshot: None,
        members: Vec::new(),
        problems: Vec::new(),
        problems_more: 0,
    };
    let mut membership = None;
    // Before the log: of a member that runs, the log that is read has what was promised before.
    let promise = seen.noted("acknowledged", Promise::read(&folder).map(Some)).unwrap_or_default();
    match LogFile::open(&folder) {
        Ok(log) => membership = look_at_log(&log, &promise, &mut seen),
        Err(StoreError::Corrupt { detail, .. }) => seen.problem(format!("log: {detail}")),
        Err(error) => seen.problem(format!("log: {error}")),
    }
    // After the log: entries go only once a snapshot has them, so in this order nothing can be missed.
    let from_snapshot = look_at_snapshot(&folder, limits, &mut seen);
    if let Some(membership) = membership.or(from_snapshot) {
        seen.members = members(&membership);
    }
    let covered = seen.snapshot.as_ref().and_then(|s| s.at);
    if let Some(purged) = seen.purged
        && covered.is_none_or(|at| at.index < purged.index)
    {
        let up_to = covered.map_or_else(|| "nothing".to_owned(), |at| at.index.to_string());
        seen.problem(format!(
            "the log begins after entry {}, the snapshot holds {up_to}",
            purged.index
        ));
    }
    Ok(seen)
}

fn look_at_log(log: &LogFile, promise: &Promise, seen: &mut Inspection) -> Option<Membership> {
    let vote = seen.noted("vote", log.vote());
    seen.vote = vote.map(|v| VoteSeen {
        term: v.leader_id.term,
        member: v.leader_id.node_id,
        committed: v.committed,
    });
    seen.committed = seen.noted("committed position", log.committed()).map(|id| (&id).into());
    let purged = seen.noted("purged position", log.purged());
    seen.purged = purged.as_ref().map(Position::from);
    let mut last = purged;
    let mut expected = seen.purged.map(|at| at.index + 1);
    let mut membership = None;
    for record in log.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                seen.problem(format!("log: {error}"));
                break;
            }
        };
        // A crash between truncating and purging may leave entries below the purged position.
        if seen.purged.is_some_and(|at| record.index <= at.index) {
            continue;
        }
        if expected.is_some_and(|e| e != record.index) {
            seen.problem(format!("the log has a hole before entry {}", record.index));
        }
        expected = Some(record.index.saturating_add(1));
        seen.log.entries += 1;
        seen.log.bytes += record.sealed.len() as u64;
        match record.entry {
            Ok(entry) => {
                last = last.max(Some(entry.log_id));
                note_entry(&entry, seen, &mut membership);
            }
            Err(error) => seen.problem(error),
        }
    }
    if let Err(short) = promise.kept(last.as_ref(), vote.as_ref()) {
        seen.problem(short);
    }
    membership
}

fn note_entry(entry: &Entry, seen: &mut Inspection, membership: &mut Option<Membership>) {
    let at = Position::from(&entry.log_id);
    seen.log.first.get_or_insert(at);
    seen.log.last = Some(at);
    let kind = match &entry.payload {
        EntryPayload::Blank => "blank",
        EntryPayload::Membership(m) => {
            *membership = Some(m.clone());
            "membership"
        }
        EntryPayload::Normal(_) => match open(entry) {
            Ok(opened) => opened.map_or("blank", |o| kind_of(&o.wire)),
            Err(error) => {
                seen.problem(error);
                "malformed"
            }
        },
    };
    *seen.log.kinds.entry(kind).or_default() += 1;
}

fn kind_of(proposal: &v1::Proposal) -> &'static str {
    match proposal.command.as_ref().and_then(|c| c.command.as_ref()) {
        Some(Command::Tick(_)) => "tick",
        Some(Command::Bootstrap(_)) => "bootstrap",
        Some(Command::RegisterWorker(_)) => "register_worker",
        Some(Command::FenceWorker(_)) => "fence_worker",
        Some(Command::Blocks(_)) => "blocks",
        Some(Command::Cut(_)) => "cut",
        Some(Command::PutPin(_)) => "put_pin",
        Some(Command::ExtendPin(_)) => "extend_pin",
        Some(Command::ReleasePin(_)) => "release_pin",
        Some(Command::ReportPin(_)) => "report_pin",
        Some(Command::OrderPin(_)) => "order_pin",
        Some(Command::PutTenant(_)) => "put_tenant",
        Some(Command::RemoveTenant(_)) => "remove_tenant",
        Some(Command::PutKey(_)) => "put_key",
        Some(Command::RemoveKey(_)) => "remove_key",
        Some(Command::PutJoinToken(_)) => "put_join_token",
        Some(Command::UseJoinToken(_)) => "use_join_token",
        Some(Command::RemoveJoinToken(_)) => "remove_join_token",
        Some(Command::RaiseVersion(_)) => "raise_version",
        Some(Command::PutResponse(_)) => "put_response",
        Some(Command::EndResponse(_)) => "end_response",
        None => "malformed",
    }
}

fn look_at_snapshot(folder: &Folder, limits: &Limits, seen: &mut Inspection) -> Option<Membership> {
    let loaded = SnapshotStore::new(folder.snapshot()).load();
    let snapshot = seen.noted("snapshot", loaded)?;
    match decode_image(&snapshot.snapshot, limits) {
        Ok(machine) => {
            seen.snapshot = Some(SnapshotSeen {
                at: snapshot.meta.last_log_id.as_ref().map(Position::from),
                bytes: snapshot.snapshot.len() as u64,
                version: machine.version(),
                digest: machine.digest(),
                time_ms: machine.time().now_ms,
                pins: machine.pins().cloned().collect(),
            });
        }
        Err(error) => seen.problem(format!("snapshot: {error}")),
    }
    let stored: &StoredMembership = &snapshot.meta.last_membership;
    stored.log_id().is_some().then(|| stored.membership().clone())
}

fn members(membership: &Membership) -> Vec<MemberSeen> {
    let voters: Vec<u64> = membership.voter_ids().collect();
    let member = |(id, peer): (&u64, &crate::types::Peer)| MemberSeen {
        id: *id,
        address: peer.address.clone(),
        instance: peer.instance,
        voter: voters.contains(id),
    };
    membership.nodes().map(member).collect()
}
