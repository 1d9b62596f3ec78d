//! What is known of a session's next turn is there before it comes: its prefix is brought back out of host memory, or
//! the answer that it begins with is computed ahead. And what a client says of its session has the effect that it should.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, free_port, schema};
use serde_json::{Value, json};

use crate::{answer, cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 1, gateways: 0, workers: 0, blocks: 0 };
/// Blocks of the engine, of 16 tokens; a prefix has some 260.
const BLOCKS: u64 = 700;
const LINES: u64 = 330;
const PREFIX_TOKENS: u64 = 4_000;
const SOON: Duration = Duration::from_secs(30);

struct Bench {
    client: Client,
    strangers: u64,
    _parts: (Cluster, Process, Process, tempfile::TempDir),
}

impl Bench {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(&SHAPE)?;
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("engine.toml");
        std::fs::write(&config, format!("[engine]\nblocks = {BLOCKS}\nthreads = 1\n"))?;
        let (control, config) = (cluster.member_addresses.join(","), config.to_string_lossy());
        let listen = format!("127.0.0.1:{}", free_port());
        let strings = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
        let worker = ["worker", "--control", &control, "--name", "w1", "--config", &config];
        let worker = [&worker[..], &["--host-memory", "256M"]].concat();
        let gateway = ["gateway", "--control", &control, "--listen", &listen];
        let mut worker = Process::start("w1", &strings(&worker))?;
        let mut gateway = Process::start("g1", &strings(&gateway))?;
        worker.wait_ready()?;
        gateway.wait_ready()?;
        let client = Client::new(&format!("http://{listen}"));
        Ok(Self { client, strangers: 0, _parts: (cluster, worker, gateway, dir) })
    }

    /// A turn of a session, and the time until its first and only token.
    async fn turn(
        &self,
        session: &str,
        messages: &Value,
        more: Value,
    ) -> Result<(Value, Duration)> {
        let mut body = json!({
            "model": "demo", "max_tokens": 1, "temperature": 0, "prompt_cache_key": session,
            "messages": messages,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let begun = Instant::now();
        let reply = self.client.post("/v1/chat/completions", &body).await?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok((reply.body, begun.elapsed()))
    }

    /// Strangers, each with a session of its own, who take more than the engine has; the quickest of them.
    async fn flood(&mut self) -> Result<Duration> {
        let (mut computed, mut quickest) = (0, Duration::MAX);
        while computed < 2 * BLOCKS {
            self.strangers += 1;
            let session = format!("stranger-{}", self.strangers);
            let messages = json!([user(&filler(500_000 + self.strangers, LINES))]);
            let (reply, took) = self.turn(&session, &messages, json!({})).await?;
            ensure!(cached(&reply) == 0, "{reply}");
            computed += prompt_tokens(&reply) / 16;
            quickest = quickest.min(took);
        }
        Ok(quickest)
    }

    /// How many leading blocks of a session's prefix lie in each tier of the worker, as told.
    async fn held(&self, session: &str) -> Result<[u64; 2]> {
        let found = self.client.get(&format!("/v1/blocks?session={session}")).await?;
        ensure!(found.status == 200, "{}", found.body);
        let holders = found.body["holders"].as_array().context("a list")?;
        let tiers = holders.iter().flat_map(|holder| holder["tiers"].as_array()).flatten();
        let mut held = [0; 2];
        for tier in tiers {
            let at = usize::from(tier["tier"] == "host");
            held[at] += tier["blocks"].as_u64().context("a number")?;
        }
        Ok(held)
    }

    async fn held_where(&self, session: &str, enough: impl Fn([u64; 2]) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let held = self.held(session).await?;
            if enough(held) {
                return Ok(());
            }
            ensure!(begun.elapsed() < SOON, "device and host have {held:?} of {session}'s blocks");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn counter(&self, series: &str) -> Result<u64> {
        let reply = self.client.get("/metrics").await?;
        let text = reply.body.as_str().context("text")?;
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        Ok(line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0))
    }

    /// What a client says of a session, answered as the description says.
    async fn tell(&self, session: &str, what: &str, schema: &str) -> Result<Value> {
        let reply = self.client.post(&format!("/v1/sessions/{session}/{what}"), &json!({})).await?;
        ensure!(reply.status == 200, "{what}: {}: {}", reply.status, reply.body);
        let document = self.client.get("/openapi.json").await?.body;
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        let problems = schema::problems(&document, &schema, &reply.body);
        ensure!(problems.is_empty(), "{what}: {problems:?}: {}", reply.body);
        Ok(reply.body)
    }
}

#[tokio::test]
async fn a_prefix_comes_back_before_its_session_does() -> Result<()> {
    let mut bench = Bench::start()?;
    let first = json!([user(&filler(1, LINES))]);
    let (reply, _) = bench.turn("s-1", &first, json!({"max_tokens": 4})).await?;
    ensure!(prompt_tokens(&reply) > PREFIX_TOKENS, "{reply}");
    let blocks = prompt_tokens(&reply) / 16;
    bench.held_where("s-1", |[device, _]| device >= blocks - 1).await?;
    let computed = bench.flood().await?;
    // It went out of the engine, and lies in host memory.
    bench.held_where("s-1", |[device, host]| device == 0 && host >= blocks - 1).await?;
    let told = bench.tell("s-1", "prefetch", "SessionPrefetch").await?;
    ensure!(told["outcome"] == "brought" && told["worker"] == "w1", "{told}");
    ensure!(told["brought_blocks"].as_u64() >= Some(blocks - 1), "{told}");
    bench.held_where("s-1", |[device, _]| device >= blocks - 1).await?;
    let again = bench.tell("s-1", "prefetch", "SessionPrefetch").await?;
    ensure!(again["outcome"] == "held" && again["brought_blocks"] == 0, "{again}");
    let next = json!([first[0], answer(&reply), user("Go on.")]);
    let (reply, took) = bench.turn("s-1", &next, json!({})).await?;
    ensure!(cached(&reply) >= PREFIX_TOKENS, "{} of {}", cached(&reply), prompt_tokens(&reply));
    let ratio = computed.as_secs_f64() / took.as_secs_f64();
    println!(
        "prefetch: first token {computed:.1?} computed, {took:.1?} after it ({ratio:.1} times)"
    );
    ensure!(took * 2 < computed, "{took:?} of {computed:?}");
    let series = "mainstay_gateway_prefetches_total{asked=\"client\",ended=\"brought\"}";
    ensure!(bench.counter(series).await? == 1);
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_of_its_session_is_done() -> Result<()> {
    let bench = Bench::start()?;
    let messages = json!([user(&filler(2, 40))]);
    bench.turn("s-1", &messages, json!({})).await?;
    let ended = bench.tell("s-1", "end", "Session").await?;
    ensure!(ended["state"] == "ended" && ended["ended"] == "final", "{ended}");
    // What it was is not known any more, and to end twice is no fault.
    bench.tell("s-1", "end", "Session").await?;
    for (path, status, code) in [
        ("/v1/sessions/s-1/prefetch", 404, "prefix_unknown"),
        ("/v1/sessions/nobody/prefetch", 404, "session_not_found"),
        ("/v1/sessions/nobody/end", 404, "session_not_found"),
        ("/v1/sessions/nobody/reset", 404, "session_not_found"),
    ] {
        let reply = bench.client.post(path, &json!({})).await?;
        ensure!(reply.status == status, "{path}: {}", reply.body);
        ensure!(reply.body["error"]["code"] == code, "{path}: {}", reply.body);
    }
    // It may come back all the same, and be forgotten with its pins.
    let pinned = json!({"nvext": {"cache_control": {"type": "ephemeral", "ttl": "5m"}}});
    bench.turn("s-1", &messages, pinned).await?;
    let mine = |pins: &Value| -> usize {
        pins["data"]
            .as_array()
            .map_or(0, |all| all.iter().filter(|pin| pin["owner"] == "s-1").count())
    };
    let begun = Instant::now();
    while mine(&bench.client.get("/v1/pins?consistency=local").await?.body) == 0 {
        ensure!(begun.elapsed() < SOON, "no pin");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let forgotten = bench.tell("s-1", "reset", "SessionReset").await?;
    ensure!(forgotten["pins_released"] == 1, "{forgotten}");
    ensure!(mine(&bench.client.get("/v1/pins").await?.body) == 0);
    let gone = bench.client.get("/v1/sessions/s-1").await?;
    ensure!(gone.status == 404, "{}", gone.body);
    let (_, _) = bench.turn("s-1", &messages, json!({})).await?;
    let anew = bench.client.get("/v1/sessions/s-1").await?.body;
    ensure!(anew["turns"] == 1, "{anew}");
    Ok(())
}

#[tokio::test]
async fn blocks_are_found_by_hash_and_only_as_described() -> Result<()> {
    let bench = Bench::start()?;
    bench.turn("s-1", &json!([user(&filler(3, 40))]), json!({})).await?;
    bench.held_where("s-1", |[device, _]| device > 0).await?;
    let document = bench.client.get("/openapi.json").await?.body;
    let described = json!({"$ref": "#/components/schemas/BlocksFound"});
    let by_session = bench.client.get("/v1/blocks?session=s-1").await?.body;
    let hash = by_session["hash"].as_str().context("a hash")?;
    let begun = Instant::now();
    // A walk over the index may be some seconds old.
    let by_hash = loop {
        let found = bench.client.get(&format!("/v1/blocks?hash={hash}")).await?.body;
        if found["class"] != "nowhere" {
            break found;
        }
        ensure!(begun.elapsed() < SOON, "{found}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for found in [&by_session, &by_hash] {
        let problems = schema::problems(&document, &described, found);
        ensure!(problems.is_empty(), "{problems:?}: {found}");
        ensure!(found["holders"][0]["worker"] == "w1" && found["class"] == "sole", "{found}");
    }
    ensure!(by_hash["depth"] == by_session["blocks"], "{by_hash} {by_session}");
    let nowhere = bench.client.get(&format!("/v1/blocks?hash={}", "0".repeat(32))).await?;
    ensure!(
        nowhere.body["class"] == "nowhere" && nowhere.body["depth"].is_null(),
        "{}",
        nowhere.body
    );
    for (query, status) in [("", 400), ("?hash=7", 400), ("?session=nobody", 404)] {
        let reply = bench.client.get(&format!("/v1/blocks{query}")).await?;
        ensure!(reply.status == status, "{query}: {}", reply.body);
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_is_computed_ahead_for_the_turn_that_follows() -> Result<()> {
    let bench = Bench::start()?;
    let first = json!([user(&filler(4, 60))]);
    let hint = json!({"max_tokens": 80, "nvext": {
        "agent_hints": {"speculative_prefill": true}, "extra_fields": ["used"],
    }});
    let (reply, _) = bench.turn("s-1", &first, hint).await?;
    let used = reply["nvext"]["used"].as_array().context("used")?;
    ensure!(used.contains(&json!("agent_hints.speculative_prefill")), "{reply}");
    let series = "mainstay_gateway_speculative_prefills_total{ended=\"computed\"}";
    let begun = Instant::now();
    while bench.counter(series).await? == 0 {
        let metrics = bench.client.get("/metrics").await?.body;
        let told = metrics.as_str().unwrap_or_default().lines();
        let told: Vec<_> = told.filter(|line| line.contains("speculative")).collect();
        ensure!(begun.elapsed() < SOON, "{told:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let next = json!([first[0], answer(&reply), user("ok")]);
    let (reply, _) = bench.turn("s-1", &next, json!({})).await?;
    // All but what the client added, and a block that is not full.
    ensure!(cached(&reply) + 40 >= prompt_tokens(&reply), "{reply}");
    Ok(())
}
