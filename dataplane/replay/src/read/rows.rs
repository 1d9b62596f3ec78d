//! Rows of requests with block numbers, one JSON object a line: Mooncake's, Dynamo's, and Dynamo's for agents.
//!
//! | member | meaning |
//! |---|---|
//! | `timestamp`, `created_time` | arrival in milliseconds; the first of a trace is its begin |
//! | `input_length`, `output_length` (or `…_tokens`) | tokens; a prompt without a length is as long as its blocks |
//! | `hash_ids` | a number for each block of the prompt, the partial last one included; the same in all rows |
//! | `session_id` | rows of one session follow each other; a row without one stands alone |
//! | `delay`, `delay_ms` | from the end of the row before; left out, the difference of their timestamps |
//! | `priority` | higher goes first |
//! | `request_id`, `wait_for` | a row may wait for others by name: a session whose first row waits for one of another session is its subagent; a row that waits for none of its subagents goes on without them |
//! | `tool_wait_ms` | adds to `delay` |
//!
//! `branches`, `prefix_reset` and `tool_events` say nothing that these do not; they and members that are not known are
//! passed over. A row waits for all subagents that run, where the file may name some of them.

use std::collections::HashMap;

use serde::Deserialize;

use super::asks::{Ask, assemble};
use super::{ReadSettings, requests};
use crate::trace::{TraceBuilder, TraceError};

/// Tokens of a block of rows, unless something else is said.
const ROW_BLOCK_TOKENS: u32 = 512;

/// One line.
#[derive(Deserialize)]
struct Row {
    #[serde(default, alias = "created_time")]
    timestamp: Option<f64>,
    #[serde(default, alias = "delay_ms")]
    delay: Option<f64>,
    #[serde(default)]
    tool_wait_ms: Option<f64>,
    #[serde(default)]
    session_id: Option<serde_json::Value>,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    wait_for: Vec<String>,
    #[serde(default)]
    priority: Option<i64>,
    #[serde(default, alias = "input_tokens")]
    input_length: Option<u64>,
    #[serde(default, alias = "output_tokens")]
    output_length: Option<u64>,
    hash_ids: Vec<u64>,
}

/// Adds rows of requests, one JSON object a line: Mooncake's, Dynamo's, or the events of Dynamo's request trace.
///
/// # Errors
/// If a line is not of the form, or there is more than a trace can hold.
pub fn rows(
    text: &str,
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Result<(), TraceError> {
    if requests::is_one(text) {
        return requests::read(text, settings, builder);
    }
    let block_tokens = match settings.row_block_tokens {
        0 => ROW_BLOCK_TOKENS,
        tokens => tokens,
    };
    let mut asks = Vec::new();
    let mut before: HashMap<String, f64> = HashMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |e: serde_json::Error| TraceError::Form {
            place: format!("line {}", at + 1),
            reason: e.to_string(),
        };
        let row: Row = serde_json::from_str(line).map_err(wrong)?;
        let session = row.session_id.as_ref().map(ToString::to_string);
        // Times of a session's rows stand for the pauses that are not given.
        let last_ms = match (&session, row.timestamp) {
            (Some(session), Some(time)) => before.insert(session.clone(), time),
            _ => None,
        };
        let since_ms = last_ms.zip(row.timestamp).map(|(last, time)| time - last);
        let explicit = row.delay.or(row.tool_wait_ms).is_some();
        let given_ms = row.delay.unwrap_or(0.0) + row.tool_wait_ms.unwrap_or(0.0);
        let blocks_tokens = row.hash_ids.len() as u64 * u64::from(block_tokens);
        asks.push(Ask {
            id: row.request_id,
            session,
            at_ms: row.timestamp,
            pause_ms: if explicit { Some(given_ms) } else { since_ms },
            pause_has_answer: !explicit,
            after_tool: row.tool_wait_ms.map(|ms| ms > 0.0),
            wait_for: row.wait_for,
            blocks: builder.numbers(&row.hash_ids)?,
            prompt_tokens: row.input_length.unwrap_or(blocks_tokens),
            output_tokens: row.output_length.unwrap_or(0),
            priority: row.priority.unwrap_or(0),
            ..Ask::default()
        });
    }
    assemble(asks, block_tokens, settings, builder)
}
