//! Readers of recorded traffic: Claude Code sessions as JSON, and rows of requests with block numbers.
//!
//! Here are the sessions; `rows` and `requests` read lines, which `asks` puts together as sessions. Numbers that make
//! no sense are bounded, never trusted; members that are not known are passed over, since these files grow members.

mod asks;
mod requests;
mod rows;

use serde::Deserialize;

use crate::trace::{AgentBuilder, Record, Session, TraceBuilder, TraceError};

pub use rows::rows;

/// The latest begin of a session in a trace: a year after its first.
const START_MS_MAX: f64 = 366.0 * 86_400_000.0;
/// Blocks of a session are of this many tokens at most.
const BLOCK_TOKENS_MAX: u64 = 1 << 16;
/// Subagents may have subagents; recordings have one level.
const DEPTH_MAX: usize = 8;

/// How traces are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadSettings {
    /// Longer prompts, answer included, end their session.
    pub context_tokens: u32,
    /// Longer pauses are cut to this.
    pub pause_ms_max: u32,
    /// Whether sessions whose system prompts and tools are of the same sizes have them in common.
    pub share: bool,
    /// Tokens of a block in rows; 0 is 512.
    pub row_block_tokens: u32,
    /// Whether what was measured when the trace was recorded is kept, for [`crate::analyze`].
    pub records: bool,
}

impl Default for ReadSettings {
    fn default() -> Self {
        Self {
            context_tokens: 200_000,
            pause_ms_max: 300_000,
            share: true,
            row_block_tokens: 0,
            records: false,
        }
    }
}

/// A session, a subagent inside one, or a single request: the recordings have one shape for all three.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    block_size: u64,
    #[serde(default)]
    tool_tokens: u64,
    #[serde(default)]
    system_tokens: u64,
    #[serde(default)]
    duration_ms: Option<f64>,
    #[serde(default)]
    think_time: Option<f64>,
    /// Seconds, from the begin of the session or of the subagent.
    #[serde(default)]
    t: Option<f64>,
    #[serde(default)]
    api_time: Option<f64>,
    #[serde(default)]
    ttft: Option<f64>,
    #[serde(default)]
    stop: Option<String>,
    #[serde(default, rename = "in")]
    input: u64,
    #[serde(default)]
    out: u64,
    hash_ids: Option<Vec<u32>>,
    requests: Option<Vec<Entry>>,
}

/// A time in seconds as milliseconds, whatever it was.
fn ms(seconds: Option<f64>, most_ms: u32) -> u32 {
    let ms = seconds.unwrap_or(0.0) * 1_000.0;
    // What is no number becomes 0.
    ms.clamp(0.0, f64::from(most_ms)) as u32
}

fn tokens(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Adds a Claude Code session from its JSON text.
///
/// # Errors
/// If the text is not of the form, or more than a trace can hold.
pub fn claude_code_session(
    text: &[u8],
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Result<(), TraceError> {
    let wrong = |reason: String| TraceError::Form { place: "session".to_owned(), reason };
    let entry: Entry = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    if !(1..=BLOCK_TOKENS_MAX).contains(&entry.block_size) {
        return Err(wrong(format!("block_size is {}", entry.block_size)));
    }
    let block_tokens = entry.block_size as u32;
    let mut session = Session::default();
    let mut reader = SessionReader { settings, block_tokens, session: &mut session, left_out: 0 };
    reader.agent(&entry, 0, 0.0);
    builder.leave_out(reader.left_out);
    builder.add(block_tokens, session)
}

/// A number for tools and a system prompt of these sizes, which agents with the same ones are taken to share.
fn group_of(tool_tokens: u64, system_tokens: u64) -> u32 {
    /// The golden ratio's digits spread what is near each other.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = tool_tokens.wrapping_mul(SPREAD).rotate_left(32) ^ system_tokens;
    (mixed.wrapping_mul(SPREAD) >> 32) as u32
}

struct SessionReader<'a> {
    settings: &'a ReadSettings,
    block_tokens: u32,
    session: &'a mut Session,
    left_out: u64,
}

impl SessionReader<'_> {
    /// Takes in an agent and its subagents; answers with its number.
    fn agent(&mut self, entry: &Entry, depth: usize, begun_s: f64) -> u32 {
        let number = self.session.agents.len();
        self.session.agents.push(Vec::new());
        self.session.records.push(Vec::new());
        let mut records = Vec::new();
        let mut after_tool = None;
        let entries = entry.requests.as_deref().unwrap_or_default();
        // Subagents first, since the agent's own chains are being built while its turns are read.
        let children: Vec<Option<u32>> = entries
            .iter()
            .map(|e| {
                let begun_s = begun_s + e.t.unwrap_or(0.0);
                let is_agent = e.requests.is_some() && depth < DEPTH_MAX;
                is_agent.then(|| self.agent(e, depth + 1, begun_s))
            })
            .collect();
        let prompt = entry.tool_tokens.saturating_add(entry.system_tokens);
        let shared = if self.settings.share { tokens(prompt) / self.block_tokens } else { 0 };
        let group = group_of(entry.tool_tokens, entry.system_tokens);
        let mut agent =
            AgentBuilder::new(&mut self.session.chains, self.block_tokens, group, shared);
        let most = self.settings.pause_ms_max;
        let mut spawned_ms = 0;
        for (at, (entry, child)) in entries.iter().zip(children).enumerate() {
            if let Some(child) = child {
                spawned_ms = spawned_ms.max(ms(entry.duration_ms.map(|d| d / 1_000.0), u32::MAX));
                agent.spawn(child);
            }
            let Some(ids) = &entry.hash_ids else { continue };
            if entry.input.saturating_add(entry.out) > u64::from(self.settings.context_tokens) {
                let rest = entries[at..].iter().filter(|e| e.hash_ids.is_some()).count();
                self.left_out += rest as u64;
                break;
            }
            // The recorded pause has the subagents' time in it, which is played.
            let pause_ms = ms(entry.think_time, u32::MAX).saturating_sub(spawned_ms);
            spawned_ms = 0;
            if self.settings.records {
                records.push(record(entry, begun_s, pause_ms, after_tool));
            }
            after_tool = entry.stop.as_deref().map(|stop| stop == "tool_use");
            let pause_ms = pause_ms.min(most);
            agent.turn(ids, tokens(entry.input), tokens(entry.out), pause_ms);
            if after_tool == Some(true) {
                agent.calls_tools();
            }
        }
        self.session.agents[number] = agent.end();
        self.session.records[number] = records;
        number as u32
    }
}

/// What was measured of a request.
fn record(entry: &Entry, begun_s: f64, pause_ms: u32, after_tool: Option<bool>) -> Record {
    let in_ms = |seconds: Option<f64>| {
        seconds.map(|s| s * 1_000.0).filter(|ms| ms.is_finite() && *ms >= 0.0)
    };
    Record {
        at_ms: in_ms(entry.t.map(|t| begun_s + t)).map(|at| at.min(START_MS_MAX)),
        ttft_ms: in_ms(entry.ttft),
        took_ms: in_ms(entry.api_time),
        // The first of an agent follows nothing.
        pause_ms: entry.think_time.and(after_tool).map(|_| f64::from(pause_ms)),
        after_tool,
        cached_tokens: None,
    }
}

#[cfg(test)]
mod tests;
