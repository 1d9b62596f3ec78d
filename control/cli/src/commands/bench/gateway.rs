//! `mainstay bench gateway`: time to first token, cold and warm, over HTTP on a conversation of three turns.
//!
//! Each round is a conversation that nobody has had before. Its first turn brings a long text, so everything is
//! computed: that is cold. The turns after it repeat the history and add a line: those are warm. Cached tokens
//! are held against the full blocks of the turns before, so a miss cannot hide behind a fast model.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};

/// What one turn came to.
struct Turn {
    ttft: Duration,
    prompt_tokens: u64,
    cached_tokens: u64,
    text: String,
}

/// Measures `rounds` conversations with at least `history_tokens` in the first prompt.
pub(super) async fn run(
    base: &str,
    model: &str,
    rounds: usize,
    history_tokens: u64,
) -> Result<Value> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    let client = reqwest::Client::new();
    let url = format!("{}/v1/chat/completions", base.trim_end_matches('/'));
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let (mut blocks_short, mut prompt_tokens_last) = (0u64, 0);
    // One untimed conversation opens connections and touches the weights.
    for round in 0..=rounds {
        let mut messages = vec![json!({"role": "user", "content": text(fresh(), history_tokens)})];
        let mut before: Option<u64> = None;
        for turn in 0..3 {
            let answer = ask(&client, &url, model, &messages).await?;
            if round > 0 {
                let times = if turn == 0 { &mut cold } else { &mut warm };
                times.push(answer.ttft.as_secs_f64() * 1000.0);
                let full = before.map_or(0, |tokens| tokens / 16);
                blocks_short += full.saturating_sub(answer.cached_tokens / 16);
                prompt_tokens_last = answer.prompt_tokens;
            }
            before = Some(answer.prompt_tokens);
            messages.push(json!({"role": "assistant", "content": answer.text}));
            messages.push(json!({"role": "user", "content": "Thanks. And what is next?"}));
        }
    }
    let (cold_ms, warm_ms) = (median(&mut cold), median(&mut warm));
    Ok(json!({
        "rounds": rounds, "prompt_tokens": prompt_tokens_last,
        "ttft_cold_ms": cold_ms, "ttft_warm_ms": warm_ms, "ratio": cold_ms / warm_ms,
        "full_blocks_missed": blocks_short,
    }))
}

/// A number that no other run has used.
fn fresh() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// Words without end, made from a seed; about one token each in a vocabulary that knows them.
fn text(seed: u64, words: u64) -> String {
    const WORDS: [&str; 16] = [
        "router", "cache", "block", "token", "worker", "engine", "plugin", "kernel", "raft",
        "index", "queue", "prefix", "hash", "tree", "page", "pool",
    ];
    let mut state = seed | 1;
    let mut out = Vec::new();
    for _ in 0..words {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.push(WORDS[usize::try_from(state >> 60).unwrap_or_default()]);
    }
    out.join(" ")
}

async fn ask(client: &reqwest::Client, url: &str, model: &str, messages: &[Value]) -> Result<Turn> {
    let body = json!({
        "model": model, "temperature": 0, "max_tokens": 8, "stream": true, "ignore_eos": true,
        "stream_options": {"include_usage": true}, "messages": messages,
    });
    let started = Instant::now();
    let reply = client.post(url).json(&body).send().await?;
    ensure!(reply.status() == 200, "{}: {}", reply.status(), reply.text().await?);
    let mut stream = reply.bytes_stream();
    let (mut all, mut ttft) = (String::new(), None);
    while let Some(chunk) = stream.next().await {
        // The stream's first frame leaves once the first token is there.
        ttft.get_or_insert_with(|| started.elapsed());
        all.push_str(&String::from_utf8_lossy(&chunk?));
    }
    let frames = all.lines().filter_map(|l| l.strip_prefix("data: "));
    let events: Vec<Value> = frames.filter_map(|f| serde_json::from_str(f).ok()).collect();
    let usage =
        events.iter().rev().find(|e| e["usage"].is_object()).context("no usage in the stream")?;
    let usage = &usage["usage"];
    let deltas = events.iter().filter_map(|e| e.pointer("/choices/0/delta/content")?.as_str());
    let text: String = deltas.collect();
    Ok(Turn {
        ttft: ttft.context("an empty stream")?,
        prompt_tokens: usage["prompt_tokens"].as_u64().context("no prompt_tokens")?,
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default(),
        text: if text.is_empty() { "Done.".to_owned() } else { text },
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_by_seed_and_have_their_length() {
        assert_ne!(text(1, 50), text(3, 50));
        assert_eq!(text(1, 50).split(' ').count(), 50);
    }
}
