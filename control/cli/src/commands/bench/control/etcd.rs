//! etcd's side of `bench control`: puts as large as our pins, through the same closed loop, to members that run
//! already. It is measured as its own `benchmark put --target-leader` does: every client talks to the leader.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// Of `etcdserverpb`, the fields that are used here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to etcd's leader.
#[derive(Clone)]
pub(super) struct Etcd {
    grpc: Grpc<Channel>,
}

async fn unary<Q, A>(grpc: &mut Grpc<Channel>, path: &'static str, ask: Q) -> anyhow::Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    grpc.ready().await.context("waiting for etcd")?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.unary(tonic::Request::new(ask), path, codec).await?.into_inner())
}

/// Finds the leader among client addresses; answers with it and the version.
pub(super) async fn leader(addresses: &[String]) -> anyhow::Result<(String, String)> {
    for address in addresses {
        let mut etcd = Etcd::connect(address).await?;
        let status: StatusResponse =
            unary(&mut etcd.grpc, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        if status.header.is_some_and(|h| h.member_id == status.leader) {
            return Ok((address.clone(), status.version));
        }
    }
    bail!("none of {addresses:?} leads; name the client addresses of all etcd members")
}

impl Etcd {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.with_context(|| format!("etcd at {address}"))?;
        Ok(Self { grpc: Grpc::new(channel) })
    }

    pub(super) async fn put(&mut self, key: String, value: Bytes) -> anyhow::Result<()> {
        ensure!(!value.is_empty(), "an empty value is no pin");
        let request = PutRequest { key: key.into(), value };
        let _: PutResponse = unary(&mut self.grpc, "/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }
}
