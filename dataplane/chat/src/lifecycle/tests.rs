//! Lives of sessions by kind of client, in the shapes that each of them sends, and the table's limits.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::output::OutputEvent;
use crate::parse::{parse_chat, parse_messages, parse_responses};

const MINUTE_MS: u64 = 60_000;

/// A table, its clock, and what it told of one tenant.
struct World {
    lives: Lifecycle,
    now_ms: u64,
}

impl World {
    fn new() -> World {
        World::with(LifecycleLimits::default())
    }

    fn with(limits: LifecycleLimits) -> World {
        World { lives: Lifecycle::with_limits(limits), now_ms: 1_000 }
    }

    fn ask(&mut self, request: &Request) -> (Ticket, Vec<String>) {
        self.ask_as("t", request)
    }

    fn ask_as(&mut self, tenant: &str, request: &Request) -> (Ticket, Vec<String>) {
        self.now_ms += 10;
        let (ticket, lived) = self.asked(tenant, request);
        (ticket.expect("a session"), told(&lived))
    }

    /// As a gateway does it.
    fn asked(&mut self, tenant: &str, request: &Request) -> (Option<Ticket>, Vec<Lived>) {
        let mut asked = self.lives.asked(self.now_ms, tenant, request);
        let finished = asked.spoken_of(request);
        asked.lived.extend(self.lives.consumed(self.now_ms, tenant, &finished));
        (asked.ticket, asked.lived)
    }

    fn answer(&mut self, ticket: Ticket, calls: &[(&str, &str)]) -> Vec<String> {
        self.answer_with(ticket, calls, &Finish::Stop)
    }

    fn answer_with(
        &mut self,
        ticket: Ticket,
        calls: &[(&str, &str)],
        finish: &Finish,
    ) -> Vec<String> {
        self.now_ms += 10;
        let mut transcript = Transcript::default();
        for (index, (name, arguments)) in (0..).zip(calls) {
            let name = (*name).to_owned();
            transcript.push(&OutputEvent::ToolCallStart { index, name });
            transcript.push(&OutputEvent::ToolCallArguments((*arguments).to_owned()));
        }
        let usage = Usage {
            prompt_tokens: 100,
            cached_tokens: 64,
            completion_tokens: 7,
            ..Usage::default()
        };
        let outcome = Outcome { transcript: &transcript, finish, usage };
        told(&self.lives.answered(self.now_ms, ticket, &outcome))
    }

    /// A request and its answer.
    fn turn(&mut self, request: &Request, calls: &[(&str, &str)]) -> Vec<String> {
        let (ticket, mut all) = self.ask(request);
        all.extend(self.answer(ticket, calls));
        all
    }

    fn tick(&mut self, after_ms: u64) -> Vec<String> {
        self.now_ms += after_ms;
        told(&self.lives.ticked(self.now_ms))
    }

    fn view(&self, key: &str) -> SessionView {
        self.lives.get(self.now_ms, "t", key).expect("it is told of")
    }
}

/// What was told, but for turns that rest: nearly all do, and `a_turn_without_a_call_rests` is about them.
fn told(lived: &[Lived]) -> Vec<String> {
    let one = |l: &Lived| {
        let more = match &l.change {
            Change::Paused { tools } => format!(" {}", tools.join("+")),
            Change::Forked { from } => format!(" {from}"),
            Change::Ended { why } => format!(" {}", why.name()),
            _ => String::new(),
        };
        format!("{} {}{more}", l.key, l.change.name())
    };
    let rests = |l: &&Lived| matches!(l.change, Change::Rested { .. });
    lived.iter().filter(|l| !rests(l)).map(one).collect()
}

fn with_headers(mut request: Request, headers: &[(&str, &str)]) -> Request {
    request.apply_headers(headers.iter().copied());
    request
}

/// A request of Claude Code: messages as `(role, content)`, tools unless it is a side request.
fn claude(session: &str, agent: Option<&str>, messages: Value) -> Request {
    claude_with(session, agent, messages, true)
}

