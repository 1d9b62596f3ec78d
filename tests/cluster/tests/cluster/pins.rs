//! The seeds' own request makes pins on all three endpoints, and pinned blocks outlive a flood.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt;
use mainstay_cluster_tests::{Client, Cluster, Shape, run_cli};
use serde_json::{Value, json};

use crate::{answer, cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 1, gateways: 1, workers: 1, blocks: 400 };

fn with_hints(mut body: Value) -> Value {
    body["nvext"] = json!({
        "agent_hints": {"priority": 5, "osl": 64, "latency_sensitivity": 0.7, "speculative_prefill": false},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "a_member_of_tomorrow": {"x": 1},
    });
    body
}

#[tokio::test]
async fn pinned_blocks_outlive_a_flood_and_unpinned_ones_go() -> Result<()> {
    let cluster = Cluster::start(&SHAPE)?;
    let url = &cluster.gateway_urls[0];
    let client = Client::new(url);
    let prompts: Vec<Value> = (0..3).map(|n| json!([user(&filler(500 + n, 14))])).collect();
    let bodies = [
        ("/v1/chat/completions", json!({"model": "demo", "max_tokens": 4, "messages": prompts[0]})),
        ("/v1/responses", json!({"model": "demo", "max_output_tokens": 4, "input": prompts[1]})),
        ("/v1/messages", json!({"model": "demo", "max_tokens": 4, "messages": prompts[2]})),
    ];
    for (path, body) in bodies {
        let reply = client.post(path, &with_hints(body)).await?;
        ensure!(reply.status == 200, "{path}: {} {}", reply.status, reply.body);
    }
    let unpinned = json!([user(&filler(900, 14))]);
    client.chat(&unpinned, 4).await?;
    let all_active = |list: &Value| {
        let pins = list["data"].as_array()?;
        (pins.len() == 3 && pins.iter().all(|p| p["state"] == "active")).then_some(())
    };
    client.wait_for("/v1/pins", Duration::from_secs(10), all_active).await?;
    let (code, out, err) = run_cli(&["pin", "ls", "--addr", url])?;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.matches("active").count(), 3, "{out}");
    let left = out.matches("1h00m").count() + out.matches("59m").count();
    assert!(left == 3 && out.contains("TTL LEFT"), "{out}");

    let flood = (0..120u64).map(|n| {
        let client = client.clone();
        async move { client.chat(&json!([user(&filler(10_000 + n, 14))]), 2).await }
    });
    let flooded: Vec<_> = futures::stream::iter(flood).buffer_unordered(4).collect().await;
    flooded.into_iter().collect::<Result<Vec<_>>>()?;

    for prompt in &prompts {
        let reply = client.chat(prompt, 4).await?;
        let full_blocks = (prompt_tokens(&reply) - 1) / 16 * 16;
        assert_eq!(cached(&reply), full_blocks, "a pinned prefix was evicted: {reply}");
    }
    let reply = client.chat(&unpinned, 4).await?;
    // The system prompt's first blocks are shared with everybody; what is its own must be gone.
    assert!(cached(&reply) < prompt_tokens(&reply) / 2, "the flood evicted nothing: {reply}");
    Ok(())
}

#[tokio::test]
async fn a_ninth_branch_of_a_session_is_refused_in_a_word_and_answered_all_the_same() -> Result<()>
{
    let cluster = Cluster::start(&SHAPE)?;
    let url = &cluster.gateway_urls[0];
    let client = Client::new(url);
    let keep = json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}, "session_id": "s"});
    let body = |n: u64| {
        let prompt = user(&filler(700 + n, 4));
        json!({"model": "demo", "max_tokens": 4, "temperature": 0, "messages": [prompt], "nvext": keep})
    };
    let live = |count: usize| {
        move |list: &Value| (list["data"].as_array()?.len() == count).then(|| list.clone())
    };
    let mut third = Value::Null;
    for n in 0..8 {
        let reply = client.post("/v1/chat/completions", &body(n)).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        if n == 3 {
            third = answer(&reply.body);
        }
    }
    let before = client.wait_for("/v1/pins", Duration::from_secs(10), live(8)).await?;
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let reply = client.post(path, &body(8)).await?;
        ensure!(reply.status == 200, "{path}: {} {}", reply.status, reply.body);
        let note = &reply.body["nvext"]["pins"][0];
        assert_eq!(note["outcome"], "rejected", "{}", reply.body);
        let reason = note["reason"].as_str().unwrap_or_default();
        assert!(
            reason.contains("session s has 8 live pins") && reason.contains("pin rm"),
            "{note}"
        );
    }
    let ids = |list: &Value| -> Vec<String> {
        let pins = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        pins.iter().map(|p| p["id"].to_string()).collect()
    };
    let after = client.get("/v1/pins").await?.body;
    assert_eq!(ids(&after), ids(&before), "a pin that was promised ended early");
    // The pin API says no with a status.
    let asked = json!({"model": "demo", "session": "s", "messages": [user(&filler(800, 4))]});
    let refused = client.post("/v1/pins", &asked).await?;
    assert_eq!(refused.status, 429, "{}", refused.body);
    // The next turn of a branch has room: it takes its predecessor's place.
    let mut turn = body(3);
    turn["messages"] = json!([turn["messages"][0], third, user(&filler(3, 4))]);
    let reply = client.post("/v1/chat/completions", &turn).await?;
    assert_eq!((reply.status, &reply.body["nvext"]), (200, &Value::Null), "{}", reply.body);
    let turned = client.wait_for("/v1/pins", Duration::from_secs(10), |list| {
        (live(8)(list).is_some() && ids(list) != ids(&before)).then(|| list.clone())
    });
    turned.await?;
    Ok(())
}
