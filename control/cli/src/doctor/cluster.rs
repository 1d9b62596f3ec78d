//! A cluster that runs: each member asked by itself, what they say held together, and a gateway.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay_proto::v1;
use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};
use serde_json::Value;
use tokio::net::lookup_host;
use tonic::Code;

use super::Finding;
use super::checks::{
    CLOCK_SKEW, DRIFT, GATEWAY, LAG, MEMBERS, MEMBERS_SPEAK, QUORUM, VERSIONS, WORKERS,
};
use crate::commands::admin::Credentials;
use crate::http::Target;
use crate::output::Failure;

/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// More than the second by which answers are stamped, and the way here.
const SKEW_MAX_S: u64 = 3;
/// Entries behind the leader's log: seconds of a busy cluster.
const LAG_MAX: u64 = 10_000;
/// Members that are asked, at most.
const MEMBERS_MAX: usize = 32;
/// The version of members that say none.
const VERSION_UNSAID: u32 = 3;

/// What became of asking one address.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) address: String,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The name means nothing here.
    Unresolved(String),
    /// Nobody there.
    Silent(String),
    /// Somebody who is no member, or does not take us for whom we should be.
    Refused(String),
    /// A member; and by how many seconds its clock is ahead of ours, where it told the time.
    Told { status: Box<v1::StatusReply>, skew_s: Option<i64> },
    /// A member that answers others only.
    Closed,
}

async fn ask(credentials: &Credentials, address: String) -> Asked {
    let answer = answer(credentials, &address).await;
    Asked { address, answer }
}

async fn answer(credentials: &Credentials, address: &str) -> Answer {
    let known = async { lookup_host(address).await.map(Iterator::count) };
    match tokio::time::timeout(PATIENCE, known).await {
        Ok(Ok(0)) => return Answer::Unresolved("no address".to_owned()),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Answer::Unresolved(error.to_string()),
        Err(_) => return Answer::Unresolved("whoever knows names does not answer".to_owned()),
    }
    let dialled = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await;
    match dialled {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Answer::Silent(error.to_string()),
        Err(_) => return Answer::Silent("no answer".to_owned()),
    }
    let (mut client, pass) = match credentials.client(address) {
        Ok(client) => client,
        Err(error) => return Answer::Refused(crate::output::chain(&error)),
    };
    let asked = client.status(pass.request(v1::StatusRequest::default()));
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(reply)) => {
            let date = reply.metadata().get("date").and_then(|date| date.to_str().ok());
            let skew_s = date.and_then(unix_of).and_then(|then| Some(then - now_s()?));
            Answer::Told { status: Box::new(reply.into_inner()), skew_s }
        }
        Ok(Err(status))
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) =>
        {
            Answer::Closed
        }
        Ok(Err(status)) => Answer::Refused(status.message().to_owned()),
        Err(_) => Answer::Refused("it takes the connection and says nothing".to_owned()),
    }
}

