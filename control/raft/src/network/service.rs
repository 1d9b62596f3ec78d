//! The service that members call on each other. What arrives is hostile until it decodes; nothing here panics,
//! and a message for another member, or from or for another data directory, is refused.

use std::pin::Pin;

use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use mainstay_proto::v1;
use mainstay_proto::v1::raft_server;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::identity::Doorkeeper;
use crate::codec::{CodecError, Coded, SnapshotHead};
use crate::snapshot::SNAPSHOT_BYTES_MAX;
use crate::types::{Raft, Snapshot, TypeConfig};

pub(crate) struct Service {
    pub(crate) door: Doorkeeper,
    pub(crate) raft: Raft,
    /// Says why once the group has ended.
    pub(crate) ended: watch::Receiver<Option<String>>,
}

impl From<CodecError> for Status {
    fn from(error: CodecError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn ended(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the replicated log has ended: {error}"))
}

fn message(body: &impl Coded) -> v1::RaftMessage {
    v1::RaftMessage { body: body.encode() }
}

impl Service {
    /// Resolves when the group has ended: an idle stream would else keep its connection open for ever.
    fn end(&self) -> BoxFuture<'static, ()> {
        let mut ended = self.ended.clone();
        async move {
            // A sender that is gone is an end, too.
            let _ = ended.wait_for(Option::is_some).await;
        }
        .boxed()
    }

    async fn open<T: Coded>(&self, request: Request<v1::RaftMessage>) -> Result<T, Status> {
        self.door.admit(request.metadata(), &self.raft).await?;
        Ok(T::decode(request.into_inner().body)?)
    }
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    async fn vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let request: VoteRequest<TypeConfig> = self.open(request).await?;
        let reply = self.raft.vote(request).await.map_err(ended)?;
        Ok(Response::new(message(&reply)))
    }

    async fn pre_vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let request: VoteRequest<TypeConfig> = self.open(request).await?;
        let reply = self.raft.pre_vote(request).await.map_err(ended)?;
        Ok(Response::new(message(&reply)))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let request: TransferLeaderRequest<TypeConfig> = self.open(request).await?;
        let reply = self.raft.handle_transfer_leader(request).await.map_err(ended)?;
        Ok(Response::new(message(&reply)))
    }

    type AppendStream = Pin<Box<dyn Stream<Item = Result<v1::RaftMessage, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<v1::RaftMessage>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.door.admit(request.metadata(), &self.raft).await?;
        // A malformed or broken request ends the stream; what came before it is still answered.
        let requests = stream::unfold(request.into_inner(), |mut messages| async move {
            match messages.message().await {
                Ok(Some(m)) => match AppendEntriesRequest::<TypeConfig>::decode(m.body) {
                    Ok(request) => Some((request, messages)),
                    Err(error) => {
                        tracing::warn!(%error, "a peer sent what is not an append request");
                        None
                    }
                },
                Ok(None) | Err(_) => None,
            }
        });
        let replies = self.raft.stream_append(requests.take_until(self.end()).boxed());
        let replies = replies.map(|reply| reply.map(|r| message(&r)).map_err(ended));
        Ok(Response::new(replies.take_until(self.end()).boxed()))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        self.door.admit(request.metadata(), &self.raft).await?;
        let mut chunks = request.into_inner();
        let cut = || Status::invalid_argument("the snapshot is cut off");
        let first = chunks.message().await?.ok_or_else(cut)?;
        let head = SnapshotHead::decode(first.meta)?;
        if head.bytes > SNAPSHOT_BYTES_MAX {
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        let mut image = BytesMut::new();
        let mut last = first.last;
        while !last {
            let chunk = chunks.message().await?.ok_or_else(cut)?;
            if crc32fast::hash(&chunk.data) != chunk.crc {
                return Err(Status::data_loss("a chunk of the snapshot has a wrong checksum"));
            }
            if image.len() as u64 + chunk.data.len() as u64 > head.bytes {
                return Err(Status::invalid_argument("the snapshot is longer than announced"));
            }
            image.extend_from_slice(&chunk.data);
            last = chunk.last;
        }
        if image.len() as u64 != head.bytes {
            return Err(cut());
        }
        let snapshot = Snapshot { meta: head.meta, snapshot: image.freeze() };
        let reply = self.raft.install_full_snapshot(head.vote, snapshot).await.map_err(ended)?;
        Ok(Response::new(message(&reply)))
    }
}
