//! Figures of small traces, worked out by hand.

use super::*;
use crate::mix::Mix;
use crate::read::{ReadSettings, claude_code_session, rows};
use crate::trace::TraceBuilder;

const KEEP: ReadSettings = ReadSettings {
    context_tokens: 200_000,
    pause_ms_max: 300_000,
    share: true,
    row_block_tokens: 0,
    records: true,
};

fn sessions(texts: &[&str]) -> Analysis {
    let mut builder = TraceBuilder::default();
    for text in texts {
        claude_code_session(text.as_bytes(), &KEEP, &mut builder).unwrap();
    }
    analyze(&builder.build().unwrap())
}

/// Blocks of 100 tokens: a lead with a tool's pause, a subagent, and a pause of a person longer than the bound.
const SESSION: &str = r#"{"block_size": 100, "tool_tokens": 200, "system_tokens": 0, "requests": [
    {"t": 0, "in": 450, "out": 50, "hash_ids": [1, 2, 3, 4], "api_time": 2.0, "ttft": 0.5, "think_time": 0.0, "stop": "tool_use"},
    {"t": 3, "type": "subagent", "duration_ms": 5000, "tool_tokens": 300, "requests": [
        {"t": 0, "in": 301, "out": 5, "hash_ids": [11, 12, 13], "think_time": 0.0, "api_time": 1.0, "stop": "end_turn"}]},
    {"t": 10, "in": 601, "out": 20, "hash_ids": [1, 2, 3, 4, 5, 6], "api_time": 4.0, "think_time": 8.0, "stop": "end_turn"},
    {"t": 1014, "in": 701, "out": 10, "hash_ids": [1, 2, 3, 4, 5, 6, 7], "think_time": 1000.0}]}"#;

#[test]
fn a_session_says_what_can_be_hit_and_when() {
    let analysis = sessions(&[SESSION]);
    assert_eq!((analysis.sessions, analysis.requests, analysis.prompt_tokens), (1, 4, 2_053));
    // The third request finds four blocks and the fifth, which the answer filled; the fourth request six.
    assert_eq!(analysis.hit_rate_available, share(1_100, 2_053));
    let at = |ttl: f64| analysis.kept.iter().find(|k| k.ttl_s == Some(ttl)).unwrap();
    // Eight seconds after the end of the first; a thousand after that of the third.
    assert_eq!([at(5.0).hit_rate, at(15.0).hit_rate], [0.0, share(500, 2_053)]);
    assert_eq!(at(900.0).hit_rate, share(500, 2_053));
    assert_eq!(at(3_600.0).hit_rate, analysis.hit_rate_available);
    assert_eq!(at(3_600.0).prefill_amplification, 1.0);
    assert_eq!(at(5.0).prefill_amplification, share(2_053, 953));
}

#[test]
fn what_was_measured_is_told_and_nothing_else() {
    let analysis = sessions(&[SESSION]);
    let ttft = analysis.ttft_ms.unwrap();
    assert_eq!((ttft.count, ttft.p50), (1, 500.0));
    assert_eq!(analysis.request_tok_s.unwrap().max, 25.0);
    assert_eq!(analysis.tool_pause_ms.unwrap().p50, 3_000.0, "less the subagent's time");
    assert_eq!(analysis.person_pause_ms.unwrap().p50, 1_000_000.0, "without a bound");
    assert_eq!((analysis.hit_rate_achieved, analysis.span_s), (None, None));
    assert!(analysis.absent.iter().any(|what| what.contains("cached tokens")));
    assert!(!analysis.absent.contains(&"time to first token"));
    let subagents = analysis.subagents.unwrap();
    assert_eq!((subagents.count, subagents.sessions, subagents.cold_share), (1, 1, 1.0));
    assert_eq!(analysis.growth_tokens.unwrap().max, 151.0);
    let made = analyze(&Mix::named("chat").unwrap().generate(4, 1).unwrap());
    assert_eq!((made.ttft_ms, made.tool_pause_ms, made.subagents), (None, None, None));
    assert!(made.other_pause_ms.is_some() && made.absent[0].starts_with("times of requests"));
}

