//! Workers and leaders die; clients do not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mainstay_cluster_tests::{Client, Cluster, Shape};
use serde_json::{Value, json};

use crate::{answer, cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 3, gateways: 2, workers: 3, blocks: 2_000 };

async fn worker_of_last(client: &Client) -> Result<String> {
    let explained = client.get("/api/v1/requests/last/explain").await?.body;
    Ok(explained["worker"].as_str().context("a decision names its worker")?.to_owned())
}

#[tokio::test]
async fn turn_two_through_the_other_gateway_lands_on_the_worker_that_holds_turn_one() -> Result<()>
{
    let cluster = Cluster::start(&SHAPE)?;
    let [a, b] = [0, 1].map(|n| Client::new(&cluster.gateway_urls[n]));
    for session in 0..4 {
        let mut messages = vec![user(&filler(session + 10, 30))];
        let first = a.chat(&json!(messages), 16).await?;
        let held_by = worker_of_last(&a).await?;
        messages.push(answer(&first));
        messages.push(user("Thanks!"));
        // Events reach the other gateway's replica within milliseconds; a slow machine gets a second.
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let second = b.chat(&json!(messages), 16).await?;
        assert_eq!(worker_of_last(&b).await?, held_by);
        assert!(cached(&second) >= prompt_tokens(&first) / 16 * 16, "{second}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_outlives_its_worker() -> Result<()> {
    let mut cluster = Cluster::start(&SHAPE)?;
    let client = Client::new(&cluster.gateway_urls[0]);
    let body = json!({
        "model": "demo", "temperature": 0, "stream": true, "max_tokens": 1_500, "ignore_eos": true,
        "stream_options": {"include_usage": true}, "messages": [user(&filler(77, 10))],
    });
    let whole = client.stream_chat(&body, |_, _| {}).await?;
    let sampled = json!({
        "model": "demo", "temperature": 0.9, "seed": 7, "stream": true, "max_tokens": 1_500,
        "ignore_eos": true, "messages": [user(&filler(78, 10))],
    });
    let whole_sampled = client.stream_chat(&sampled, |_, _| {}).await?;
    for (body, whole) in [(body, whole), (sampled, whole_sampled)] {
        let (reached, reach) = tokio::sync::oneshot::channel();
        let mut reached = Some(reached);
        let streaming = client.stream_chat(&body, move |count, _| {
            if count == 100
                && let Some(reached) = reached.take()
            {
                let _ = reached.send(());
            }
        });
        let killing = async {
            reach.await.context("the stream got to its hundredth event")?;
            let worker = worker_of_last(&client).await?;
            let at = cluster.worker_at(&worker)?;
            cluster.workers[at].kill()?;
            anyhow::Ok(worker)
        };
        let (streamed, killed) = tokio::join!(streaming, killing);
        let (streamed, killed) = (streamed?, killed?);
        let after = worker_of_last(&client).await?;
        assert_ne!(killed, after, "the request did not move: the worker died too late");
        assert_eq!(streamed.text, whole.text, "moved from {killed} to {after}");
        let usage = |s: &mainstay_cluster_tests::Streamed| {
            s.events
                .iter()
                .find_map(|e| e.pointer("/usage/completion_tokens").and_then(Value::as_u64))
        };
        assert_eq!(usage(&streamed), usage(&whole));
    }
    Ok(())
}

#[tokio::test]
async fn requests_and_pins_outlive_the_leader() -> Result<()> {
    let mut cluster = Cluster::start(&SHAPE)?;
    let client = Client::new(&cluster.gateway_urls[0]);
    let pin = |n: u64| {
        json!({"model": "demo", "ttl": "1h", "session": format!("s{n}"),
        "messages": [user(&filler(n, 10))]})
    };
    for n in 0..5 {
        let reply = client.post("/v1/pins", &pin(n)).await?;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let status = client.get("/api/v1/status").await?.body;
    let leader = status["leader"].as_u64().context("a leader")?;
    cluster.members[usize::try_from(leader)? - 1].kill()?;
    let killed = Instant::now();
    let requests = async {
        let other = Client::new(&cluster.gateway_urls[1]);
        let mut served = 0;
        while killed.elapsed() < Duration::from_secs(5) {
            other.chat(&json!([user(&format!("My name is Otter {served}."))]), 8).await?;
            served += 1;
        }
        anyhow::Ok(served)
    };
    let pinning = async {
        let reply = client.post("/v1/pins", &pin(99)).await?;
        assert_eq!(reply.status, 200, "{}", reply.body);
        anyhow::Ok(killed.elapsed())
    };
    let (served, accepted_after) = tokio::join!(requests, pinning);
    let (served, accepted_after) = (served?, accepted_after?);
    assert!(served > 5, "only {served} requests in five seconds");
    assert!(accepted_after < Duration::from_secs(3), "a new pin took {accepted_after:?}");
    let pins = client.get("/v1/pins").await?.body;
    assert_eq!(pins["data"].as_array().map(Vec::len), Some(6), "{pins}");
    Ok(())
}
