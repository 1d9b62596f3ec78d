//! A control plane inside this process: members on loopback, their logs in a folder that goes with it.

use std::net::SocketAddr;
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
    plain_index: bool,
    files: TempDir,
}

impl Cluster {
    pub(super) async fn start(count: u64, plain_index: bool) -> anyhow::Result<Self> {
        let files = tempfile::tempdir().context("making a folder for the members")?;
        let addresses = super::super::free_addresses(count)?;
        let list: Vec<(NodeId, String)> =
            (1..).map(NodeId).zip(addresses.iter().map(ToString::to_string)).collect();
        let mut cluster = Self { members: Vec::new(), plain_index, files };
        let mut starting = Vec::new();
        for (id, address) in (1..).map(NodeId).zip(addresses) {
            let config = cluster.config(id, address, Origin::Members(list.clone()));
            starting.push(mainstay_control::start(config));
        }
        cluster.members = futures::future::try_join_all(starting).await?;
        cluster.leader().await?;
        Ok(cluster)
    }

    fn config(&self, id: NodeId, address: SocketAddr, origin: Origin) -> ControlConfig {
        let mut config = ControlConfig::single(id, self.files.path().join(id.to_string()));
        config.listen = address;
        config.origin = origin;
        config.lease_ttl_ms = LEASE_TTL_MS;
        config.plain_index = self.plain_index;
        config
    }

    /// Starts one more member, which asks to be taken in.
    pub(super) async fn start_joining(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let id = NodeId(self.members.len() as u64 + 1);
        let known = self.members.iter().map(|m| m.address().to_string()).collect();
        let config = self.config(id, address, Origin::Join(known));
        self.members.push(mainstay_control::start(config).await?);
        Ok(())
    }

    /// Ends a member and starts it again over its data directory.
    pub(super) async fn restart(&mut self, at: usize) -> anyhow::Result<Duration> {
        let member = self.members.remove(at);
        let (id, address) = (member.group().node(), member.address());
        member.shutdown().await;
        let began = std::time::Instant::now();
        let config = self.config(id, address, Origin::Wait);
        self.members.insert(at, mainstay_control::start(config).await?);
        Ok(began.elapsed())
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

    /// Registers simulated workers that nobody can reach; answers with their ids and epochs.
    pub(super) async fn register(&self, count: u32) -> anyhow::Result<Vec<v1::RegisterReply>> {
        let model = v1::ModelSpec {
            name: "simulated".into(),
            revision: "1".into(),
            block_tokens: 16,
            context_tokens_max: 131_072,
        };
        let like = v1::RegisterWorker {
            name: "simulated-".into(),
            address: "127.0.0.1:9".into(),
            incarnation: 1,
            model: Some(model),
            blocks_total: 16_384,
            region: String::new(),
        };
        self.register_like(&like, count).await
    }

    /// Registers workers that differ from this one by a number at the end of its name.
    pub(super) async fn register_like(
        &self,
        like: &v1::RegisterWorker,
        count: u32,
    ) -> anyhow::Result<Vec<v1::RegisterReply>> {
        let client = Self::client(self.leader().await?)?;
        let registering = (0..count).map(|n| {
            let mut client = client.clone();
            let request = v1::RegisterWorker { name: format!("{}{n}", like.name), ..like.clone() };
            async move { anyhow::Ok(client.register(request).await?.into_inner()) }
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
