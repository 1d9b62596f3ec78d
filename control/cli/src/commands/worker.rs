//! `mainstay worker`: run one worker with its engine.

use std::net::SocketAddr;
use std::path::PathBuf;

use mainstay_identity::Role;
use mainstay_types::Region;
use mainstay_worker::WorkerConfig;

use super::engine::EngineArgs;
use super::tiers::TierArgs;
use super::traces::CollectorArgs;
use crate::commands::identity::ListenerArgs;
use crate::commands::join::{self, Newcomer};
use crate::commands::{addresses, asked_to_stop};
use crate::config::{FileConfig, model_files};
use crate::monitoring::listen::MetricsArgs;
use crate::output::print;
use crate::profiling::ProfilingArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    tiers: TierArgs,
    /// The control members, as HOST:PORT,…
    #[arg(long, required = true)]
    control: String,
    /// Unique in the cluster; the same name is the same worker [default: the certificate's, or w-PID]
    #[arg(long)]
    name: Option<String>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where gateways reach it, as HOST:PORT [default: the listening address]
    #[arg(long)]
    advertise: Option<String>,
    /// The region it is in, such as a datacenter's name
    #[arg(long, value_parser = super::parse_region, default_value = Region::LOCAL)]
    region: Region,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    security: ListenerArgs,
    /// A join token, to get the certificate for --identity by
    #[arg(long, env = "MAINSTAY_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    #[command(flatten)]
    traces: CollectorArgs,
    #[command(flatten)]
    profiling: ProfilingArgs,
    /// A TOML file; what counts here: [worker], [log], [engine]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let file = FileConfig::read(args.config.as_deref())?;
    crate::logging::follow(&file.log, args.config.as_deref())?;
    args.traces.start("worker")?;
    let readiness = args.metrics.listen("worker").await?;
    args.profiling.listen().await?;
    let members = addresses(&args.control);
    if let Some(token) = &args.join {
        let node = args.name.clone().unwrap_or_else(|| format!("w-{}", std::process::id()));
        let hosts = join::hosts(args.listen, args.advertise.as_deref());
        let newcomer = Newcomer { role: Role::Worker, node, hosts };
        newcomer.join(token, &members, &args.security.client).await?;
    }
    let identity = args.security.client.load(Role::Worker)?;
    let certified = identity.as_ref().map(|identity| identity.peer().node.clone());
    let name = args.name.or(certified).unwrap_or_else(|| format!("w-{}", std::process::id()));
    let mut config = worker_config(&args.engine, &file, name.clone(), members)?;
    config.listen = args.listen;
    config.advertise = args.advertise;
    config.region = args.region;
    config.identity = identity;
    config.insecure = args.security.insecure;
    config.tiers = args.tiers.config();
    let handle = mainstay_worker::start(config).await?;
    let seen = handle.clone();
    readiness
        .started(move || (!seen.is_ready()).then(|| "the worker takes no requests".to_owned()));
    print(&format!("ready worker {name} on {}", handle.address()));
    tokio::select! {
        result = asked_to_stop() => result?,
        ended = handle.wait() => return Err(super::worker_ended(ended)),
    }
    Ok(handle.drain().await?)
}

/// A worker's configuration from the flags about its engine.
pub(crate) fn worker_config(
    engine: &EngineArgs,
    file: &FileConfig,
    name: String,
    control: Vec<String>,
) -> anyhow::Result<WorkerConfig> {
    let source = engine.source()?;
    let model = model_files(engine.model_dir.as_deref(), engine.model_name.as_deref())?;
    let mut config = WorkerConfig::new(name, control, source);
    config.engine_config = engine.config(&model.name, file.engine_json()?)?;
    config.model_name = model.name;
    config.revision = engine.revision(model.revision);
    config.model_files = model.files;
    Ok(config)
}
