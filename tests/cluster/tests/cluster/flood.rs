//! Pinned prefixes of 32,000 tokens outlive pauses for tools in which others compute five times the cache; what is not
//! pinned is stated beside them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::lifecycle::Bench;
use crate::{cached, filler, prompt_tokens};

/// Blocks of the worker's cache, of 16 tokens: pins may hold half of them.
const BLOCKS: u64 = 16_000;
const CONFIG: &str = "[engine]\nblocks = 16000\nprefill_us_per_token = 1\n";
const PREFIX_TOKENS: u64 = 32_000;
/// Lines of a text with so many tokens.
const LINES: u64 = 2_620;
/// Agents of each kind.
const AGENTS: u64 = 3;
/// Pauses of each.
const PAUSES: u64 = 2;

/// One agent: its session, what was said, and how many tokens its prompt had last.
struct Agent {
    name: String,
    pinned: bool,
    messages: Vec<Value>,
    prompt_tokens: u64,
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "Bash", "parameters": {"type": "object"}}}])
}

impl Agent {
    /// Its next turn; the share of what it had said before that was found.
    async fn turn(&mut self, bench: &Bench) -> Result<f64> {
        let hints = if self.pinned {
            json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}})
        } else {
            Value::Null
        };
        let messages = json!(self.messages);
        let reply = bench.ask_with(&self.name, messages, &tools(), &hints).await?;
        let message = reply["choices"][0]["message"].clone();
        let known = self.prompt_tokens / 16 * 16;
        let found = cached(&reply).min(known) as f64 / known.max(1) as f64;
        self.prompt_tokens = prompt_tokens(&reply);
        let call = message["tool_calls"][0]["id"].clone();
        ensure!(call.is_string(), "it called no tool: {reply}");
        self.messages.push(message);
        self.messages.push(json!({
            "role": "tool", "tool_call_id": call,
            "content": format!("nothing; run the tool again, for the {}. time", self.messages.len()),
        }));
        Ok(found)
    }
}

/// The least share that was found after a pause, of pinned agents and of the others.
async fn found_after_pauses(lifecycle: &str) -> Result<(f64, f64)> {
    let mut bench = Bench::start_with(lifecycle, CONFIG, 240)?;
    let mut agents: Vec<Agent> = (0..2 * AGENTS)
        .map(|n| Agent {
            name: format!("agent-{n}"),
            pinned: n < AGENTS,
            messages: vec![json!({
                "role": "user",
                "content": format!("{}\nrun the tool", filler(700_000 + n * 5_000, LINES)),
            })],
            prompt_tokens: 0,
        })
        .collect();
    for agent in &mut agents {
        agent.turn(&bench).await?;
        ensure!(agent.prompt_tokens >= PREFIX_TOKENS, "{} tokens", agent.prompt_tokens);
    }
    let active = |list: &Value| {
        let pins = list["data"].as_array()?;
        let active = pins.iter().filter(|pin| pin["state"] == "active").count();
        (active as u64 == AGENTS).then_some(())
    };
    bench.client.wait_for("/v1/pins", Duration::from_secs(10), active).await?;
    let (mut pinned, mut unpinned) = (1.0_f64, 1.0_f64);
    for _ in 0..PAUSES {
        bench.flood(5 * BLOCKS).await?;
        for agent in &mut agents {
            let found = agent.turn(&bench).await?;
            let least = if agent.pinned { &mut pinned } else { &mut unpinned };
            *least = least.min(found);
        }
    }
    Ok((pinned, unpinned))
}

#[tokio::test]
async fn pinned_prefixes_of_32k_tokens_outlive_floods_of_five_caches() -> Result<()> {
    let begun = Instant::now();
    for lifecycle in ["--lifecycle=on", "--lifecycle=off"] {
        let (pinned, unpinned) = found_after_pauses(lifecycle).await?;
        println!(
            "flood, {lifecycle}: pinned {:.2} % found at the least, unpinned {:.2} %, {:.0?} so far",
            pinned * 100.0,
            unpinned * 100.0,
            begun.elapsed()
        );
        ensure!(pinned >= 1.0, "a pinned prefix was not found whole: {pinned}");
    }
    Ok(())
}
