//! `mainstay gateway`: run one gateway.

use std::net::SocketAddr;
use std::path::PathBuf;

use mainstay_gateway::{GatewayConfig, Policy};
use mainstay_identity::Role;

use crate::commands::identity::IdentityArgs;
use crate::commands::join::Newcomer;
use crate::commands::{addresses, asked_to_stop};
use crate::config::FileConfig;
use crate::output::print;

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
    #[command(flatten)]
    security: IdentityArgs,
    /// A join token, to get the certificate for --identity by
    #[arg(long, env = "MAINSTAY_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// The name to join under [default: g-PID]
    #[arg(long)]
    name: Option<String>,
    /// A TOML file with keys and tenants
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    Policy::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = Policy::ALL.iter().map(|p| p.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let file = FileConfig::read(args.config.as_deref())?;
    let members = addresses(&args.control);
    if let Some(token) = &args.join {
        let node = args.name.unwrap_or_else(|| format!("g-{}", std::process::id()));
        let newcomer = Newcomer { role: Role::Gateway, node, hosts: Vec::new() };
        newcomer.join(token, &members, &args.security).await?;
    }
    let mut config = GatewayConfig::new(args.listen, members);
    config.keys = file.api_keys();
    config.identity = args.security.load(Role::Gateway)?;
    config.policy = args.policy;
    config.metrics = Some(super::metrics_recorder()?);
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