fn claude_with(session: &str, agent: Option<&str>, messages: Value, tools: bool) -> Request {
    let user = json!({"device_id": "d", "account_uuid": "", "session_id": session}).to_string();
    let mut body = json!({
        "model": "m", "max_tokens": 64, "stream": true, "metadata": {"user_id": user},
        "system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1;"},
            {"type": "text", "text": "You are an agent."}],
        "messages": messages, "tools": [],
    });
    if tools {
        body["system"][1]["cache_control"] = json!({"type": "ephemeral"});
        body["tools"] = json!([{"name": "Agent", "input_schema": {"type": "object"}},
            {"name": "Read", "input_schema": {"type": "object"}}]);
    }
    let request = parse_messages(body.to_string().as_bytes()).expect("a request");
    let mut headers = vec![
        ("X-Claude-Code-Session-Id", session),
        ("user-agent", "claude-cli/2.1.329 (external, sdk-cli)"),
    ];
    headers.extend(agent.map(|agent| ("x-claude-code-agent-id", agent)));
    with_headers(request, &headers)
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn calls(id: &str, name: &str) -> Value {
    json!({"role": "assistant", "content": [
        {"type": "text", "text": format!("I use {name}.")},
        {"type": "tool_use", "id": id, "name": name, "input": {"id": id}}]})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": text}]}]})
}

#[test]
fn claude_pauses_for_tools_and_its_title_is_no_turn() {
    let mut world = World::new();
    let title = claude_with("s1", None, json!([user("<session>hi</session>")]), false);
    let (title_ticket, begun) = world.ask(&title);
    assert_eq!(begun, ["s1 started"]);
    let first = claude("s1", None, json!([user("hi")]));
    let (ticket, begun) = world.ask(&first);
    assert!(begun.is_empty());
    assert_eq!(world.view("s1").state, SessionState::Active);
    assert_eq!(world.answer(ticket, &[("Read", "{}")]), ["s1 paused Read"]);
    // The title's end changes nothing.
    assert!(world.answer(title_ticket, &[]).is_empty());
    assert_eq!(world.view("s1").state, SessionState::Paused);
    assert_eq!(world.view("s1").tools, ["Read"]);
    let second = claude("s1", None, json!([user("hi"), calls("c", "Read"), result("c", "alpha")]));
    assert_eq!(world.turn(&second, &[]), ["s1 resumed"]);
    let view = world.view("s1");
    assert_eq!((view.turns, view.side_requests, view.state), (2, 1, SessionState::Waiting));
    assert_eq!((view.prompt_tokens, view.cached_tokens, view.context_tokens), (300, 192, 100));
    assert_eq!(
        (view.harness, view.named_by),
        (Harness::ClaudeCode, Some("x-claude-code-session-id"))
    );
    assert_eq!(view.client.as_deref(), Some("claude-cli/2.1.329"));
}

