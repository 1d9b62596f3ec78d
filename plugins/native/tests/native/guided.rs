//! Outputs of a given form, from the engine's door to its lanes: what comes out of a model that knows
//! nothing parses and fits all the same, however it is drawn and whoever goes on with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, Finish, Guided, GuidedKind, HostLog, Lanes, Output, Request, Sampling,
};
use mainstay_native::NativeEngine;
use serde_json::{Value, json};

use crate::common::{config, folder};

const LLAMA: &str = "llama-f32";
const PATIENCE: Duration = Duration::from_secs(120);
const PROMPT: [u32; 5] = [0, 40, 41, 42, 43];

struct Door {
    engine: NativeEngine,
    lanes: Arc<Lanes>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
struct Ended {
    tokens: Vec<u32>,
    finish: Finish,
}

impl Door {
    fn open() -> Self {
        Self::open_with(&config(LLAMA, json!({})))
    }

    fn open_with(config: &str) -> Self {
        let lanes = Arc::new(Lanes::new());
        let engine = NativeEngine::create(config, Arc::clone(&lanes), HostLog::silent()).unwrap();
        Self { engine, lanes }
    }

    /// Runs requests together; their ends by id.
    fn run(&self, requests: Vec<Request>) -> HashMap<u64, Ended> {
        let count = requests.len();
        requests.into_iter().for_each(|request| self.engine.submit(request).unwrap());
        self.ends(count)
    }

    fn ends(&self, count: usize) -> HashMap<u64, Ended> {
        let started = Instant::now();
        let (mut all, mut ended): (Vec<Output>, HashMap<u64, Ended>) = Default::default();
        while ended.len() < count {
            assert!(started.elapsed() < PATIENCE, "no end in sight");
            self.lanes.wait_outputs(Duration::from_millis(100));
            for output in self.lanes.take_outputs(1000).1 {
                let (id, finish) = (output.id, output.finish.clone());
                all.push(output);
                let Some(finish) = finish else { continue };
                let of_it = all.iter().filter(|o| o.id == id);
                let tokens = of_it.flat_map(|o| o.tokens.clone()).collect();
                assert!(ended.insert(id, Ended { tokens, finish }).is_none(), "{id} ends twice");
            }
        }
        ended
    }

    fn one(&self, request: Request) -> Ended {
        let id = request.id;
        self.run(vec![request]).remove(&id).unwrap()
    }
}

fn guided(id: u64, kind: GuidedKind, spec: &str, seed: Option<u64>) -> Request {
    let temperature = if seed.is_some() { 1.5 } else { 0.0 };
    let sampling = Sampling { tokens_max: 400, temperature, seed, ..Sampling::default() };
    let guided = Some(Guided { kind, spec: spec.to_owned() });
    Request { id, tokens: PROMPT.to_vec(), sampling, guided, ..Request::default() }
}

/// The text of tokens of the fixture's byte-level vocabulary, the end token left out.
fn text(tokens: &[u32]) -> String {
    text_of(&vocabulary(&format!("fixtures/{LLAMA}")), tokens, 1)
}

fn vocabulary(place: &str) -> HashMap<u64, String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let place = std::path::Path::new(&here).join(place).join("tokenizer.json");
    let file = std::fs::read(place).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let words = file["model"]["vocab"].as_object().unwrap();
    words.iter().map(|(word, id)| (id.as_u64().unwrap(), word.clone())).collect()
}

fn text_of(words: &HashMap<u64, String>, tokens: &[u32], end: u32) -> String {
    let itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let others: Vec<u8> = (0..=255).filter(|b| !itself(*b)).collect();
    let byte = |c: char| match u32::from(c) {
        code @ 0..=255 => code as u8,
        code => others[code as usize - 256],
    };
    let drawn = tokens.iter().filter(|t| **t != end);
    let bytes = drawn.flat_map(|t| words[&u64::from(*t)].chars().map(byte)).collect();
    String::from_utf8(bytes).unwrap()
}

