//! How long a body takes to read, with a memory of earlier ones and without.
//!
//! `read_bodies` measures bodies of 130 KB that it makes: an agent's turns, each a little longer than the last, and
//! bodies that have nothing in common. `read_bodies ENDPOINT FILE...` reads bodies from files in the order given, with
//! one memory and without, and says whether anything differs and how many messages were shared: `chat`, `responses`,
//! `messages` or `count_tokens`.

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_chat::{
    ApiError, BodyMemory, Conversation, Endpoint, KnownBodies, ParseOptions, Request, ToolMemory,
    parse,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BODY_BYTES: usize = 130_000;
const SESSIONS: usize = 150;
/// Turns of each session before the one that is measured.
const TURNS: usize = 6;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((endpoint, files)) => compare(endpoint_of(endpoint), files),
        None => {
            measure(Endpoint::Chat);
            measure(Endpoint::Messages);
            measure(Endpoint::Responses);
            Ok(())
        }
    }
}

fn endpoint_of(name: &str) -> Endpoint {
    match name {
        "responses" => Endpoint::Responses,
        "messages" => Endpoint::Messages,
        "count_tokens" => Endpoint::CountTokens,
        _ => Endpoint::Chat,
    }
}

fn options(bodies_bytes_max: Option<usize>) -> ParseOptions {
    let tenant: Arc<str> = "tenant".into();
    let bodies = bodies_bytes_max.map(|max| BodyMemory {
        known: Arc::new(KnownBodies::new(0, max, 7)),
        tenant: Arc::clone(&tenant),
    });
    let tools = ToolMemory { known: Arc::default(), tenant };
    ParseOptions { tools: Some(tools), bodies, ..ParseOptions::default() }
}

/// All of a request that others see.
fn shown(read: &Result<Request, ApiError>) -> String {
    let request = match read {
        Ok(request) => request,
        Err(error) => return format!("{error:?}"),
    };
    let Request { endpoint, model, stream, conversation, sampling, hints, session, .. } = request;
    let Request { thinking, n, output_format, continue_final, context, responses, .. } = request;
    let Request { warnings, told, uses, include_usage, .. } = request;
    let Request { thinking_display, thinking_tokens_max, .. } = request;
    format!(
        "{endpoint:?} {model} {stream} {conversation:?} {sampling:?} {hints:?} {session:?} {thinking:?} {n} \
         {output_format:?} {continue_final} {context:?} {responses:?} {warnings:?} {told:?} {uses:?} \
         {include_usage} {thinking_display:?} {thinking_tokens_max:?}"
    )
}

fn compare(endpoint: Endpoint, files: &[String]) -> std::io::Result<()> {
    let (with, without) = (options(Some(128 << 20)), options(None));
    let (mut differing, mut refused, mut shared, mut messages) = (0, 0, 0, 0);
    let mut before = Conversation::default();
    for file in files {
        let body = std::fs::read(file)?;
        let beside = parse(endpoint, &body, with.clone());
        let alone = parse(endpoint, &body, without.clone());
        if shown(&beside) != shown(&alone) {
            differing += 1;
            println!("{file} differs");
        }
        match beside {
            Ok(request) => {
                let both = before.messages.iter().zip(&request.conversation.messages);
                shared += both.take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
                messages += request.conversation.messages.len();
                before = request.conversation;
            }
            Err(_) => refused += 1,
        }
    }
    println!(
        "{} bodies, {refused} refused, {differing} differing, {shared} of {messages} messages shared with the body before",
        files.len()
    );
    Ok(())
}