#[test]
fn a_turn_without_a_call_rests() {
    let mut world = World::new();
    let mut answer = |request: &Request, said: &[OutputEvent], finish: &Finish| {
        let (ticket, _) = world.asked("t", request);
        let mut transcript = Transcript::default();
        said.iter().for_each(|event| transcript.push(event));
        let outcome = Outcome { transcript: &transcript, finish, usage: Usage::default() };
        let lived = world.lives.answered(world.now_ms, ticket.expect("a session"), &outcome);
        lived.into_iter().map(|lived| lived.change).collect::<Vec<_>>()
    };
    let text = [OutputEvent::text("Hello.")];
    let thought = OutputEvent::Thinking("Hm.".to_owned());
    let call = OutputEvent::ToolCallStart { index: 0, name: "Read".to_owned() };
    let hi = claude("s1", None, json!([user("hi")]));
    let rested = |thought| vec![Change::Rested { thought }];
    assert_eq!(answer(&hi, &text, &Finish::Stop), rested(false));
    assert_eq!(answer(&hi, &[thought.clone(), text[0].clone()], &Finish::Stop), rested(true));
    assert_eq!(answer(&hi, &text, &Finish::Cancelled), [], "it comes again");
    let paused = answer(&hi, &[thought, call], &Finish::Stop);
    assert_eq!(paused, [Change::Paused { tools: vec!["Read".to_owned()] }]);
    // Of its loop the thought counts, of the one before it does not.
    let thinking = json!({"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "tool_use", "id": "c", "name": "Read", "input": {}}]});
    let mut messages = vec![user("hi"), thinking, result("c", "alpha")];
    let back = claude("s1", None, json!(messages));
    assert_eq!(answer(&back, &text, &Finish::Stop), rested(true));
    messages.extend([json!({"role": "assistant", "content": "Hello."}), user("more")]);
    let more = claude("s1", None, json!(messages));
    assert_eq!(answer(&more, &text, &Finish::Stop), rested(false));
    // A title is no turn, and an end says more than a rest.
    let title = claude_with("s1", None, json!([user("<session>hi</session>")]), false);
    assert_eq!(answer(&title, &text, &Finish::Stop), []);
    let mut last = claude("s1", None, json!([user("hi")]));
    last.session.session_final = true;
    assert_eq!(answer(&last, &text, &Finish::Stop), [Change::Ended { why: EndCause::Final }]);
}

#[test]
fn a_subagent_whose_request_failed_has_not_given_its_last_answer() {
    let mut world = World::new();
    world.turn(&claude("s1", None, json!([user("delegate")])), &[("Agent", "{}")]);
    let task = claude("s1", Some("a1"), json!([user("SUBTASK")]));
    let (ticket, _) = world.ask(&task);
    world.answer_with(ticket, &[], &Finish::Cancelled);
    let launched = result("c", "Async agent launched.\nagentId: a1\n");
    let back = json!([user("delegate"), calls("c", "Agent"), launched]);
    assert_eq!(world.turn(&claude("s1", None, back.clone()), &[]), ["s1 resumed"]);
    // It comes again, and is done then.
    assert!(world.turn(&task, &[]).is_empty());
    assert_eq!(world.turn(&claude("s1", None, back), &[]), ["a1 ended finished"]);
}

#[test]
fn a_claude_subagent_ends_when_its_parent_takes_its_result() {
    let mut world = World::new();
    let first = claude("s1", None, json!([user("delegate")]));
    assert_eq!(
        world.turn(&first, &[("Agent", "{}"), ("Agent", "{}")]),
        ["s1 started", "s1 paused Agent+Agent"]
    );
    let task = |agent| claude("s1", Some(agent), json!([user("SUBTASK")]));
    assert_eq!(world.turn(&task("a756"), &[("Read", "{}")]), ["a756 started", "a756 paused Read"]);
    assert_eq!(world.turn(&task("aa59"), &[]), ["aa59 started"]);
    assert_eq!(world.view("s1").children, ["a756", "aa59"]);
    assert_eq!(world.view("a756").parent.as_deref(), Some("s1"));
    // One of them is not done, whatever the parent says of it; another's id only begins like its own.
    let launched = "Async agent launched.\nagentId: a756\n";
    let back = json!([user("delegate"), calls("c", "Agent"), result("c", launched)]);
    assert_eq!(
        world.turn(&claude("s1", None, back), &[("Agent", "{}")]),
        ["s1 resumed", "s1 paused Agent"]
    );
    let longer = json!([user("delegate"), calls("c", "Agent"), result("c", "agentId: aa59f")]);
    assert_eq!(world.turn(&claude("s1", None, longer), &[("Agent", "{}")])[0], "s1 resumed");
    let done = json!([user("delegate"), calls("c", "Agent"),
        result("c", "DONE: alpha\nagentId: aa59 (for resuming)\n"), {"role": "system", "content": "note"}]);
    let (_, told) = world.ask(&claude("s1", None, done));
    assert_eq!(told, ["s1 resumed", "aa59 ended finished"]);
    assert_eq!(world.view("aa59").ended, Some(EndCause::Finished));
    // Somebody continues it after all.
    assert_eq!(world.turn(&task("aa59"), &[]), ["aa59 resumed"]);
}

#[test]
fn a_new_history_is_a_compaction_and_a_step_back_is_none() {
    let mut world = World::new();
    let long = json!([
        user("hi"),
        calls("c", "Read"),
        result("c", "x"),
        calls("d", "Read"),
        result("d", "y")
    ]);
    assert_eq!(world.turn(&claude("s1", None, long.clone()), &[]), ["s1 started"]);
    let back = json!([user("hi"), calls("c", "Read"), result("c", "other")]);
    assert!(world.turn(&claude("s1", None, back), &[]).is_empty());
    assert!(world.turn(&claude("s1", None, long), &[]).is_empty());
    let summed = json!([user("This session is continued from an earlier one: …")]);
    assert_eq!(world.turn(&claude("s1", None, summed.clone()), &[]), ["s1 compacted"]);
    assert!(world.turn(&claude("s1", None, summed), &[]).is_empty(), "once");
    assert_eq!(world.view("s1").compactions, 1);
}

#[test]
fn a_fork_is_seen_by_its_history() {
    let mut world = World::new();
    let history = json!([user("hi"), calls("c", "Read"), result("c", "x")]);
    world.turn(&claude("s1", None, json!([user("hi")])), &[("Read", "{}")]);
    world.turn(&claude("s1", None, history.clone()), &[]);
    assert_eq!(
        world.turn(&claude("s2", None, history.clone()), &[]),
        ["s2 started", "s2 forked s1"]
    );
    assert_eq!(world.view("s2").forked_from.as_deref(), Some("s1"));
    // One that begins with the same words is no fork, and nobody forks twice.
    assert_eq!(world.turn(&claude("s3", None, json!([user("hi")])), &[]), ["s3 started"]);
    assert!(world.turn(&claude("s3", None, history), &[]).is_empty());
}

/// A request of Codex: its metadata's members beside the ids, and the end of its input.
fn codex(root: &str, thread: &str, parent: Option<&str>, meta: Value, input: Value) -> Request {
    let mut metadata = json!({
        "session_id": root, "thread_id": thread, "request_kind": "turn", "window_number": 0,
        "context_window_id": format!("{thread}-w0"), "turn_id": "u",
    });
    for (name, value) in meta.as_object().expect("members") {
        metadata[name] = value.clone();
    }
    let mut items = json!([
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Base."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
    ]);
    items.as_array_mut().expect("items").extend(input.as_array().expect("items").iter().cloned());
    let compacts = metadata["request_kind"] == "compaction";
    let tools = if compacts {
        json!([])
    } else {
        json!([{"type": "function", "name": "exec_command", "parameters": {"type": "object"}}])
    };
    let metadata = metadata.to_string();
    let body = json!({
        "model": "m", "stream": true, "store": false, "input": items, "tools": tools,
        "prompt_cache_key": root, "client_metadata": {"x-codex-turn-metadata": metadata},
    });
    let request = parse_responses(body.to_string().as_bytes()).expect("a request");
    let window = format!("{thread}:0");
    let mut headers = vec![
        ("x-codex-window-id", window.as_str()),
        ("x-codex-turn-metadata", metadata.as_str()),
        ("session-id", root),
        ("thread-id", thread),
    ];
    if let Some(parent) = parent {
        headers
            .extend([("x-codex-parent-thread-id", parent), ("x-openai-subagent", "collab_spawn")]);
    }
    with_headers(request, &headers)
}

fn said(text: &str) -> Value {
    json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]})
}

