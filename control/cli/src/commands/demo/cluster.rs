//! The demo's cluster: control members, one gateway, workers with small caches, all on loopback.

use std::net::SocketAddr;

use anyhow::Context;
use mainstay_control::{ControlConfig, ControlHandle, Origin};
use mainstay_gateway::{GatewayConfig, GatewayHandle};
use mainstay_identity::Role;
use mainstay_types::NodeId;
use mainstay_worker::{WorkerConfig, WorkerHandle};
use serde_json::json;
use tempfile::TempDir;

use super::{Args, Setting};
use crate::commands::identity::InProcess;
use crate::config::model_files;

/// Blocks of each worker: small, so that the flood evicts what nothing protects.
const WORKER_BLOCKS: u64 = 480;

/// A running cluster; its files vanish with it.
pub(crate) struct Cluster {
    gateway: GatewayHandle,
    workers: Vec<WorkerHandle>,
    control: Vec<ControlHandle>,
    _files: TempDir,
}

impl Cluster {
    pub(crate) async fn start(args: &Args, setting: Setting) -> anyhow::Result<Self> {
        let files = tempfile::tempdir().context("making a folder for the control members")?;
        // Members must know each other's addresses before any of them listens.
        let members = crate::commands::bench::free_addresses(args.members)?;
        let list: Vec<(NodeId, String)> =
            (1..).map(NodeId).zip(members.iter().map(ToString::to_string)).collect();
        let inner = InProcess::new("demo")?;
        let mut starting = Vec::new();
        for (id, address) in (1..).zip(&members) {
            let dir = files.path().join(format!("m{id}"));
            let mut config = ControlConfig::single(NodeId(id), dir);
            config.listen = *address;
            config.identity = inner.identity(Role::Control, &format!("m{id}"))?;
            config.origin = Origin::Members(list.clone());
            starting.push(mainstay_control::start(config));
        }
        let control = futures::future::try_join_all(starting).await?;
        let addresses: Vec<String> = members.iter().map(ToString::to_string).collect();
        let mut config = GatewayConfig::new(args.listen, addresses.clone());
        config.identity = inner.identity(Role::Gateway, "g1")?;
        config.policy = setting.policy;
        config.pins = setting.pins;
        config.transfer = setting.transfer;
        let gateway = mainstay_gateway::start(config).await?;
        let model = model_files(None, None)?;
        let mut starting = Vec::new();
        for n in 1..=args.workers {
            let source = crate::commands::engine::native();
            let mut config = WorkerConfig::new(format!("w{n}"), addresses.clone(), source);
            config.engine_config = json!({
                "model_dir": "", "model_name": model.name, "threads": 1, "blocks": WORKER_BLOCKS,
                "context_tokens_max": 4096, "pin_fraction": 0.8,
            });
            config.identity = inner.identity(Role::Worker, &format!("w{n}"))?;
            config.model_name.clone_from(&model.name);
            config.revision.clone_from(&model.revision);
            config.model_files.clone_from(&model.files);
            starting.push(mainstay_worker::start(config));
        }
        let workers = futures::future::try_join_all(starting).await?;
        let cluster = Self { gateway, workers, control, _files: files };
        cluster.wait_for_workers(args.workers).await?;
        Ok(cluster)
    }

    async fn wait_for_workers(&self, count: u64) -> anyhow::Result<()> {
        self.gateway.ready().await;
        for _ in 0..200 {
            if self.gateway.routable_workers() as u64 >= count {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        anyhow::bail!("only {} of {count} workers became routable", self.gateway.routable_workers())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    pub(crate) fn describe(&self) -> String {
        let members: Vec<String> = self.control.iter().map(|c| c.address().to_string()).collect();
        let workers: Vec<String> = self.workers.iter().map(|w| w.address().to_string()).collect();
        format!(
            "  gateway http://{}\n  console {}\n  control {}\n  workers {}",
            self.gateway.address(),
            self.gateway.console().unwrap_or_default(),
            members.join(" "),
            workers.join(" ")
        )
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.gateway.shutdown().await;
        for worker in self.workers {
            worker.shutdown().await?;
        }
        for member in self.control {
            member.shutdown().await;
        }
        Ok(())
    }
}
