//! The console against a real process: every answer is what `/openapi.json` says, has live data in it, and no prompt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Process, free_port, schema};
use serde_json::{Value, json};

use crate::user;

/// In every prompt, and in no answer of the console.
const MARKER: &str = "xylophone quartz";
/// How long something may take to be seen.
const SEEN_MAX: Duration = Duration::from_secs(20);

/// A session of two turns, the first of them pinned, and a pin of its own.
async fn use_it(client: &Client) -> Result<()> {
    let long = format!("{MARKER} {}", crate::filler(11, 20));
    for turns in [vec![user(&long)], vec![user(&long), user("Go on.")]] {
        let body = json!({
            "model": "demo", "temperature": 0, "max_tokens": 8, "stream": true, "messages": turns,
            "prompt_cache_key": "agent-1", "cache_control": {"type": "ephemeral", "ttl": "5m"},
        });
        client.stream_chat(&body, |_, _| {}).await?;
    }
    let pin = client
        .post("/v1/pins", &json!({"model": "demo", "ttl": "1h", "messages": [user(&long)]}))
        .await?;
    ensure!(pin.status < 300, "{}: {}", pin.status, pin.body);
    Ok(())
}

/// Asks until the answer is as it should be.
async fn seen(client: &Client, path: &str, enough: impl Fn(&Value) -> bool) -> Result<Value> {
    client.wait_for(path, SEEN_MAX, |body| enough(body).then(|| body.clone())).await
}

/// Holds an answer against its description.
fn conforms(document: &Value, path: &str, body: &Value) -> Result<()> {
    let place = format!(
        "/paths/{}/get/responses/200/content/application~1json/schema",
        path.split('?').next().unwrap_or(path).replace('/', "~1")
    );
    let schema = document.pointer(&place).with_context(|| format!("{path} is not described"))?;
    let problems = schema::problems(document, schema, body);
    ensure!(problems.is_empty(), "{path}: {problems:#?}\n{body}");
    ensure!(!body.to_string().contains(MARKER), "{path} tells a prompt: {body}");
    Ok(())
}

#[tokio::test]
async fn every_answer_is_as_described_and_live() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["serve", "--listen", &listen, "--data-dir", &dir.path().to_string_lossy()];
    let mut process = Process::start("serve", &args.map(str::to_owned))?;
    process.wait_ready()?;
    let client = Client::new(&format!("http://{listen}"));
    use_it(&client).await?;
    let document = client.get("/openapi.json").await?.body;
    let first = |body: &Value| body["data"][0].clone();
    let api = |topic: &str| format!("/api/v1/console/{topic}");

    let used = |body: &Value| body["data"][0]["last_5_minutes"]["gateway"]["requests"] == 2;
    let overview = seen(&client, &api("overview"), used).await?;
    let five = &first(&overview)["last_5_minutes"]["gateway"];
    assert!(five["ttft_p50_ms"].is_number() && five["cached_tokens"].as_u64() > Some(0), "{five}");
    let counted = |body: &Value| body["data"][0]["tiers"][0]["pinned"].as_u64() > Some(0);
    let workers = seen(&client, &api("workers"), counted).await?;
    assert_eq!(first(&workers)["routable"], true, "{workers}");
    let active = |body: &Value| {
        body["data"]
            .as_array()
            .is_some_and(|pins| pins.iter().filter(|p| p["state"] == "active").count() == 2)
    };
    let pins = seen(&client, &api("pins"), active).await?;
    let answered = |body: &Value| body["data"][0]["lane"][1]["end"] == "served";
    let sessions = seen(&client, &api("sessions"), answered).await?;
    let lane = &first(&sessions)["lane"];
    assert_eq!((&first(&sessions)["key"], &lane[0]["cold"]), (&json!("agent-1"), &json!(true)));
    assert_eq!((&lane[1]["worker"], &lane[1]["cold"]), (&json!("w1"), &json!(false)));
    assert!(lane[1]["first_unix_ms"].as_u64() >= lane[1]["began_unix_ms"].as_u64(), "{lane}");
    let decisions = seen(&client, &api("decisions"), |body| body["data"][1].is_object()).await?;
    assert_eq!(first(&decisions)["candidates"][0]["note"], "chosen", "{decisions}");
    let members = seen(&client, &api("members"), |body| body["data"][0]["leads"] == true).await?;
    let history = seen(&client, &api("history"), |body| body["requests"].is_array()).await?;
    let long = seen(&client, &api("history?span=24h"), |body| body["step_ms"] == 60_000).await?;
    let config = seen(&client, &api("config"), |body| body["models"][0].is_object()).await?;
    for (topic, body) in [
        ("overview", &overview),
        ("workers", &workers),
        ("pins", &pins),
        ("sessions", &sessions),
        ("decisions", &decisions),
        ("members", &members),
        ("history", &history),
        ("history?span=24h", &long),
        ("config", &config),
    ] {
        conforms(&document, &api(topic), body)?;
    }
    let blocks = format!("workers/{}/blocks", first(&workers)["id"]);
    let blocks = seen(&client, &api(&blocks), |body| body["blocks"].as_u64() > Some(0)).await?;
    conforms(&document, &api("workers/{id}/blocks"), &blocks)
}

