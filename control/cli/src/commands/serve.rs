//! `mainstay serve`: all roles in one process, over the same code paths as a cluster. They know each other by an
//! authority that lives and ends with the process, so nothing between them is in plain text.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use mainstay_control::ControlConfig;
use mainstay_gateway::GatewayConfig;
use mainstay_identity::Role;
use mainstay_types::NodeId;

use super::engine::EngineArgs;
use super::queue::QueueArgs;
use super::tiers::{HashKeyArgs, TierArgs};
use super::traces::TraceArgs;
use super::worker::worker_config;
use super::{HostArgs, MemoryArgs};
use crate::commands::asked_to_stop;
use crate::commands::identity::InProcess;
use crate::config::{FileConfig, default_data_dir};
use crate::output::print;
use crate::profiling::ProfilingArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    tiers: TierArgs,
    #[command(flatten)]
    hash_key: HashKeyArgs,
    /// Where to listen for HTTP
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Where the control plane keeps its log and state [default: mainstay/serve in the user's data folder]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the control plane listens, for `mainstay tenant` and others with --admin-token-file DATA_DIR/admin-token
    #[arg(long, default_value = "127.0.0.1:0")]
    control_listen: SocketAddr,
    /// Take any model's name for the one served here: clients have names of their own built in
    #[arg(long)]
    any_model: bool,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    profiling: ProfilingArgs,
    /// A TOML file; what counts here: [serve], [[keys]], [models], [pins], [responses], [console], [log],
    /// [engine]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let file = FileConfig::read(args.config.as_deref())?;
    crate::logging::follow(&file.log, args.config.as_deref())?;
    args.traces.start("serve")?;
    args.profiling.listen().await?;
    // A port that is taken is told before a model is loaded.
    let probe = std::net::TcpListener::bind(args.listen).with_context(|| {
        format!("cannot listen on {}; choose another with --listen", args.listen)
    })?;
    let listen = probe.local_addr()?;
    let data_dir = args.data_dir.unwrap_or_else(|| default_data_dir("serve"));
    let mut inner = InProcess::new("serve")?;
    let admin_token = inner.admin_token()?;
    let mut control = ControlConfig::single(NodeId(1), data_dir.join("control"));
    control.listen = args.control_listen;
    control.hash_key = args.hash_key.read()?;
    control.identity = inner.identity(Role::Control, "m1")?;
    let control = mainstay_control::start(control).await?;
    // The directory is this process's from here on.
    admin_token.save(&data_dir.join("admin-token"))?;
    let members = vec![control.address().to_string()];
    drop(probe);
    let mut config = GatewayConfig::new(listen, members.clone());
    file.apply(&mut config)?;
    config.aliases = config.aliases.with_any(args.any_model);
    config.queue = args.queue.settings();
    config.hosts = args.hosts.names();
    config.prompt_memory = args.memory.prompts();
    config.identity = inner.identity(Role::Gateway, "g1")?;
    config.metrics = crate::monitoring::install_unless_off("serve")?;
    let gateway = mainstay_gateway::start(config).await?;
    let mut worker = worker_config(&args.engine, &file, "w1".to_owned(), members)?;
    worker.identity = inner.identity(Role::Worker, "w1")?;
    worker.tiers = args.tiers.config();
    let worker = mainstay_worker::start(worker).await?;
    let outcome = tokio::select! {
        result = asked_to_stop() => result,
        ended = worker.wait() => Err(super::worker_ended(ended)),
        reason = super::control_ended(&control) => Err(anyhow::anyhow!("the control plane ended: {reason}")),
        () = async {
            gateway.ready().await;
            print(&format!("ready http://{}", gateway.address()));
            if let Some(url) = gateway.console() {
                print(&format!("console {url}"));
            }
            std::future::pending().await
        } => Ok(()),
    };
    if let Err(error) = worker.drain().await {
        tracing::warn!(%error, "the worker did not drain");
    }
    gateway.shutdown().await;
    control.shutdown().await;
    if let Err(error) = outcome {
        bail!(error);
    }
    Ok(())
}
