//! `mainstay control members`: who is in the group of control members, and changing that.
//!
//! Listing goes through a gateway unless members are named; changes go to the members themselves.

use clap::Subcommand;
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::commands::admin::{AdminArgs, Credentials, Pass};
use crate::http::Target;
use crate::output::{Format, cell, print, print_json};
use crate::watching::WatchArgs;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<MembersCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand)]
enum MembersCommand {
    /// List the members: role, log, lag
    Ls(ListArgs),
    /// Take a running member in, with a vote once it has caught up
    Add {
        /// Its number, never used before
        id: u64,
        /// Where it listens, as HOST:PORT
        address: String,
        /// Without a vote
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        members: AdminArgs,
    },
    /// Take a member out
    Rm {
        id: u64,
        #[command(flatten)]
        members: AdminArgs,
    },
    /// Hand the lead to another member
    Transfer {
        id: u64,
        #[command(flatten)]
        members: AdminArgs,
    },
}

#[derive(clap::Args)]
struct ListArgs {
    /// Ask these members instead of a gateway, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL")]
    control: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    watch: WatchArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        None => args.list.watch.repeat(async || list(&args.list).await).await,
        Some(MembersCommand::Ls(args)) => args.watch.repeat(async || list(&args).await).await,
        Some(MembersCommand::Add { id, address, learner: learner_only, members }) => {
            let request = v1::AddMemberRequest {
                id,
                address,
                learner_only,
                ..v1::AddMemberRequest::default()
            };
            let add = async |mut c: ControlClient<Channel>, pass: Pass| {
                c.add_member(pass.request(request.clone())).await
            };
            change(&members, add).await
        }
        Some(MembersCommand::Rm { id, members }) => {
            let request = v1::RemoveMemberRequest { id };
            let remove = async |mut c: ControlClient<Channel>, pass: Pass| {
                c.remove_member(pass.request(request)).await
            };
            change(&members, remove).await
        }
        Some(MembersCommand::Transfer { id, members }) => {
            let request = v1::TransferLeaderRequest { id };
            let transfer = async |mut c: ControlClient<Channel>, pass: Pass| {
                c.transfer_leader(pass.request(request)).await
            };
            change(&members, transfer).await
        }
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let (members, version) = match &args.control {
        Some(control) => {
            let ask = async |mut c: ControlClient<Channel>, pass: Pass| {
                let request = v1::StatusRequest::default();
                let reply = c.status(pass.request(request)).await?;
                // A member without its disk, or a new one, knows nobody; another may.
                if reply.get_ref().members.is_empty() {
                    return Err(Status::unavailable("this member is in no group yet"));
                }
                Ok(reply)
            };
            let reply = args.credentials.ask(control, ask).await?;
            (json_of(&reply.members), json!(known(reply.cluster_version)))
        }
        None => {
            let status = args.target.get("/api/v1/status").await?;
            (status["members"].clone(), status["version"].clone())
        }
    };
    show(&members, &version, args.target.output);
    Ok(())
}

async fn change(
    members: &AdminArgs,
    change: impl AsyncFn(ControlClient<Channel>, Pass) -> Result<Response<v1::MembersReply>, Status>,
) -> anyhow::Result<()> {
    let reply = members.ask(change).await?;
    let version = json!(known(reply.cluster_version));
    show(&json_of(&reply.members), &version, members.output);
    Ok(())
}

fn show(members: &Value, version: &Value, output: Format) {
    match output {
        Format::Json => print_json(members),
        Format::Table => {
            print(&format!("cluster version {}", cell(&json!({"version": version}), "version")));
            print(&super::status::members(&json!({"members": members})));
        }
    }
}

/// A version that was told: members of older programs say none.
fn known(version: u32) -> Option<u32> {
    Some(version).filter(|version| *version > 0)
}

fn json_of(members: &[v1::Member]) -> Value {
    let one = |m: &v1::Member| {
        json!({
            "id": m.id, "address": m.address, "role": m.role, "last_log_index": m.last_log_index,
            "applied_index": m.applied_index, "lag": m.lag, "reachable": m.reachable,
            "region": Some(&m.region).filter(|r| !r.is_empty()),
            "version": known(m.version),
            "instance": format!("{:016x}", m.instance),
        })
    };
    members.iter().map(one).collect()
}
