//! Readers of recorded traffic: Claude Code sessions as JSON, and rows of requests with block numbers.
//!
//! Rows are Mooncake's (`timestamp`, `input_length`, `output_length`, `hash_ids` of 512 tokens) and Dynamo's, which
//! may also name a `session_id` and a `delay` after the turn before. Numbers that make no sense are bounded, never
//! trusted; members that are not known are passed over, since these files grow members.

use std::collections::HashMap;

use serde::Deserialize;

use crate::trace::{AgentBuilder, SESSIONS_MAX, Session, TraceBuilder, TraceError};

/// Tokens of a block of rows, unless something else is said.
const ROW_BLOCK_TOKENS: u32 = 512;
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
}

impl Default for ReadSettings {
    fn default() -> Self {
        Self { context_tokens: 200_000, pause_ms_max: 300_000, share: true, row_block_tokens: 0 }
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
    reader.agent(&entry, 0);
    builder.leave_out(reader.left_out);
    builder.add(block_tokens, session)
}

struct SessionReader<'a> {
    settings: &'a ReadSettings,
    block_tokens: u32,
    session: &'a mut Session,
    left_out: u64,
}

impl SessionReader<'_> {
    /// Takes in an agent and its subagents; answers with its number.
    fn agent(&mut self, entry: &Entry, depth: usize) -> u32 {
        let number = self.session.agents.len();
        self.session.agents.push(Vec::new());
        let entries = entry.requests.as_deref().unwrap_or_default();
        // Subagents first, since the agent's own chains are being built while its turns are read.
        let children: Vec<Option<u32>> = entries
            .iter()
            .map(|e| (e.requests.is_some() && depth < DEPTH_MAX).then(|| self.agent(e, depth + 1)))
            .collect();
        let prompt = entry.tool_tokens.saturating_add(entry.system_tokens);
        let shared = if self.settings.share { tokens(prompt) / self.block_tokens } else { 0 };
        let group = (tokens(entry.tool_tokens) << 12) ^ tokens(entry.system_tokens);
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
            let pause_ms = ms(entry.think_time, u32::MAX).saturating_sub(spawned_ms).min(most);
            spawned_ms = 0;
            agent.turn(ids, tokens(entry.input), tokens(entry.out), pause_ms);
        }
        self.session.agents[number] = agent.end();
        number as u32
    }
}

/// One line of rows.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    timestamp: Option<f64>,
    #[serde(default)]
    delay: Option<f64>,
    #[serde(default)]
    session_id: Option<serde_json::Value>,
    input_length: u64,
    #[serde(default)]
    output_length: u64,
    hash_ids: Vec<u32>,
}

/// Adds rows of requests, one JSON object a line. Rows of one `session_id` follow each other; others stand alone.
///
/// # Errors
/// If a line is not of the form, or there is more than a trace can hold.
pub fn rows(
    text: &str,
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Result<(), TraceError> {
    let block_tokens = match settings.row_block_tokens {
        0 => ROW_BLOCK_TOKENS,
        tokens => tokens,
    };
    let mut sessions: Vec<Vec<Row>> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |e: serde_json::Error| TraceError::Form {
            place: format!("line {}", at + 1),
            reason: e.to_string(),
        };
        let row: Row = serde_json::from_str(line).map_err(wrong)?;
        if sessions.len() >= SESSIONS_MAX {
            return Err(TraceError::TooMuch { what: "sessions", most: SESSIONS_MAX });
        }
        match row.session_id.as_ref().map(ToString::to_string) {
            None => sessions.push(vec![row]),
            Some(name) => match by_name.get(&name) {
                Some(&known) => sessions[known].push(row),
                None => {
                    by_name.insert(name, sessions.len());
                    sessions.push(vec![row]);
                }
            },
        }
    }
    builder.timed();
    for rows in &sessions {
        let session = row_session(rows, block_tokens, settings, builder);
        builder.add(block_tokens, session)?;
    }
    Ok(())
}

fn row_session(
    rows: &[Row],
    block_tokens: u32,
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Session {
    let mut session = Session { numbers_are_global: true, ..Session::default() };
    let start = rows.first().and_then(|row| row.timestamp).unwrap_or(0.0);
    session.start_ms = start.max(0.0) as u64;
    let mut agent = AgentBuilder::new(&mut session.chains, block_tokens, 0, 0);
    for (at, row) in rows.iter().enumerate() {
        let length = row.input_length.saturating_add(row.output_length);
        if length > u64::from(settings.context_tokens) {
            builder.leave_out((rows.len() - at) as u64);
            break;
        }
        let pause_ms = ms(row.delay.map(|d| d / 1_000.0), settings.pause_ms_max);
        agent.turn(&row.hash_ids, tokens(row.input_length), tokens(row.output_length), pause_ms);
    }
    session.agents.push(agent.end());
    session
}

#[cfg(test)]
mod tests;
