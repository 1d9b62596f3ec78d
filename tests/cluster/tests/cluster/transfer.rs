//! A prefix that one worker has computed is served by another without computing it again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, free_port};
use serde_json::{Value, json};

use crate::{cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 1, gateways: 1, workers: 2, blocks: 3_000 };
/// Prefixes that are tried.
const ROUNDS: u64 = 5;

/// A gateway that sends each request to the next worker, whoever holds what.
pub(crate) fn by_turns(cluster: &Cluster, more: &[&str]) -> Result<(Process, Client)> {
    let listen = format!("127.0.0.1:{}", free_port());
    let control = cluster.member_addresses.join(",");
    let fixed = ["gateway", "--control", &control, "--listen", &listen, "--policy", "round-robin"];
    let args: Vec<String> = fixed.iter().chain(more).map(ToString::to_string).collect();
    let mut gateway = Process::start("turns", &args)?;
    gateway.wait_ready()?;
    Ok((gateway, Client::new(&format!("http://{listen}"))))
}

/// The answer and the time until its first (and only) token.
pub(crate) async fn first_token(client: &Client, text: &str) -> Result<(Value, Duration)> {
    let begun = Instant::now();
    let reply = client.chat(&json!([user(text)]), 1).await?;
    Ok((reply, begun.elapsed()))
}

pub(crate) fn content(reply: &Value) -> &Value {
    &reply["choices"][0]["message"]
}

#[tokio::test]
async fn what_one_worker_computed_another_serves() -> Result<()> {
    let cluster = Cluster::start(&SHAPE)?;
    let (_turns, client) = by_turns(&cluster, &[])?;
    let (_alone, without) = by_turns(&cluster, &["--transfer=off"])?;
    let (mut cold, mut moved) = (Duration::MAX, Duration::MAX);
    for round in 0..ROUNDS {
        let text = filler(90_000 + round, 330);
        let (first, took) = first_token(&client, &text).await?;
        let tokens = prompt_tokens(&first);
        ensure!(tokens > 4_000 && cached(&first) == 0, "{first}");
        cold = cold.min(took);
        // The index hears of the blocks within moments.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (second, took) = first_token(&client, &text).await?;
        ensure!(cached(&second) + 32 >= tokens, "{} of {tokens}: {second}", cached(&second));
        assert_eq!(content(&first), content(&second), "the same answer over another's blocks");
        moved = moved.min(took);
    }
    // The same without transfer: the other worker computes it, so that the hit above was its work.
    let text = filler(99_000, 330);
    let (first, _) = first_token(&without, &text).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (second, _) = first_token(&without, &text).await?;
    assert_eq!((cached(&first), cached(&second)), (0, 0), "{second}");
    assert_eq!(content(&first), content(&second));
    let ratio = cold.as_secs_f64() / moved.as_secs_f64();
    println!(
        "transfer: first token {cold:.1?} computed, {moved:.1?} brought in ({ratio:.1} times)"
    );
    Ok(())
}