fn now_s() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Seconds since 1970 of an HTTP date.
fn unix_of(date: &str) -> Option<i64> {
    let then = httpdate::parse_http_date(date).ok()?;
    i64::try_from(then.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// Asks all members at once, each by itself, and judges what they say.
pub(crate) async fn look_at_cluster(credentials: &Credentials, members: &[String]) -> Vec<Finding> {
    let mut named: Vec<String> = members.to_vec();
    named.sort();
    named.dedup();
    named.truncate(MEMBERS_MAX);
    let asked = named.into_iter().map(|address| ask(credentials, address));
    let asked: Vec<Asked> = futures::future::join_all(asked).await;
    judge(&asked)
}

/// What the answers mean.
pub(super) fn judge(asked: &[Asked]) -> Vec<Finding> {
    let mut found: Vec<Finding> = asked.iter().map(reach).collect();
    let told = |asked: &Asked| match &asked.answer {
        Answer::Told { status, .. } => Some((asked.address.clone(), (**status).clone())),
        _ => None,
    };
    let told: Vec<(String, v1::StatusReply)> = asked.iter().filter_map(told).collect();
    found.push(skew(asked));
    // The one that has applied most knows best.
    let Some((_, best)) = told.iter().max_by_key(|(_, status)| (status.term, status.applied_index))
    else {
        found.push(Finding::skipped(&QUORUM, "no member told how the group stands"));
        return found;
    };
    found.push(quorum(best, &told));
    found.push(versions(best));
    found.push(lag(best));
    found.push(workers(best));
    found.push(drift(&told));
    found
}

fn reach(asked: &Asked) -> Finding {
    let address = &asked.address;
    match &asked.answer {
        Answer::Unresolved(why) => Finding::failure(
            &MEMBERS,
            format!("{address}: the name does not resolve ({why})"),
            "correct it in --control or --members; getent hosts NAME tries one",
        ),
        Answer::Silent(why) => Finding::failure(
            &MEMBERS,
            format!("{address}: nobody answers ({why})"),
            format!("mainstay control --listen {address} on that machine, or open its port"),
        ),
        Answer::Refused(why) => Finding::failure(
            &MEMBERS_SPEAK,
            format!("{address}: {why}"),
            "--identity DIR with an admin's certificate, or --admin-token-file FILE; else it is no control member's port",
        ),
        Answer::Closed => Finding::skipped(
            &MEMBERS_SPEAK,
            format!(
                "{address} is a member, and tells admins alone how it is; pass --identity DIR or --admin-token-file FILE"
            ),
        ),
        Answer::Told { status, .. } => {
            Finding::ok(&MEMBERS, format!("{address} is m{} in {}", status.node, status.region))
        }
    }
}

fn skew(asked: &[Asked]) -> Finding {
    let skews = asked.iter().filter_map(|asked| match asked.answer {
        Answer::Told { skew_s: Some(skew_s), .. } => Some((&asked.address, skew_s)),
        _ => None,
    });
    let skews: Vec<(&String, i64)> = skews.collect();
    let (Some(least), Some(most)) =
        (skews.iter().min_by_key(|(_, s)| *s), skews.iter().max_by_key(|(_, s)| *s))
    else {
        return Finding::skipped(&CLOCK_SKEW, "no member told the time");
    };
    let apart = most.1.abs_diff(least.1);
    if apart > SKEW_MAX_S {
        return Finding::failure(
            &CLOCK_SKEW,
            format!("the clock of {} is {apart} s ahead of that of {}", most.0, least.0),
            format!("timedatectl set-ntp true on {} and {}", most.0, least.0),
        );
    }
    let here = least.1.unsigned_abs().max(most.1.unsigned_abs());
    if here > SKEW_MAX_S {
        return Finding::warning(
            &CLOCK_SKEW,
            format!("this machine's clock is {here} s off the members'"),
            "timedatectl set-ntp true here",
        );
    }
    Finding::ok(&CLOCK_SKEW, "the clocks agree to within seconds")
}

fn quorum(best: &v1::StatusReply, told: &[(String, v1::StatusReply)]) -> Finding {
    let cure = "start the members that are down; mainstay control members rm ID for one whose disk is lost";
    if best.members.is_empty() {
        return Finding::failure(
            &QUORUM,
            "the members that answer are in no group",
            "mainstay control --members 1=HOST:PORT,… for a new one, --join HOST:PORT,… for one that runs",
        );
    }
    let voters: Vec<&v1::Member> = best.members.iter().filter(|m| m.role != "learner").collect();
    // A member is there if it told us, or if the one that leads reaches it.
    let is_there = |m: &&&v1::Member| {
        m.reachable && best.leader != 0 || told.iter().any(|(_, status)| status.node == m.id)
    };
    let there = voters.iter().filter(is_there).count();
    let needed = voters.len() / 2 + 1;
    let lost: Vec<String> = voters
        .iter()
        .filter(|m| !is_there(m))
        .map(|m| format!("m{} ({})", m.id, m.address))
        .collect();
    if best.leader == 0 {
        let what = format!(
            "no member leads; {there} of {} voters answer, {needed} are needed",
            voters.len()
        );
        let what =
            if lost.is_empty() { what } else { format!("{what}; silent: {}", lost.join(", ")) };
        return Finding::failure(&QUORUM, what, cure);
    }
    if !lost.is_empty() {
        let what = format!("m{} leads, and {} is out of reach", best.leader, lost.join(", "));
        return Finding::warning(&QUORUM, what, cure);
    }
    if voters.len().is_multiple_of(2) {
        let what = format!(
            "{} voters: an even number stands the loss of no more than one fewer",
            voters.len()
        );
        return Finding::warning(&QUORUM, what, "a voter more, or mainstay control members rm ID");
    }
    Finding::ok(&QUORUM, format!("m{} leads {} voters", best.leader, voters.len()))
}

fn versions(best: &v1::StatusReply) -> Finding {
    let known = |version: u32| if version == 0 { VERSION_UNSAID } else { version };
    let cluster = known(best.cluster_version);
    if cluster > u32::from(VERSION_NEWEST) {
        return Finding::failure(
            &VERSIONS,
            format!(
                "the cluster's version is {cluster}, and this program knows {VERSION_NEWEST} at most"
            ),
            "upgrade this program",
        );
    }
    let far = |m: &&v1::Member| {
        m.reachable
            && (known(m.version).abs_diff(u32::from(VERSION_NEWEST)) > 1
                || known(m.version) < u32::from(VERSION_OLDEST))
    };
    if let Some(member) = best.members.iter().find(far) {
        let version = known(member.version);
        return Finding::failure(
            &VERSIONS,
            format!("m{} knows version {version}, this program {VERSION_NEWEST}", member.id),
            "upgrade one minor version at a time, members first: docs/operate/upgrades.md",
        );
    }
    let behind: Vec<String> = best
        .members
        .iter()
        .filter(|m| m.reachable && known(m.version) > cluster)
        .map(|m| format!("m{}", m.id))
        .collect();
    let all_know = behind.len() == best.members.iter().filter(|m| m.reachable).count();
    if !behind.is_empty() && !all_know {
        return Finding::warning(
            &VERSIONS,
            format!(
                "the cluster stays at version {cluster}: {} know a newer one, others do not",
                behind.join(", ")
            ),
            "upgrade the other members: docs/operate/upgrades.md",
        );
    }
    Finding::ok(&VERSIONS, format!("cluster version {cluster}"))
}

fn lag(best: &v1::StatusReply) -> Finding {
    let behind = |m: &&v1::Member| m.reachable && m.lag > LAG_MAX;
    match best.members.iter().find(behind) {
        Some(member) => Finding::warning(
            &LAG,
            format!("m{} is {} entries behind", member.id, member.lag),
            "iostat -x 1 on its machine; mainstay control members shows whether it catches up",
        ),
        None => Finding::ok(&LAG, "no member is far behind"),
    }
}

fn workers(best: &v1::StatusReply) -> Finding {
    let live = best.workers.iter().filter(|worker| worker.state == "live").count();
    if live == 0 {
        return Finding::warning(
            &WORKERS,
            "no worker is there",
            "mainstay worker --control HOST:PORT,…",
        );
    }
    Finding::ok(&WORKERS, format!("{live} workers"))
}

fn drift(told: &[(String, v1::StatusReply)]) -> Finding {
    match told.iter().find(|(_, status)| status.index_drift > 0) {
        Some((address, status)) => Finding::warning(
            &DRIFT,
            format!(
                "{address} found {} differences since it started, and mended them",
                status.index_drift
            ),
            "mainstay bundle, if it grows",
        ),
        None => Finding::ok(&DRIFT, "no index differed"),
    }
}

/// A gateway: whether it answers, takes the key, and is ready.
pub(crate) async fn look_at_gateway(target: &Target) -> Finding {
    let failure = |error: &anyhow::Error| {
        let exit = error.downcast_ref::<Failure>().map_or(1, |failure| failure.exit);
        let next = match exit {
            6 => "--api-key KEY; mainstay tenant key add TENANT makes one",
            4 => "mainstay status, mainstay doctor --control HOST:PORT,…",
            _ => "--addr with the address of a gateway",
        };
        Finding::failure(&GATEWAY, crate::output::chain(error), next)
    };
    match target.get("/readyz").await {
        Ok(ready) if ready["ready"].as_bool() == Some(true) => {}
        Ok(_) => {
            let what = "something answers there that is no gateway";
            return Finding::failure(&GATEWAY, what, "--addr with the address of a gateway");
        }
        Err(error) => return failure(&error),
    }
    match target.get("/api/v1/status").await {
        Ok(status) => {
            let count = |key: &str| status[key].as_array().map_or(0, Vec::len);
            let region = status["gateway"]["region"].as_str().or(status["region"].as_str());
            let region = region.map_or(String::new(), |region| format!(" in {region}"));
            let what = format!(
                "ready{region}: {} members, {} workers",
                count("members"),
                count("workers")
            );
            Finding::ok(&GATEWAY, what)
        }
        Err(error) => failure(&error),
    }
}

/// The reasons that a gateway gives for not being ready.
pub(crate) fn reasons(body: &Value) -> Option<String> {
    let reasons = body.get("reasons")?.as_array()?;
    let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
    (!reasons.is_empty()).then(|| format!("not ready: {}", reasons.join("; ")))
}
