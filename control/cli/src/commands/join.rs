//! Join tokens: made by an admin, shown once, and used by a node that has no certificate yet.
//!
//! The node makes its own key, checks the cluster by the fingerprint in the token, and keeps what it is given in its
//! identity folder. With a usable identity there it does not ask again, so that the same command line restarts it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use mainstay_identity::{
    Applicant, Authority, ClusterSecret, Given, Guest, JOIN_PREFIX, Role, is_identity, new_name,
};
use mainstay_proto::client::{ControlPlane, connector};
use mainstay_proto::v1;
use serde_json::{Value, json};

use crate::commands::admin::{AdminArgs, failure};
use crate::commands::identity::IdentityArgs;
use crate::commands::tenant::gone;
use crate::output::{Format, cell, duration, print, print_json, table};

/// How long a node that joins looks for a member that lets it in.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token by which one node may join; it is shown this once
    Add {
        /// What the node is for: control, gateway or worker
        #[arg(long)]
        role: String,
        /// The name that the node must have [default: any]
        #[arg(long)]
        name: Option<String>,
        /// How long it can be used, such as 10m or 1h
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: u64,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List join tokens
    Ls {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Take a join token back
    Rm {
        id: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make another admin token in the authority's folder; members know it once they have its admin-token.hash
    Admin {
        /// The authority's folder, made by `mainstay control init`
        #[arg(long, value_name = "DIR")]
        ca: std::path::PathBuf,
    },
}

fn parse_ttl(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit_ms = match &text[unit_at..] {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let number = text[..unit_at].parse::<u64>().ok().filter(|_| unit_ms > 0);
    let ttl_ms = number.and_then(|n| n.checked_mul(unit_ms));
    ttl_ms.ok_or_else(|| format!("{text:?} is no duration such as 90s, 10m or 1h"))
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        TokenCommand::Add { role, name, ttl, admin } => {
            add(role, name.unwrap_or_default(), ttl, &admin).await
        }
        TokenCommand::Ls { admin } => {
            let list = admin.ask(async |mut c, pass| {
                c.list_join_tokens(pass.request(v1::ListJoinTokensRequest {})).await
            });
            show(&list.await?.tokens, admin.output);
            Ok(())
        }
        TokenCommand::Rm { id, admin } => {
            let request = v1::RemoveJoinToken { id: id.clone() };
            let remove = admin
                .ask(async |mut c, pass| c.remove_join_token(pass.request(request.clone())).await);
            let what = format!("join token {id}");
            gone(remove.await?.changed, &what, "mainstay control token ls", &admin)
        }
        TokenCommand::Admin { ca } => {
            Authority::load(&ca)?.save_admin_token(&ca)?;
            let dir = ca.display();
            print(&format!(
                "{dir}/admin-token; copy {dir}/admin-token.hash into each member's folder"
            ));
            Ok(())
        }
    }
}

async fn add(role: String, node: String, ttl_ms: u64, admin: &AdminArgs) -> anyhow::Result<()> {
    // The fingerprint comes with the answer; the secret does not depend on it.
    let list = admin.ask(async |mut c, pass| {
        c.list_join_tokens(pass.request(v1::ListJoinTokensRequest {})).await
    });
    let authority: [u8; 32] =
        list.await?.authority.as_ref().try_into().context("the member names no authority")?;
    let token = ClusterSecret::create(JOIN_PREFIX, &authority)?;
    let (id, hash) = (new_name()?, token.hash().to_vec().into());
    let request = v1::PutJoinToken { id: id.clone(), hash, role: role.clone(), node, ttl_ms };
    let put = admin.ask(async |mut c, pass| c.put_join_token(pass.request(request.clone())).await);
    let reply = put.await?;
    if !reply.signs {
        tracing::warn!(
            "the member that leads has no key of the authority and can't let a node in; issue its certificate with \
             `mainstay control cert --sign`"
        );
    }
    match admin.output {
        Format::Json => {
            print_json(
                &json!({"id": id, "role": role, "ttl_ms": ttl_ms, "token": token.to_string()}),
            );
        }
        Format::Table => print(&format!(
            "{token}\n\njoin token {id} for one {role}, for {}; it is shown this once and kept nowhere",
            duration(ttl_ms)
        )),
    }
    Ok(())
}

fn show(tokens: &[v1::JoinToken], output: Format) {
    let one = |t: &v1::JoinToken| {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        json!({
            "id": t.id, "role": t.role, "node": text(&t.node), "state": t.state,
            "used_by": text(&t.used_by), "created_ms": t.created_ms, "ttl_left_ms": t.ttl_left_ms,
        })
    };
    let list: Vec<Value> = tokens.iter().map(one).collect();
    if output == Format::Json {
        return print_json(&Value::Array(list));
    }
    let row = |t: &Value| {
        let mut cells: Vec<String> =
            ["id", "role", "node", "state", "used_by"].iter().map(|key| cell(t, key)).collect();
        cells.push(duration(t["ttl_left_ms"].as_u64().unwrap_or_default()));
        cells
    };
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    print(&table(&["TOKEN", "ROLE", "NODE", "STATE", "USED BY", "LEFT"], &rows));
}

/// A node that joins.
pub(crate) struct Newcomer {
    pub(crate) role: Role,
    pub(crate) node: String,
    /// Under which others will dial it.
    pub(crate) hosts: Vec<String>,
}

impl Newcomer {
    /// Asks `members` for a certificate and writes it into the identity's folder; does nothing where one lies there.
    pub(crate) async fn join(
        self,
        token: &str,
        members: &[String],
        identity: &IdentityArgs,
    ) -> anyhow::Result<()> {
        let dir =
            identity.dir().context("joining needs --identity DIR, a folder for what it gets")?;
        if is_identity(dir) {
            tracing::info!(dir = %dir.display(), "there is an identity already; the join token is not used");
            return Ok(());
        }
        let token: ClusterSecret = token.parse()?;
        let (guest, applicant) = (Guest::new(&token)?, Applicant::create()?);
        let open = connector(move |to| guest.channel(to, Role::Control));
        let plane = ControlPlane::with_connector(members, open).map_err(|s| failure(&s))?;
        let request = v1::JoinRequest {
            token: token.secret().to_owned(),
            role: self.role.name().to_owned(),
            node: self.node.clone(),
            hosts: self.hosts,
            request: applicant.request().to_vec().into(),
        };
        let asked = plane.call(PATIENCE, |mut c| {
            let request = request.clone();
            async move { c.join(request).await }
        });
        let reply = asked.await.map_err(|s| failure(&s)).context("joining")?;
        let given = Given {
            certificate: reply.certificate,
            authority: reply.authority,
            admin_hash: reply.admin_hash,
        };
        applicant.save(dir, &token, (self.role, &self.node), &given)?;
        tracing::info!(role = %self.role, node = self.node, dir = %dir.display(), "joined");
        Ok(())
    }
}

/// The hosts of a node that listens there and is reached under that address, and this machine's loopback.
pub(crate) fn hosts(listen: SocketAddr, advertise: Option<&str>) -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let advertised = advertise.and_then(|a| a.rsplit_once(':')).map(|(host, _)| host);
    hosts.extend(advertised.map(|host| host.trim_matches(['[', ']']).to_owned()));
    if !listen.ip().is_unspecified() {
        hosts.push(listen.ip().to_string());
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_hosts() {
        assert_eq!(parse_ttl("90s"), Ok(90_000));
        assert_eq!(parse_ttl("1h"), Ok(3_600_000));
        for bad in ["", "h", "1", "1d", "99999999999999999999h", "-1h"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
        let any = "0.0.0.0:7500".parse().expect("an address");
        let near = ["127.0.0.1", "::1", "localhost"];
        assert_eq!(hosts(any, None), near);
        assert_eq!(hosts(any, Some("w1.example.org:7500"))[3], "w1.example.org");
        let far = "10.0.0.3:7500".parse().expect("an address");
        assert!(hosts(far, Some("[fd00::1]:7500")).contains(&"fd00::1".to_owned()));
        assert!(hosts(far, None).contains(&"10.0.0.3".to_owned()));
    }
}
