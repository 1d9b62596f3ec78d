//! `mainstay gateway`: run one gateway.

use std::net::SocketAddr;
use std::path::PathBuf;

use mainstay_gateway::{GatewayConfig, Policy};
use mainstay_identity::Role;
use mainstay_types::Region;

use crate::commands::identity::IdentityArgs;
use crate::commands::join::Newcomer;
use crate::commands::queue::QueueArgs;
use crate::commands::traces::TraceArgs;
use crate::commands::{HostArgs, MemoryArgs, addresses, asked_to_stop};
use crate::config::FileConfig;
use crate::output::print;
use crate::profiling::ProfilingArgs;

/// What is on unless it is turned off.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The control members, as HOST:PORT,…
    #[arg(long, required = true)]
    control: String,
    /// Where to listen for HTTP
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// How requests are placed
    #[arg(long, value_parser = parse_policy, default_value = "kv")]
    policy: Policy,
    /// The region it is in, such as a datacenter's name
    #[arg(long, value_parser = super::parse_region, default_value = Region::LOCAL)]
    region: Region,
    /// What a worker of another region costs more, in milliseconds; without it one is chosen only when no worker of this
    /// region can take the request
    #[arg(long, value_name = "MS", value_parser = parse_penalty)]
    region_penalty_ms: Option<f64>,
    /// Whether workers are told who holds more of a prompt than they do, so that they bring it in instead of computing it
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "on", default_missing_value = "on")]
    transfer: Switch,
    /// Whether what becomes of sessions (pauses for tools, compactions, ends) decides how long workers keep their blocks
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "on", default_missing_value = "on")]
    lifecycle: Switch,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    security: IdentityArgs,
    /// A join token, to get the certificate for --identity by
    #[arg(long, env = "MAINSTAY_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// The name to join under [default: g-PID]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    profiling: ProfilingArgs,
    /// A TOML file; what counts here: [gateway], [[keys]], [models], [pins], [responses], [console], [log]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    Policy::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = Policy::ALL.iter().map(|p| p.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

fn parse_penalty(text: &str) -> Result<f64, String> {
    let ms = text.parse::<f64>().ok().filter(|ms| (0.0..=3_600_000.0).contains(ms));
    ms.ok_or_else(|| "milliseconds, from 0 to 3600000".to_owned())
}

/// Turns huge pages off for this process: the system clears two megabytes at a time under a request, which was most of
/// what a gateway's slowest requests took (docs/develop/benchmarks.md).
fn without_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    without_huge_pages();
    let file = FileConfig::read(args.config.as_deref())?;
    crate::logging::follow(&file.log, args.config.as_deref())?;
    args.traces.start("gateway")?;
    args.profiling.listen().await?;
    let members = addresses(&args.control);
    if let Some(token) = &args.join {
        let node = args.name.unwrap_or_else(|| format!("g-{}", std::process::id()));
        let newcomer = Newcomer { role: Role::Gateway, node, hosts: Vec::new() };
        newcomer.join(token, &members, &args.security).await?;
    }
    let mut config = GatewayConfig::new(args.listen, members);
    file.apply(&mut config)?;
    config.identity = args.security.load(Role::Gateway)?;
    config.policy = args.policy;
    config.region = args.region;
    config.region_penalty_ms = args.region_penalty_ms;
    config.transfer = args.transfer == Switch::On;
    config.lifecycle = args.lifecycle == Switch::On;
    config.queue = args.queue.settings();
    config.hosts = args.hosts.names();
    config.prompt_memory = args.memory.prompts();
    config.metrics = crate::monitoring::install_unless_off("gateway")?;
    let handle = mainstay_gateway::start(config).await?;
    tokio::select! {
        result = asked_to_stop() => result?,
        () = async {
            handle.ready().await;
            print(&format!("ready http://{}", handle.address()));
            std::future::pending().await
        } => {}
    }
    handle.shutdown().await;
    Ok(())
}