fn noted(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

#[test]
fn codex_children_are_sessions_of_their_own() {
    let mut world = World::new();
    let spawn = &[("spawn_agent", "{\"message\":\"SUBTASK\"}")];
    let root = |input| codex("r", "r", None, json!({}), input);
    assert_eq!(world.turn(&root(json!([])), spawn), ["r started", "r paused spawn_agent"]);
    let child = |thread, parent| {
        codex("r", thread, Some(parent), json!({"thread_source": "subagent"}), json!([]))
    };
    // The shared cache key of the root must not make one session of them.
    assert_eq!(world.turn(&child("k1", "r"), &[]), ["k1 started"]);
    assert_eq!(world.turn(&child("k2", "k1"), &[]), ["k2 started"]);
    let (first, second) = (world.view("k1"), world.view("k2"));
    assert_eq!((first.parent.as_deref(), first.session.as_deref()), (Some("r"), Some("r")));
    assert_eq!((second.parent.as_deref(), second.agent.as_deref()), (Some("k1"), Some("k2")));
    assert_eq!(
        (world.view("r").children, first.children),
        (vec!["k1".to_owned()], vec!["k2".to_owned()])
    );
    // What a child did is told to the one that started it, and ends it.
    let notice = "<subagent_notification>\n{\"agent_path\":\"k1\",\"status\":{\"completed\":\"ok\"}}\n</subagent_notification>";
    let told = world.turn(
        &root(json!([said("waiting"), noted(notice)])),
        &[("close_agent", "{\"target\": \"k2\"}")],
    );
    assert_eq!(told, ["r resumed", "k1 ended finished", "r paused close_agent", "k2 ended closed"]);
}

#[test]
fn nobody_closes_what_is_not_theirs() {
    let mut world = World::new();
    world.turn(&codex("r", "r", None, json!({}), json!([])), &[]);
    world.turn(&codex("q", "q", None, json!({}), json!([])), &[]);
    world.turn(&codex("q", "k", Some("q"), json!({}), json!([])), &[]);
    for target in ["q", "k", "r", "nobody", ""] {
        let call = json!({"target": target}).to_string();
        let told = world.turn(
            &codex("r", "r", None, json!({}), json!([])),
            &[("multi_agent_v1__close_agent", &call)],
        );
        assert!(!told.iter().any(|t| t.contains("ended")), "{target}: {told:?}");
    }
    for broken in ["", "{", "[]", "{\"target\": 5}"] {
        world.turn(&codex("q", "q", None, json!({}), json!([])), &[("close_agent", broken)]);
    }
    assert_eq!(world.view("k").ended, None);
}

#[test]
fn a_codex_compaction_is_told_once() {
    let mut world = World::new();
    world.turn(&codex("r", "r", None, json!({}), json!([])), &[]);
    let summing = codex("r", "r", None, json!({"request_kind": "compaction"}), json!([said("x")]));
    assert_eq!(world.turn(&summing, &[]), ["r compacted"]);
    let next = json!({"window_number": 1, "context_window_id": "r-w1"});
    assert!(world.turn(&codex("r", "r", None, next, json!([])), &[]).is_empty());
    // Made elsewhere, it shows by the window alone.
    let later = json!({"window_number": 2, "context_window_id": "r-w2"});
    assert_eq!(world.turn(&codex("r", "r", None, later, json!([])), &[]), ["r compacted"]);
    let view = world.view("r");
    assert_eq!((view.compactions, view.turns), (2, 3));
    // One that failed is none.
    let (ticket, _) = world.ask(&summing);
    assert!(world.answer_with(ticket, &[], &Finish::Cancelled).is_empty());
    // What warms the cache is no turn.
    let warm =
        codex("r", "r", None, json!({"request_kind": "prewarm", "window_number": 2}), json!([]));
    assert!(world.turn(&warm, &[]).is_empty());
    assert_eq!(world.view("r").side_requests, 1);
}

#[test]
fn a_codex_fork_says_where_it_comes_from() {
    let mut world = World::new();
    let meta = json!({"history_initialization": "warm_fork", "forked_from_thread_id": "r"});
    let told = world.turn(&codex("f", "f", None, meta.clone(), json!([])), &[]);
    assert_eq!(told, ["f started", "f forked r"]);
    assert!(world.turn(&codex("f", "f", None, meta, json!([])), &[]).is_empty());
}

/// A request of opencode.
fn opencode(session: &str, parent: Option<&str>, messages: Value, tools: bool) -> Request {
    let mut body = json!({"model": "m", "stream": true, "messages": [{"role": "system", "content": "Agent."}]});
    let list = body["messages"].as_array_mut().expect("messages");
    list.extend(messages.as_array().expect("messages").iter().cloned());
    if tools {
        body["tools"] = json!([{"type": "function", "function": {"name": "task", "parameters": {"type": "object"}}}]);
    }
    let request = parse_chat(body.to_string().as_bytes()).expect("a request");
    let mut headers = vec![
        ("x-session-affinity", session),
        ("x-session-id", session),
        ("user-agent", "opencode/1.18.33 runtime/bun/1.3.14"),
    ];
    headers.extend(parent.map(|parent| ("x-parent-session-id", parent)));
    with_headers(request, &headers)
}

#[test]
fn opencode_children_titles_and_summaries() {
    let mut world = World::new();
    let title = json!([user("Generate a title"), user("delegate")]);
    assert_eq!(world.turn(&opencode("ses_1", None, title, false), &[]), ["ses_1 started"]);
    let first = opencode("ses_1", None, json!([user("delegate")]), true);
    assert_eq!(world.turn(&first, &[("task", "{}")]), ["ses_1 paused task"]);
    let child = opencode("ses_2", Some("ses_1"), json!([user("SUBTASK")]), true);
    assert_eq!(world.turn(&child, &[]), ["ses_2 started"]);
    let call = json!({"role": "assistant", "content": "", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "task", "arguments": "{}"}}]});
    let done =
        "<task id=\"ses_2\" state=\"completed\">\n<task_result>\nok\n</task_result>\n</task>";
    let back =
        json!([user("delegate"), call, {"role": "tool", "tool_call_id": "c", "content": done}]);
    let told = world.turn(&opencode("ses_1", None, back, true), &[]);
    assert_eq!(told, ["ses_1 resumed", "ses_2 ended finished"]);
    // A summary is made beside the conversation, which then begins anew, though it is no shorter yet.
    let summary = json!([user("Here is the conversation so far: …")]);
    assert!(world.turn(&opencode("ses_1", None, summary, false), &[]).is_empty());
    let anew = json!([user("What did we do so far?"), {"role": "assistant", "content": "S"}, user("Continue")]);
    assert_eq!(world.turn(&opencode("ses_1", None, anew, true), &[]), ["ses_1 compacted"]);
    let view = world.view("ses_1");
    assert_eq!((view.turns, view.side_requests, view.harness), (3, 2, Harness::OpenCode));
}