/// Whether a value is one of the schema, in the few words that these tests use.
fn fits(value: &Value, schema: &Value) -> bool {
    if let Some(options) = schema.get("enum") {
        return options.as_array().unwrap().contains(value);
    }
    if let Some(options) = schema.get("anyOf") {
        return options.as_array().unwrap().iter().any(|schema| fits(value, schema));
    }
    let most = |name: &str| schema.get(name).map_or(u64::MAX, |n| n.as_u64().unwrap());
    match schema["type"].as_str().unwrap() {
        "string" => value.as_str().is_some_and(|s| s.chars().count() as u64 <= most("maxLength")),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.as_i64().is_some_and(|n| {
            n >= schema["minimum"].as_i64().unwrap() && n <= schema["maximum"].as_i64().unwrap()
        }),
        "array" => value.as_array().is_some_and(|items| {
            items.len() as u64 <= most("maxItems")
                && items.iter().all(|item| fits(item, &schema["items"]))
        }),
        "object" => value.as_object().is_some_and(|members| {
            let known = schema["properties"].as_object().unwrap();
            let needed = schema["required"].as_array().unwrap();
            needed.iter().all(|name| members.contains_key(name.as_str().unwrap()))
                && members
                    .iter()
                    .all(|(name, value)| known.get(name).is_some_and(|s| fits(value, s)))
        }),
        other => panic!("{other}"),
    }
}

fn schemas() -> Vec<Value> {
    let word = json!({"type": "string", "maxLength": 6});
    let number = json!({"type": "integer", "minimum": -5, "maximum": 120});
    let closed = |properties: Value, required: Value| {
        json!({"type": "object", "properties": properties, "required": required,
            "additionalProperties": false})
    };
    vec![
        closed(json!({"title": word}), json!(["title"])),
        closed(json!({"a": number, "b": word, "c": {"type": "boolean"}}), json!(["a", "c"])),
        closed(
            json!({"kind": {"enum": ["x", "yy", 3, null]}, "list": {"type": "array", "items": number, "maxItems": 3}}),
            json!(["kind", "list"]),
        ),
        json!({"type": "array", "maxItems": 2, "items": closed(json!({"in": {"anyOf": [word, number]}}), json!(["in"]))}),
        json!({"enum": ["only"]}),
    ]
}

#[test]
fn a_form_that_repeats_is_guessed() {
    let ended = |drafts: usize| {
        let changes = json!({ "draft_tokens_max": drafts });
        let door = Door::open_with(&config(LLAMA, changes));
        let ended = door.one(guided(1, GuidedKind::Regex, "(qwertz){50}", Some(5)));
        (ended, door.engine.stats())
    };
    let (plain, none) = ended(0);
    let (guessed, stats) = ended(8);
    assert_eq!(text(&plain.tokens), "qwertz".repeat(50));
    assert_eq!((guessed, none.draft_tokens), (plain, 0));
    assert!(stats.accepted_tokens * 3 > stats.decode_tokens * 2, "{stats:?}");
}

