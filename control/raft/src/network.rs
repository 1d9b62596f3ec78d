//! The network between members: one gRPC service, one client per peer and purpose.
//!
//! Every request names the member it is meant for and the one it is from, each with its data directory, so that
//! an address that was given to another member is noticed, and so is a disk. A stream of appends takes its first request before it connects: openraft paces retries inside that
//! request stream, and a client that failed before asking it would spin on a dead peer.

pub(crate) mod identity;
pub(crate) mod service;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future, stream};
use mainstay_proto::client::MESSAGE_BYTES_MAX;
use mainstay_proto::v1;
use mainstay_proto::v1::raft_client::RaftClient;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::codec::{Coded, SnapshotHead};
use crate::types::{Peer, Snapshot, TypeConfig, Vote};
use identity::{Identity, Instances};

/// The bytes of a snapshot in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// How many times the answer to an append may take longer than a heartbeat's: it waits for an fsync and may wait
/// for one that compacts. Leadership hangs on heartbeats, which have a connection of their own.
const APPEND_PATIENCE: u32 = 10;

pub use mainstay_proto::client::Connector;

type RpcError = RPCError<TypeConfig>;

/// Makes a client for each peer.
pub(crate) struct Network {
    pub(crate) own: Identity,
    pub(crate) instances: Arc<Instances>,
    pub(crate) connector: Connector,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    // Called apart for replication, heartbeats and snapshots, so each has a connection of its own and none waits
    // behind another's bytes.
    async fn new_client(&mut self, target: u64, peer: &Peer) -> Client {
        let target = Identity { id: target, instance: peer.instance };
        let channel = (self.connector)(&peer.address);
        Client { own: self.own, target, instances: Arc::clone(&self.instances), channel }
    }
}

pub(crate) struct Client {
    own: Identity,
    /// As it was when this client was made.
    target: Identity,
    instances: Arc<Instances>,
    channel: Result<Channel, Status>,
}

impl Client {
    fn client(&self) -> Result<RaftClient<Channel>, RpcError> {
        match &self.channel {
            Ok(channel) => Ok(RaftClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)),
            Err(status) => Err(failed(status)),
        }
    }

    fn request<T>(&self, body: T) -> Request<T> {
        let id = self.target.id;
        let instance = self.instances.of(id).unwrap_or(self.target.instance);
        let mut request = Request::new(body);
        identity::address(&mut request, self.own, Identity { id, instance });
        request
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.own.id, target: self.target.id, timeout }
    }

    /// Sends one message and waits for its answer, for at most the time openraft allows.
    async fn unary<Q, A, F, Fut>(
        &self,
        action: RPCTypes,
        question: &Q,
        option: &RPCOption,
        call: F,
    ) -> Result<A, RpcError>
    where
        Q: Coded,
        A: Coded,
        F: FnOnce(RaftClient<Channel>, Request<v1::RaftMessage>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<v1::RaftMessage>, Status>>,
    {
        let request = self.request(v1::RaftMessage { body: question.encode() });
        let limit = option.soft_ttl();
        let reply = tokio::time::timeout(limit, call(self.client()?, request))
            .await
            .map_err(|_| RPCError::Timeout(self.timeout(action, limit)))?
            .map_err(|status| failed(&status))?;
        A::decode(reply.into_inner().body).map_err(|e| NetworkError::new(&e).into())
    }
}

/// Unreachable makes openraft back off; anything else it may try again sooner.
fn failed(status: &Status) -> RpcError {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::Unauthenticated => {
            RPCError::Unreachable(Unreachable::from_string(text))
        }
        _ => RPCError::Network(NetworkError::from_string(text)),
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        let steps = [20, 50, 100].into_iter().chain(std::iter::repeat(200));
        Some(Backoff::new(steps.map(Duration::from_millis)))
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.unary(RPCTypes::Vote, &request, &option, |mut c, r| async move { c.vote(r).await })
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.unary(RPCTypes::Vote, &request, &option, |mut c, r| async move { c.pre_vote(r).await })
            .await
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        self.unary(RPCTypes::TransferLeader, &request, &option, |mut c, r| async move {
            c.transfer_leader(r).await
        })
        .await
    }
}

/// When the oldest unanswered request was sent, or the last answer came, whichever is later.
#[derive(Default)]
struct Pending {
    count: usize,
    since: Option<Instant>,
}

