//! The demo's traffic: agents that read files and pause for their tools, and a flood of strangers in between.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use serde_json::{Value, json};

use super::Setting;
use super::cluster::Cluster;
use crate::output::print;

/// What a tool takes, from the call to its result.
const TOOL_PAUSE: Duration = Duration::from_millis(400);
/// Strangers between two turns, for each agent.
const STRANGERS: u64 = 2;
/// How long the last reports may take.
const PINS_SETTLE: Duration = Duration::from_secs(3);
/// Agents that are in a turn at the same time.
const TOGETHER: usize = 2;

/// What one run measured.
pub(crate) struct RunResult {
    pub(crate) name: &'static str,
    pub(crate) cold_ms: Vec<f64>,
    pub(crate) warm_ms: Vec<f64>,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// Tokens of earlier turns: what a perfect cache would have found.
    pub(crate) available_tokens: u64,
    pub(crate) pins_made: usize,
    pub(crate) pins_kept: usize,
}

struct Turn {
    ttft_ms: f64,
    prompt_tokens: u64,
    cached_tokens: u64,
    text: String,
}

pub(crate) async fn run(
    cluster: &Cluster,
    agents: u64,
    turns: u64,
    setting: Setting,
) -> anyhow::Result<RunResult> {
    let client = reqwest::Client::new();
    let url = format!("http://{}", cluster.address());
    let mut result = RunResult {
        name: setting.name,
        cold_ms: Vec::new(),
        warm_ms: Vec::new(),
        prompt_tokens: 0,
        cached_tokens: 0,
        available_tokens: 0,
        pins_made: 0,
        pins_kept: 0,
    };
    let mut histories: Vec<Vec<Value>> = vec![Vec::new(); usize::try_from(agents)?];
    let mut before = vec![0u64; histories.len()];
    for turn in 0..turns {
        let asked = histories.iter().enumerate().map(|(agent, history)| {
            let mut messages = history.clone();
            messages.push(json!({"role": "user", "content": content(agent as u64, turn)}));
            let (client, url) = (client.clone(), url.clone());
            async move {
                let answer = ask(&client, &url, &format!("agent-{agent}"), &messages).await?;
                messages.push(json!({"role": "assistant", "content": answer.text}));
                anyhow::Ok((agent, messages, answer))
            }
        });
        // Collected first: a lazy iterator of futures that borrow does not satisfy the stream.
        let asked: Vec<_> = asked.collect();
        let done: Vec<_> = futures::stream::iter(asked).buffer_unordered(TOGETHER).collect().await;
        for outcome in done {
            let (agent, messages, answer) = outcome?;
            let ttfts = if turn == 0 { &mut result.cold_ms } else { &mut result.warm_ms };
            ttfts.push(answer.ttft_ms);
            result.prompt_tokens += answer.prompt_tokens;
            result.cached_tokens += answer.cached_tokens;
            result.available_tokens += before[agent];
            before[agent] = answer.prompt_tokens;
            histories[agent] = messages;
        }
        print(&format!("  turn {} of {turns} done; tools run, strangers come", turn + 1));
        strangers(&client, &url, agents, turn).await?;
        tokio::time::sleep(TOOL_PAUSE).await;
    }
    if setting.pins {
        (result.pins_made, result.pins_kept) = count_pins(&client, &url).await?;
    }
    Ok(result)
}

/// What an agent says: the file that its tool read, different for each agent and turn.
fn content(agent: u64, turn: u64) -> String {
    use std::fmt::Write;
    let mut text = format!("Here is file {turn} of agent {agent}.\n");
    // The first turn brings the task and a large file, later ones a tool's short result.
    let lines = if turn == 0 { 40 } else { 3 };
    for line in 0..lines {
        let n = agent * 7919 + turn * 104_729 + line * 31;
        let _ = writeln!(
            text,
            "fn block_{n}(cache: u{}, token: u{}) -> worker{}",
            n % 64,
            n % 32,
            n % 17
        );
    }
    text
}

async fn strangers(
    client: &reqwest::Client,
    url: &str,
    agents: u64,
    turn: u64,
) -> anyhow::Result<()> {
    let asked = (0..agents * STRANGERS).map(|n| {
        let (client, url) = (client.clone(), url.to_owned());
        async move {
            let text = content(1_000 + n + 1_000 * turn, 0);
            let messages = [json!({"role": "user", "content": text})];
            let body =
                json!({"model": "demo", "max_tokens": 4, "temperature": 0, "messages": messages});
            let reply =
                client.post(format!("{url}/v1/chat/completions")).json(&body).send().await?;
            reply.error_for_status()?.bytes().await?;
            anyhow::Ok(())
        }
    });
    let asked: Vec<_> = asked.collect();
    let done: Vec<_> = futures::stream::iter(asked).buffer_unordered(4).collect().await;
    done.into_iter().collect()
}

/// One turn through `/v1/messages`, streamed, with the breakpoint where harnesses put it: on the last block.
async fn ask(
    client: &reqwest::Client,
    url: &str,
    session: &str,
    messages: &[Value],
) -> anyhow::Result<Turn> {
    let mut messages = messages.to_vec();
    if let Some(last) = messages.last_mut() {
        let text = last["content"].take();
        last["content"] =
            json!([{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]);
    }
    let body = json!({
        "model": "demo", "max_tokens": 16, "temperature": 0, "stream": true, "messages": messages,
        "system": "You are a coding agent. You read files and run tests.",
    });
    let started = Instant::now();
    let reply = client
        .post(format!("{url}/v1/messages"))
        .header("x-claude-code-session-id", session)
        .json(&body)
        .send()
        .await?;
    if !reply.status().is_success() {
        bail!("the gateway answered {}: {}", reply.status(), reply.text().await?);
    }
    let mut ttft_ms = None;
    let mut all = String::new();
    let mut stream = reply.bytes_stream();
    while let Some(chunk) = stream.next().await {
        all.push_str(&String::from_utf8_lossy(&chunk?));
        if ttft_ms.is_none() && all.contains("content_block_delta") {
            ttft_ms = Some(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    // An answer without any text still has a first token: the end of its turn.
    let ttft_ms = ttft_ms.unwrap_or_else(|| started.elapsed().as_secs_f64() * 1000.0);
    let events = all.lines().filter_map(|l| l.strip_prefix("data: "));
    let events: Vec<Value> = events.filter_map(|d| serde_json::from_str(d).ok()).collect();
    let start = events.iter().find(|e| e["type"] == "message_start").context("no message_start")?;
    let usage = &start["message"]["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap_or_default();
    let cached_tokens = count("cache_read_input_tokens");
    let text: String = events.iter().filter_map(|e| e.pointer("/delta/text")?.as_str()).collect();
    Ok(Turn {
        ttft_ms,
        prompt_tokens: count("input_tokens") + cached_tokens + count("cache_creation_input_tokens"),
        cached_tokens,
        text: if text.is_empty() { "Done.".to_owned() } else { text },
    })
}

/// Live pins, and those of them whose blocks are all held and protected. The last turn's reports are still on
/// their way when its answer arrives, so this looks for a while.
async fn count_pins(client: &reqwest::Client, url: &str) -> anyhow::Result<(usize, usize)> {
    let until = Instant::now() + PINS_SETTLE;
    loop {
        let list: Value = client.get(format!("{url}/v1/pins")).send().await?.json().await?;
        let pins = list["data"].as_array().context("no list of pins")?;
        let kept = pins.iter().filter(|p| p["state"] == "active").count();
        if kept == pins.len() || Instant::now() > until {
            return Ok((pins.len(), kept));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
