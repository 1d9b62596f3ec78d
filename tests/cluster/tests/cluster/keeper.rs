//! The keeper: a pin whose holder is killed is whole again on another worker, and the next turn hits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Cluster, Shape, run_cli};
use serde_json::{Value, json};

use crate::{answer, cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 3, gateways: 1, workers: 3, blocks: 2_000 };
/// From `kill -9` to `active` elsewhere.
const BAR: Duration = Duration::from_secs(5);

fn holders(pin: &Value) -> Vec<String> {
    let holders = pin["holders"].as_array().map_or(&[][..], Vec::as_slice);
    let whole = holders.iter().filter(|h| h["blocks_held"] == pin["blocks"]);
    whole.filter_map(|h| h["worker"].as_str()).map(str::to_owned).collect()
}

/// A live pin, once it is active.
async fn active(client: &Client, path: &str) -> Result<Value> {
    client
        .wait_for(path, Duration::from_secs(30), |found| {
            let pin = found["data"].get(0).unwrap_or(found);
            (pin["state"] == "active").then(|| pin.clone())
        })
        .await
}

#[tokio::test]
async fn a_pin_whose_worker_is_killed_is_whole_elsewhere_and_the_next_turn_hits() -> Result<()> {
    let mut cluster = Cluster::start(&SHAPE)?;
    let url = cluster.gateway_urls[0].clone();
    let client = Client::new(&url);
    let mut messages = vec![user(&filler(4_242, 400))];
    let body = json!({
        "model": "demo", "max_tokens": 8, "temperature": 0, "messages": messages,
        "nvext": {"cache_control": {"type": "ephemeral", "ttl": "10m", "recompute": true}},
    });
    let first = client.post("/v1/chat/completions", &body).await?;
    ensure!(first.status == 200, "{} {}", first.status, first.body);
    let pin = active(&client, "/v1/pins").await?;
    let (id, prefix_tokens) = (pin["id"].as_str().context("an id")?, pin["prefix_tokens"].as_u64());
    let prefix_tokens = prefix_tokens.context("a length")?;
    ensure!(prefix_tokens > 2_000, "a short conversation: {pin}");
    ensure!(pin["recompute"] == true, "{pin}");
    let path = format!("/v1/pins/{id}");
    let dead = holders(&pin).pop().context("a holder")?;

    let at = cluster.worker_at(&dead)?;
    cluster.workers[at].kill()?;
    let killed = Instant::now();
    let (mut degraded, mut ordered) = (None, None);
    let again = loop {
        let pin = client.get(&path).await?.body;
        if pin["state"] == "degraded" {
            degraded.get_or_insert_with(|| killed.elapsed());
        }
        if pin["orders"].as_array().is_some_and(|orders| !orders.is_empty()) {
            ordered.get_or_insert_with(|| killed.elapsed());
        }
        if pin["state"] == "active" && !holders(&pin).contains(&dead) {
            break pin;
        }
        ensure!(killed.elapsed() < BAR * 6, "{pin}\n{}", cluster.members[0].output());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let took = killed.elapsed();
    println!(
        "keeper: {prefix_tokens} tokens; killed to degraded {degraded:?}, ordered {ordered:?}, active {took:?}"
    );
    let (code, out, err) = run_cli(&["pin", "show", id, "--addr", &url])?;
    assert_eq!(code, 0, "{err}");
    let now = holders(&again).pop().context("a holder")?;
    assert!(out.contains("active") && out.contains(&now) && out.contains("1/1"), "{out}");
    assert_ne!(now, dead);

    messages.push(answer(&first.body));
    messages.push(user("Go on."));
    let next = client.chat(&json!(messages), 8).await?;
    assert!(cached(&next) >= prefix_tokens, "{} < {prefix_tokens}: {next}", cached(&next));
    assert!(prompt_tokens(&next) > prefix_tokens);
    ensure!(took < BAR, "{took:?} from the kill to active");
    Ok(())
}

#[tokio::test]
async fn copies_are_made_without_any_request_and_made_again() -> Result<()> {
    let mut cluster = Cluster::start(&SHAPE)?;
    let client = Client::new(&cluster.gateway_urls[0]);
    let text = filler(5_151, 40);
    let asked = json!({"model": "demo", "ttl": "10m", "copies_min": 2, "messages": [user(&text)]});
    let made = client.post("/v1/pins", &asked).await?;
    ensure!(made.status == 200, "{}", made.body);
    assert_eq!((&made.body["state"], &made.body["recompute"]), (&json!("pending"), &json!(true)));
    let path = format!("/v1/pins/{}", made.body["id"].as_str().context("an id")?);
    let whole = active(&client, &path).await?;
    let kept = holders(&whole);
    assert_eq!(kept.len(), 2, "{whole}");
    let at = cluster.worker_at(&kept[0])?;
    cluster.workers[at].kill()?;
    let killed = Instant::now();
    let third = client
        .wait_for(&path, Duration::from_secs(30), |pin| {
            let now = holders(pin);
            (now.len() == 2 && !now.contains(&kept[0])).then_some(now)
        })
        .await?;
    println!("keeper: two copies again {:?} after a kill", killed.elapsed());
    assert!(third.contains(&kept[1]), "{third:?}");
    let reply = client.chat(&json!([user(&text)]), 4).await?;
    assert!(cached(&reply) >= whole["prefix_tokens"].as_u64().context("a length")?, "{reply}");

    // Who asks for none gets none.
    let mut plain = asked.clone();
    plain["recompute"] = json!(false);
    plain["messages"] = json!([user(&filler(6_161, 10))]);
    let made = client.post("/v1/pins", &plain).await?;
    assert_eq!(made.body["recompute"], false, "{}", made.body);
    plain["recompute"] = json!("yes");
    assert_eq!(client.post("/v1/pins", &plain).await?.status, 400);
    Ok(())
}
