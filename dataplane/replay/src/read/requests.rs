//! Dynamo's request trace (`dynamo.request.trace.v1`): what a frontend writes down of the requests that it served.
//!
//! Each line is an event, bare or under `event`. `request_end` has the request: when it came
//! (`request_received_ms`, else the event's time less `total_time_ms`), its tokens, those that were cached, times, and
//! for playing it the hashes of its blocks (`replay`: `trace_block_size`, `input_length`, `input_sequence_hashes`, the
//! partial last block included). `agent_context` names the session and its parent. A subagent is taken to start with
//! its parent's latest request before it, and the parent's first request after its end waits for it, which is how
//! Dynamo's own replay reads them. A tool that ended (`tool_end`, `tool_error`) tells that the session's next pause was
//! a tool's. Other events are passed over; a request without hashes is an error, since it cannot be played.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::ReadSettings;
use super::asks::{Ask, assemble};
use crate::trace::{TraceBuilder, TraceError};

#[derive(Deserialize)]
struct Line {
    /// The event, where it is wrapped.
    #[serde(default)]
    event: Option<Event>,
    #[serde(flatten)]
    bare: Event,
}

#[derive(Deserialize, Default)]
struct Event {
    #[serde(default)]
    event_type: String,
    #[serde(default)]
    event_time_unix_ms: f64,
    #[serde(default)]
    agent_context: Option<Context>,
    #[serde(default)]
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Context {
    session_id: String,
    #[serde(default)]
    parent_session_id: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    request_received_ms: Option<f64>,
    #[serde(default)]
    ttft_ms: Option<f64>,
    #[serde(default)]
    total_time_ms: Option<f64>,
    #[serde(default)]
    replay: Option<Replay>,
}

#[derive(Deserialize)]
struct Replay {
    trace_block_size: u32,
    input_length: u64,
    input_sequence_hashes: Vec<u64>,
}

/// A request with its times.
struct Timed {
    ask: Ask,
    parent: Option<String>,
    start_ms: f64,
    end_ms: f64,
}

/// Whether the text's first line is an event of such a trace.
pub(super) fn is_one(text: &str) -> bool {
    let Some(line) = text.lines().find(|line| !line.trim().is_empty()) else { return false };
    let Ok(serde_json::Value::Object(members)) = serde_json::from_str(line) else { return false };
    ["event", "event_type"].iter().any(|name| members.contains_key(*name))
}

/// Adds the requests of a request trace.
pub(super) fn read(
    text: &str,
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Result<(), TraceError> {
    let mut requests = Vec::new();
    let mut tool_ends: HashMap<String, Vec<f64>> = HashMap::new();
    let mut block_tokens = None;
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("line {}", at + 1);
        let form = |reason: String| TraceError::Form { place: place(), reason };
        let line: Line = serde_json::from_str(line).map_err(|e| form(e.to_string()))?;
        let event = line.event.unwrap_or(line.bare);
        match event.event_type.as_str() {
            "request_end" => {
                let (timed, tokens) = request(event, builder, &form)?;
                let expected = *block_tokens.get_or_insert(tokens);
                if expected != tokens {
                    return Err(TraceError::MixedBlocks { expected, found: tokens });
                }
                requests.push(timed);
            }
            "tool_end" | "tool_error" => {
                let Some(context) = event.agent_context else { continue };
                let ends = tool_ends.entry(context.session_id).or_default();
                ends.push(event.event_time_unix_ms);
            }
            _ => {}
        }
    }
    let Some(block_tokens) = block_tokens else { return Ok(()) };
    requests.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
    tool_ends.values_mut().for_each(|ends| ends.sort_unstable_by(f64::total_cmp));
    link(&mut requests, &tool_ends);
    assemble(requests.into_iter().map(|r| r.ask).collect(), block_tokens, settings, builder)
}

fn request(
    event: Event,
    builder: &mut TraceBuilder,
    form: &impl Fn(String) -> TraceError,
) -> Result<(Timed, u32), TraceError> {
    let request = event.request.ok_or_else(|| form("request_end has no request".to_owned()))?;
    let replay = request.replay.ok_or_else(|| {
        form("the request has no replay hashes; let the frontend write them".to_owned())
    })?;
    if replay.trace_block_size == 0 {
        return Err(form("trace_block_size is 0".to_owned()));
    }
    let took_ms = request.total_time_ms.filter(|ms| ms.is_finite()).unwrap_or(0.0).max(0.0);
    let start_ms = request.request_received_ms.unwrap_or(event.event_time_unix_ms - took_ms);
    let start_ms = if start_ms.is_finite() { start_ms } else { 0.0 };
    let (session, parent) = match event.agent_context {
        Some(context) => (Some(context.session_id), context.parent_session_id),
        None => (None, None),
    };
    let ask = Ask {
        id: request.request_id,
        session,
        at_ms: Some(start_ms),
        ttft_ms: request.ttft_ms,
        took_ms: request.total_time_ms,
        cached_tokens: request.cached_tokens,
        blocks: builder.numbers(&replay.input_sequence_hashes)?,
        prompt_tokens: replay.input_length,
        output_tokens: request.output_tokens.unwrap_or(0),
        ..Ask::default()
    };
    Ok((Timed { ask, parent, start_ms, end_ms: start_ms + took_ms }, replay.trace_block_size))
}

/// Finds pauses and who waits for whom from times. The requests are in the order of their starts.
fn link(requests: &mut [Timed], tool_ends: &HashMap<String, Vec<f64>>) {
    // In the order of names, so that the same file is read the same way each time.
    let mut sessions: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, timed) in requests.iter().enumerate() {
        if let Some(session) = &timed.ask.session {
            sessions.entry(session.clone()).or_default().push(at);
        }
    }
    for (name, places) in &sessions {
        for pair in places.windows(2) {
            let (from_ms, to_ms) = (requests[pair[0]].end_ms, requests[pair[1]].start_ms);
            let ends = tool_ends.get(name).map(Vec::as_slice).unwrap_or_default();
            let since_ms = requests[pair[0]].start_ms;
            let next = ends.partition_point(|end| *end <= since_ms);
            let tool = ends.get(next).is_some_and(|end| *end <= to_ms);
            let ask = &mut requests[pair[1]].ask;
            ask.pause_ms = Some((to_ms - from_ms).max(0.0));
            ask.after_tool = (!tool_ends.is_empty()).then_some(tool);
        }
    }
    for places in sessions.values() {
        let Some(parent) = requests[places[0]].parent.as_ref().and_then(|p| sessions.get(p)) else {
            continue;
        };
        let start_ms = requests[places[0]].start_ms;
        let last = places
            .iter()
            .copied()
            .max_by(|a, b| requests[*a].end_ms.total_cmp(&requests[*b].end_ms));
        let Some(last) = last else { continue };
        let before = parent.partition_point(|at| requests[*at].start_ms <= start_ms);
        if let Some(spawner) = before.checked_sub(1).map(|at| parent[at])
            && let Some(id) = requests[spawner].ask.id.clone()
        {
            let pause_ms = (start_ms - requests[spawner].end_ms).max(0.0);
            let first = &mut requests[places[0]].ask;
            first.wait_for.push(id);
            first.pause_ms = Some(pause_ms);
        }
        let end_ms = requests[last].end_ms;
        let joins = parent.partition_point(|at| requests[*at].start_ms < end_ms);
        if let (Some(join), Some(id)) = (parent.get(joins), requests[last].ask.id.clone()) {
            // Its pause goes on from the subagent's end.
            let pause_ms = (requests[*join].start_ms - end_ms).max(0.0);
            let ask = &mut requests[*join].ask;
            ask.wait_for.push(id);
            ask.pause_ms = Some(ask.pause_ms.map_or(pause_ms, |known| known.min(pause_ms)));
        }
    }
}
