//! Stored responses belong to the cluster: whichever gateway answered, and whoever dies.

use std::time::Duration;

use anyhow::{Context, Result};
use mainstay_cluster_tests::{Client, Cluster, Reply, Shape};
use serde_json::{Value, json};

use crate::filler;

const SHAPE: Shape = Shape { members: 3, gateways: 2, workers: 2, blocks: 2_000 };

fn body(input: &Value, previous: Option<&str>) -> Value {
    json!({
        "model": "demo", "temperature": 0, "max_output_tokens": 16, "input": input,
        "previous_response_id": previous,
    })
}

fn id(reply: &Reply) -> Result<String> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    Ok(reply.body["id"].as_str().context("a response has an id")?.to_owned())
}

fn tokens(reply: &Reply) -> (u64, u64) {
    let usage = &reply.body["usage"];
    let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).expect("usage");
    (number("/input_tokens"), number("/input_tokens_details/cached_tokens"))
}

#[tokio::test]
async fn a_response_is_continued_shown_and_deleted_through_any_gateway_after_its_own_died()
-> Result<()> {
    let mut cluster = Cluster::start(&SHAPE)?;
    let [a, b] = [0, 1].map(|n| Client::new(&cluster.gateway_urls[n]));
    let first = a.post("/v1/responses", &body(&json!(filler(5, 30)), None)).await?;
    let first_id = id(&first)?;
    let second = a.post("/v1/responses", &body(&json!("And then?"), Some(&first_id))).await?;
    let second_id = id(&second)?;
    // The gateway that made them and the leader are gone, without a word.
    let status = b.get("/api/v1/status").await?.body;
    let leader = status["leader"].as_u64().context("a leader")?;
    cluster.gateways[0].kill()?;
    cluster.members[usize::try_from(leader)? - 1].kill()?;
    let third = b.post("/v1/responses", &body(&json!("Go on."), Some(&second_id))).await?;
    let third_id = id(&third)?;
    let ((_, _), (before, _), (after, cached)) = (tokens(&first), tokens(&second), tokens(&third));
    assert!(after > before, "{after} tokens after {before}: the history is not all there");
    // The prompt of the second turn is a prefix of the third's, up to where the model was asked to speak.
    assert!(cached + 64 >= before, "{cached} of {before} tokens were in a cache");
    for reply in [&first, &second, &third] {
        let shown = b.get(&format!("/v1/responses/{}", id(reply)?)).await?;
        assert_eq!(shown.body, reply.body);
    }
    let gone = b.delete(&format!("/v1/responses/{first_id}")).await?;
    assert_eq!((gone.status, &gone.body["deleted"]), (200, &json!(true)));
    assert_eq!(b.get(&format!("/v1/responses/{first_id}")).await?.status, 404);
    // Its chain has no beginning now, for gateways that do not have it in memory and for the one that has.
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let reply = b.post("/v1/responses", &body(&json!("Go on."), Some(&first_id))).await?;
        if reply.status == 404 {
            assert_eq!(reply.body["error"]["code"], "previous_response_not_found");
            break;
        }
        assert!(tokio::time::Instant::now() < end, "a deleted response is continued");
    }
    let shown = b.get(&format!("/v1/responses/{third_id}")).await?;
    assert_eq!(shown.body, third.body);
    Ok(())
}

#[tokio::test]
async fn a_background_response_is_got_and_called_off_through_the_other_gateway() -> Result<()> {
    let cluster = Cluster::start(&SHAPE)?;
    let [a, b] = [0, 1].map(|n| Client::new(&cluster.gateway_urls[n]));
    let mut asked = body(&json!("Tell me a story."), None);
    asked["background"] = json!(true);
    let queued = a.post("/v1/responses", &asked).await?;
    assert_eq!(queued.body["status"], "queued", "{}", queued.body);
    let path = format!("/v1/responses/{}", id(&queued)?);
    let ended = b.wait_for(&path, Duration::from_secs(30), |shown| {
        let status = shown["status"].as_str()?;
        ["completed", "incomplete"].contains(&status).then(|| shown.clone())
    });
    let ended = ended.await?;
    assert!(ended["output"].as_array().is_some_and(|output| !output.is_empty()), "{ended}");
    assert_eq!(b.post(&format!("{path}/cancel"), &json!({})).await?.status, 400);
    (asked["max_output_tokens"], asked["ignore_eos"]) = (json!(6_000), json!(true));
    let long = a.post("/v1/responses", &asked).await?;
    let path = format!("/v1/responses/{}", id(&long)?);
    let shown = b.get(&path).await?;
    assert_eq!(shown.body["status"], "in_progress", "{}", shown.body);
    let cancelled = b.post(&format!("{path}/cancel"), &json!({})).await?;
    assert_eq!(cancelled.body["status"], "cancelled", "{}", cancelled.body);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(a.get(&path).await?.body["status"], "cancelled");
    Ok(())
}
