//! With a memory and without one, every body reads the same.

use std::fmt::Write;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ir::{Content, Conversation};
use crate::parse::parse;
use crate::parse::turns::MESSAGE_BYTES;
use crate::seal::tests::Shift;
use crate::seal::{Sealer, seal};

fn memory(known: &Arc<KnownBodies>, tenant: &str) -> ParseOptions {
    let bodies = BodyMemory { known: Arc::clone(known), tenant: tenant.into() };
    ParseOptions { bodies: Some(bodies), ..ParseOptions::default() }
}

fn room() -> Arc<KnownBodies> {
    Arc::new(KnownBodies::new(0, 64 << 20, 7))
}

/// All of what was read, but for how.
fn shown(read: &Result<Request, ApiError>) -> String {
    match read {
        Ok(request) => {
            let mut request = request.clone();
            request.options = ParseOptions::default();
            format!("{request:?}")
        }
        Err(error) => format!("{error:?}"),
    }
}

/// Reads a body with and without the memory, which must not differ.
fn read_both(endpoint: Endpoint, body: &str, options: &ParseOptions) -> Result<Request, ApiError> {
    let alone = ParseOptions { bodies: None, ..options.clone() };
    let alone = parse(endpoint, body.as_bytes(), alone);
    let beside = parse(endpoint, body.as_bytes(), options.clone());
    assert_eq!(shown(&alone), shown(&beside), "{endpoint:?} of {body}");
    beside
}

/// How many messages, from the first, two conversations hold together.
fn held_together(a: &Conversation, b: &Conversation) -> usize {
    a.messages.iter().zip(&b.messages).take_while(|(a, b)| Arc::ptr_eq(a, b)).count()
}

const ENDPOINTS: [Endpoint; 4] =
    [Endpoint::Chat, Endpoint::Responses, Endpoint::Messages, Endpoint::CountTokens];

/// Items of each protocol, ordinary ones and others.
fn items_of(endpoint: Endpoint) -> Vec<Value> {
    let long = "a text \u{e9}\u{1f600} \"with\" \\ and \n in it, ".repeat(9);
    let breakpoint = json!({"type": "ephemeral"});
    let hosted = hosted();
    let common = [
        json!({"role": "user", "content": "short"}),
        json!({"role": "user", "content": [{"type": "text", "text": long}]}),
        json!({"role": "user", "content": [{"type": "text", "text": long, "cache_control": breakpoint}]}),
        json!({"role": "user", "content": [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral", "ttl": "9 parsecs"}}]}),
        json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, "plain"]}),
        json!({"role": "user", "content": [{"type": "tool_reference", "tool_name": "later"}]}),
        json!({"role": "user", "content": [{"type": "tool_reference", "tool_name": "never"}]}),
        json!({"role": "user", "content": ""}),
        json!({"role": "system", "content": long}),
        json!({"role": "developer", "content": [{"type": "text", "text": "rules"}]}),
        json!({"role": "assistant", "content": long}),
        json!({"role": "assistant", "content": ""}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "said"}, {"type": "riddle"}]}),
    ];
    let own = match endpoint {
        Endpoint::Chat => vec![
            json!({"role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [1, 2.50]}"}}]}),
            json!({"role": "tool", "tool_call_id": "c", "content": long}),
            json!({"role": "tool", "tool_call_id": "d", "content": "r", "cache_control": breakpoint}),
            json!({"role": "robot", "content": "refused"}),
        ],
        Endpoint::Responses => vec![
            json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": long}]}),
            json!({"type": "reasoning", "encrypted_content": seal(&long, true, Some(&sealer(3)))}),
            json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "b"}),
            json!({"type": "custom_tool_call", "call_id": "d", "name": "g", "input": long}),
            json!({"type": "function_call_output", "call_id": "c", "output": long}),
            json!({"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_image"}]}),
            json!({"type": "additional_tools", "tools": [{"type": "function", "name": "f2"}, {"type": "sonar"}]}),
            json!({"type": "additional_tools", "tools": [hosted]}),
            json!({"type": "web_search_call", "id": "w"}),
            json!({"type": "item_reference", "id": "refused"}),
        ],
        Endpoint::Messages | Endpoint::CountTokens => vec![
            json!({"role": "assistant", "content": [
                {"type": "thinking", "thinking": "", "signature": seal(&long, true, Some(&sealer(3)))},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": [1.50, {"b": null}]}}]}),
            json!({"role": "assistant", "content": [{"type": "thinking", "thinking": long, "signature": "s"}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": long}]}),
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}], "is_error": true},
                {"type": "text", "text": "and", "cache_control": breakpoint}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "content": "refused"}]}),
        ],
    };
    common.into_iter().chain(own).collect()
}