/// A request of a load generator or an SDK.
fn plain(members: Value, headers: &[(&str, &str)]) -> Request {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in members.as_object().expect("members") {
        body[name] = value.clone();
    }
    with_headers(parse_chat(body.to_string().as_bytes()).expect("a request"), headers)
}

#[test]
fn clients_that_say_so_end_their_sessions() {
    let mut world = World::new();
    let dag = |last: &'static str| {
        plain(
            json!({}),
            &[
                ("X-Dynamo-Session-ID", "d2"),
                ("X-Dynamo-Parent-Session-ID", "d1"),
                ("X-Dynamo-Session-Final", last),
                ("X-Correlation-ID", "other"),
            ],
        )
    };
    assert_eq!(world.turn(&dag("false"), &[]), ["d2 started"]);
    assert_eq!(world.view("d2").parent.as_deref(), Some("d1"));
    let (ticket, _) = world.ask(&dag("true"));
    // A client that leaves in the middle sends it again.
    assert!(world.answer_with(ticket, &[], &Finish::Cancelled).is_empty());
    assert_eq!(world.turn(&dag("true"), &[]), ["d2 ended final"]);
    let closing = json!({"nvext": {"session_control": {"session_id": "c", "action": "close"}}});
    assert_eq!(world.turn(&plain(closing, &[]), &[]), ["c started", "c ended final"]);
    let evicting = json!({"nvext": {"agent_context": {"session_id": "e", "kv_hints": {"evict_session": true}}}});
    assert_eq!(world.turn(&plain(evicting, &[]), &[]), ["e started", "e ended final"]);
    let deref = json!({"kv_hints": {"deref": {}}, "nvext": {"session_id": "k"}});
    assert_eq!(world.turn(&plain(deref, &[]), &[]), ["k started", "k ended final"]);
}

