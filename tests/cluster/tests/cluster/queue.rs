//! Requests wait at the gateway while no worker has room, and hints decide who goes first.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, free_port, run_cli};
use serde_json::{Value, json};

use crate::{filler, user};

const SHAPE: Shape = Shape { members: 1, gateways: 1, workers: 1, blocks: 3_000 };
/// Ordinary requests that come first.
const BEFORE: u64 = 6;

/// A gateway that lets a worker have one prompt at a time.
fn gateway(cluster: &Cluster) -> Result<(Process, String)> {
    let listen = format!("127.0.0.1:{}", free_port());
    let control = cluster.member_addresses.join(",");
    let args = ["gateway", "--control", &control, "--listen", &listen];
    let queue = ["--router-queue-threshold", "0", "--router-queue-policy", "arrival"];
    let args: Vec<String> = args.iter().chain(&queue).map(ToString::to_string).collect();
    let mut gateway = Process::start("queue", &args)?;
    gateway.wait_ready()?;
    Ok((gateway, format!("http://{listen}")))
}

/// A long prompt that nobody else has, with or without hints; answers which one it was.
async fn ask(client: &Client, number: u64, hints: Value) -> Result<u64> {
    let messages = json!([user(&filler(70_000 + number, 120))]);
    let mut body = json!({"model": "demo", "max_tokens": 1, "messages": messages});
    if !hints.is_null() {
        body["nvext"] = json!({ "agent_hints": hints });
    }
    let reply = client.post("/v1/chat/completions", &body).await?;
    ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
    Ok(number)
}

#[tokio::test]
async fn who_says_that_he_is_first_overtakes_those_who_wait() -> Result<()> {
    let cluster = Cluster::start(&SHAPE)?;
    let (_gateway, url) = gateway(&cluster)?;
    let client = Client::new(&url);
    let mut all = FuturesUnordered::new();
    let asked = |number: u64, after: Duration, hints: Value| {
        let client = client.clone();
        async move {
            tokio::time::sleep(after).await;
            ask(&client, number, hints).await
        }
    };
    for number in 0..BEFORE {
        all.push(asked(number, Duration::from_millis(number * 5), Value::Null));
    }
    let hints = || json!({"strict_priority": 2, "osl": 1, "latency_sensitivity": 0.9});
    all.push(asked(BEFORE, Duration::from_millis(100), hints()));
    let mut order = Vec::new();
    while let Some(one) = all.next().await {
        order.push(one?);
    }
    let place = order.iter().position(|number| *number == BEFORE).context("it ended")?;
    ensure!(place + 2 < order.len(), "it came last and went {place}: {order:?}");
    ask(&client, BEFORE + 1, hints()).await?;
    let body = client.get("/api/v1/requests/last/explain").await?.body;
    ensure!(body["hints"]["strict_priority"] == 2 && body["hints"]["osl"] == 1, "{body}");
    ensure!(body["hints"]["without"]["changed"] == false, "there is one worker: {body}");
    let (code, out, err) = run_cli(&["request", "explain", "last", "--addr", &url])?;
    ensure!(code == 0 && out.contains("strict_priority 2"), "{out} {err}");
    Ok(())
}