#[test]
fn a_generation_under_a_schema_parses_and_fits() {
    let door = Door::open();
    let schemas = schemas();
    let mut requests = Vec::new();
    for (at, schema) in schemas.iter().enumerate() {
        let draws = std::iter::once(None).chain((0..6).map(Some));
        for seed in draws {
            let id = (at as u64) << 8 | seed.map_or(0xff, |seed| seed);
            requests.push(guided(id, GuidedKind::JsonSchema, &schema.to_string(), seed));
        }
    }
    // Company that follows no form, and must not be touched.
    let free = |id| Request { guided: None, ..guided(id, GuidedKind::Regex, "x", Some(3)) };
    let alone = door.one(free(1 << 16));
    requests.push(free(1 << 17));
    let mut ends = door.run(requests);
    assert_eq!(ends.remove(&(1 << 17)).unwrap(), alone);
    let mut distinct = std::collections::HashSet::new();
    for (id, end) in &ends {
        let schema = &schemas[(*id >> 8) as usize];
        let text = text(&end.tokens);
        assert_eq!(end.finish, Finish::Stop, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(fits(&value, schema), "{value} is not of {schema}");
        distinct.insert(text);
    }
    assert!(distinct.len() > 20, "the draws differ: {distinct:?}");
}

#[test]
fn a_moved_request_goes_on_in_the_same_form() {
    let schema = schemas()[1].to_string();
    for seed in [None, Some(4)] {
        let stayed = Door::open().one(guided(1, GuidedKind::JsonSchema, &schema, seed));
        assert_eq!(stayed.finish, Finish::Stop);
        let other = Door::open();
        for moved_after in 1..stayed.tokens.len() {
            let mut moved = guided(moved_after as u64, GuidedKind::JsonSchema, &schema, seed);
            moved.tokens.extend(&stayed.tokens[..moved_after]);
            moved.sampled_before = moved_after as u32;
            assert_eq!(other.one(moved).tokens, stayed.tokens[moved_after..], "{moved_after}");
        }
    }
    // Tokens that are no start of the form are somebody's mistake, not a reason to break it.
    let mut wrong = guided(1, GuidedKind::JsonSchema, &schema, None);
    wrong.sampled_before = 2;
    assert!(
        matches!(Door::open().one(wrong).finish, Finish::Error { rc, .. } if rc == Code::Invalid.rc())
    );
}

#[test]
fn grammars_name_control_tokens_by_number_and_text_never_spells_them() {
    let door = Door::open();
    let lark = "start: <[2]> /[a-c]{2,4}/ <[0]> %json {\"enum\": [\"on\", \"off\"]}";
    let ended = door.one(guided(1, GuidedKind::Lark, lark, Some(1)));
    assert_eq!((ended.tokens[0], ended.finish), (2, Finish::Stop));
    let middle = ended.tokens.iter().position(|t| *t == 0).unwrap();
    let word = text(&ended.tokens[1..middle]);
    assert!(
        (2..=4).contains(&word.len()) && word.chars().all(|c| ('a'..='c').contains(&c)),
        "{word}"
    );
    let last = text(&ended.tokens[middle + 1..]);
    assert!(["\"on\"", "\"off\""].contains(&last.as_str()), "{last}");

    let ended = door.one(guided(2, GuidedKind::Regex, "(yes|no), [0-9]{3}", Some(9)));
    let said = text(&ended.tokens);
    assert!(said.starts_with("yes, ") || said.starts_with("no, "), "{said}");
    let endless = door.one(guided(3, GuidedKind::Regex, "(.|\\n){60}", Some(2)));
    assert!(!endless.tokens[..endless.tokens.len() - 1].iter().any(|t| *t < 3), "{endless:?}");
}

#[test]
fn a_grammar_as_front_ends_make_it_is_followed() {
    // With control tokens of the bundled model, and with the same tags spelled out on one that has none.
    let arguments = json!({
        "type": "object", "required": ["city", "n"], "additionalProperties": false,
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "n": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "x-guidance": {"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
            "lenient": true},
    });
    let body = r#"body: "{\"name\": \"get_weather\", \"arguments\": " arguments_0 "}""#;
    let tokens = format!(
        "start: (<[5]> THOUGHT? <[6]> BREAK?)? call (\"\\n\"? call)*\nTHOUGHT: /(.|\\n)+/\nBREAK: /\\n{{1,2}}/\n\
         arguments_0: %json {arguments}\n{body}\ncall: <[7]> \"\\n\"? body \"\\n\"? <[8]>\n"
    );
    let demo = json!({"model_dir": "demo", "blocks": 64, "threads": 2}).to_string();
    let door = Door::open_with(&demo);
    let words = vocabulary("demo-model");
    for seed in [None, Some(1), Some(2), Some(3)] {
        let mut request = guided(1, GuidedKind::Lark, &tokens, seed);
        request.tokens = vec![1, 300, 301, 302, 4, 2];
        request.sampling.temperature = request.sampling.temperature.min(0.8);
        let ended = door.one(request);
        if ended.finish == Finish::Length {
            continue; // A thought may be as long as it likes.
        }
        let call = ended.tokens.iter().position(|t| *t == 7).unwrap();
        let end = call + ended.tokens[call..].iter().position(|t| *t == 8).unwrap();
        let call: Value =
            serde_json::from_str(&text_of(&words, &ended.tokens[call + 1..end], 4)).unwrap();
        assert_eq!(call["name"], "get_weather");
        assert!(["Oslo", "Rome"].contains(&call["arguments"]["city"].as_str().unwrap()), "{call}");
        assert!(call["arguments"]["n"].as_u64().unwrap() <= 9, "{call}");
    }

    let spelled = format!(
        "start: TEXT? (call (\"\\n\"? call)*)?\nTEXT: /(.|\\n)+/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\n\
         arguments_0: %json {arguments}\n{body}\n\
         call: \"<tool_call>\" \"\\n\"? body \"\\n\"? \"</tool_call>\"\n"
    );
    let door = Door::open();
    let free = door.one(guided(2, GuidedKind::Lark, &spelled, Some(5)));
    assert!(!matches!(free.finish, Finish::Error { .. }), "{free:?}");
    let required = spelled.replacen("start: TEXT? (call (\"\\n\"? call)*)?", "start: call", 1);
    let ended = door.one(guided(3, GuidedKind::Lark, &required, Some(6)));
    let said = text(&ended.tokens);
    let call = said.strip_prefix("<tool_call>").unwrap().strip_suffix("</tool_call>").unwrap();
    let call: Value = serde_json::from_str(call.trim()).unwrap();
    assert_eq!((ended.finish, call["name"].as_str()), (Finish::Stop, Some("get_weather")));
}

#[test]
fn ends_that_are_ignored_and_least_lengths_do_not_break_a_form() {
    let mut request = guided(1, GuidedKind::JsonSchema, r#"{"enum": ["a"]}"#, None);
    request.sampling.ignore_eos = true;
    request.sampling.tokens_min = 100;
    let ended = Door::open().one(request);
    assert_eq!((text(&ended.tokens).as_str(), ended.finish), ("\"a\"", Finish::Stop));
}

#[test]
fn what_cannot_be_compiled_ends_its_own_request() {
    let door = Door::open();
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let refs = r##"{"$ref": "#"}"##;
    let all_of = r##"{"allOf": [{"$ref": "#"}]}"##;
    let any_of = r##"{"anyOf": [{"$ref": "#"}, {"$ref": "#/x"}]}"##;
    let rules: String = (0..4000).map(|n| format!("r{n}: r{}\n", n + 1)).collect();
    let rules = format!("start: r0\n{rules}r4000: \"a\"");
    let chain: Vec<String> = (0..17_000)
        .map(|n| {
            format!(r##""d{n}": {{"{}": "#/$defs/d{}"}}"##, ["$ref", "\\u0024ref"][n % 2], n + 1)
        })
        .collect();
    let chain = format!(
        r##"{{"$defs": {{{}, "d17000": {{"type": "null"}}}}, "$ref": "#/$defs/d0"}}"##,
        chain.join(", ")
    );
    let hidden = format!("start: %json {chain}");
    let forms = [
        (GuidedKind::JsonSchema, chain.as_str()),
        (GuidedKind::Lark, hidden.as_str()),
        (GuidedKind::JsonSchema, "{"),
        (GuidedKind::JsonSchema, "7"),
        (GuidedKind::JsonSchema, "false"),
        (GuidedKind::JsonSchema, r#"{"type": "wish"}"#),
        (GuidedKind::JsonSchema, r#"{"type": "string", "pattern": "("}"#),
        (
            GuidedKind::JsonSchema,
            r#"{"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99})"}"#,
        ),
        (GuidedKind::JsonSchema, r#"{"type": "integer", "minimum": 3, "maximum": 1}"#),
        (GuidedKind::JsonSchema, r#"{"$ref": "http://127.0.0.1/schema"}"#),
        (GuidedKind::JsonSchema, &deep),
        (GuidedKind::JsonSchema, refs),
        (GuidedKind::JsonSchema, all_of),
        (GuidedKind::JsonSchema, any_of),
        (GuidedKind::Regex, "[z-a]"),
        (GuidedKind::Regex, "(a{1,1000}){1,1000}b"),
        (GuidedKind::Lark, "start"),
        (GuidedKind::Lark, "start: <[999999]>"),
        (GuidedKind::Lark, "start: start"),
        (GuidedKind::Lark, "start: \"a\" start"),
        (GuidedKind::Lark, &rules),
        (GuidedKind::Lark, "start: <|no such token|>"),
    ];
    let started = Instant::now();
    for (at, (kind, spec)) in forms.iter().enumerate() {
        let mut request = guided(at as u64, *kind, spec, Some(1));
        request.sampling.tokens_max = 8;
        let took = Instant::now();
        let end = door.one(request);
        println!("{:?} {:.60} {:?}", took.elapsed(), spec, end.finish);
        if let Finish::Error { rc, message } = end.finish {
            assert_eq!(rc, Code::Invalid.rc(), "{spec:.60}: {message}");
            assert!(end.tokens.is_empty() && !message.contains('\n'), "{spec:.60}: {message}");
        }
    }
    assert!(started.elapsed() < PATIENCE, "each is bounded");
    let unknown = |lenient: bool| {
        json!({"type": "array", "items": {"enum": [1]}, "maxItems": 2, "uniqueItems": true,
            "x-guidance": {"lenient": lenient}})
    };
    let end = |id, lenient: bool| {
        door.one(guided(id, GuidedKind::JsonSchema, &unknown(lenient).to_string(), None)).finish
    };
    assert!(matches!(end(998, false), Finish::Error { .. }), "a keyword that is not enforced");
    assert_eq!(end(999, true), Finish::Stop, "one that need not be");
    let good = door.one(guided(1000, GuidedKind::JsonSchema, r#"{"enum": [1]}"#, None));
    assert_eq!(good.finish, Finish::Stop, "the engine serves on");
}

#[test]
fn a_request_cancelled_before_its_form_is_ready_ends_once() {
    let door = Door::open();
    for id in 0..50 {
        let schema = format!(r#"{{"enum": ["{id}"]}}"#);
        door.engine.submit(guided(id, GuidedKind::JsonSchema, &schema, None)).unwrap();
        if id % 2 == 0 {
            door.engine.cancel(id);
        }
    }
    let ends = door.ends(50);
    for (id, end) in &ends {
        let whole = end.finish == Finish::Stop && text(&end.tokens) == format!("\"{id}\"");
        assert!(whole || (id % 2 == 0 && end.finish == Finish::Cancelled), "{id}: {end:?}");
    }
    assert!(ends.values().any(|end| end.finish == Finish::Cancelled), "some were in time");
    // An engine that is dropped while forms wait ends their requests too.
    for id in 100..120 {
        let schema = format!(r#"{{"enum": ["{id}"]}}"#);
        door.engine.submit(guided(id, GuidedKind::JsonSchema, &schema, None)).unwrap();
    }
    let Door { engine, lanes } = door;
    drop(engine);
    let mut ended = 0;
    loop {
        let outputs = lanes.take_outputs(1000).1;
        if outputs.is_empty() {
            break;
        }
        ended += outputs.iter().filter(|o| o.finish.is_some()).count();
    }
    assert_eq!(ended, 20);
}

#[test]
fn a_model_without_a_vocabulary_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder(LLAMA).join(name), dir.path().join(name)).unwrap();
    }
    let door = Door::open_with(&config(LLAMA, json!({"model_dir": dir.path()})));
    let end = door.one(guided(1, GuidedKind::JsonSchema, "{}", None));
    assert!(
        matches!(&end.finish, Finish::Error { rc, message }
            if *rc == Code::Unimplemented.rc() && message.contains("tokenizer.json")),
        "{end:?}"
    );
    let free = Request { guided: None, ..guided(2, GuidedKind::Regex, "x", Some(3)) };
    assert!(!door.one(free).tokens.is_empty());
}
