//! Hints in each form that clients were told to send, and in none that makes sense.

use serde_json::{Value, json};

use crate::parse::{parse_chat, parse_messages, parse_responses};
use crate::{Finish, Request, ResponseMeta, StreamEncoder, Usage, encode};

fn chat(members: Value) -> Request {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    for (name, value) in members.as_object().expect("members") {
        body[name] = value.clone();
    }
    parse_chat(body.to_string().as_bytes()).expect("a hint never fails a request")
}

fn nvext(nvext: Value) -> Request {
    chat(json!({ "nvext": nvext }))
}

fn with_headers(mut request: Request, headers: &[(&str, &str)]) -> Request {
    request.apply_headers(headers.iter().copied());
    request
}

#[test]
fn every_answer_names_the_hints_that_were_used() {
    assert_eq!(chat(json!({})).hints_header(), "used=()");
    let request = nvext(json!({
        "agent_hints": {"priority": 3, "osl": 40, "speculative_prefill": true, "mood": 1},
        "cache_control": {"type": "ephemeral", "ttl": "90d"}, "router": {"itl_target": 5},
        "agent_context": {"session_id": "s"}, "dp_rank": 2, "odd": 1,
    }));
    assert_eq!(
        request.hints_header(),
        "hint-ignored;count=2, hint-clipped;count=1, used=(nvext.agent_context \
         agent_hints.priority agent_hints.osl agent_hints.speculative_prefill \
         nvext.cache_control), unused=(router.itl_target nvext.dp_rank)"
    );
}