#[test]
fn weak_names_make_sessions_too_and_no_name_makes_none() {
    let mut world = World::new();
    let toolkit = plain(json!({}), &[("x-prefix-id", "p1"), ("x-prefix-osl", "LOW")]);
    assert_eq!(world.turn(&toolkit, &[]), ["p1 started"]);
    let key = plain(json!({"prompt_cache_key": "k1"}), &[]);
    assert_eq!(world.turn(&key, &[]), ["k1 started"]);
    assert_eq!(world.view("k1").named_by, Some("prompt_cache_key"));
    let asked = world.lives.asked(0, "t", &plain(json!({}), &[]));
    assert!(asked.ticket.is_none() && asked.lived.is_empty());
}

#[test]
fn tenants_never_meet() {
    let mut world = World::new();
    let request = plain(json!({}), &[("x-dynamo-session-id", "same")]);
    for tenant in ["a", "b"] {
        let (ticket, told) = world.ask_as(tenant, &request);
        assert_eq!(told, ["same started"], "{tenant}");
        world.answer(ticket, &[]);
    }
    // A child of the one is none of the other, and closing, forking and finishing stay at home.
    let (ticket, _) = world.ask_as("a", &codex("r", "k", Some("r"), json!({}), json!([])));
    world.answer(ticket, &[]);
    let notice = json!([said("x"), noted("agent_path k completed")]);
    let (ticket, told) = world.ask_as("b", &codex("r", "r", None, json!({}), notice));
    assert_eq!(told, ["r started"]);
    let closing = &[("close_agent", "{\"target\": \"k\"}")];
    assert_eq!(world.answer(ticket, closing), ["r paused close_agent"]);
    assert!(world.lives.get(world.now_ms, "b", "k").is_none());
    assert_eq!(world.lives.get(world.now_ms, "a", "k").and_then(|s| s.ended), None);
    let keys = |tenant| {
        let all = world.lives.list(world.now_ms, tenant, true, 99).0;
        all.into_iter().map(|session| session.key).collect::<Vec<_>>()
    };
    assert_eq!(
        (keys("a"), keys("b"), keys("c")),
        (vec!["k".to_owned(), "same".to_owned()], vec!["r".to_owned(), "same".to_owned()], vec![])
    );
}

