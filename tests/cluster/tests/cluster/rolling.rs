//! Every process of a cluster is replaced, one after another, and no request fails.
//!
//! With `MAINSTAY_OLD` naming another version's binary, the cluster starts as that version and each process is
//! replaced by the one under test, so that both run side by side until the last is replaced. Without it, members agree to
//! no newer version of the cluster than that before until they are replaced: the log and its images are then those of the
//! version before, and the raise comes under load as it does in an upgrade.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mainstay_cluster_tests::{Client, Cluster, Shape, binary};
use serde_json::{Value, json};

use crate::{answer, filler, user};

const SHAPE: Shape = Shape { members: 3, gateways: 2, workers: 3, blocks: 2_000 };
const CLIENTS: u64 = 4;
const TURNS: usize = 3;
/// How long a process may take to let its requests end.
const END: Duration = Duration::from_secs(30);
/// Between two processes, as an operator's rollout waits.
const BETWEEN: Duration = Duration::from_secs(1);

/// What the clients did meanwhile.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    pins: AtomicU64,
    /// Connections refused by a gateway that was down, answered by the other.
    elsewhere: AtomicU64,
}

/// Asks one gateway, and the other if nobody listens at the first: all that a load balancer does.
pub(crate) async fn either<T>(
    clients: &[Client],
    first: usize,
    elsewhere: &AtomicU64,
    ask: impl AsyncFn(&Client) -> Result<T>,
) -> Result<T> {
    for at in 0..clients.len() * 2 {
        let client = &clients[(first + at) % clients.len()];
        match ask(client).await {
            Err(error) if refused(&error) => {
                elsewhere.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
    bail!("no gateway takes connections")
}

fn refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}

/// One agent: sessions of a few turns, streamed and not, each pinned, until told to end.
async fn agent(
    number: u64,
    clients: Vec<Client>,
    tally: Arc<Tally>,
    ends: Arc<AtomicBool>,
) -> Result<()> {
    let mut session = number * 1_000;
    while !ends.load(Ordering::Relaxed) {
        session += 1;
        let mut messages = vec![user(&filler(session, 12))];
        for turn in 0..TURNS {
            let first = turn + session as usize;
            let asked = json!(messages);
            let reply =
                either(&clients, first, &tally.elsewhere, async |c| c.chat(&asked, 12).await)
                    .await
                    .with_context(|| format!("turn {turn} of session {session}"))?;
            messages.push(answer(&reply));
            messages.push(user("Go on."));
            let body = json!({
                "model": "demo", "temperature": 0, "stream": true, "max_tokens": 24, "messages": messages,
            });
            either(&clients, first + 1, &tally.elsewhere, async |c| {
                c.stream_chat(&body, |_, _| {}).await
            })
            .await
            .with_context(|| format!("a stream of session {session}"))?;
            tally.requests.fetch_add(2, Ordering::Relaxed);
        }
        let pin = json!({
            "model": "demo", "ttl": "5m", "session": format!("s{session}"), "messages": messages,
        });
        let made: Value = either(&clients, session as usize, &tally.elsewhere, async |c| {
            let reply = c.post("/v1/pins", &pin).await?;
            anyhow::ensure!(reply.status < 300, "{}: {}", reply.status, reply.body);
            Ok(reply.body)
        })
        .await
        .with_context(|| format!("the pin of session {session}"))?;
        anyhow::ensure!(made["id"].is_string(), "{made}");
        tally.pins.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// What keeps members of this version to the log of the version before.
const HELD: &str = "--version-max=3";
/// The cluster's version once all members are replaced.
const VERSION: u64 = 4;
/// How long the members may take to find out that all of them know it.
const RAISE: Duration = Duration::from_secs(20);
/// Blocks pinned before the first process is replaced, and for how long.
const KEPT: &str = "1h";

/// Replaces every process, members first.
fn roll(mut cluster: Cluster) -> Result<Cluster> {
    let Cluster { members, workers, gateways, .. } = &mut cluster;
    for process in members.iter_mut().chain(workers).chain(gateways) {
        std::thread::sleep(BETWEEN);
        process.forget(HELD);
        process.replace(END)?;
    }
    std::thread::sleep(BETWEEN);
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_replaced_and_no_request_fails() -> Result<()> {
    let cluster = match std::env::var_os("MAINSTAY_OLD").map(PathBuf::from) {
        Some(old) => Cluster::start_as(&old, &SHAPE, &[])?,
        None => Cluster::start_as(&binary(), &SHAPE, &[HELD])?,
    };
    let clients: Vec<Client> = cluster.gateway_urls.iter().map(|url| Client::new(url)).collect();
    let kept = made_before(&clients[0]).await?;
    let (tally, ends) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let agents =
        (1..=CLIENTS).map(|n| agent(n, clients.clone(), Arc::clone(&tally), Arc::clone(&ends)));
    let rolling = async {
        let rolled = tokio::task::spawn_blocking(move || roll(cluster)).await;
        ends.store(true, Ordering::Relaxed);
        rolled?
    };
    let (cluster, served) = tokio::join!(rolling, futures::future::try_join_all(agents));
    served?;
    let cluster = cluster?;
    let (requests, pins) =
        (tally.requests.load(Ordering::Relaxed), tally.pins.load(Ordering::Relaxed));
    println!(
        "{requests} requests and {pins} pins while 8 processes were replaced: none failed; {} connections were \
         refused and went to the other gateway",
        tally.elsewhere.load(Ordering::Relaxed)
    );
    assert!(requests >= 60 && pins >= 6, "{requests} requests and {pins} pins prove little");
    let client = Client::new(&cluster.gateway_urls[0]);
    let listed = client.get("/v1/pins").await?.body;
    let live = listed["data"].as_array().context("a list of pins")?;
    assert_eq!(live.len(), pins as usize + kept.len(), "every acknowledged pin is there");
    for pin in &kept {
        let now = live.iter().find(|p| p["id"] == pin["id"]).with_context(|| format!("{pin}"))?;
        for field in ["blocks", "last_block", "prefix_tokens", "priority", "copies_min", "owner"] {
            assert_eq!(now[field], pin[field], "{field} of {now}");
        }
    }
    raised(&client).await
}

/// Pins that were there before the first process was replaced.
async fn made_before(client: &Client) -> Result<Vec<Value>> {
    let mut made = Vec::new();
    for session in 0..8 {
        let messages = json!([user(&filler(90_000 + session, 12))]);
        client.chat(&messages, 4).await?;
        let pin = json!({
            "model": "demo", "ttl": KEPT, "session": format!("before-{session}"), "messages": messages,
        });
        let reply = client.post("/v1/pins", &pin).await?;
        anyhow::ensure!(reply.status < 300, "{}: {}", reply.status, reply.body);
        made.push(reply.body);
    }
    Ok(made)
}

/// All members say that they know the newest version, and the cluster has it; what came with it works.
async fn raised(client: &Client) -> Result<()> {
    let started = Instant::now();
    loop {
        let status = client.get("/api/v1/status").await?.body;
        let members = status["members"].as_array().context("a list of members")?;
        if status["version"] == VERSION && members.iter().all(|m| m["version"] == VERSION) {
            break;
        }
        anyhow::ensure!(started.elapsed() < RAISE, "the version is not raised: {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let messages = json!([user(&filler(99_000, 12))]);
    let pin = json!({ "model": "demo", "ttl": KEPT, "scope": "global", "messages": messages });
    let made = client.post("/v1/pins", &pin).await?;
    anyhow::ensure!(made.status < 300 && made.body["scope"] == "global", "{}", made.body);
    Ok(())
}
