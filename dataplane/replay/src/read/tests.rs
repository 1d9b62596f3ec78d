//! Readers on small samples of each form, and on what is not of the form.

use super::*;
use crate::trace::Item;

fn session(text: &str, settings: &ReadSettings) -> Result<crate::Trace, TraceError> {
    let mut builder = TraceBuilder::default();
    claude_code_session(text.as_bytes(), settings, &mut builder)?;
    builder.build()
}

const SESSION: &str = r#"{"id": "a", "block_size": 64, "tool_tokens": 70, "system_tokens": 60, "requests": [
    {"t": 0, "type": "n", "in": 200, "out": 70, "hash_ids": [1, 2, 3], "think_time": 0.0},
    {"t": 9, "type": "subagent", "duration_ms": 2000, "tool_tokens": 64, "requests": [
        {"t": 0, "in": 130, "out": 5, "hash_ids": [9, 8], "think_time": null}]},
    {"t": 20, "type": "n", "in": 270, "out": 9, "hash_ids": [1, 2, 3, 4], "think_time": 5.5},
    {"t": 30, "type": "n", "in": 500, "out": 9, "hash_ids": [1, 2, 3, 4, 5, 6, 7], "think_time": 1e30}]}"#;

#[test]
fn a_session_has_its_agents_chains_and_pauses() {
    let trace = session(SESSION, &ReadSettings::default()).unwrap();
    let [session] = &trace.sessions[..] else { panic!("one session") };
    assert_eq!((trace.block_tokens, trace.request_count(), session.agents.len()), (64, 4, 2));
    assert_eq!(session.agents[0][1], Item::Spawn(1));
    let turn = |agent: usize, at: usize| match session.agents[agent][at] {
        Item::Turn(turn) => turn,
        Item::Spawn(_) => panic!("a turn"),
    };
    assert_eq!((turn(0, 0).prompt_blocks, turn(0, 0).chain_blocks), (3, 4));
    assert_eq!(turn(0, 2).pause_ms, 3_500, "less the subagent's time");
    assert_eq!(turn(0, 3).pause_ms, 300_000);
    assert_eq!(turn(0, 0).chain, turn(0, 3).chain);
    let shared = |at: u32| session.chains[at as usize].shared_blocks;
    assert_eq!((shared(turn(0, 0).chain), shared(turn(1, 0).chain)), (2, 1));
    assert!(!session.numbers_are_global && !trace.timed);
}

#[test]
fn a_prompt_beyond_the_context_ends_the_session_and_is_counted() {
    let settings = ReadSettings { context_tokens: 275, share: false, ..ReadSettings::default() };
    let trace = session(SESSION, &settings).unwrap();
    assert_eq!((trace.request_count(), trace.left_out_count()), (2, 2));
    assert!(trace.sessions[0].chains.iter().all(|chain| chain.shared_blocks == 0));
}

#[test]
fn times_go_forward_from_the_first_and_have_an_end() {
    let row = |time: &str| {
        format!(
            r#"{{"timestamp": {time}, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}}"#
        )
    };
    let text = ["1700000002000", "1700000000000", "1e300", "1700000001000"].map(row).join("\n");
    let mut builder = TraceBuilder::default();
    rows(&text, &ReadSettings::default(), &mut builder).unwrap();
    let trace = builder.build().unwrap();
    let starts: Vec<u64> = trace.sessions.iter().map(|s| s.start_ms).collect();
    assert_eq!(starts, [0, 1_000, 2_000, START_MS_MAX as u64]);
}

#[test]
fn rows_stand_alone_or_follow_their_session() {
    let text = r#"{"timestamp": 27, "input_length": 1030, "output_length": 3, "hash_ids": [0, 1, 2]}

        {"session_id": "x", "timestamp": 40, "input_length": 512, "output_length": 600, "hash_ids": [5]}
        {"session_id": "x", "delay": 250, "input_length": 1536, "output_length": 1, "hash_ids": [5, 6, 7], "new": 1}"#;
    let mut builder = TraceBuilder::default();
    rows(text, &ReadSettings::default(), &mut builder).unwrap();
    let trace = builder.build().unwrap();
    assert!(trace.timed && trace.sessions.iter().all(|s| s.numbers_are_global));
    assert_eq!((trace.session_count(), trace.request_count(), trace.block_tokens), (2, 3, 512));
    assert_eq!(trace.sessions.iter().map(|s| s.start_ms).collect::<Vec<_>>(), [0, 13]);
    assert_eq!(trace.sessions[0].chains[0].ids, [0, 1], "the third block is not full");
    match trace.sessions[1].agents[0][..] {
        [Item::Turn(first), Item::Turn(second)] => {
            assert_eq!((first.chain_blocks, second.pause_ms), (2, 250));
        }
        _ => panic!("two turns"),
    }
}

