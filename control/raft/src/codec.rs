//! The one encoding of Raft's own data, on disk and between members: protobuf, written out by hand so that no
//! layout depends on openraft's types.
//!
//! Tags are never reused. Whatever does not decode is an error, never a default.

mod election;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use election::{TransferForm, TransferReplyForm, VoteReplyForm, VoteRequestForm};

use crate::types::{
    Body, Entry, LeaderId, LogId, Membership, Peer, SnapshotMeta, StoredMembership, TypeConfig,
    Vote,
};

/// Bytes that do not mean what they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct CodecError(pub(crate) &'static str);

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

type Result<T> = std::result::Result<T, CodecError>;

/// Something with an encoding of its own.
pub(crate) trait Coded: Sized {
    fn encode(&self) -> Bytes;
    fn decode(bytes: Bytes) -> Result<Self>;
}

/// Implements [`Coded`] through a prost form and a pair of conversions.
macro_rules! coded {
    ($type:ty, $form:ty, $what:literal) => {
        impl Coded for $type {
            fn encode(&self) -> Bytes {
                <$form>::from(self).encode_to_vec().into()
            }

            fn decode(bytes: Bytes) -> Result<Self> {
                let form = <$form as Message>::decode(bytes).map_err(|_| CodecError($what))?;
                form.open()
            }
        }
    };
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogIdForm {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

impl From<&LogId> for LogIdForm {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl LogIdForm {
    pub(crate) fn open(&self) -> Result<LogId> {
        Ok(LogId::new(LeaderId { term: self.term, node_id: self.node }, self.index))
    }
}

fn close_id(id: Option<&LogId>) -> Option<LogIdForm> {
    id.map(LogIdForm::from)
}

fn open_id(form: Option<&LogIdForm>) -> Option<LogId> {
    form.and_then(|f| f.open().ok())
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteForm {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

impl From<&Vote> for VoteForm {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl VoteForm {
    pub(crate) fn open(&self) -> Result<Vote> {
        let leader_id = LeaderId { term: self.term, node_id: self.node };
        Ok(Vote { leader_id, committed: self.committed })
    }
}

fn open_vote(form: Option<&VoteForm>) -> Result<Vote> {
    form.ok_or(CodecError("vote"))?.open()
}

#[derive(Clone, PartialEq, Message)]
struct PeerForm {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    address: String,
    /// Absent, and so 0, in entries that are older than these numbers.
    #[prost(fixed64, tag = "3")]
    instance: u64,
}

impl From<(&u64, &Peer)> for PeerForm {
    fn from((id, peer): (&u64, &Peer)) -> Self {
        Self { id: *id, address: peer.address.clone(), instance: peer.instance }
    }
}

#[derive(Clone, PartialEq, Message)]
struct VotersForm {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipForm {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VotersForm>,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<PeerForm>,
}

impl From<&Membership> for MembershipForm {
    fn from(membership: &Membership) -> Self {
        let configs = membership.get_joint_config().iter();
        let peers = membership.nodes();
        Self {
            configs: configs.map(|c| VotersForm { ids: c.iter().copied().collect() }).collect(),
            peers: peers.map(PeerForm::from).collect(),
        }
    }
}

impl MembershipForm {
    fn open(&self) -> Result<Membership> {
        let configs: Vec<BTreeSet<u64>> =
            self.configs.iter().map(|c| c.ids.iter().copied().collect()).collect();
        let peer = |p: &PeerForm| Peer { address: p.address.clone(), instance: p.instance };
        let peers: BTreeMap<u64, Peer> = self.peers.iter().map(|p| (p.id, peer(p))).collect();
        Membership::new(configs, peers).map_err(|_| CodecError("membership"))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryForm {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdForm>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    body: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipForm>,
}

impl From<&Entry> for EntryForm {
    fn from(entry: &Entry) -> Self {
        let (body, membership) = match &entry.payload {
            EntryPayload::Blank => (None, None),
            EntryPayload::Normal(body) => (Some(body.0.clone()), None),
            EntryPayload::Membership(m) => (None, Some(m.into())),
        };
        Self { log_id: Some((&entry.log_id).into()), body, membership }
    }
}

impl EntryForm {
    fn open(self) -> Result<Entry> {
        let log_id = self.log_id.ok_or(CodecError("log id of an entry"))?.open()?;
        let payload = match (self.body, self.membership) {
            (None, None) => EntryPayload::Blank,
            (Some(body), None) => EntryPayload::Normal(Body(body)),
            (None, Some(form)) => EntryPayload::Membership(form.open()?),
            (Some(_), Some(_)) => return Err(CodecError("entry")),
        };
        Ok(Entry { log_id, payload })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotMetaForm {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdForm>,
    #[prost(message, optional, tag = "2")]
    membership_at: Option<LogIdForm>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipForm>,
}

impl From<&SnapshotMeta> for SnapshotMetaForm {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: close_id(meta.last_log_id.as_ref()),
            membership_at: close_id(meta.last_membership.log_id().as_ref()),
            membership: Some(meta.last_membership.membership().into()),
        }
    }
}

impl SnapshotMetaForm {
    fn open(&self) -> Result<SnapshotMeta> {
        let membership = self.membership.as_ref().ok_or(CodecError("membership"))?.open()?;
        let at = open_id(self.membership_at.as_ref());
        Ok(SnapshotMeta {
            last_log_id: open_id(self.last.as_ref()),
            last_membership: StoredMembership::new(at, membership),
        })
    }
}

/// What goes before a snapshot's chunks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotHeadForm {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteForm>,
    #[prost(message, optional, tag = "2")]
    meta: Option<SnapshotMetaForm>,
    #[prost(uint64, tag = "3")]
    bytes: u64,
}

impl From<&SnapshotHead> for SnapshotHeadForm {
    fn from(head: &SnapshotHead) -> Self {
        let (vote, meta) = (Some((&head.vote).into()), Some((&head.meta).into()));
        Self { vote, meta, bytes: head.bytes }
    }
}

impl SnapshotHeadForm {
    fn open(&self) -> Result<SnapshotHead> {
        let meta = self.meta.as_ref().ok_or(CodecError("snapshot head"))?.open()?;
        Ok(SnapshotHead { vote: open_vote(self.vote.as_ref())?, meta, bytes: self.bytes })
    }
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotReplyForm {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteForm>,
}

impl From<&SnapshotResponse<TypeConfig>> for SnapshotReplyForm {
    fn from(reply: &SnapshotResponse<TypeConfig>) -> Self {
        Self { vote: Some((&reply.vote).into()) }
    }
}

impl SnapshotReplyForm {
    fn open(&self) -> Result<SnapshotResponse<TypeConfig>> {
        open_vote(self.vote.as_ref()).map(SnapshotResponse::new)
    }
}

#[derive(Clone, PartialEq, Message)]
struct AppendForm {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteForm>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdForm>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<EntryForm>,
    #[prost(message, optional, tag = "4")]
    committed: Option<LogIdForm>,
}

impl From<&AppendEntriesRequest<TypeConfig>> for AppendForm {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            previous: close_id(request.prev_log_id.as_ref()),
            entries: request.entries.iter().map(EntryForm::from).collect(),
            committed: close_id(request.leader_commit.as_ref()),
        }
    }
}

impl AppendForm {
    fn open(self) -> Result<AppendEntriesRequest<TypeConfig>> {
        let previous = open_id(self.previous.as_ref());
        let entries: Vec<Entry> =
            self.entries.into_iter().map(EntryForm::open).collect::<Result<_>>()?;
        // openraft takes consecutive entries for granted; a peer is not to be trusted with that.
        let mut next = previous.map_or(0, |id| id.index.saturating_add(1));
        for entry in &entries {
            if entry.log_id.index != next {
                return Err(CodecError("order of entries"));
            }
            next = next.saturating_add(1);
        }
        Ok(AppendEntriesRequest {
            vote: open_vote(self.vote.as_ref())?,
            prev_log_id: previous,
            entries,
            leader_commit: open_id(self.committed.as_ref()),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct AppendReplyForm {
    /// 0: matches up to `log_id`; 1: conflict at `log_id`; 2: `vote` is higher.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    log_id: Option<LogIdForm>,
    #[prost(message, optional, tag = "3")]
    vote: Option<VoteForm>,
}

impl From<&StreamAppendResult<TypeConfig>> for AppendReplyForm {
    fn from(reply: &StreamAppendResult<TypeConfig>) -> Self {
        match reply {
            Ok(matched) => Self { kind: 0, log_id: close_id(matched.as_ref()), vote: None },
            Err(StreamAppendError::Conflict(at)) => {
                Self { kind: 1, log_id: Some(at.into()), vote: None }
            }
            Err(StreamAppendError::HigherVote(vote)) => {
                Self { kind: 2, log_id: None, vote: Some(vote.into()) }
            }
        }
    }
}

impl AppendReplyForm {
    fn open(&self) -> Result<StreamAppendResult<TypeConfig>> {
        let id = open_id(self.log_id.as_ref());
        match self.kind {
            0 => Ok(Ok(id)),
            1 => Ok(Err(StreamAppendError::Conflict(id.ok_or(CodecError("append reply"))?))),
            2 => Ok(Err(StreamAppendError::HigherVote(open_vote(self.vote.as_ref())?))),
            _ => Err(CodecError("append reply")),
        }
    }
}

coded!(LogId, LogIdForm, "log id");
coded!(Vote, VoteForm, "vote");
coded!(Entry, EntryForm, "entry");
coded!(SnapshotMeta, SnapshotMetaForm, "snapshot meta");
coded!(SnapshotHead, SnapshotHeadForm, "snapshot head");
coded!(SnapshotResponse<TypeConfig>, SnapshotReplyForm, "snapshot reply");
coded!(AppendEntriesRequest<TypeConfig>, AppendForm, "append request");
coded!(StreamAppendResult<TypeConfig>, AppendReplyForm, "append reply");
coded!(VoteRequest<TypeConfig>, VoteRequestForm, "vote request");
coded!(VoteResponse<TypeConfig>, VoteReplyForm, "vote reply");
coded!(TransferLeaderRequest<TypeConfig>, TransferForm, "transfer request");
coded!(TransferLeaderResponse<TypeConfig>, TransferReplyForm, "transfer reply");

#[cfg(test)]
mod tests;
