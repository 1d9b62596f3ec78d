//! The types that openraft is instantiated with: what a member is, what an entry carries, what applying answers.
//!
//! An entry's body is the encoded proposal and nothing else, so that leader, disk, wire and followers handle one
//! run of bytes and decode it once, when they apply it. Its printed form is its length: bodies hold secrets.

use std::fmt;

use bytes::Bytes;
use mainstay_state::Outcome;
use openraft::OptionalSend;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_adv};
use tokio::time::Instant;

use crate::machine::StateMachine;

/// Where a member is and which data directory it has, as openraft's membership entries keep it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Peer {
    pub(crate) address: String,
    /// The number in its data directory; 0 while the group does not know it.
    pub(crate) instance: u64,
}

/// An encoded `v1::Proposal`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Bytes);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answers.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Of a proposal; openraft's own entries have none.
    pub(crate) outcome: Option<Outcome>,
    /// When the entries that were applied together began to be, and when they were.
    pub(crate) applying: Instant,
    pub(crate) applied: Instant,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, u64>;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Body;
    type R = Answer;
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::Vote<LeaderId>;
    type Payload = openraft::EntryPayload<Body, u64, Peer>;
    type Entry = openraft::Entry<LeaderId, Self::Payload>;
    #[cfg(not(feature = "simulation"))]
    type AsyncRuntime = openraft::impls::TokioRuntime;
    #[cfg(feature = "simulation")]
    type AsyncRuntime = crate::simulation::Runtime;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Body, u64, Peer>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, Peer>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Peer>;
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, u64, Peer, Bytes>;