#[test]
fn silence_ends_a_session_and_work_does_not() {
    let mut world = World::new();
    let parent = claude("s1", None, json!([user("hi")]));
    world.turn(&parent, &[("Agent", "{}")]);
    let (slow, _) = world.ask(&claude("s1", Some("a1"), json!([user("task")])));
    // A long answer is no silence, and neither is a parent's whose child is at work.
    assert!(world.tick(59 * MINUTE_MS).is_empty());
    assert!(world.tick(2 * MINUTE_MS).is_empty());
    assert_eq!(world.lives.counts(), [1, 0, 1, 0]);
    world.answer(slow, &[]);
    assert!(world.tick(59 * MINUTE_MS).is_empty());
    assert_eq!(world.tick(2 * MINUTE_MS), ["a1 ended idle"]);
    // The parent is looked at again in its time.
    assert_eq!(world.tick(61 * MINUTE_MS), ["s1 ended idle"]);
    assert!(world.lives.get(world.now_ms, "t", "a1").is_none(), "it is forgotten by then");
    assert_eq!(world.lives.counts(), [0, 0, 0, 1]);
    assert_eq!(world.turn(&parent, &[]), ["s1 resumed"]);
    world.tick(61 * MINUTE_MS);
    world.tick(11 * MINUTE_MS);
    assert_eq!(world.lives.counts(), [0; 4]);
    assert!(world.lives.list(world.now_ms, "t", true, 99).0.is_empty());
    assert_eq!(world.turn(&parent, &[]), ["s1 started"]);
}

#[test]
fn the_table_stays_within_its_limits() {
    let limits = LifecycleLimits {
        sessions_per_tenant_max: 3,
        sessions_max: 5,
        ..LifecycleLimits::default()
    };
    let mut world = World::with(limits);
    let named = |key: &str| plain(json!({}), &[("x-dynamo-session-id", key)]);
    let mut tickets = Vec::new();
    for key in ["a1", "a2", "a3"] {
        let (ticket, _) = world.ask_as("a", &named(key));
        tickets.push(ticket);
    }
    // The one that works stays; the one that is done goes.
    let done = tickets.remove(1);
    world.answer(done, &[]);
    assert_eq!(world.ask_as("a", &named("a4")).1, ["a2 ended crowded", "a4 started"]);
    // Another tenant's sessions push out those of the one that has most.
    assert_eq!(world.ask_as("b", &named("b1")).1, ["b1 started"]);
    assert_eq!(world.ask_as("b", &named("b2")).1, ["b2 started"]);
    assert_eq!(world.ask_as("c", &named("c1")).1, ["a1 ended crowded", "c1 started"]);
    assert_eq!(world.lives.counts().iter().sum::<usize>(), 5);
    // An answer to what was let go, also under a key that lives again, changes nothing.
    let late = tickets.remove(0);
    let (again, _) = world.ask_as("a", &named("a1"));
    assert!(world.answer(late, &[("f", "{}")]).is_empty());
    assert_eq!(world.answer(again, &[("f", "{}")]), ["a1 paused f"]);
    // A flood of one tenant leaves the others' alone.
    for n in 0..1_000 {
        world.ask_as("a", &named(&format!("flood-{n}")));
    }
    assert!(world.lives.get(world.now_ms, "b", "b1").is_some());
    assert!(world.lives.get(world.now_ms, "c", "c1").is_some());
    assert_eq!(world.lives.counts().iter().sum::<usize>(), 5);
}

#[test]
fn what_is_kept_of_an_answer_is_short() {
    let mut world = World::new();
    let name = "n".repeat(300);
    let many: Vec<(&str, &str)> = (0..40).map(|_| (name.as_str(), "{}")).collect();
    world.turn(&plain(json!({}), &[("x-dynamo-session-id", "s")]), &many);
    let view = world.view("s");
    assert_eq!(view.tools.len(), crate::limits::PAUSED_TOOLS_MAX);
    assert!(view.tools.iter().all(|tool| tool.len() == 64));
    // Results are searched at their ends, however large they are and wherever a character is cut.
    let filler = "ü".repeat(100_000);
    let text = format!("agentId: k1 {filler} agentId: k2");
    world.turn(&claude("s1", None, json!([user("go")])), &[]);
    for agent in ["k1", "k2"] {
        world.turn(&claude("s1", Some(agent), json!([user("task")])), &[]);
    }
    let back = json!([user("go"), calls("c", "Agent"), result("c", &text)]);
    let told = world.turn(&claude("s1", None, back), &[]);
    assert_eq!(told, ["k1 ended finished", "k2 ended finished"]);
}

