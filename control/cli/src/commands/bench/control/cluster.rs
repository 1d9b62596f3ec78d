//! A control plane inside this process: members on loopback, their logs in a folder that goes with it.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use mainstay_control::{ControlConfig, ControlHandle, Origin};
use mainstay_proto::client::{MESSAGE_BYTES_MAX, channel};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_types::NodeId;
use tempfile::TempDir;
use tonic::transport::Channel;

/// Registrations under way at a time.
const REGISTERING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);
/// Leases that outlast any measurement, so that nothing is fenced by a busy machine.
const LEASE_TTL_MS: u64 = 600_000;

pub(super) struct Cluster {
    pub(super) members: Vec<ControlHandle>,
    _files: TempDir,
}

impl Cluster {
    pub(super) async fn start(count: u64, plain_index: bool) -> anyhow::Result<Self> {
        let files = tempfile::tempdir().context("making a folder for the members")?;
        let addresses = super::super::free_addresses(count)?;
        let list: Vec<(NodeId, String)> =
            (1..).map(NodeId).zip(addresses.iter().map(ToString::to_string)).collect();
        let mut starting = Vec::new();
        for (id, address) in (1..).zip(&addresses) {
            let mut config = ControlConfig::single(NodeId(id), files.path().join(id.to_string()));
            config.listen = *address;
            config.origin = Origin::Members(list.clone());
            config.lease_ttl_ms = LEASE_TTL_MS;
            config.plain_index = plain_index;
            starting.push(mainstay_control::start(config));
        }
        let members = futures::future::try_join_all(starting).await?;
        let cluster = Self { members, _files: files };
        cluster.leader().await?;
        Ok(cluster)
    }

    pub(super) async fn leader(&self) -> anyhow::Result<&ControlHandle> {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.members.iter().find(|m| m.group().leads())
                && leader.group().read(|m| m.hash_key().is_some())
            {
                return Ok(leader);
            }
            if std::time::Instant::now() > until {
                bail!("no member leads after {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn client(member: &ControlHandle) -> anyhow::Result<ControlClient<Channel>> {
        let client = ControlClient::new(channel(&member.address().to_string())?);
        Ok(client
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Registers simulated workers; answers with their ids and epochs.
    pub(super) async fn register(&self, count: u32) -> anyhow::Result<Vec<v1::RegisterReply>> {
        let client = Self::client(self.leader().await?)?;
        let registering = (0..count).map(|n| {
            let mut client = client.clone();
            async move {
                let model = v1::ModelSpec {
                    name: "simulated".into(),
                    revision: "1".into(),
                    block_tokens: 16,
                    context_tokens_max: 131_072,
                };
                let request = v1::RegisterWorker {
                    name: format!("simulated-{n}"),
                    address: "127.0.0.1:9".into(),
                    incarnation: 1,
                    model: Some(model),
                    blocks_total: 16_384,
                    region: String::new(),
                };
                let reply = client.register(request).await?;
                anyhow::Ok(reply.into_inner())
            }
        });
        // In the order of the workers, so that the first traffic is the first worker's.
        futures::stream::iter(registering).buffered(REGISTERING).try_collect().await
    }

    pub(super) async fn end(self) {
        for member in self.members {
            member.shutdown().await;
        }
    }
}
