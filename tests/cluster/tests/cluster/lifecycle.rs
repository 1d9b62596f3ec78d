//! What becomes of sessions decides what a worker keeps: a conversation that waits for a tool outlasts a flood that
//! would take its place, and one whose client has said that it ends does not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, free_port};
use serde_json::{Value, json};

use crate::{cached, filler, prompt_tokens};

const SHAPE: Shape = Shape { members: 1, gateways: 0, workers: 0, blocks: 0 };
/// Blocks of the worker's cache, of 16 tokens.
pub(crate) const BLOCKS: u64 = 600;
/// The simulated engine, which calls a tool when it is asked to.
const CONFIG: &str = "[engine]\nblocks = 600\nprefill_us_per_token = 5\n";
const SCRIPT: &str = "[[rule]]\nwhen = 'run the tool'\nunless = 'ls said'\n\
    [[rule.call]]\nname = \"Bash\"\narguments = { command = \"ls\" }\n";
/// Requests of strangers at a time.
const LANES: u64 = 4;

pub(crate) struct Bench {
    pub(crate) client: Client,
    /// Where the member listens, and the gateway.
    pub(crate) member: String,
    pub(crate) url: String,
    /// Strangers so far, and lines of the text of one.
    strangers: u64,
    lines: u64,
    _parts: (Cluster, Process, Process, tempfile::TempDir),
}

impl Bench {
    pub(crate) fn start(lifecycle: &str) -> Result<Self> {
        Self::start_with(lifecycle, CONFIG, 24)
    }

    /// With an engine of its own size, and strangers whose texts have so many lines.
    pub(crate) fn start_with(lifecycle: &str, config: &str, lines: u64) -> Result<Self> {
        let cluster = Cluster::start(&SHAPE)?;
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("engine.toml"), config)?;
        std::fs::write(path("script.toml"), SCRIPT)?;
        let control = cluster.member_addresses.join(",");
        let (config, script) = (path("engine.toml"), path("script.toml"));
        let listen = format!("127.0.0.1:{}", free_port());
        let strings = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
        let worker = ["worker", "--control", &control, "--name", "w1", "--engine", "sim"];
        let worker = [&worker[..], &["--script", &script, "--config", &config]].concat();
        let gateway = ["gateway", "--control", &control, "--listen", &listen, lifecycle];
        let mut worker = Process::start("w1", &strings(&worker))?;
        let mut gateway = Process::start("g1", &strings(&gateway))?;
        worker.wait_ready()?;
        gateway.wait_ready()?;
        let url = format!("http://{listen}");
        let client = Client::new(&url);
        let _parts = (cluster, worker, gateway, dir);
        Ok(Self { client, member: control, url, strangers: 0, lines, _parts })
    }

    async fn ask(&self, session: &str, messages: Value, tools: &Value) -> Result<Value> {
        self.ask_with(session, messages, tools, &Value::Null).await
    }

    /// The same with hints.
    pub(crate) async fn ask_with(
        &self,
        session: &str,
        messages: Value,
        tools: &Value,
        hints: &Value,
    ) -> Result<Value> {
        let mut body = json!({
            "model": "demo", "max_tokens": 40, "prompt_cache_key": session, "messages": messages,
            "tools": tools,
        });
        if !hints.is_null() {
            body["nvext"] = hints.clone();
        }
        let reply = self.client.post("/v1/chat/completions", &body).await?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// Strangers, each with a session of its own, until so many blocks were computed for them.
    pub(crate) async fn flood(&mut self, blocks: u64) -> Result<()> {
        let mut computed = 0;
        while computed < blocks * 16 {
            let this = &*self;
            let lane = |lane: u64| {
                let text = filler(1_000 + this.strangers + lane, this.lines);
                let session = format!("stranger-{}", this.strangers + lane);
                let messages = json!([{"role": "user", "content": text}]);
                async move { this.ask(&session, messages, &json!([])).await }
            };
            let replies = futures::future::try_join_all((0..LANES).map(lane)).await?;
            computed +=
                replies.iter().map(|reply| prompt_tokens(reply) - cached(reply)).sum::<u64>();
            self.strangers += LANES;
        }
        Ok(())
    }
}

/// The share of an agent's prompt that is found again after its tool took as long as strangers need to fill the cache
/// five times.
async fn found_after_a_pause(lifecycle: &str) -> Result<f64> {
    let mut bench = Bench::start(lifecycle)?;
    // Until the gateway knows how fast blocks have to go.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        bench.flood(BLOCKS / 4).await?;
    }
    let question = json!({"role": "user", "content": format!("{}\nrun the tool", filler(7, 80))});
    let tools = json!([
        {"type": "function", "function": {"name": "Bash", "parameters": {"type": "object"}}},
    ]);
    let first = bench.ask("agent", json!([question]), &tools).await?;
    let message = &first["choices"][0]["message"];
    let call = &message["tool_calls"][0];
    ensure!(call["function"]["name"] == "Bash", "{first}");
    bench.flood(5 * BLOCKS).await?;
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "ls said: nothing"});
    let second = bench.ask("agent", json!([question, message, result]), &tools).await?;
    Ok(cached(&second) as f64 / prompt_tokens(&first) as f64)
}

#[tokio::test]
async fn a_pause_for_a_tool_outlasts_a_flood() -> Result<()> {
    let kept = found_after_a_pause("--lifecycle=on").await?;
    let lost = found_after_a_pause("--lifecycle=off").await?;
    println!(
        "lifecycle: {:.1} % of the prompt found after the pause, {:.1} % without",
        kept * 100.0,
        lost * 100.0
    );
    ensure!(kept >= 0.95, "{kept}");
    ensure!(lost < 0.5, "{lost}");
    Ok(())
}