proptest! {
    /// Whatever comes in whatever order, the indexes agree, nothing grows past its limit, and no session starts twice
    /// or ends twice without a life between.
    #[test]
    fn any_order_of_requests_keeps_the_table_whole(
        steps in prop::collection::vec((0..3u8, 0..6u8, 0..7u8, 0..10u8), 1..120),
    ) {
        let limits = LifecycleLimits {
            sessions_per_tenant_max: 4,
            sessions_max: 9,
            idle_ms: 500,
            ended_kept_ms: 200,
        };
        let mut world = World::with(limits);
        let mut open: Vec<Ticket> = Vec::new();
        let mut alive = std::collections::BTreeSet::new();
        for (tenant, key, parent, step) in steps {
            let (tenant, key) = (format!("t{tenant}"), format!("k{key}"));
            let lived = match step {
                0 => {
                    world.now_ms += 300;
                    world.lives.ticked(world.now_ms)
                }
                1..=4 if !open.is_empty() => {
                    let ticket = open.remove(usize::from(parent) % open.len());
                    let mut transcript = Transcript::default();
                    if step == 1 {
                        let name = "close_agent".to_owned();
                        transcript.push(&OutputEvent::ToolCallStart { index: 0, name });
                        let arguments = json!({"target": format!("k{parent}")}).to_string();
                        transcript.push(&OutputEvent::ToolCallArguments(arguments));
                    }
                    let finish = if step == 2 { Finish::Cancelled } else { Finish::Stop };
                    let usage = Usage::default();
                    let outcome = Outcome { transcript: &transcript, finish: &finish, usage };
                    world.lives.answered(world.now_ms, ticket, &outcome)
                }
                _ => {
                    world.now_ms += 10;
                    let parent = format!("k{parent}");
                    let history = if step > 7 { vec![user("go"), calls("c", "x"), result("c", &parent)] } else { vec![user("go")] };
                    let mut request = claude("root", Some(&key), json!(history));
                    let last = if step == 9 { "true" } else { "false" };
                    request.apply_headers([
                        ("x-dynamo-session-id", key.as_str()),
                        ("x-dynamo-parent-session-id", parent.as_str()),
                        ("x-dynamo-session-final", last),
                    ]);
                    let (ticket, lived) = world.asked(&tenant, &request);
                    open.extend(ticket);
                    lived
                }
            };
            for Lived { tenant, key, change } in lived {
                let who = (tenant, key);
                match change {
                    Change::Started => prop_assert!(alive.insert(who)),
                    Change::Ended { .. } => prop_assert!(alive.remove(&who)),
                    Change::Resumed => drop(alive.insert(who)),
                    _ => prop_assert!(alive.contains(&who)),
                }
            }
            world.lives.table.check();
            let living = world.lives.counts()[..3].iter().sum::<usize>();
            prop_assert_eq!(living, alive.len());
        }
    }
}

#[test]
fn a_client_may_end_and_forget_its_own_sessions() {
    let mut world = World::new();
    let request = |session: &str, agent: Option<&str>| claude(session, agent, json!([user("hi")]));
    let (main, child) = (request("s", None), request("s", Some("a1")));
    world.turn(&main, &[("Read", "{}")]);
    world.turn(&child, &[]);
    world.turn(&request("t", Some("b1")), &[]);
    world.turn(&request("u", Some("c1")), &[]);
    world.turn(&request("u", Some("c2")), &[]);
    let named = |world: &World, name| {
        let named = world.lives.named("t", name, 2);
        named.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((named(&world, "s"), named(&world, "a1")), (vec!["s".into()], vec!["a1".into()]));
    assert_eq!(named(&world, "t"), ["b1"], "its only agent");
    assert_eq!(named(&world, "u").len(), 2, "nobody knows which");
    assert!(named(&world, "v").is_empty() && world.lives.named("other", "s", 2).is_empty());
    assert!(world.lives.end(world.now_ms, "other", "s").is_empty(), "another tenant's");
    let ended = world.lives.end(world.now_ms, "t", "s");
    assert!(matches!(ended[..], [Lived { change: Change::Ended { why: EndCause::Final }, .. }]));
    assert!(world.lives.end(world.now_ms, "t", "s").is_empty(), "it ends once");
    // One that is forgotten begins anew, and an answer of its former life changes nothing.
    let (late, _) = world.ask(&child);
    assert_eq!(world.lives.reset(world.now_ms, "t", "a1").len(), 1);
    assert!(world.lives.get(world.now_ms, "t", "a1").is_none());
    assert_eq!(world.turn(&child, &[]).first().map(String::as_str), Some("a1 started"));
    assert!(world.answer(late, &[("Read", "{}")]).is_empty());
    assert_eq!(world.lives.get(world.now_ms, "t", "a1").map(|s| s.turns), Some(1));
    assert_eq!(world.lives.counts().iter().sum::<usize>(), 5);
}
