//! Bodies of the four endpoints: each is read or refused, and what was read makes a form or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_chat::{Endpoint, Family, ParseOptions, Spelling, constraint, parse};

const ENDPOINTS: [Endpoint; 4] =
    [Endpoint::Chat, Endpoint::Responses, Endpoint::Messages, Endpoint::CountTokens];

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let endpoint = ENDPOINTS[usize::from(*first) % ENDPOINTS.len()];
    let Ok(mut request) = parse(endpoint, body, ParseOptions::default()) else { return };
    request
        .apply_headers([("x-claude-code-session-id", "s"), ("x-codex-turn-metadata", "{\"a\":1}")]);
    let _ = request.conversation.breakpoints();
    let spelling = Spelling::of("<think>", Family::Hermes, |_| None);
    if let Ok(Some(form)) = constraint(&mut request, &spelling, first & 4 != 0) {
        assert!(!form.spec.is_empty());
    }
});
