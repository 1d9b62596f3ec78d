//! The seeds' own request makes pins on all three endpoints, and pinned blocks outlive a flood.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt;
use mainstay_cluster_tests::{Client, Cluster, Shape, run_cli};
use serde_json::{Value, json};

use crate::{cached, filler, prompt_tokens, user};

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