#[test]
fn what_is_not_of_the_form_names_its_place() {
    let read = |text: &str| {
        let mut builder = TraceBuilder::default();
        rows(text, &ReadSettings::default(), &mut builder).unwrap_err().to_string()
    };
    let good = r#"{"input_length": 1, "hash_ids": []}"#;
    assert!(read(&format!("{good}\n{{}}")).starts_with("line 2: missing field"));
    assert!(read(r#"{"input_length": -1, "hash_ids": []}"#).starts_with("line 1"));
    let settings = ReadSettings::default();
    assert!(session("[]", &settings).is_err());
    assert!(session(r#"{"block_size": 0, "requests": []}"#, &settings).is_err());
    assert_eq!(session(r#"{"block_size": 64}"#, &settings), Err(TraceError::Empty));
    let huge = r#"{"block_size": 64, "requests": [{"in": 18446744073709551615, "out": 1, "hash_ids": [1]}]}"#;
    assert_eq!(session(huge, &settings), Err(TraceError::Empty), "longer than any context");
}

fn read_rows(text: &str, settings: &ReadSettings) -> crate::Trace {
    let mut builder = TraceBuilder::default();
    rows(text, settings, &mut builder).unwrap();
    builder.build().unwrap()
}

fn turns_of(items: &[Item]) -> Vec<crate::trace::Turn> {
    let turn = |item: &Item| match item {
        Item::Turn(turn) => Some(*turn),
        Item::Spawn(_) => None,
    };
    items.iter().filter_map(turn).collect()
}

#[test]
fn rows_of_agents_have_subagents_that_are_waited_for_or_not() {
    let text = r#"{"request_id": "a0", "session_id": "a", "input_tokens": 40, "output_tokens": 8, "hash_ids": [900719925474099, 2, 3], "created_time": 100.0, "branches": ["b0", "c0"], "prefix_reset": true}
        {"request_id": "b0", "session_id": "b", "input_tokens": 20, "output_tokens": 8, "hash_ids": [900719925474099, 7], "timestamp": 150, "wait_for": ["a0"], "delay_ms": 5}
        {"request_id": "c0", "session_id": "c", "input_tokens": 33, "output_tokens": 8, "hash_ids": [8, 9, 10], "timestamp": 160, "wait_for": ["a0"]}
        {"request_id": "a1", "session_id": "a", "input_tokens": 48, "output_tokens": 8, "hash_ids": [900719925474099, 2, 3], "timestamp": 200, "wait_for": ["a0"], "delay": 10, "tool_wait_ms": 20, "priority": -3}
        {"request_id": "a2", "session_id": "a", "input_tokens": 64, "output_tokens": 8, "hash_ids": [900719925474099, 2, 3, 4], "timestamp": 260, "wait_for": ["a1", "b0"]}"#;
    let settings = ReadSettings { row_block_tokens: 16, records: true, ..ReadSettings::default() };
    let trace = read_rows(text, &settings);
    let [session] = &trace.sessions[..] else { panic!("one session with its subagents") };
    assert_eq!((session.agents.len(), session.start_ms, trace.request_count()), (3, 0, 5));
    assert_eq!(session.agents[0][1..3], [Item::Spawn(1), Item::Spawn(2)]);
    let lead = turns_of(&session.agents[0]);
    assert_eq!([lead[1].joins, lead[2].joins], [false, true]);
    assert_eq!((lead[1].pause_ms, lead[1].priority), (30, -3));
    assert_eq!(lead[2].pause_ms, 60, "the difference of times, where nothing else is said");
    let measured: Vec<Option<f64>> = session.records[0].iter().map(|r| r.pause_ms).collect();
    assert_eq!(measured, [None, Some(30.0), None]);
    assert_eq!(turns_of(&session.agents[1])[0].pause_ms, 5);
    let chain = |agent: usize| &session.chains[turns_of(&session.agents[agent])[0].chain as usize];
    assert_eq!(chain(0).ids[0], chain(1).ids[0], "numbers mean the same in all rows");
    assert_eq!(chain(1).ids.len(), 1, "the second block is not full");
    let tools: Vec<Option<bool>> = session.records[0].iter().map(|r| r.after_tool).collect();
    assert_eq!(tools, [None, Some(true), None]);
    let plain = ReadSettings { records: false, ..settings };
    assert!(read_rows(text, &plain).sessions[0].records.is_empty());
}

#[test]
fn rows_that_wait_for_each_other_or_for_nobody_start_at_their_times() {
    let row = |name: &str, waits: &str, at: u32| {
        format!(
            r#"{{"request_id": "{name}", "session_id": "{name}", "hash_ids": [{at}], "timestamp": {at}, "wait_for": ["{waits}"]}}"#
        )
    };
    let text = [row("a", "b", 5), row("b", "c", 6), row("c", "a", 7), row("d", "x", 8)].join("\n");
    let trace = read_rows(&text, &ReadSettings::default());
    assert_eq!((trace.request_count(), trace.session_count()), (4, 2));
    let first = turns_of(&trace.sessions[0].agents[0])[0];
    assert_eq!(first.prompt_tokens, 512, "as long as its block");
    let long: Vec<String> =
        (0..30_000).map(|n| row(&format!("n{n}"), &format!("n{}", n + 1), n)).collect();
    let long = read_rows(&long.join("\n"), &ReadSettings::default());
    assert_eq!(long.request_count(), 30_000, "a line of waiting is cut, nothing is lost");
}

const REQUEST_TRACE: &str = r#"{"event": {"schema": "dynamo.request.trace.v1", "event_type": "tool_start", "event_time_unix_ms": 1}}
    {"event": {"schema": "dynamo.request.trace.v1", "event_type": "request_end", "event_time_unix_ms": 3000, "agent_context": {"session_id": "p"}, "request": {"request_id": "p0", "output_tokens": 9, "cached_tokens": 0, "request_received_ms": 1000, "ttft_ms": 400.5, "total_time_ms": 2000, "replay": {"trace_block_size": 16, "input_length": 40, "input_sequence_hashes": [18446744073709551615, 5, 6]}}}}
    {"schema": "dynamo.request.trace.v1", "event_type": "request_end", "event_time_unix_ms": 5000, "agent_context": {"session_id": "k", "parent_session_id": "p"}, "request": {"request_id": "k0", "output_tokens": 9, "request_received_ms": 3500, "total_time_ms": 1500, "replay": {"trace_block_size": 16, "input_length": 16, "input_sequence_hashes": [18446744073709551615]}}}
    {"schema": "dynamo.request.trace.v1", "event_type": "tool_end", "event_time_unix_ms": 5100, "agent_context": {"session_id": "p"}, "tool": {"tool_call_id": "t", "tool_class": "task"}}
    {"schema": "dynamo.request.trace.v1", "event_type": "request_end", "event_time_unix_ms": 6000, "agent_context": {"session_id": "p"}, "request": {"request_id": "p1", "output_tokens": 9, "cached_tokens": 32, "request_received_ms": 5250, "total_time_ms": 750, "replay": {"trace_block_size": 16, "input_length": 64, "input_sequence_hashes": [18446744073709551615, 5, 6, 7]}}}"#;

#[test]
fn a_request_trace_has_its_sessions_times_and_subagents() {
    let settings = ReadSettings { records: true, ..ReadSettings::default() };
    let trace = read_rows(REQUEST_TRACE, &settings);
    let [session] = &trace.sessions[..] else { panic!("one session") };
    assert_eq!((trace.block_tokens, session.agents.len(), trace.request_count()), (16, 2, 3));
    assert_eq!(session.agents[0][1], Item::Spawn(1));
    let lead = turns_of(&session.agents[0]);
    assert!(lead[1].joins);
    assert_eq!(lead[1].pause_ms, 250, "from the subagent's end");
    assert_eq!(turns_of(&session.agents[1])[0].pause_ms, 500);
    let first = session.records[0][0];
    assert_eq!(
        (first.at_ms, first.ttft_ms, first.took_ms),
        (Some(0.0), Some(400.5), Some(2_000.0))
    );
    let second = session.records[0][1];
    assert_eq!((second.cached_tokens, second.after_tool), (Some(32), Some(true)));
}

#[test]
fn a_request_trace_that_cannot_be_played_says_why() {
    let read = |text: &str| {
        let mut builder = TraceBuilder::default();
        let read = rows(text, &ReadSettings::default(), &mut builder);
        read.and_then(|()| builder.build().map(drop)).unwrap_err().to_string()
    };
    let plain =
        r#"{"event_type": "request_end", "event_time_unix_ms": 1, "request": {"request_id": "a"}}"#;
    assert_eq!(
        read(plain),
        "line 1: the request has no replay hashes; let the frontend write them"
    );
    let other = REQUEST_TRACE.replacen("\"trace_block_size\": 16", "\"trace_block_size\": 32", 1);
    assert!(read(&other).starts_with("blocks of 16 tokens among blocks of 32"));
    assert!(
        read(
            &plain
                .replace("\"event_type\"", "\"x\": 1, \"event_type\"")
                .replace("request_end", "new")
        )
        .contains("no requests")
    );
}
