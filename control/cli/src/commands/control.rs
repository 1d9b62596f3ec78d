//! `mainstay control`: run one member of the control plane, or look after the members.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use mainstay_control::config::LEASE_TTL_MS;
use mainstay_control::{ControlConfig, Origin, Settings};
use mainstay_identity::Role;
use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};
use mainstay_types::{NodeId, Region};

use crate::commands::identity::{self, CertArgs, InitArgs, ListenerArgs};
use crate::commands::join::{self, Newcomer};
use crate::commands::tiers::HashKeyArgs;
use crate::commands::traces::CollectorArgs;
use crate::commands::{addresses, asked_to_stop, members, offline};
use crate::config::{FileConfig, default_data_dir};
use crate::monitoring::listen::MetricsArgs;
use crate::output::print;
use crate::profiling::ProfilingArgs;

/// As in [`Settings`]'s default.
const ELECTION_MS: &str = "500..1000";

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
    /// The members: list, add, remove, hand over the lead
    Members(members::Args),
    /// Tokens by which nodes join, and the admin token
    Token(join::Args),
    /// What a member's data directory holds; changes nothing
    Inspect(offline::InspectArgs),
    /// Copy a member's log and snapshot into one file; stop the member first
    Backup(offline::BackupArgs),
    /// Make a data directory of a group of one from a backup
    Restore(offline::RestoreArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// This member's number, unique in the cluster, never used again for another data directory
    #[arg(long, default_value_t = 1)]
    node_id: u64,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where others reach this member, as HOST:PORT [default: the listening address]
    #[arg(long)]
    advertise: Option<String>,
    /// All first members, as 1=HOST:PORT,2=HOST:PORT,3=HOST:PORT, the same list on each; alone if left out
    #[arg(long, conflicts_with = "join")]
    members: Option<String>,
    /// Members of a running cluster to join, as HOST:PORT,…
    #[arg(long)]
    join: Option<String>,
    /// The region it is in, such as a datacenter's name
    #[arg(long, value_parser = super::parse_region, default_value = Region::LOCAL)]
    region: Region,
    /// Join without a vote and stay so: serves reads and watches of its region
    #[arg(long, requires = "join")]
    learner: bool,
    /// A join token, to get the certificate for --identity by from the members of --join
    #[arg(long, env = "MAINSTAY_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where the log and the state are kept [default: mainstay/control-ID in the user's data folder]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How the block index is replicated; the same on all members
    #[arg(long, value_enum, default_value = "streams")]
    index: IndexForm,
    /// A TOML file; what counts here: [control], [log]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    hash_key: HashKeyArgs,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    traces: CollectorArgs,
    #[command(flatten)]
    profiling: ProfilingArgs,
    #[command(flatten)]
    security: ListenerArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum IndexForm {
    /// Workers tell every member; the log holds cuts
    Streams,
    /// Every frame of block events is an entry of the log: exact and slow, for comparison
    Plain,
}

/// How quickly the loss of a leader is noticed; equal on all members.
#[derive(clap::Args)]
struct PaceArgs {
    /// Milliseconds between two heartbeats of the leader
    #[arg(long, default_value_t = Settings::default().heartbeat_ms)]
    heartbeat_ms: u64,
    /// Milliseconds of silence after which a follower asks for an election, as MIN..MAX
    #[arg(long, value_parser = parse_range, default_value = ELECTION_MS)]
    election_ms: (u64, u64),
    /// Milliseconds that a worker may be silent before its epoch ends and its pins are made whole elsewhere, at least 200.
    /// Shorter than a worker's longest pause, it ends epochs for nothing
    #[arg(long, default_value_t = LEASE_TTL_MS)]
    lease_ttl_ms: u64,
    /// The newest cluster version that this member agrees to; lower keeps the way back to the program before open
    #[arg(long, default_value_t = VERSION_NEWEST,
          value_parser = clap::value_parser!(u8).range(i64::from(VERSION_OLDEST)..=i64::from(VERSION_NEWEST)))]
    version_max: u8,
    /// For tests: added to the wall clock in this member's stamps
    #[arg(long, hide = true, allow_hyphen_values = true, default_value_t = 0)]
    clock_offset_ms: i64,
}

impl PaceArgs {
    fn apply(&self, settings: &mut Settings) {
        settings.heartbeat_ms = self.heartbeat_ms;
        (settings.election_ms_min, settings.election_ms_max) = self.election_ms;
        settings.wall_offset_ms = self.clock_offset_ms;
        settings.version_max = self.version_max;
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(ControlCommand::Init(args)) => return identity::init(&args),
        Some(ControlCommand::Cert(args)) => return identity::cert(args),
        Some(ControlCommand::Members(args)) => return members::run(args).await,
        Some(ControlCommand::Token(args)) => return join::run(args).await,
        Some(ControlCommand::Inspect(args)) => return offline::inspect(&args),
        Some(ControlCommand::Backup(args)) => return offline::backup(&args),
        Some(ControlCommand::Restore(args)) => return offline::restore(&args),
        None => {}
    }
    let args = args.run;
    // What flags it has counts already; a fault elsewhere is told here as by the other roles.
    let file = FileConfig::read(args.config.as_deref())?;
    crate::logging::follow(&file.log, args.config.as_deref())?;
    args.traces.start("control")?;
    let readiness = args.metrics.listen("control").await?;
    args.profiling.listen().await?;
    if let (Some(token), Some(list)) = (&args.token, &args.join) {
        let hosts = join::hosts(args.listen, args.advertise.as_deref());
        let newcomer = Newcomer { role: Role::Control, node: format!("m{}", args.node_id), hosts };
        newcomer.join(token, &addresses(list), &args.security.client).await?;
    }
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
    config.region = args.region;
    config.learner = args.learner;
    config.hash_key = args.hash_key.read()?;
    config.plain_index = args.index == IndexForm::Plain;
    args.pace.apply(&mut config.settings);
    config.lease_ttl_ms = args.pace.lease_ttl_ms;
    config.identity = args.security.client.load(Role::Control)?;
    config.insecure = args.security.insecure;
    let handle = mainstay_control::start(config).await?;
    let group = handle.group().clone();
    readiness
        .started(move || group.status().leader.is_none().then(|| "no leader is known".to_owned()));
    print(&format!("ready control m{} on {}", args.node_id, handle.address()));
    tokio::select! {
        result = asked_to_stop() => result?,
        reason = super::control_ended(&handle) => bail!("the control member ended: {reason}"),
    }
    handle.shutdown().await;
    Ok(())
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let read = |part: &str| part.trim().parse::<u64>().ok();
    let range = text.split_once("..").and_then(|(min, max)| Some((read(min)?, read(max)?)));
    range.ok_or_else(|| format!("{text:?} is not MIN..MAX, such as 500..1000"))
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

#[cfg(test)]
mod tests {
    use super::{ELECTION_MS, Settings, parse_range};

    #[test]
    fn the_usual_pace_is_the_same_in_text() {
        let usual = Settings::default();
        assert_eq!(parse_range(ELECTION_MS), Ok((usual.election_ms_min, usual.election_ms_max)));
        for wrong in ["", "5", "a..b", "1..2..3", "-1..5", "5.."] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
