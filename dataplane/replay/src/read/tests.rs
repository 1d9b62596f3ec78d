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
fn rows_stand_alone_or_follow_their_session() {
    let text = r#"{"timestamp": 27, "input_length": 1030, "output_length": 3, "hash_ids": [0, 1, 2]}

        {"session_id": "x", "timestamp": 40, "input_length": 512, "output_length": 600, "hash_ids": [5]}
        {"session_id": "x", "delay": 250, "input_length": 1536, "output_length": 1, "hash_ids": [5, 6, 7], "new": 1}"#;
    let mut builder = TraceBuilder::default();
    rows(text, &ReadSettings::default(), &mut builder).unwrap();
    let trace = builder.build().unwrap();
    assert!(trace.timed && trace.sessions.iter().all(|s| s.numbers_are_global));
    assert_eq!((trace.session_count(), trace.request_count(), trace.block_tokens), (2, 3, 512));
    assert_eq!(trace.sessions.iter().map(|s| s.start_ms).collect::<Vec<_>>(), [27, 40]);
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
