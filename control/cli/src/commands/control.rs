//! `mainstay control`: run one member of the control plane, or look after the members.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use mainstay_control::{ControlConfig, Origin};
use mainstay_identity::Role;
use mainstay_types::NodeId;

use crate::commands::identity::{self, CertArgs, InitArgs, ListenerArgs};
use crate::commands::{addresses, asked_to_stop};
use crate::config::default_data_dir;
use crate::http::Target;
use crate::output::{Format, print, print_json};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<ControlCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum ControlCommand {
    /// Make the authority that signs the certificates of a cluster
    Init(InitArgs),
    /// Issue a certificate to a node
    Cert(CertArgs),
    /// The members: role, log, lag
    Members {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// This member's number, unique in the cluster
    #[arg(long, default_value_t = 1)]
    node_id: u64,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where others reach this member, as HOST:PORT [default: the listening address]
    #[arg(long)]
    advertise: Option<String>,
    /// All first members, as 1=HOST:PORT,2=HOST:PORT,3=HOST:PORT; alone if left out
    #[arg(long, conflicts_with = "join")]
    members: Option<String>,
    /// Members of a running cluster to join, as HOST:PORT,…
    #[arg(long)]
    join: Option<String>,
    /// Where the log and the state are kept
    #[arg(long)]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    security: ListenerArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(ControlCommand::Init(args)) => return identity::init(&args),
        Some(ControlCommand::Cert(args)) => return identity::cert(args),
        Some(ControlCommand::Members { target }) => {
            let status = target.get("/api/v1/status").await?;
            match target.output {
                Format::Json => print_json(&status["members"]),
                Format::Table => print(&super::status::members(&status)),
            }
            return Ok(());
        }
        None => {}
    }
    let args = args.run;
    let origin = match (&args.members, &args.join) {
        (Some(list), _) => Origin::Members(parse_members(list)?),
        (None, Some(list)) => Origin::Join(addresses(list)),
        (None, None) => Origin::Single,
    };
    let data_dir =
        args.data_dir.unwrap_or_else(|| default_data_dir(&format!("control-{}", args.node_id)));
    let mut config = ControlConfig::single(NodeId(args.node_id), data_dir);
    config.listen = args.listen;
    config.advertise = args.advertise;
    config.origin = origin;
    config.identity = args.security.client.load(Role::Control)?;
    config.insecure = args.security.insecure;
    let handle = mainstay_control::start(config).await?;
    print(&format!("ready control m{} on {}", args.node_id, handle.address()));
    tokio::select! {
        result = asked_to_stop() => result?,
        reason = super::control_ended(&handle) => bail!("the control member ended: {reason}"),
    }
    handle.shutdown().await;
    Ok(())
}

fn parse_members(list: &str) -> anyhow::Result<Vec<(NodeId, String)>> {
    let read = |item: String| {
        let (id, address) =
            item.split_once('=').with_context(|| format!("{item:?} is not ID=HOST:PORT"))?;
        let id = id.parse().with_context(|| format!("{id:?} is not a member's number"))?;
        Ok((NodeId(id), address.to_owned()))
    };
    addresses(list).into_iter().map(read).collect()
}