#[tokio::test]
async fn the_page_comes_with_a_policy_and_a_console_can_be_switched_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("mainstay.toml");
    std::fs::write(&config, "[console]\nenabled = false\n")?;
    for on in [true, false] {
        let listen = format!("127.0.0.1:{}", free_port());
        let data = dir.path().join(format!("data-{on}"));
        let mut args: Vec<String> =
            ["serve", "--listen", &listen, "--data-dir", &data.to_string_lossy()]
                .map(str::to_owned)
                .into();
        if !on {
            args.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        }
        let mut process = Process::start("serve", &args)?;
        process.wait_ready()?;
        let reply = reqwest::get(format!("http://{listen}/console")).await?;
        let wanted = if on { 200 } else { 404 };
        assert_eq!(reply.status(), wanted);
        let told = process.output().contains(&format!("console http://{listen}/console/"));
        assert_eq!(told, on, "{}", process.output());
        if on {
            assert!(reply.url().path().ends_with("/console/"), "{}", reply.url());
            let policy = reply.headers()["content-security-policy"].to_str()?.to_owned();
            assert!(policy.starts_with("default-src 'none'"), "{policy}");
            assert!(reply.text().await?.contains("<title>Mainstay console</title>"));
        }
        let data = Client::new(&format!("http://{listen}")).get("/api/v1/console/pins").await?;
        assert_eq!(data.status, wanted, "{}", data.body);
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_may_be_anybodys_gets_nothing_until_it_is_allowed_or_keys_are_asked_for()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys.toml");
    std::fs::write(&keys, "[[keys]]\nkey = \"k\"\ntenant = \"acme\"\n")?;
    let flags: [Vec<String>; 2] = [
        vec!["--allow-host".to_owned(), "gateway.example, other.example".to_owned()],
        vec!["--config".to_owned(), keys.to_string_lossy().into_owned()],
    ];
    for (number, flags) in flags.into_iter().enumerate() {
        let listen = format!("127.0.0.1:{}", free_port());
        let data = dir.path().join(number.to_string()).to_string_lossy().into_owned();
        let mut args: Vec<String> =
            ["serve", "--listen", &listen, "--data-dir", &data].map(str::to_owned).into();
        let asks_for_keys = flags[0] == "--config";
        args.extend(flags);
        let mut process = Process::start("serve", &args)?;
        process.wait_ready()?;
        let base = format!("http://{listen}");
        let named = |host: &str| Client::with_header(&base, "host", host);
        let foreign = named("rebound.example:8000")?;
        for path in ["/v1/models", "/v1/pins", "/api/v1/status", "/openapi.json"] {
            let reply = foreign.get(path).await?;
            let refused = reply.status == 403 && reply.body["error"]["code"] == "unknown_host";
            assert_eq!(refused, !asks_for_keys, "{path}: {} {}", reply.status, reply.body);
        }
        let message = foreign.post("/v1/messages", &json!({"model": "demo"})).await?;
        let kind = if asks_for_keys { "authentication_error" } else { "permission_error" };
        assert_eq!(message.body["error"]["type"], kind, "{}", message.body);
        for own in ["gateway.example", "localhost:1", "127.0.0.1", "gateway:8000"] {
            assert_eq!(named(own)?.get("/v1/models").await?.status, 200, "{own}");
        }
    }
    Ok(())
}