/// A tool that may be among `tools` already when an item brings it.
fn hosted() -> Value {
    json!({"type": "web_search", "name": "web_search"})
}

fn sealer(key: u8) -> Sealer {
    Arc::new(Shift(key))
}

/// Members beside the history, as `name: value`.
fn members_of(endpoint: Endpoint) -> Vec<String> {
    let function = |name: &str, more: Value| {
        let mut function = json!({"name": name, "description": "d".repeat(200)});
        function.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        function
    };
    let (f, later) = (function("f", json!({})), function("later", json!({"defer_loading": true})));
    let tools = match endpoint {
        Endpoint::Chat => {
            json!([{"type": "function", "function": f}, {"type": "function", "function": later}])
        }
        Endpoint::Responses => json!([
            {"type": "namespace", "name": "a", "tools": [function("f", json!({"type": "function"}))]},
            {"type": "namespace", "name": "b", "tools": [function("f", json!({"type": "function"}))]},
            function("later", json!({"type": "function", "defer_loading": true}))]),
        _ => json!([f, later, {"type": "web_search", "name": "w"}]),
    };
    let system = json!([
        {"type": "text", "text": "x-anthropic-billing-header: cc_is_subagent=true"},
        {"type": "text", "text": "the rules, ".repeat(40), "cache_control": {"type": "ephemeral"}}]);
    let strange = json!([{"type": "text", "text": "r"}, {"type": "image"}, {"type": "tool_reference", "tool_name": "later"}]);
    vec![
        r#""model": "m""#.to_owned(),
        r#""max_tokens":12"#.to_owned(),
        format!("\"tools\": {tools}"),
        format!("\"tools\": {}", json!([])),
        format!("\"tools\": {}", json!([hosted()])),
        format!("\"system\":{system}"),
        format!("\"system\": {strange}"),
        r#""system" : "a prompt of one text, of some length and always the same""#.to_owned(),
        r#""store": false"#.to_owned(),
        r#""temperature": 0.5"#.to_owned(),
        r#""nvext": {"riddle": 1}"#.to_owned(),
        r#""instructions": "be brief""#.to_owned(),
    ]
}

/// Numbers for choices, from one that is drawn.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end.max(1)
    }

    fn of<'t, T>(&mut self, choices: &'t [T]) -> &'t T {
        &choices[self.below(choices.len())]
    }
}

/// A client that sends one body after another.
struct Client {
    choices: Choices,
    endpoint: Endpoint,
    items: Vec<String>,
    pool: Vec<Value>,
    before: Vec<String>,
    after: Vec<String>,
    pool_of_members: Vec<String>,
}

