//! What happened in a run, as those outside could see it, for the invariants to judge.
//!
//! Times are true time in milliseconds since the start, which no member knows. An attempt without an answer may
//! have happened, may happen yet, or never.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_proto::v1;
use mainstay_state::{Limits, Outcome};
use mainstay_types::{ClusterTime, Command, PinId};

/// A pin as a read saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinView {
    /// Which.
    pub id: PinId,
    /// Whether its promise held; false as well if it was unknown.
    pub live: bool,
    /// Cluster time of its end; 0 if it was unknown.
    pub expires_ms: u64,
}

/// What a linearizable read saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who answered.
    pub node: u64,
    /// The last entry that the answer knows of.
    pub applied: u64,
    /// Cluster time there, and whose stamp moved it last.
    pub time: ClusterTime,
    /// The term in which the member said that it serves, right after the read.
    pub serving_term: Option<u64>,
    /// The pins that were asked for.
    pub pins: Vec<PinView>,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are writes")]
pub enum Ask {
    /// Put this through the log.
    Write(Command),
    /// How do these pins stand?
    Read(Vec<PinId>),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is in the log at this index, with this outcome.
    Written(u64, Outcome),
    /// It was read.
    Read(Seen),
}

/// One question to one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Who asked.
    pub client: u64,
    /// When.
    pub asked_ms: u64,
    /// What.
    pub ask: Ask,
    /// The answer and when it was there; `None` says that nothing is known.
    pub answer: Option<(u64, Answer)>,
}

impl Attempt {
    /// A write with its answer: the command, when it was there, its index and outcome.
    #[must_use]
    pub fn written(&self) -> Option<(&Command, u64, u64, &Outcome)> {
        match (&self.ask, &self.answer) {
            (Ask::Write(command), Some((at_ms, Answer::Written(index, outcome)))) => {
                Some((command, *at_ms, *index, outcome))
            }
            _ => None,
        }
    }

    /// A read with its answer, and when it was there.
    #[must_use]
    pub fn read(&self) -> Option<(u64, &Seen)> {
        match &self.answer {
            Some((at_ms, Answer::Read(seen))) => Some((*at_ms, seen)),
            _ => None,
        }
    }
}

/// A member's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at_ms: u64,
    /// Whose.
    pub node: u64,
    /// How far it had applied.
    pub applied: u64,
    /// The digest of its state there.
    pub digest: u128,
}

/// An entry as the first member that applied it had it; `None` is one of Raft's own.
pub type LoggedEntry = Option<Arc<v1::Proposal>>;

/// Everything that the invariants look at.
#[derive(Debug, Default)]
pub struct History {
    /// The limits of the state.
    pub limits: Limits,
    /// All questions, in the order in which they were asked.
    pub attempts: Vec<Attempt>,
    /// Looks at members.
    pub samples: Vec<Sample>,
    /// What was applied.
    pub log: BTreeMap<u64, LoggedEntry>,
    /// Entries that one member had applied and another applied differently.
    pub contradictions: Vec<String>,
    /// When each life of a member began, by its nonce.
    pub lives: BTreeMap<u64, (u64, u64)>,
    /// Members that ended by themselves.
    pub ends: Vec<String>,
    /// From then on nothing is broken any more.
    pub whole_from_ms: u64,
    /// When the clients stopped.
    pub end_ms: u64,
}

impl History {
    /// When the stamp was made that moved `time` last; `None` if its tenure is unknown.
    #[must_use]
    pub fn stamped_ms(&self, time: &ClusterTime) -> Option<u64> {
        let (_, started_ms) = self.lives.get(&time.tenure.boot)?;
        Some(started_ms + time.mono_ms)
    }
}
