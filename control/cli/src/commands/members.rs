//! `mainstay control members`: who is in the group of control members, and changing that.
//!
//! Listing goes through a gateway unless members are named; changes go to the members themselves. A change that a
//! member can't make because another one leads is sent on to that one; whatever else goes wrong is told at once,
//! since sending a change twice may answer something else the second time.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use mainstay_identity::Role;
use mainstay_proto::client::{Connector, ControlPlane, channel, connector};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::commands::addresses;
use crate::commands::identity::IdentityArgs;
use crate::http::Target;
use crate::output::{Failure, Format, print, print_json};

/// A new member has 20 s to catch up.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// How long a leader is looked for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

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
        members: Members,
    },
    /// Take a member out
    Rm {
        id: u64,
        #[command(flatten)]
        members: Members,
    },
    /// Hand the lead to another member
    Transfer {
        id: u64,
        #[command(flatten)]
        members: Members,
    },
}

#[derive(clap::Args)]
struct ListArgs {
    /// Ask these members instead of a gateway, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL")]
    control: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args)]
struct Members {
    /// Members of the group, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL", default_value = "127.0.0.1:7400")]
    control: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        None => list(args.list).await,
        Some(MembersCommand::Ls(args)) => list(args).await,
        Some(MembersCommand::Add { id, address, learner: learner_only, members }) => {
            let request = v1::AddMemberRequest { id, address, learner_only, instance: 0 };
            let change = |mut c: ControlClient<Channel>| {
                let request = request.clone();
                async move { c.add_member(request).await }
            };
            members.change(change).await
        }
        Some(MembersCommand::Rm { id, members }) => {
            let request = v1::RemoveMemberRequest { id };
            let change = async |mut c: ControlClient<Channel>| c.remove_member(request).await;
            members.change(change).await
        }
        Some(MembersCommand::Transfer { id, members }) => {
            let request = v1::TransferLeaderRequest { id };
            let change = async |mut c: ControlClient<Channel>| c.transfer_leader(request).await;
            members.change(change).await
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let members = match args.control {
        Some(control) => {
            let ask = async |mut c: ControlClient<Channel>| {
                let reply = c.status(v1::StatusRequest { local_only: false }).await?;
                // A member without its disk, or a new one, knows nobody; another may.
                if reply.get_ref().members.is_empty() {
                    return Err(Status::unavailable("this member is in no group yet"));
                }
                Ok(reply)
            };
            json_of(&ask_any(&control, &args.identity, ask).await?.members)
        }
        None => args.target.get("/api/v1/status").await?["members"].clone(),
    };
    show(&members, args.target.output);
    Ok(())
}

impl Members {
    async fn change(
        &self,
        change: impl AsyncFn(
            ControlClient<Channel>,
        ) -> Result<tonic::Response<v1::MembersReply>, Status>,
    ) -> anyhow::Result<()> {
        let reply = ask_any(&self.control, &self.identity, change).await?;
        show(&json_of(&reply.members), self.output);
        Ok(())
    }
}

fn show(members: &Value, output: Format) {
    match output {
        Format::Json => print_json(members),
        Format::Table => print(&super::status::members(&json!({"members": members}))),
    }
}

fn json_of(members: &[v1::Member]) -> Value {
    let one = |m: &v1::Member| {
        json!({
            "id": m.id, "address": m.address, "role": m.role, "last_log_index": m.last_log_index,
            "applied_index": m.applied_index, "lag": m.lag, "reachable": m.reachable,
            "region": Some(&m.region).filter(|r| !r.is_empty()),
            "instance": format!("{:016x}", m.instance),
        })
    };
    members.iter().map(one).collect()
}

/// Asks one member after another until one can answer: the leader, for what only it can do.
async fn ask_any<T>(
    control: &str,
    identity: &IdentityArgs,
    ask: impl AsyncFn(ControlClient<Channel>) -> Result<tonic::Response<T>, Status>,
) -> anyhow::Result<T> {
    let open: Connector = match identity.load(Role::Admin)? {
        Some(identity) => connector(move |to| identity.channel(to, Role::Control)),
        None => Arc::new(channel),
    };
    let plane = ControlPlane::with_connector(&addresses(control), open).map_err(|s| failure(&s))?;
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = match tokio::time::timeout(ATTEMPT_MAX, ask(plane.current())).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(
                "the change takes long and may still come; see `mainstay control members ls`",
            ),
        };
        if status.code() != Code::Unavailable || tokio::time::Instant::now() >= until {
            return Err(failure(&status).into());
        }
        plane.follow(&status);
        tokio::time::sleep(PAUSE).await;
    }
}

fn failure(status: &Status) -> Failure {
    let (hint, exit) = match status.code() {
        Code::NotFound => ("", 3),
        Code::Unavailable => ("; is a member running there? give --control HOST:PORT,…", 4),
        Code::DeadlineExceeded => ("", 4),
        Code::AlreadyExists | Code::FailedPrecondition => ("", 5),
        Code::PermissionDenied | Code::Unauthenticated => ("", 6),
        _ => ("", 1),
    };
    Failure { message: format!("{}{hint}", status.message()), exit }
}