#[test]
fn sessions_that_share_a_prompt_have_it_from_each_other() {
    let one = sessions(&[SESSION]);
    let two = sessions(&[SESSION, SESSION]);
    // Two blocks of tools of the lead, and three of the subagent's.
    assert_eq!(two.hit_rate_available, share(2 * 1_100 + 200 + 300, 2 * 2_053));
    // In the second session the lead's shared blocks are asked for three times.
    let from_others = share(3 * 200 + 300, 2 * 1_100 + 500);
    assert_eq!(two.repeated.from_other_sessions_share, from_others);
    assert_eq!(one.repeated.distinct_blocks, 7 + 3);
    assert_eq!(two.repeated.distinct_blocks, 2 * 10 - 2 - 3);
    assert_eq!(two.subagents.unwrap().cold_share, share(302, 602), "all of the first, and a token");
}

#[test]
fn compactions_are_told_from_side_calls_and_from_what_is_taken_back() {
    let turn = |tokens: u32, ids: &str| {
        format!(r#"{{"in": {tokens}, "out": 1, "hash_ids": [{ids}], "think_time": 0.0}}"#)
    };
    let turns = [
        turn(5_000, "1,2,3,4,5"),
        turn(1_000, "9"),
        turn(6_000, "1,2,3,4,5,6"),
        turn(3_000, "1,2,3"),
        turn(6_000, "1,2,3,4,5,6"),
        turn(2_000, "1,20"),
        turn(3_000, "1,20,21"),
    ];
    let text = format!(r#"{{"block_size": 1000, "requests": [{}]}}"#, turns.join(","));
    let compactions = sessions(&[&text]).compactions;
    assert_eq!((compactions.count, compactions.side_calls, compactions.taken_back), (1, 1, 1));
    assert_eq!(compactions.before_tokens.unwrap().p50, 6_000.0);
    assert_eq!(
        (compactions.after_tokens.unwrap().p50, compactions.kept_tokens.unwrap().p50),
        (2_000.0, 1_000.0)
    );
}

#[test]
fn rows_with_times_have_arrivals_and_share_blocks() {
    let row = |at_ms: u32, ids: &str| {
        format!(
            r#"{{"timestamp": {at_ms}, "input_length": 1025, "output_length": 1, "hash_ids": [{ids}, 99]}}"#
        )
    };
    let text = [row(0, "1,2"), row(30_000, "1,3"), row(150_000, "1,2")].join("\n");
    let mut builder = TraceBuilder::default();
    rows(&text, &KEEP, &mut builder).unwrap();
    let analysis = analyze(&builder.build().unwrap());
    assert_eq!(analysis.span_s, Some(150.0));
    assert_eq!(analysis.arrivals, [(0.0, 2.0), (1.0, 0.0), (2.0, 1.0)]);
    assert_eq!(analysis.hit_rate_available, share(3 * 512, 3 * 1_025));
    // The first block was used two minutes before, the second two and a half.
    let kept: Vec<f64> = analysis.kept.iter().map(|kept| kept.hit_rate).collect();
    assert_eq!([kept[3], kept[5], kept[6]], [1, 2, 3].map(|n| share(n * 512, 3 * 1_025)));
    assert_eq!(analysis.repeated.from_other_sessions_share, 1.0);
}

#[test]
fn a_recorded_cache_is_compared_with_one_without_end() {
    let text = r#"{"event_type": "request_end", "event_time_unix_ms": 9, "request": {"request_id": "a", "output_tokens": 4, "cached_tokens": 0, "request_received_ms": 0, "total_time_ms": 8, "replay": {"trace_block_size": 10, "input_length": 25, "input_sequence_hashes": [1, 2, 3]}}}
        {"event_type": "request_end", "event_time_unix_ms": 99, "request": {"request_id": "b", "output_tokens": 4, "cached_tokens": 10, "request_received_ms": 90, "total_time_ms": 8, "replay": {"trace_block_size": 10, "input_length": 25, "input_sequence_hashes": [1, 2, 4]}}}"#;
    let mut builder = TraceBuilder::default();
    rows(text, &KEEP, &mut builder).unwrap();
    let analysis = analyze(&builder.build().unwrap());
    assert_eq!(analysis.hit_rate_achieved, Some(0.2));
    assert_eq!(analysis.prefill_amplification, Some(share(40, 30)));
}

#[test]
fn a_page_and_tables_show_what_there_is() {
    let analysis = sessions(&[SESSION]);
    let tables = analysis.tables();
    assert!(tables.iter().all(|t| t.rows.iter().all(|row| row.len() == t.headers.len())));
    let page = analysis.page("<b>x</b>.json");
    assert!(page.contains("&lt;b&gt;x") && !page.contains("<script") && !page.contains("NaN"));
    // The trace has no arrivals, so no plot of them.
    assert_eq!(page.matches("<figure>").count(), 6);
}