impl Pending {
    fn sent(&mut self) {
        self.count += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn answered(&mut self) {
        self.count = self.count.saturating_sub(1);
        self.since = (self.count > 0).then(Instant::now);
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let mut input = input;
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed() as BoxStream<'s, _>);
            };
            let limit = option.soft_ttl();
            let pending = Arc::new(Mutex::new(Pending::default()));
            let counted = Arc::clone(&pending);
            let requests = stream::once(future::ready(first)).chain(input).map(move |request| {
                counted.lock().sent();
                v1::RaftMessage { body: request.encode() }
            });
            let mut client = self.client()?;
            let opened = tokio::time::timeout(limit, client.append(self.request(requests)))
                .await
                .map_err(|_| RPCError::Timeout(self.timeout(RPCTypes::AppendEntries, limit)))?
                .map_err(|status| failed(&status))?;
            let replies = Replies {
                client: self,
                stream: opened.into_inner(),
                pending,
                limit: limit * APPEND_PATIENCE,
            };
            Ok(stream::unfold(Some(replies), Replies::next).boxed() as BoxStream<'s, _>)
        }
        .boxed()
    }
}

struct Replies<'s> {
    client: &'s Client,
    stream: tonic::Streaming<v1::RaftMessage>,
    pending: Arc<Mutex<Pending>>,
    limit: Duration,
}

type Reply = Result<StreamAppendResult<TypeConfig>, RpcError>;

impl Replies<'_> {
    /// The next answer; after an error, or an answer that ends the session, there is none.
    async fn next(state: Option<Self>) -> Option<(Reply, Option<Self>)> {
        let mut this = state?;
        match this.message().await {
            Err(error) => Some((Err(error), None)),
            Ok(None) => None,
            Ok(Some(message)) => {
                this.pending.lock().answered();
                let reply = StreamAppendResult::<TypeConfig>::decode(message.body)
                    .map_err(|e| RPCError::Network(NetworkError::new(&e)));
                let goes_on = matches!(reply, Ok(Ok(_)));
                Some((reply, goes_on.then_some(this)))
            }
        }
    }

    /// Waits without limit while nothing is unanswered, and for `limit` since the last sign otherwise.
    async fn message(&mut self) -> Result<Option<v1::RaftMessage>, RpcError> {
        let mut message = pin!(self.stream.message());
        loop {
            let since = self.pending.lock().since;
            let wait = since.map_or(self.limit, |at| self.limit.saturating_sub(at.elapsed()));
            match tokio::time::timeout(wait, &mut message).await {
                Ok(result) => return result.map_err(|status| failed(&status)),
                Err(_) if since.is_some() && self.pending.lock().since == since => {
                    let timeout = self.client.timeout(RPCTypes::AppendEntries, self.limit);
                    return Err(RPCError::Timeout(timeout));
                }
                Err(_) => {}
            }
        }
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = Bytes;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let limit = option.soft_ttl();
        let mut client = self.client()?;
        let request = self.request(stream::iter(chunks(vote, snapshot)));
        let send = tokio::time::timeout(limit, client.snapshot(request));
        let reply = match future::select(pin!(send), pin!(cancel)).await {
            future::Either::Left((sent, _)) => sent
                .map_err(|_| self.timeout(RPCTypes::InstallSnapshot, limit))?
                .map_err(|status| failed(&status))?,
            future::Either::Right((closed, _)) => return Err(closed.into()),
        };
        SnapshotResponse::decode(reply.into_inner().body).map_err(|e| NetworkError::new(&e).into())
    }
}

/// The head, then the image piece by piece; the last piece says so.
fn chunks(vote: Vote, snapshot: Snapshot) -> impl Iterator<Item = v1::SnapshotChunk> + Send {
    let image = snapshot.snapshot;
    let bytes = image.len();
    let head = SnapshotHead { vote, meta: snapshot.meta, bytes: bytes as u64 };
    let first =
        v1::SnapshotChunk { meta: head.encode(), data: Bytes::new(), crc: 0, last: bytes == 0 };
    let rest = (0..bytes).step_by(CHUNK_BYTES).map(move |from| {
        let to = (from + CHUNK_BYTES).min(bytes);
        let data = image.slice(from..to);
        let crc = crc32fast::hash(&data);
        v1::SnapshotChunk { meta: Bytes::new(), data, crc, last: to == bytes }
    });
    std::iter::once(first).chain(rest)
}