/// An agent's conversation up to a turn, its own name in the first message.
fn body(endpoint: Endpoint, name: &str, turns: usize) -> String {
    let words = |n: usize| {
        let mut text = String::new();
        while text.len() < 1_200 {
            let _ =
                write!(text, "line {n} of \\\"file\\\": fn f(x: u32) {{ x + {} }}\\n", text.len());
        }
        text
    };
    let system = format!("You are an agent. {}", words(0).repeat(15));
    let mut items = format!(r#"{{"role":"user","content":"{name}: {}"}}"#, words(1));
    if endpoint == Endpoint::Chat {
        items.insert_str(0, &format!(r#"{{"role":"system","content":"{system}"}},"#));
    }
    for n in 0..turns {
        let result = words(n);
        let _ = match endpoint {
            Endpoint::Chat => write!(
                items,
                r#",{{"role":"assistant","content":"Let me look.","tool_calls":[{{"id":"c{n}","type":"function","function":{{"name":"read","arguments":"{{\"path\": \"src/{n}.rs\"}}"}}}}]}},{{"role":"tool","tool_call_id":"c{n}","content":"{result}"}}"#
            ),
            Endpoint::Responses => write!(
                items,
                r#",{{"type":"function_call","call_id":"c{n}","name":"read","arguments":"{{\"path\": \"src/{n}.rs\"}}"}},{{"type":"function_call_output","call_id":"c{n}","output":"{result}"}}"#
            ),
            _ => write!(
                items,
                r#",{{"role":"assistant","content":[{{"type":"text","text":"Let me look."}},{{"type":"tool_use","id":"c{n}","name":"read","input":{{"path":"src/{n}.rs"}}}}]}},{{"role":"user","content":[{{"type":"tool_result","tool_use_id":"c{n}","content":"{result}"}}]}}"#
            ),
        };
    }
    let schema = r#"{"type":"object","properties":{"path":{"type":"string","description":"the file to read"},"lines":{"type":"array","items":{"type":"integer"}}},"required":["path"]}"#;
    let tools: Vec<String> = (0..30)
        .map(|n| {
            let about = format!("tool {n}: {}", "what it does and when it is of use ".repeat(12));
            match endpoint {
                Endpoint::Chat => format!(r#"{{"type":"function","function":{{"name":"t{n}","description":"{about}","parameters":{schema}}}}}"#),
                Endpoint::Responses => format!(r#"{{"type":"function","name":"t{n}","description":"{about}","parameters":{schema}}}"#),
                _ => format!(r#"{{"name":"t{n}","description":"{about}","input_schema":{schema}}}"#),
            }
        })
        .collect();
    let tools = tools.join(",");
    match endpoint {
        Endpoint::Chat => format!(
            r#"{{"model":"m","messages":[{items}],"stream":true,"tools":[{tools}],"max_tokens":1000}}"#
        ),
        Endpoint::Responses => format!(
            r#"{{"model":"m","instructions":"{system}","input":[{items}],"tools":[{tools}],"store":false,"stream":true}}"#
        ),
        _ => format!(
            r#"{{"model":"m","messages":[{items}],"system":[{{"type":"text","text":"{system}"}}],"tools":[{tools}],"max_tokens":1000,"stream":true}}"#
        ),
    }
}

fn timed(endpoint: Endpoint, bodies: &[String], options: &ParseOptions) -> Duration {
    let mut times: Vec<Duration> = bodies
        .iter()
        .map(|body| {
            let start = Instant::now();
            let read = black_box(parse(endpoint, body.as_bytes(), options.clone()));
            drop(black_box(read).expect("a good body"));
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn measure(endpoint: Endpoint) {
    let turns = (1..).find(|turns| body(endpoint, "a", *turns).len() >= BODY_BYTES).unwrap_or(1);
    let names: Vec<String> = (0..SESSIONS).map(|n| format!("session {n}")).collect();
    let session = |turns: usize| -> Vec<String> {
        names.iter().map(|name| body(endpoint, name, turns)).collect()
    };
    let without = options(None);
    let alone = timed(endpoint, &session(turns), &without);
    // All sessions, turn by turn, so that none finds its own things in a processor's caches.
    let with = options(Some(128 << 20));
    for turn in turns - TURNS..turns {
        timed(endpoint, &session(turn), &with);
    }
    let next = timed(endpoint, &session(turns), &with);
    // There is room for few, so that each has left before it comes again.
    let with = options(Some(16 << 20));
    timed(endpoint, &session(turns), &with);
    let first = timed(endpoint, &session(turns), &with);
    let bytes = body(endpoint, "a", turns).len();
    println!(
        "{endpoint:?}: {} KB, without a memory {alone:?}, with one {next:?}, with one that does not know it {first:?}",
        bytes / 1_000
    );
}
