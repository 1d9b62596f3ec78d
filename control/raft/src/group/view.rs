//! How a group looks from one of its members.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_types::{LogIndex, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, ServerState};

use super::Group;
use crate::types::LogId;

/// What a member is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows a leader.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It has no vote.
    Learner,
    /// Its group has ended.
    Down,
}

impl Role {
    /// The name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Down => "down",
        }
    }
}

/// Whether this member leads, and how far it has come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another does, or nobody.
    None,
    /// This one, but its first entry is not applied yet.
    Starting {
        /// The term.
        term: u64,
    },
    /// This one, and it serves.
    Serving {
        /// The term.
        term: u64,
    },
}

/// A member as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its address.
    pub address: String,
    /// The number of its data directory; 0 while the group does not know it.
    pub instance: u64,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry known to be on its disk; only the leader knows.
    pub matched: Option<LogIndex>,
}

/// A group as this member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// This member.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// The last entry in its log.
    pub last_log: LogIndex,
    /// The last entry that a quorum has, as far as it knows.
    pub committed: LogIndex,
    /// The last entry it has applied.
    pub applied: LogIndex,
    /// The last entry its snapshot covers.
    pub snapshot: LogIndex,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
}

impl Group {
    /// As leader: the last committed entry, and how long ago at most it was the last of the whole group. A leader that
    /// was cut off knows it of ever longer ago; a member that does not lead, or serves not yet, does not know.
    #[must_use]
    pub fn known_as_leader(&self) -> Option<(LogIndex, Duration)> {
        let Leadership::Serving { term } = *self.inner.leadership.borrow() else { return None };
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader || metrics.current_term != term {
            return None;
        }
        let alone = metrics.membership_config.voter_ids().eq([self.inner.node]);
        // The time when the acknowledged message was sent, not when its answer came.
        let ago = match &metrics.last_quorum_acked {
            _ if alone => Duration::ZERO,
            Some(at) => at.elapsed(),
            None => return None,
        };
        let committed = metrics.cluster_committed.max(metrics.local_committed);
        Some((LogIndex(committed.map_or(0, |id| id.index)), ago))
    }

    /// How the group stands, as this member sees it.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let role = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => Role::Down,
            (_, ServerState::Leader) => Role::Leader,
            (_, ServerState::Follower) => Role::Follower,
            (_, ServerState::Candidate) => Role::Candidate,
            (_, ServerState::Learner) => Role::Learner,
        };
        let index = |id: Option<LogId>| LogIndex(id.map_or(0, |id| id.index));
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        let empty = BTreeMap::new();
        let matched = metrics.replication.as_ref().unwrap_or(&empty);
        let members = metrics.membership_config.nodes().map(|(id, peer)| MemberStatus {
            id: NodeId(*id),
            address: peer.address.clone(),
            instance: peer.instance,
            voter: voters.contains(id),
            matched: matched.get(id).map(|at| index(*at)),
        });
        GroupStatus {
            node: NodeId(metrics.id),
            role,
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            last_log: LogIndex(metrics.last_log_index.unwrap_or(0)),
            committed: index(metrics.cluster_committed.max(metrics.local_committed)),
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            members: members.collect(),
        }
    }
}
