//! What can go wrong in the replicated log, by who has to act: the operator (a data directory that can't be
//! used), a client (ask the leader), or the supervisor (start the process again).

use std::path::{Path, PathBuf};

use mainstay_state::NewerCommand;

/// A data directory that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error(
        "data directory {dir} is in use by another process; stop that one, or pass another --data-dir"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It holds something else.
    #[error(
        "{dir} is not empty and holds no control plane data; pass an empty or new folder with --data-dir"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// It was written in a format this program does not read.
    #[error(
        "data directory {dir} has format {found}, this program reads formats up to {expected}; start the version that wrote it or a newer one, or pass another --data-dir"
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: String,
        /// The newest that this program reads.
        expected: u32,
    },
    /// It belongs to another member.
    #[error(
        "data directory {dir} belongs to member {found}, not to member {expected}; pass --id {found} or another --data-dir"
    )]
    OtherMember {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asked.
        expected: u64,
    },
    /// It holds nothing, where something was to be read.
    #[error("{dir} holds no data of a control member; give a member's --data-dir")]
    Absent {
        /// The directory.
        dir: PathBuf,
    },
    /// Its contents contradict themselves.
    #[error(
        "data directory {dir} is damaged: {detail}; move it away, remove this member with `mainstay control members rm`, and let it join again under a new id"
    )]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The disk or the operating system refused.
    #[error("data directory {dir}: {detail}; check free space and permissions")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was refused.
        detail: String,
    },
}

impl StoreError {
    pub(crate) fn io(dir: &Path, error: &std::io::Error) -> Self {
        Self::Io { dir: dir.to_owned(), detail: error.to_string() }
    }

    pub(crate) fn corrupt(dir: &Path, detail: impl Into<String>) -> Self {
        Self::Corrupt { dir: dir.to_owned(), detail: detail.into() }
    }

    pub(crate) fn rocks(dir: &Path, error: &rocksdb::Error) -> Self {
        let detail = error.to_string();
        match error.kind() {
            rocksdb::ErrorKind::IOError if detail.contains("LOCK") => {
                Self::Locked { dir: dir.to_owned() }
            }
            rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument => {
                Self::corrupt(dir, detail)
            }
            _ => Self::Io { dir: dir.to_owned(), detail },
        }
    }
}

/// Why a data directory could not be looked at, copied or made from a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is there already.
    #[error("{path} exists already; give a name that is free")]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// The file is no backup, or not all of one.
    #[error("{file} is not a whole backup: {detail}; take another copy")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// The disk or the operating system refused.
    #[error("{path}: {detail}; check free space and permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was refused.
        detail: String,
    },
}

impl OfflineError {
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), detail: error.to_string() }
    }

    pub(crate) fn damaged(file: &Path, detail: impl ToString) -> Self {
        Self::Damaged { file: file.to_owned(), detail: detail.to_string() }
    }
}

/// Why a member could not be started.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Its data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its settings contradict each other.
    #[error("settings: {0}")]
    Settings(String),
    /// The replicated log could not start or has ended.
    #[error("the replicated log has ended: {0}")]
    Ended(String),
}

/// Why a proposal or a linearizable read did not happen, or may not have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none.
    #[error("this member does not lead{}", .leader.as_ref().map(|l| format!("; ask {l}")).unwrap_or_default())]
    NotLeader {
        /// The leader's address, when known.
        leader: Option<String>,
    },
    /// No quorum answered in time, or too much is under way. A write may or may not have happened; sending it
    /// again is safe, since every command is idempotent.
    #[error("unavailable: {0}")]
    Unavailable(&'static str),
    /// Larger than an entry may be.
    #[error("a command of {bytes} bytes is larger than {max}; send less at a time")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Members of the cluster's version could not read it.
    #[error("{newer}: {why}")]
    Newer {
        /// What it needs.
        newer: NewerCommand,
        /// Why the version is not raised, and what to do.
        why: String,
    },
    /// The group has ended.
    #[error("the replicated log has ended: {0}")]
    Fatal(String),
}

/// Why the membership did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// As for a proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The id is in use at another address.
    #[error("member {id} exists already at {address}; ids are never reused, choose another")]
    Exists {
        /// The id.
        id: u64,
        /// Where it is.
        address: String,
    },
    /// The id is in use by another data directory.
    #[error(
        "member {id} is in the group with another data directory; an empty one has forgotten its votes and can't take its place: run `mainstay control members rm {id}`, then start it with an empty --data-dir, --join and an id that was never used"
    )]
    OtherInstance {
        /// The id.
        id: u64,
    },
    /// No such member.
    #[error("there is no member {id}; see `mainstay control members`")]
    Unknown {
        /// The id.
        id: u64,
    },
    /// It runs an older program than the cluster's log takes.
    #[error(
        "member {id} runs version {knows}, the cluster is at version {version}; start it with the program that the other members run"
    )]
    Older {
        /// The id.
        id: u64,
        /// The newest version that it knows.
        knows: u8,
        /// The cluster's.
        version: u8,
    },
    /// One more than the group may have.
    #[error("the group has {max} members already")]
    Full {
        /// The limit.
        max: usize,
    },
    /// The only voter can't be removed.
    #[error("member {id} is the only voter; add another first")]
    LastVoter {
        /// The id.
        id: u64,
    },
    /// A change is under way, or the new member does not keep up.
    #[error("the membership did not change: {0}")]
    Refused(String),
}
