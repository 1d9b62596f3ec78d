//! The promises that only real processes can keep: hits across gateways, streams that outlive their worker,
//! requests that outlive the Raft leader, pins that outlive a flood or their worker, members and disks that are lost,
//! processes that are replaced; and who is let in.

mod access;
mod bad_starts;
mod console;
mod demo;
mod failover;
mod fences;
mod flood;
mod full_disk;
mod isolation;
mod keeper;
mod lifecycle;
mod members;
mod operate;
mod pins;
mod prefetch;
mod queue;
mod readme;
mod responses;
mod rolling;
mod serve;
mod soak;
mod tiers;
mod top;
mod traces;
mod transfer;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Text that no other test or turn uses, about `lines` × 20 tokens long.
fn filler(seed: u64, lines: u64) -> String {
    let line = |n: u64| {
        let n = seed.wrapping_mul(7919).wrapping_add(n * 31);
        format!("block {} holds token {} of worker {}", n % 997, n % 89, n % 13)
    };
    (0..lines).map(line).collect::<Vec<_>>().join("\n")
}

/// One user message.
fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// The answer as a message of the history. One without text, such as a thought that was cut, would not be kept
/// as a turn; it is replaced, which leaves the prompt before it a prefix all the same.
fn answer(reply: &Value) -> Value {
    let text = reply["choices"][0]["message"]["content"].as_str().filter(|t| !t.is_empty());
    json!({"role": "assistant", "content": text.unwrap_or("Done.")})
}

/// `usage.prompt_tokens_details.cached_tokens` of a chat completion.
fn cached(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .expect("usage tells cached tokens")
}

fn prompt_tokens(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens"].as_u64().expect("usage tells prompt tokens")
}

/// Tokens of a prompt, and those of them that were cached, as each API says it.
fn usage(path: &str, reply: &Value) -> Result<(u64, u64)> {
    let number = |at: &str| reply["usage"].pointer(at).and_then(Value::as_u64);
    let both = match path {
        "/v1/chat/completions" => {
            number("/prompt_tokens").zip(number("/prompt_tokens_details/cached_tokens"))
        }
        "/v1/responses" => {
            number("/input_tokens").zip(number("/input_tokens_details/cached_tokens"))
        }
        _ => number("/input_tokens").zip(number("/cache_read_input_tokens")).map(|(new, read)| {
            (new + read + number("/cache_creation_input_tokens").unwrap_or(0), read)
        }),
    };
    both.with_context(|| format!("{path} tells no usage: {reply}"))
}
