//! Who is in the group: the first members, joining, leaving, handing leadership over.
//!
//! A new member first learns the log without a vote, so that it never counts for a quorum it can't keep up with.
//! An id stands for one data directory for ever; giving it to another could split the group. The group therefore
//! keeps each directory's instance number beside its member's address, and learns those it was not told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_types::NodeId;
use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError};
use openraft::metrics::WaitError;
use tokio::time::Instant;

use super::{Group, MEMBERS_MAX};
use crate::error::{MemberError, ProposeError};
use crate::network::identity::same;
use crate::types::{Peer, TypeConfig};

/// How many entries a learner may lack when it gets its vote.
const LAG_MAX: u64 = 256;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a change that is under way is waited for.
const CHANGE_WAIT: Duration = Duration::from_secs(10);
/// How long a hand-over may take.
const TRANSFER_WAIT: Duration = Duration::from_secs(3);

/// One of the first members of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    /// Its id.
    pub id: NodeId,
    /// Where others reach it.
    pub address: String,
    /// The number of its data directory, 0 if it could not be asked. The founding member knows its own.
    pub instance: u64,
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Group {
    /// Whether this member was ever in a group.
    pub async fn is_initialised(&self) -> Result<bool, ProposeError> {
        self.inner.raft.is_initialized().await.map_err(|e| self.fatal(e))
    }

    /// Makes this member the whole group.
    pub async fn init_single(&self, address: &str) -> Result<bool, MemberError> {
        let me = Founder { id: self.node(), address: address.to_owned(), instance: 0 };
        self.initialise(&[me]).await
    }

    /// Founds a group of `members`, this one among them. False, and nothing changes, if this member was in a
    /// group before. To be called on one member of an empty group only.
    pub async fn initialise(&self, members: &[Founder]) -> Result<bool, MemberError> {
        if members.len() > MEMBERS_MAX {
            return Err(MemberError::Full { max: MEMBERS_MAX });
        }
        if self.is_initialised().await? {
            return Ok(false);
        }
        let instance = |m: &Founder| if m.id == self.node() { self.instance() } else { m.instance };
        let peer = |m: &Founder| Peer { address: m.address.clone(), instance: instance(m) };
        let peers: BTreeMap<u64, Peer> = members.iter().map(|m| (m.id.0, peer(m))).collect();
        match self.inner.raft.initialize(peers).await {
            Ok(()) => {
                self.elect_alone().await;
                Ok(true)
            }
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(MemberError::Refused(error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(self.fatal(fatal).into()),
        }
    }

    /// Adds a member that learns the log and has no vote. Adding it again at the same address changes nothing;
    /// a known id with another data directory is refused. `instance` is 0 if the caller does not know it.
    pub async fn add_learner(
        &self,
        id: NodeId,
        address: &str,
        instance: u64,
    ) -> Result<(), MemberError> {
        if self.leading_term().is_none() {
            return Err(self.not_leading().into());
        }
        let members = self.status().members;
        if let Some(known) = members.iter().find(|m| m.id == id) {
            if !same(known.instance, instance) {
                return Err(MemberError::OtherInstance { id: id.0 });
            }
            if known.address == address {
                return Ok(());
            }
            return Err(MemberError::Exists { id: id.0, address: known.address.clone() });
        }
        if members.len() >= MEMBERS_MAX {
            return Err(MemberError::Full { max: MEMBERS_MAX });
        }
        let peer = Peer { address: address.to_owned(), instance };
        self.retry(|| self.inner.raft.add_learner(id.0, peer.clone(), false)).await
    }

    /// Writes down the data directory of a member that joined without naming it. One that is known already never
    /// changes.
    pub async fn learn_instance(&self, id: NodeId, instance: u64) -> Result<(), MemberError> {
        let members = self.status().members;
        let known = members.iter().find(|m| m.id == id).ok_or(MemberError::Unknown { id: id.0 })?;
        if !same(known.instance, instance) {
            return Err(MemberError::OtherInstance { id: id.0 });
        }
        if known.instance == instance || instance == 0 {
            return Ok(());
        }
        let peer = Peer { address: known.address.clone(), instance };
        let nodes = BTreeMap::from([(id.0, peer)]);
        self.retry(|| {
            let change = ChangeMembers::SetNodes(nodes.clone());
            self.inner.raft.change_membership(change, true)
        })
        .await
    }

    /// Gives a learner its vote, once it has caught up; gives up after `patience`.
    pub async fn promote(&self, id: NodeId, patience: Duration) -> Result<(), MemberError> {
        let until = Instant::now() + patience;
        loop {
            let status = self.status();
            let Some(member) = status.members.iter().find(|m| m.id == id) else {
                return Err(MemberError::Unknown { id: id.0 });
            };
            if member.voter {
                return Ok(());
            }
            if self.leading_term().is_none() {
                return Err(self.not_leading().into());
            }
            let near = member.matched.is_some_and(|at| at.0 + LAG_MAX >= status.last_log.0);
            // A member that has nothing yet may never have been reached.
            if near && member.matched.is_some_and(|at| at.0 > 0) {
                break;
            }
            if Instant::now() >= until {
                return Err(MemberError::Refused(format!(
                    "member {id} at {} did not catch up in time; is it running?",
                    member.address
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        let voter = BTreeSet::from([id.0]);
        self.retry(|| {
            self.inner.raft.change_membership(ChangeMembers::AddVoterIds(voter.clone()), true)
        })
        .await
    }

    /// Takes a member out. Removing one that is not in the group is an error; the leader may remove itself.
    pub async fn remove(&self, id: NodeId) -> Result<(), MemberError> {
        if self.leading_term().is_none() {
            return Err(self.not_leading().into());
        }
        let members = self.status().members;
        let member =
            members.iter().find(|m| m.id == id).ok_or(MemberError::Unknown { id: id.0 })?;
        let voters = members.iter().filter(|m| m.voter).count();
        if member.voter && voters == 1 {
            return Err(MemberError::LastVoter { id: id.0 });
        }
        let ids = BTreeSet::from([id.0]);
        let voter = member.voter;
        self.retry(|| {
            let change = if voter {
                ChangeMembers::RemoveVoters(ids.clone())
            } else {
                ChangeMembers::RemoveNodes(ids.clone())
            };
            self.inner.raft.change_membership(change, false)
        })
        .await
    }

    /// Hands leadership to another voter, without an election timeout in between.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), MemberError> {
        if self.leading_term().is_none() {
            return Err(self.not_leading().into());
        }
        if !self.status().members.iter().any(|m| m.id == to && m.voter) {
            return Err(MemberError::Unknown { id: to.0 });
        }
        if to == self.node() {
            return Ok(());
        }
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|e| self.fatal(e))?;
        let led = self.inner.raft.wait(Some(TRANSFER_WAIT));
        match led.metrics(|m| m.current_leader == Some(to.0), "the new leader leads").await {
            Ok(_) => Ok(()),
            Err(WaitError::ShuttingDown) => Err(self.fatal("shut down").into()),
            Err(_) => Err(MemberError::Refused(format!("member {to} did not take the lead"))),
        }
    }

    /// Repeats a change while another one is under way or the leader is not yet ready for it.
    async fn retry<T, F, Fut>(&self, change: F) -> Result<(), MemberError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, WriteError>>,
    {
        let until = Instant::now() + CHANGE_WAIT;
        loop {
            let error = match tokio::time::timeout_at(until, change()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(ProposeError::Unavailable("no quorum answered in time").into());
                }
            };
            if !transient(&error) || Instant::now() >= until {
                return Err(self.unchanged(error));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn unchanged(&self, error: WriteError) -> MemberError {
        match error {
            RaftError::Fatal(fatal) => self.fatal(fatal).into(),
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                let leader = to.leader_node.map(|peer| peer.address);
                ProposeError::NotLeader { leader }.into()
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::Unavailable("leadership changed meanwhile").into()
            }
            RaftError::APIError(error) => MemberError::Refused(error.to_string()),
        }
    }
}

fn transient(error: &WriteError) -> bool {
    use openraft::errors::ForwardReason;
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            to.reason == ForwardReason::LeaseExpired
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => matches!(
            error,
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)
        ),
        _ => false,
    }
}
