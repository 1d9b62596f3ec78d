//! Cases of session identity, one per harness and one per rule of precedence.

use super::*;
use crate::parse::{parse_chat, parse_messages, parse_responses};

const CHAT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn session(headers: &[(&str, &str)]) -> SessionIds {
    let mut request = parse_chat(CHAT).unwrap();
    request.apply_headers(headers.iter().copied());
    request.session
}

#[test]
fn claude_code_subagent() {
    let ids = session(&[
        ("X-Claude-Code-Session-Id", "s1"),
        ("x-claude-code-agent-id", "a1"),
        ("x-claude-code-parent-agent-id", "a0"),
    ]);
    assert_eq!(ids.harness, Harness::ClaudeCode);
    assert_eq!((ids.key(), ids.parent_key()), (Some("a1"), Some("a0")));
    assert!(ids.is_subagent);
    let first_level =
        session(&[("x-claude-code-session-id", "s1"), ("x-claude-code-agent-id", "a1")]);
    assert_eq!(first_level.parent_key(), Some("s1"));
    let main = session(&[("x-claude-code-session-id", "s1")]);
    assert_eq!((main.key(), main.parent_key(), main.is_subagent), (Some("s1"), None, false));
}

#[test]
fn codex_main_child_and_compaction() {
    let main = session(&[("session-id", "t1"), ("thread-id", "t1")]);
    assert_eq!((main.agent.as_deref(), main.key()), (None, Some("t1")));
    let meta = r#"{"request_kind":"compaction","turn_id":"u9","context_window_id":"w1","thread_source":"subagent","forked_from_thread_id":"t0"}"#;
    let child = session(&[
        ("session-id", "t1"),
        ("thread-id", "t2"),
        ("x-codex-parent-thread-id", "t1"),
        ("x-openai-subagent", "collab_spawn"),
        ("x-codex-turn-metadata", meta),
    ]);
    assert_eq!(child.harness, Harness::Codex);
    assert_eq!((child.key(), child.parent_key()), (Some("t2"), Some("t1")));
    assert_eq!(child.kind, RequestKind::Compaction);
    assert_eq!(child.context_window.as_deref(), Some("w1"));
    assert_eq!(child.forked_from.as_deref(), Some("t0"));
    assert_eq!(child.turn.as_deref(), Some("u9"));
}

#[test]
fn opencode_child() {
    let ids = session(&[
        ("x-session-affinity", "ses_2"),
        ("x-session-id", "ses_2"),
        ("x-parent-session-id", "ses_1"),
    ]);
    assert_eq!(ids.harness, Harness::OpenCode);
    assert_eq!((ids.key(), ids.parent_key()), (Some("ses_2"), Some("ses_1")));
    assert!(ids.is_subagent);
}

#[test]
fn explicit_wins_and_sources_do_not_mix() {
    let ids = session(&[
        ("x-dynamo-session-id", "d1"),
        ("x-dynamo-session-final", "true"),
        ("x-claude-code-session-id", "s1"),
        ("x-claude-code-agent-id", "a1"),
    ]);
    assert_eq!(ids.source, SessionSource::Explicit);
    assert_eq!((ids.key(), ids.parent_key(), ids.session_final), (Some("d1"), None, true));
    assert_eq!(ids.harness, Harness::ClaudeCode);

    let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],
        "nvext":{"agent_context":{"session_id":"n1","trajectory_id":"n2","parent_trajectory_id":"n1"}}}"#;
    let mut request = parse_chat(body).unwrap();
    assert_eq!(request.session.key(), Some("n2"));
    request.apply_headers([("x-session-id", "s")]);
    assert_eq!((request.session.key(), request.session.parent_key()), (Some("n2"), Some("n1")));
    request.apply_headers([("x-dynamo-session-id", "d")]);
    assert_eq!(request.session.key(), Some("d"));
}

#[test]
fn inferred_from_bodies() {
    let body = br#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}],
        "metadata":{"user_id":"{\"device_id\":\"d\",\"account_uuid\":\"\",\"session_id\":\"s7\"}"}}"#;
    let request = parse_messages(body).unwrap();
    assert_eq!(request.session.key(), Some("s7"));
    assert_eq!(request.session.source, SessionSource::Inferred);
    let body = br#"{"model":"m","input":"hi","prompt_cache_key":"k1"}"#;
    let mut request = parse_responses(body).unwrap();
    assert_eq!(request.session.key(), Some("k1"));
    request.apply_headers([("session-id", "t1"), ("thread-id", "t1")]);
    assert_eq!(request.session.key(), Some("t1"));
}

#[test]
fn hostile_headers_are_ignored() {
    let long = "x".repeat(ID_BYTES_MAX + 1);
    for value in ["", long.as_str(), "a\u{7}b"] {
        assert_eq!(session(&[("x-session-id", value)]).key(), None);
    }
    assert_eq!(session(&[("x-codex-turn-metadata", "{{{")]).key(), None);
    let ids = session(&[("x-dynamo-request-priority", "not a number")]);
    assert_eq!(ids, SessionIds::default());
}

#[test]
fn priority_headers_win_over_the_body() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],
        "nvext":{"agent_hints":{"priority":5,"osl":9}}}"#;
    let mut request = parse_chat(body).unwrap();
    assert_eq!(request.hints.priority, Some(5));
    request.apply_headers([("X-Dynamo-Request-Priority", "-3")]);
    assert_eq!((request.hints.priority, request.hints.osl), (Some(-3), Some(9)));
}

#[test]
fn a_connections_headers_are_those_of_its_first_request() {
    let handshake =
        r#"{"session_id":"r","thread_id":"r","request_kind":"prewarm","window_number":0}"#;
    let headers = [("session-id", "r"), ("thread-id", "r"), ("x-codex-turn-metadata", handshake)];
    let body = |metadata: Value| {
        let body = serde_json::json!({"model": "m", "input": "hi", "prompt_cache_key": "r",
            "client_metadata": {"x-codex-turn-metadata": metadata.to_string()}});
        let mut request = parse_responses(body.to_string().as_bytes()).unwrap();
        request.apply_headers(headers);
        request.session
    };
    let child =
        body(serde_json::json!({"session_id": "r", "thread_id": "k", "parent_thread_id": "r",
        "request_kind": "turn", "window_number": 2}));
    assert_eq!((child.key(), child.parent_key()), (Some("k"), Some("r")));
    assert_eq!((child.kind, child.window), (RequestKind::Turn, Some(2)));
    assert_eq!((child.named_by, child.source), (Some("session-id"), SessionSource::Harness));
    // Another session's metadata does not count against the headers.
    let other = body(serde_json::json!({"session_id": "x", "thread_id": "y"}));
    assert_eq!((other.key(), other.kind), (Some("r"), RequestKind::Side));
}

#[test]
fn programs_are_called_what_they_call_themselves() {
    let client = |value: &str| session(&[("user-agent", value), ("x-session-id", "s")]);
    let harness = client("opencode/1.18.33 ai-sdk/4.0");
    assert_eq!(
        (harness.client.as_deref(), harness.harness),
        (Some("opencode/1.18.33"), Harness::OpenCode)
    );
    let load = client("aiperf/0.13.0");
    assert_eq!((load.client.as_deref(), load.harness), (Some("aiperf/0.13.0"), Harness::Unknown));
    assert_eq!(client(&"x".repeat(65)).client, None);
    assert_eq!(client("a\u{7}b").client, None);
}
