//! What candidates and a leader that hands over say.

use openraft::raft::{
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use super::{CodecError, LogIdForm, Result, VoteForm, close_id, open_id, open_vote};
use crate::types::TypeConfig;

#[derive(Clone, PartialEq, Message)]
pub(super) struct VoteRequestForm {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteForm>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdForm>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

impl From<&VoteRequest<TypeConfig>> for VoteRequestForm {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            last: close_id(request.last_log_id.as_ref()),
            transfer: request.leadership_transfer,
        }
    }
}

impl VoteRequestForm {
    pub(super) fn open(&self) -> Result<VoteRequest<TypeConfig>> {
        let vote = open_vote(self.vote.as_ref())?;
        let mut request = VoteRequest::new(vote, open_id(self.last.as_ref()));
        request.leadership_transfer = self.transfer;
        Ok(request)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VoteReplyForm {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteForm>,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdForm>,
}

impl From<&VoteResponse<TypeConfig>> for VoteReplyForm {
    fn from(reply: &VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some((&reply.vote).into()),
            granted: reply.vote_granted,
            last: close_id(reply.last_log_id.as_ref()),
        }
    }
}

impl VoteReplyForm {
    pub(super) fn open(&self) -> Result<VoteResponse<TypeConfig>> {
        let vote = open_vote(self.vote.as_ref())?;
        Ok(VoteResponse::new(vote, open_id(self.last.as_ref()), self.granted))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TransferForm {
    #[prost(message, optional, tag = "1")]
    from: Option<VoteForm>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdForm>,
}

impl From<&TransferLeaderRequest<TypeConfig>> for TransferForm {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: Some(request.from_leader().into()),
            to: *request.to_node_id(),
            last: close_id(request.last_log_id()),
        }
    }
}

impl TransferForm {
    pub(super) fn open(&self) -> Result<TransferLeaderRequest<TypeConfig>> {
        let from = open_vote(self.from.as_ref())?;
        Ok(TransferLeaderRequest::new(from, self.to, open_id(self.last.as_ref())))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TransferReplyForm {
    /// 0: taken; 1: the vote changed; 2: the log is behind.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    vote_expected: Option<VoteForm>,
    #[prost(message, optional, tag = "3")]
    vote_actual: Option<VoteForm>,
    #[prost(message, optional, tag = "4")]
    log_expected: Option<LogIdForm>,
    #[prost(message, optional, tag = "5")]
    log_actual: Option<LogIdForm>,
}

impl From<&TransferLeaderResponse<TypeConfig>> for TransferReplyForm {
    fn from(reply: &TransferLeaderResponse<TypeConfig>) -> Self {
        match reply {
            Ok(()) => Self::default(),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Self {
                kind: 1,
                vote_expected: Some(expected.into()),
                vote_actual: Some(actual.into()),
                ..Self::default()
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self {
                kind: 2,
                log_expected: close_id(expected.as_ref()),
                log_actual: close_id(actual.as_ref()),
                ..Self::default()
            },
        }
    }
}

impl TransferReplyForm {
    pub(super) fn open(&self) -> Result<TransferLeaderResponse<TypeConfig>> {
        match self.kind {
            0 => Ok(Ok(())),
            1 => Ok(Err(TransferLeaderError::VoteChanged {
                expected: open_vote(self.vote_expected.as_ref())?,
                actual: open_vote(self.vote_actual.as_ref())?,
            })),
            2 => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: open_id(self.log_expected.as_ref()),
                actual: open_id(self.log_actual.as_ref()),
            })),
            _ => Err(CodecError("transfer reply")),
        }
    }
}