#[test]
fn nothing_of_a_client_gets_into_the_header() {
    let evil = "x\r\nset-cookie: a\u{7f}ü";
    let mut members = serde_json::Map::new();
    members.insert(evil.to_owned(), json!(evil));
    for name in ["agent_hints", "session_control", "agent_context", "router", "kv_hints"] {
        members.insert(name.to_owned(), json!({ evil: evil, "action": evil, "session_id": "s" }));
    }
    members.insert("annotations".to_owned(), json!([evil, format!("osl:{evil}")]));
    let request = with_headers(nvext(Value::Object(members)), &[("x-prefix-osl", evil)]);
    let header = request.hints_header();
    assert!(header.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{header}");
    assert!(!header.contains("cookie"), "{header}");
}

#[test]
fn priorities_have_many_names_and_one_order() {
    let used = |request: &Request| (request.hints.priority, request.hints_used());
    let header = |request, value| with_headers(request, &[("x-dynamo-request-priority", value)]);
    let bare = || nvext(json!({"priority": 4}));
    assert_eq!(used(&bare()), (Some(4), vec!["nvext.priority"]));
    let both =
        || nvext(json!({"priority": 4, "agent_hints": {"priority": 5, "latency_sensitivity": 9}}));
    let sensitivity = "agent_hints.latency_sensitivity";
    assert_eq!(used(&both()), (Some(5), vec!["agent_hints.priority", sensitivity]));
    // Releases before `priority` had a sensitivity, which meant the same.
    let older = nvext(json!({"agent_hints": {"latency_sensitivity": 7.4}}));
    assert_eq!(used(&older), (Some(7), vec![sensitivity]));
    let named = vec![sensitivity, "x-dynamo-request-priority"];
    assert_eq!(used(&header(both(), "-2")), (Some(-2), named));
    let broken = header(bare(), "soon");
    assert_eq!(used(&broken), (Some(4), vec!["nvext.priority"]));
    assert_eq!(broken.told_header().as_deref(), Some("hint-ignored;count=1"));
    let huge = nvext(json!({"agent_hints": {"latency_sensitivity": 1e8, "strict_priority": 1}}));
    assert_eq!(huge.hints.priority, Some(100_000_000));
    let tier = [("x-dynamo-request-strict-priority", "3")];
    let huge = with_headers(huge, &tier);
    assert_eq!(huge.hints.strict_priority, Some(3));
    assert!(huge.hints_header().ends_with("unused=(agent_hints.strict_priority)"));
}

#[test]
fn the_agent_toolkit_is_understood_in_its_three_transports() {
    let headers = [
        ("X-Prefix-Id", "bench-1"),
        ("x-prefix-total-requests", "10"),
        ("x-prefix-osl", "MEDIUM"),
        ("x-prefix-iat", "low"),
    ];
    let by_headers = with_headers(chat(json!({})), &headers);
    let lists =
        json!(["prefix_id:bench-1", "total_requests:10", "osl:MEDIUM", "iat:LOW", "token_ids"]);
    let by_annotations = nvext(json!({ "annotations": lists }));
    let by_members = nvext(json!({"agent_hints": {
        "prefix_id": "bench-1", "total_requests": 10, "osl": "medium", "iat": "LOW"}}));
    for request in [&by_headers, &by_annotations, &by_members] {
        let hints = &request.hints;
        assert_eq!(hints.prefix_id.as_deref(), Some("bench-1"));
        assert_eq!(
            (hints.total_requests, hints.osl, hints.iat_ms),
            (Some(10), Some(512), Some(50))
        );
        assert_eq!(request.session.key(), Some("bench-1"), "it names the session");
        assert_eq!(request.told, []);
    }
    assert_eq!(
        by_headers.hints_header(),
        "used=(x-prefix-id x-prefix-osl), unused=(x-prefix-total-requests x-prefix-iat)"
    );
    assert_eq!(
        by_annotations.hints_header(),
        "used=(prefix_id annotations.osl), \
         unused=(nvext.annotations annotations.total_requests annotations.iat)"
    );
    // The same fact twice: a number in the body is more than a word in a header.
    let number = nvext(json!({"agent_hints": {"osl": 33}}));
    let both = with_headers(number, &headers);
    assert_eq!((both.hints.osl, both.hints.total_requests), (Some(33), Some(10)));
    assert!(both.hints_used().contains(&"agent_hints.osl"));
    assert!(!both.hints_used().contains(&"x-prefix-osl"));
    // Any better name wins.
    let named = with_headers(by_annotations, &[("x-claude-code-session-id", "s")]);
    assert_eq!(named.session.key(), Some("s"));
}

#[test]
fn sessions_are_opened_and_closed_in_every_version() {
    let control = |action: &str| {
        nvext(json!({"session_control": {"session_id": "s", "action": action, "timeout": 300}}))
    };
    let open = control("open");
    assert_eq!((open.session.key(), open.session.session_final), (Some("s"), false));
    let closed = control("close");
    assert_eq!(closed.hints_used(), ["nvext.session_control", "session_control.action"]);
    assert!(closed.session.session_final);
    assert_eq!(control("nap").told_header().as_deref(), Some("hint-ignored;count=1"));
    let trajectory = nvext(json!({"agent_context": {"session_type_id": "t", "session_id": "s",
        "trajectory_id": "a", "parent_trajectory_id": "p", "trajectory_final": true}}));
    assert_eq!((trajectory.session.key(), trajectory.session.parent_key()), (Some("a"), Some("p")));
    assert_eq!(trajectory.hints_used(), ["nvext.agent_context", "agent_context.session_final"]);
    let header = [("x-dynamo-session-id", "h"), ("x-dynamo-session-final", "true")];
    let by_header = with_headers(chat(json!({})), &header);
    assert_eq!(by_header.hints_used(), ["x-dynamo-session-id", "x-dynamo-session-final"]);
    let key = chat(json!({"prompt_cache_key": "k"}));
    assert_eq!(key.hints_header(), "used=(prompt_cache_key)");
    let outdone = with_headers(key, &[("x-session-id", "s")]);
    assert_eq!(outdone.hints_header(), "used=(x-session-id), unused=(prompt_cache_key)");
}

fn envelope(actions: Value) -> Value {
    json!({"protocol_version": "0.1", "message_id": "m", "actions": actions})
}

fn action(kind: &str, payload: Value) -> Value {
    json!({"action_id": "a", "action_type": kind, "action_version": "1.0", "payload": payload})
}

#[test]
fn a_kv_envelope_pins_the_prompt_it_comes_with() {
    let pin = envelope(json!([action("kv.pin", json!({"ttl": "1h"}))]));
    let forms = [
        chat(json!({"kv_hints": pin})),
        chat(json!({"kv_hint": pin})),
        chat(json!({"kv_transfer_params": {"kv_hint": pin}})),
        nvext(json!({"kv_hints": pin})),
    ];
    for request in forms {
        assert_eq!(request.hints.cache_control.map(|c| c.ttl_ms), Some(3_600_000));
        assert_eq!(request.hints_header(), "used=(kv_hints.kv.pin)");
    }
    let life = |payload: Value| {
        let request = chat(json!({"kv_hints": envelope(json!([action("kv.retain", payload)]))}));
        (request.hints.cache_control.map(|c| c.ttl_ms), request.told.len())
    };
    assert_eq!(life(json!({})), (Some(300_000), 0));
    assert_eq!(life(json!({"ttl_ms": 90_000})), (Some(90_000), 0));
    assert_eq!(life(json!({"duration_ms": 1})), (Some(1_000), 0));
    assert_eq!(life(json!({"ttl_s": 60})), (Some(60_000), 0));
    assert_eq!(life(json!({"ttl": "soon"})), (None, 1));
    assert_eq!(life(json!("x")), (None, 1));
    // Blocks by somebody else's hashes mean nothing here.
    assert_eq!(life(json!({"block_hashes": [1, 2], "ttl": "1h"})), (None, 0));
    let own = chat(json!({"kv_hints": pin, "nvext": {"cache_control": {"type": "ephemeral"}}}));
    assert_eq!(own.hints.cache_control.map(|c| c.ttl_ms), Some(300_000));
    assert_eq!(own.hints_header(), "used=(nvext.cache_control), unused=(kv_hints.kv.pin)");
}

#[test]
fn actions_that_are_not_ours_are_told_and_do_nothing() {
    let fetch =
        action("kv.fetch", json!({"source_control_endpoint": "tcp://x", "block_hashes": [1]}));
    let demote = action("kv.demote", Value::Null);
    let request = chat(
        json!({"kv_hints": envelope(json!([fetch, demote, action("kv.brew", json!({})), 5]))}),
    );
    assert_eq!(
        request.hints_header(),
        "hint-ignored;count=2, used=(), unused=(kv_hints.kv.fetch kv_hints.kv.demote)"
    );
    let many: Vec<Value> = (0..100).map(|_| action("kv.fetch", json!({}))).collect();
    let flood = chat(json!({"kv_hints": envelope(json!(many))}));
    assert_eq!(flood.told_header().as_deref(), Some("hint-ignored;count=1"));
    for broken in [json!(5), json!([]), json!({"actions": "x"}), json!({"actions": [[]]})] {
        let request = chat(json!({ "kv_hints": broken }));
        assert_eq!(request.told_header().as_deref(), Some("hint-ignored;count=1"), "{broken}");
        assert_eq!(request.hints.cache_control, None);
    }
}

#[test]
fn malformed_forms_are_told_and_fail_nothing() {
    for broken in [json!(5), json!("x"), json!([]), json!(true)] {
        for name in ["agent_hints", "session_control", "agent_context", "router", "cache_control"] {
            let request = nvext(json!({ name: broken }));
            assert_eq!(request.told_header().as_deref(), Some("hint-ignored;count=1"), "{name}");
            assert_eq!(request.hints_used().len(), 0, "{name}: {broken}");
        }
    }
    let annotations =
        nvext(json!({"annotations": [5, "osl:never", "total_requests:-1", "free text"]}));
    assert_eq!(
        annotations.hints_header(),
        "hint-ignored;count=3, used=(), unused=(nvext.annotations)"
    );
    let many: Vec<String> = (0..1_000).map(|n| format!("a{n}")).collect();
    let flood = nvext(json!({ "annotations": many }));
    assert_eq!(flood.told_header().as_deref(), Some("hint-ignored;count=1"));
    // Absent is not malformed.
    let null =
        nvext(json!({"agent_hints": null, "annotations": null, "extra_fields": null, "odd": null}));
    assert_eq!(null.hints_header(), "used=()");
    for name in super::NVEXT_IDLE {
        let member = name.strip_prefix("nvext.").expect("a member of nvext");
        assert_eq!(
            nvext(json!({ member: {} })).hints_header(),
            format!("used=(), unused=({name})")
        );
    }
}

#[test]
fn the_body_tells_what_was_used_where_it_is_asked_for() {
    let hints = json!({"extra_fields": ["timing", "used"], "agent_hints": {"priority": 1}});
    let body = json!({"model": "m", "max_tokens": 5, "stream": true, "nvext": hints,
        "input": "x", "messages": [{"role": "user", "content": "x"}]});
    let body = body.to_string();
    let told = r#""nvext":{"used":["agent_hints.priority","nvext.extra_fields"]}"#;
    let requests = [
        parse_chat(body.as_bytes()).expect("a request"),
        parse_responses(body.as_bytes()).expect("a request"),
        parse_messages(body.as_bytes()).expect("a request"),
    ];
    let meta = || ResponseMeta {
        request_id: "req_1".to_owned(),
        model: "m".to_owned(),
        created_unix_s: 1,
        sealer: None,
        pins: Vec::new(),
    };
    for mut request in requests {
        for wanted in [true, false] {
            if !wanted {
                request.hints.extra_fields.clear();
            }
            let usage = Usage::default();
            let mut encoder = StreamEncoder::new(&request, meta());
            let mut stream = encoder.start(&usage);
            stream.push_str(&encoder.finish(&Finish::Stop, &usage, 2));
            let said = encoder.transcript();
            let whole = encode::complete(&request, &meta(), said, &Finish::Stop, &usage, 2);
            for text in [stream, whole] {
                let expected = (usize::from(wanted), usize::from(wanted));
                let got = (text.matches(told).count(), text.matches("nvext\":").count());
                assert_eq!(got, expected, "{text}");
            }
        }
    }
}

#[test]
fn what_wins_does_not_depend_on_the_order_of_members() {
    let read = |nvext: &str| {
        let body = format!(
            r#"{{"model": "m", "messages": [{{"role": "user", "content": "u"}}], "nvext": {{{nvext}}}}}"#
        );
        let request = parse_chat(body.as_bytes()).expect("a request");
        let mut uses: Vec<String> = request.uses.effective().map(str::to_owned).collect();
        uses.sort_unstable();
        (request.hints.clone(), request.session.clone(), uses)
    };
    let members = [
        r#""annotations": ["osl:9", "prefix_id:b"]"#,
        r#""agent_hints": {"osl": 7, "prefix_id": "a", "latency_sensitivity": 3}"#,
        r#""priority": 5"#,
        r#""agent_context": {"session_id": "s", "agent_id": "x"}"#,
        r#""session_id": "t""#,
    ];
    let whole = read(&members.join(", "));
    assert_eq!((whole.0.osl, whole.0.prefix_id.as_deref()), (Some(7), Some("a")));
    for turn in 1..members.len() {
        let mut turned = members;
        turned.rotate_left(turn);
        assert_eq!(read(&turned.join(", ")), whole, "{turn}");
    }
}