impl Client {
    fn new(endpoint: Endpoint, number: u64) -> Client {
        let mut client = Client {
            choices: Choices(number),
            endpoint,
            items: Vec::new(),
            pool: items_of(endpoint),
            before: vec![r#""model": "m""#.to_owned(), r#""max_tokens": 7"#.to_owned()],
            after: Vec::new(),
            pool_of_members: members_of(endpoint)[2..].to_vec(),
        };
        if client.choices.below(3) == 0 {
            client.after.push(format!("\"tools\": {}", json!([hosted()])));
        }
        for _ in 0..client.choices.below(4) {
            client.change_members();
        }
        client
    }

    fn item(&mut self) -> String {
        // Items that are refused come last, and seldom.
        let refused = usize::from(self.choices.below(12) != 0);
        let end = self.pool.len() - refused;
        let item = &self.pool[self.choices.below(end)];
        match self.choices.below(3) {
            0 => format!("{item:#}"),
            _ => item.to_string(),
        }
    }

    fn change_members(&mut self) {
        let member = self.choices.of(&self.pool_of_members).clone();
        let side = if self.choices.below(2) == 0 { &mut self.before } else { &mut self.after };
        if self.choices.below(4) == 0 && side.len() > 2 {
            side.pop();
        } else {
            side.push(member);
        }
    }

    /// What a client may do between two turns.
    fn go_on(&mut self) {
        let at = self.choices.below(self.items.len());
        let fits = !self.items.is_empty();
        match self.choices.below(13) {
            0 if fits => drop(self.items.pop()),
            1 if fits => self.items[at] = self.item(),
            2 if fits => self.items.swap(0, at),
            3 if fits => self.items.truncate(at),
            4 => self.change_members(),
            5 if fits => {
                // A breakpoint comes, or goes.
                let last = self.items.len() - 1;
                let text = self.items[last].replace(r#","cache_control":{"type":"ephemeral"}"#, "");
                self.items[last] = match text == self.items[last] {
                    true => text.replacen(
                        r#""text"}"#,
                        r#""text","cache_control":{"type":"ephemeral"}}"#,
                        1,
                    ),
                    false => text,
                };
            }
            6 => {
                // A tool that items bring comes, or goes.
                let [none, one] = [json!([]), json!([hosted()])].map(|t| format!("\"tools\": {t}"));
                for member in self.before.iter_mut().chain(&mut self.after) {
                    if *member == none {
                        member.clone_from(&one);
                    } else if *member == one {
                        member.clone_from(&none);
                    }
                }
            }
            _ => {
                for _ in 0..1 + self.choices.below(3) {
                    let item = self.item();
                    self.items.push(item);
                }
            }
        }
    }

    fn body(&mut self) -> String {
        let name = Shape::of(self.endpoint).history;
        let history = format!("\"{name}\": [{}]", self.items.join(","));
        let mut members = self.before.clone();
        members.push(history);
        members.extend(self.after.iter().cloned());
        format!("{{{}}}", members.join(", "))
    }

    /// What no client does.
    fn damage(&mut self, body: &mut String) {
        let ends: Vec<usize> = body.char_indices().map(|(at, _)| at).collect();
        let at = *self.choices.of(&ends);
        match self.choices.below(5) {
            0 => body.truncate(at),
            1 => {
                let signs = ["{", "}", "[", "]", ",", "\"", "\\", "\u{1}", " ", "7", "null"];
                body.insert_str(at, signs[self.choices.below(signs.len())]);
            }
            2 => drop(body.remove(at)),
            3 => {
                let levels = 120 + self.choices.below(12);
                let deep = format!(
                    r#"{{"role": "user", "content": "u", "x": {}{}}},"#,
                    "[".repeat(levels),
                    "]".repeat(levels)
                );
                *body = body.replacen(
                    "{\"role\"",
                    &format!("{deep}{{\"role\""),
                    1 + self.choices.below(2),
                );
            }
            _ => {
                let extra = self.choices.of(&[
                    r#", "messages": []}"#,
                    r#", "input": "x"}"#,
                    r#", "tools": null}"#,
                    r#", "model": "n"}"#,
                    r#", "$serde_json::private::RawValue": "1"}"#,
                    r#", "\u006dodel": "n"}"#,
                    " ",
                    "}",
                    r#", "system": null}"#,
                ]);
                body.pop();
                body.push_str(extra);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_body_reads_as_it_does_alone(which in 0..4_usize, number in any::<u64>()) {
        let known = room();
        let mut client = Client::new(ENDPOINTS[which], number);
        let mut keys = vec![None];
        for _ in 0..12 {
            client.go_on();
            let mut options = memory(&known, "a");
            if client.choices.below(8) == 0 {
                keys = vec![[None, Some(3), Some(4)][client.choices.below(3)]];
            }
            options.sealer = keys[0].map(sealer);
            if client.choices.below(10) == 0 {
                options.media = Media::Refuse;
            }
            if client.endpoint.is_anthropic() {
                client.endpoint = ENDPOINTS[2 + client.choices.below(2)];
            }
            let mut body = client.body();
            read_both(client.endpoint, &body, &options).ok();
            if client.choices.below(4) == 0 {
                client.damage(&mut body);
                read_both(client.endpoint, &body, &options).ok();
            }
        }
        prop_assert!(known.with(|bodies| bodies.is_whole()));
    }
}

impl Bodies {
    /// Whether all that is said of bodies is so.
    fn is_whole(&self) -> bool {
        let bytes: usize = self.kept.values().map(|kept| kept.body.bytes()).sum();
        let named = self
            .by_name
            .iter()
            .all(|(name, id)| self.kept.get(id).is_some_and(|kept| kept.body.names.contains(name)));
        let used = self.by_use.iter().all(|(at, id)| self.kept[id].used == *at);
        let weighed = self.kept.values().all(|kept| {
            let turns = &kept.body.turns;
            let held =
                turns.messages.iter().map(|m| MESSAGE_BYTES + weight(&m.blocks)).sum::<usize>();
            turns.marks.last().is_some_and(|mark| mark.bytes == held)
        });
        let mut parts: HashMap<Arc<str>, (usize, BTreeMap<u64, u64>)> = HashMap::new();
        for (id, kept) in &self.kept {
            let part = parts.entry(Arc::clone(&kept.body.reading.tenant)).or_default();
            part.0 += kept.bytes;
            part.1.insert(kept.used, *id);
        }
        let ranks = parts.iter().map(|(tenant, part)| (part.0, Arc::clone(tenant)));
        assert_eq!(self.by_bytes, ranks.collect());
        let own = self.parts.iter().map(|(t, p)| (Arc::clone(t), (p.bytes, p.by_use.clone())));
        assert_eq!(parts, own.collect());
        bytes == self.bytes && weighed && named && used && self.by_use.len() == self.kept.len()
    }
}

/// A conversation of a protocol that nothing is to be said of, as items.
fn talk(endpoint: Endpoint, turns: usize) -> Vec<String> {
    let text = |n: usize| format!("turn {n}: {}", "some words, ".repeat(30));
    let mut items = Vec::new();
    for n in 0..turns {
        let (asked, told) = (text(n), text(n + 1));
        let both = match endpoint {
            Endpoint::Chat => [
                json!({"role": "assistant", "content": asked, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}),
                json!({"role": "tool", "tool_call_id": "c", "content": told}),
            ],
            Endpoint::Responses => [
                json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}),
                json!({"type": "function_call_output", "call_id": "c", "output": told}),
            ],
            _ => [
                json!({"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}),
                json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": told}]}),
            ],
        };
        items.push(json!({"role": "user", "content": asked}).to_string());
        items.extend(both.map(|item| item.to_string()));
    }
    items
}

fn body_of(endpoint: Endpoint, items: &[String]) -> String {
    let name = Shape::of(endpoint).history;
    let tools = members_of(endpoint)[2].clone();
    format!(
        r#"{{"model": "m", "store": false, "{name}": [{}], "max_tokens": 9, {tools}, "stream": true}}"#,
        items.join(", ")
    )
}

#[test]
fn turns_of_a_conversation_hold_the_same_messages() {
    for endpoint in ENDPOINTS {
        let known = room();
        let options = memory(&known, "a");
        let items = talk(endpoint, 20);
        let mut before: Option<Conversation> = None;
        for end in 1..=items.len() {
            let read = read_both(endpoint, &body_of(endpoint, &items[..end]), &options).unwrap();
            if let Some(before) = &before {
                assert_eq!(held_together(before, &read.conversation), before.messages.len());
            }
            before = Some(read.conversation);
        }
        assert_eq!(
            known.with(|bodies| bodies.kept.len()),
            1,
            "{endpoint:?}: it took its own place"
        );
        assert!(known.with(|bodies| bodies.is_whole()));
        let others = read_both(endpoint, &body_of(endpoint, &items), &memory(&known, "b")).unwrap();
        assert_eq!(held_together(&before.unwrap(), &others.conversation), 0, "another tenant's");
    }
}

#[test]
fn what_is_known_of_a_body_is_what_its_tenant_sent_before() {
    let known = room();
    let options = memory(&known, "a");
    let items = talk(Endpoint::Chat, 20);
    let (short, long) = (body_of(Endpoint::Chat, &items[..19]), body_of(Endpoint::Chat, &items));
    let bytes = |options: &ParseOptions| known_bytes(Endpoint::Chat, long.as_bytes(), options);
    assert_eq!(bytes(&options), 0, "nothing was read yet");
    parse(Endpoint::Chat, short.as_bytes(), options.clone()).unwrap();
    let shared = short.bytes().zip(long.bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(bytes(&options), shared);
    assert!(shared > short.len() / 2);
    assert_eq!((bytes(&memory(&known, "b")), bytes(&ParseOptions::default())), (0, 0));
}

#[test]
fn items_that_join_a_message_are_taken_off_it_again() {
    let options = memory(&room(), "a");
    let calls: Vec<String> = (0..9)
        .map(|n| json!({"type": "function_call", "call_id": format!("c{n}"), "name": "f", "arguments": "{\"long\": 1}"}).to_string())
        .collect();
    for end in [9, 4, 6, 2, 9, 1, 5] {
        let read =
            read_both(Endpoint::Responses, &body_of(Endpoint::Responses, &calls[..end]), &options);
        assert_eq!(read.unwrap().conversation.messages[0].blocks.len(), end);
    }
}

#[test]
fn what_joins_a_message_behind_the_last_mark_is_not_held() {
    let known = room();
    let options = memory(&known, "a");
    let said = |text: &str| json!({"role": "assistant", "content": [text]}).to_string();
    let tool = json!({"type": "additional_tools", "tools": [{"type": "function", "name": "f3"}]});
    let mut items = vec![said(&"v".repeat(400)), tool.to_string()];
    items.extend(vec![said(&"x".repeat(1_000)); 300]);
    let body = body_of(Endpoint::Responses, &items);
    for _ in 0..2 {
        let read = read_both(Endpoint::Responses, &body, &options).unwrap();
        assert_eq!(read.conversation.messages[0].blocks.len(), 301);
    }
    let held = known.with(|bodies| {
        assert!(bodies.is_whole());
        let turns = bodies.kept.values().map(|kept| &kept.body.turns);
        turns.map(|turns| turns.messages[0].blocks.len()).collect::<Vec<_>>()
    });
    assert_eq!(held, [1]);
}

#[test]
fn an_item_that_brings_a_tool_that_is_there_already_brings_it_to_the_next_body() {
    let options = memory(&room(), "a");
    let asked = json!({"role": "user", "content": "a question, ".repeat(50)});
    let brings = json!({"type": "additional_tools", "tools": [hosted()]});
    for tools in [json!([hosted()]), json!([])] {
        let body =
            format!(r#"{{"model": "m", "input": [{asked}, {brings}, {asked}], "tools": {tools}}}"#);
        let read = read_both(Endpoint::Responses, &body, &options).unwrap();
        assert_eq!(read.conversation.tools.len(), 1, "{tools}");
    }
}

#[test]
fn short_conversations_do_not_take_each_others_place() {
    let known = room();
    let options = memory(&known, "a");
    let read = |name: &str, turns: usize| {
        let mut items = vec![json!({"role": "user", "content": name.repeat(90)}).to_string()];
        items.extend(talk(Endpoint::Messages, turns));
        // Both begin with the same prompt, by which one finds the other.
        let body = body_of(Endpoint::Messages, &items);
        let body =
            body.replacen('{', &format!(r#"{{"system": "{}", "#, "be brief, ".repeat(40)), 1);
        read_both(Endpoint::Messages, &body, &options).unwrap().conversation
    };
    let first = read("one", 1);
    read("other", 2);
    read("third", 3);
    assert_eq!(known.with(|bodies| bodies.kept.len()), 3);
    assert_eq!(held_together(&first, &read("one", 2)), first.messages.len());
    assert_eq!(known.with(|bodies| bodies.kept.len()), 3);
}

#[test]
fn what_could_not_be_found_is_not_kept() {
    let known = room();
    let body = r#"{"messages": [{"role": "user", "content": "q"}], "model": "m", "user": "a name of some length"}"#;
    assert!(body.len() >= 64 && body.find(']') < Some(64));
    read_both(Endpoint::Chat, body, &memory(&known, "a")).unwrap();
    assert_eq!((known.bytes(), known.with(|bodies| bodies.kept.len())), (0, 0));
}

#[test]
fn two_conversations_that_part_are_both_remembered() {
    let known = room();
    let options = memory(&known, "a");
    let items = talk(Endpoint::Chat, 12);
    let ways = ["one", "another"].map(|way| {
        let own = format!(r#"{{"role": "user", "content": "{}"}}"#, way.repeat(2_000));
        let more = talk(Endpoint::Chat, 6);
        [items.clone(), vec![own], more].concat()
    });
    let read = |way: &[String]| {
        read_both(Endpoint::Chat, &body_of(Endpoint::Chat, way), &options).unwrap().conversation
    };
    let firsts = ways.each_ref().map(|way| read(&way[..40]));
    assert_eq!(held_together(&firsts[0], &firsts[1]), items.len());
    for (first, way) in firsts.iter().zip(&ways) {
        assert_eq!(held_together(first, &read(&way[..48])), 40);
    }
    assert_eq!(known.with(|bodies| bodies.kept.len()), 2);
}

#[test]
fn what_is_to_be_said_of_items_is_said_each_time() {
    let odd = [
        json!({"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "see ".repeat(40)}]}),
        json!({"role": "system", "content": "Early."}),
        json!({"role": "user", "content": [{"type": "tool_reference", "tool_name": "later"}]}),
        json!({"role": "user", "content": [{"type": "riddle"}, {"type": "image_url"}]}),
    ];
    for endpoint in ENDPOINTS {
        let options = memory(&room(), "a");
        let mut items = vec![odd[1].to_string()];
        items.extend(talk(endpoint, 2));
        items.extend(odd.iter().map(Value::to_string));
        items.extend(talk(endpoint, 2));
        let first = read_both(endpoint, &body_of(endpoint, &items), &options).unwrap();
        items.push(json!({"role": "user", "content": "next"}).to_string());
        let second = read_both(endpoint, &body_of(endpoint, &items), &options).unwrap();
        assert_eq!(
            held_together(&first.conversation, &second.conversation),
            first.conversation.messages.len()
        );
        assert!(
            second.warnings.len() >= 3 && second.warnings == first.warnings,
            "{:?}",
            second.warnings
        );
        assert_eq!(second.told, first.told);
        assert!(
            second.conversation.tools.iter().any(|tool| tool.name == "later" && !tool.deferred)
        );
        assert_eq!(second.conversation.system.len(), 1);
    }
}

#[test]
fn what_was_sealed_for_one_key_is_not_opened_by_another() {
    let known = room();
    let sealed = seal(&"a thought, ".repeat(30), true, Some(&sealer(3)));
    let items = [
        json!({"role": "user", "content": "q ".repeat(99)}),
        json!({"type": "reasoning", "encrypted_content": sealed}),
    ];
    let body = body_of(Endpoint::Responses, &items.map(|item| item.to_string()));
    for (key, messages) in [(Some(3), 2), (Some(4), 1), (None, 1), (Some(3), 2)] {
        let options = ParseOptions { sealer: key.map(sealer), ..memory(&known, "a") };
        let read = read_both(Endpoint::Responses, &body, &options).unwrap();
        assert_eq!(read.conversation.messages.len(), messages, "{key:?}");
    }
}

#[test]
fn items_to_be_stored_are_as_they_were_sent() {
    let options = memory(&room(), "a");
    let mut items = talk(Endpoint::Responses, 9);
    for _ in 0..3 {
        let body =
            body_of(Endpoint::Responses, &items).replace("\"store\": false", "\"store\": true");
        let read = read_both(Endpoint::Responses, &body, &options).unwrap();
        let sent: Vec<String> =
            read.responses.unwrap().input.iter().map(Value::to_string).collect();
        assert_eq!(sent, items);
        items.push(json!({"role": "user", "content": "next"}).to_string());
    }
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let known = Arc::new(KnownBodies::new(0, 4 << 20, 7));
    let options = memory(&known, "a");
    let used = body_of(Endpoint::Chat, &talk(Endpoint::Chat, 9));
    let first = parse(Endpoint::Chat, used.as_bytes(), options.clone()).unwrap();
    for number in 0..400 {
        let mut own = format!(r#"{{"role": "user", "content": "{number:03}"#);
        write!(own, "{}\"}}", "x".repeat(20_000)).unwrap();
        let body = body_of(Endpoint::Chat, &[own]);
        parse(Endpoint::Chat, body.as_bytes(), options.clone()).unwrap();
        assert!(known.bytes() <= 4 << 20, "{}", known.bytes());
        let again = parse(Endpoint::Chat, used.as_bytes(), options.clone()).unwrap();
        assert_eq!(held_together(&first.conversation, &again.conversation), 27, "after {number}");
    }
    assert!(known.bytes() > 3 << 20 && known.with(|bodies| bodies.is_whole()));
    let huge = body_of(
        Endpoint::Chat,
        &[format!(r#"{{"role": "user", "content": "{}"}}"#, "x".repeat(1 << 20))],
    );
    let before = known.bytes();
    parse(Endpoint::Chat, huge.as_bytes(), options).unwrap();
    assert_eq!(known.bytes(), before, "too large a body");
    let spare = || known.with(|bodies| bodies.spare.capacity());
    assert!(spare() > 20_000, "the text of one that left, which is counted");
    assert_eq!(known.bytes() - spare(), known.with(|bodies| bodies.bytes));
    let before = known.bytes() - spare();
    // Many small texts take more room than their bytes.
    let small = format!(r#"{{"role": "user", "content": [{}"x"]}}"#, "\"x\",".repeat(9_000));
    let options = memory(&known, "b");
    let body = body_of(Endpoint::Chat, &[small]);
    parse(Endpoint::Chat, body.as_bytes(), options).unwrap();
    assert_eq!(known.bytes() - spare(), before, "many small texts");
    assert!(known.bytes() <= 4 << 20);
}

#[test]
fn one_tenant_does_not_take_the_room_of_others() {
    let known = Arc::new(KnownBodies::new(0, 4 << 20, 7));
    let body = |number: usize| {
        let own = json!({"role": "user", "content": format!("{number:05}{}", "x".repeat(20_000))});
        body_of(Endpoint::Chat, &[own.to_string()])
    };
    let read = |tenant: &str, number: usize| {
        let body = body(number);
        parse(Endpoint::Chat, body.as_bytes(), memory(&known, tenant)).unwrap().conversation
    };
    let bytes_of =
        |tenant: &str| known.with(|bodies| bodies.parts.get(tenant).map_or(0, |p| p.bytes));
    (0..400).for_each(|number| drop(read("greedy", number)));
    assert!(bytes_of("greedy") > 3 << 20, "all is its own while nobody else needs it");
    let quiet: Vec<_> = (0..20).map(|number| read("quiet", number)).collect();
    assert!(known.with(|bodies| bodies.is_whole()));
    (400..1_200).for_each(|number| drop(read("greedy", number)));
    for (number, before) in quiet.iter().enumerate() {
        assert_eq!(held_together(before, &read("quiet", number)), 1, "{number}");
    }
    // Two that want all of it have more than their shares, and whoever has most gives.
    (0..400).for_each(|number| drop(read("second", number)));
    assert!(bytes_of("second") >= 1 << 19 && bytes_of("greedy") >= 1 << 20);
    for (number, before) in quiet.iter().enumerate() {
        assert_eq!(held_together(before, &read("quiet", number)), 1, "{number}");
    }
    assert!(known.bytes() <= 4 << 20 && known.with(|bodies| bodies.is_whole()));
}

#[test]
fn calls_have_the_names_that_their_tools_have_now() {
    let options = memory(&room(), "a");
    let space = |name: &str| json!({"type": "namespace", "name": name, "tools": [{"type": "function", "name": "f"}]});
    let asked = json!({"role": "user", "content": "a question, ".repeat(50)});
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "namespace": "b", "arguments": "{}"});
    for (tools, name) in [
        (json!([space("b")]), "f"),
        (json!([space("a"), space("b")]), "b__f"),
        (json!([space("a"), space("b")]), "b__f"),
        (json!([space("b")]), "f"),
    ] {
        let body = format!(r#"{{"model": "m", "input": [{asked}, {call}], "tools": {tools}}}"#);
        let read = read_both(Endpoint::Responses, &body, &options).unwrap();
        let called = &read.conversation.messages[1].blocks[0].content;
        assert!(matches!(called, Content::ToolCall { name: n, .. } if n == name), "{called:?}");
    }
}

#[test]
fn warnings_past_the_limit_leave_room_for_none_and_come_where_there_is_room() {
    let image = json!({"role": "user", "content": [{"type": "image_url"}, "a text beside it"]});
    let items = vec![image.to_string(); 40];
    let read = |options: &ParseOptions, end: usize, hints: usize| {
        let hints: Vec<String> = (0..hints).map(|n| format!(r#""riddle {n}": 1"#)).collect();
        let (items, hints) = (items[..end].join(","), hints.join(","));
        let body = format!(r#"{{"model": "m", "messages": [{items}], "nvext": {{{hints}}}}}"#);
        read_both(Endpoint::Chat, &body, options).unwrap()
    };
    let options = memory(&room(), "a");
    for (end, hints) in
        [(20, 20), (40, 0), (40, 20), (35, 3), (36, 40), (40, 3), (31, 0), (32, 1), (33, 0)]
    {
        let read = read(&options, end, hints);
        assert_eq!(read.warnings.len(), (end + hints).min(crate::limits::WARNINGS_MAX));
    }
}

#[test]
fn a_body_that_was_overtaken_does_not_take_anothers_place() {
    let known = room();
    let options = memory(&known, "a");
    let start = talk(Endpoint::Chat, 9);
    let on = |word: &str| {
        let mut items = start.clone();
        items.push(json!({"role": "user", "content": word.repeat(3)}).to_string());
        items.push(json!({"role": "assistant", "content": "well"}).to_string());
        body_of(Endpoint::Chat, &items)
    };
    let bodies = [body_of(Endpoint::Chat, &start), on("quick"), on("slow")];
    read_both(Endpoint::Chat, &bodies[0], &options).unwrap();
    let slow = bodies[2].as_bytes();
    let new = New::find(options.bodies.as_ref().unwrap(), slow, Endpoint::Chat, &options);
    let Some(Ok(made)) = new.made(Endpoint::Chat, &options, crate::parse::chat::build) else {
        panic!("a good body")
    };
    read_both(Endpoint::Chat, &bodies[1], &options).unwrap();
    new.keep(&known, made.notes, made.places, made.shared);
    let kept = known
        .with(|bodies| bodies.kept.values().map(|kept| kept.body.text.clone()).collect::<Vec<_>>());
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|text| bodies.contains(text)));
    for body in &bodies {
        read_both(Endpoint::Chat, body, &options).unwrap();
    }
}

#[test]
fn what_several_read_at_once_is_what_each_would_read() {
    let known = room();
    let start = talk(Endpoint::Responses, 5);
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (options, mut items) = (memory(&known, "a"), start.clone());
            threads.spawn(move || {
                for turn in 0..60 {
                    if turn % 20 == 19 {
                        items.truncate(16);
                    }
                    let call = json!({"type": "function_call", "call_id": "c", "name": format!("f{thread}"), "arguments": "{}"});
                    items.push(call.to_string());
                    read_both(Endpoint::Responses, &body_of(Endpoint::Responses, &items), &options).unwrap();
                }
            });
        }
    });
    let texts: Vec<String> =
        known.with(|bodies| bodies.kept.values().map(|kept| kept.body.text.clone()).collect());
    for text in texts {
        // A text that nobody sent would not be one body.
        read_both(Endpoint::Responses, &text, &memory(&known, "a")).unwrap();
    }
    assert!(known.with(|bodies| bodies.is_whole()));
}
