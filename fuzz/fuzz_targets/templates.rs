//! Chat templates: each is taken or refused, and one that is taken renders or says why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_chat::{ChatTemplate, Family, RenderOptions, parse_chat};

const BODY: &[u8] = br#"{"model": "m", "messages": [
    {"role": "system", "content": "s"}, {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"k\": [1, null]}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "r"}, {"role": "user", "content": "v"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}"#;

fuzz_target!(|source: &str| {
    let _ = Family::of(source, &[]);
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let request = parse_chat(BODY).expect("the body is good");
    let _ = template.render_with_breakpoints(&request.conversation, RenderOptions::of(&request));
});
