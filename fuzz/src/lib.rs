//! What the fuzz targets of the protocols share: a body is read or refused, and what was read makes a form of answers
//! or is refused, whatever the bytes.

use mainstay_chat::{Endpoint, Family, ParseOptions, Spelling, constraint, parse};

/// Reads a body as the gateway does. `flags` choose what is not in the body.
pub fn read(endpoint: Endpoint, flags: u8, body: &[u8]) {
    let Ok(mut request) = parse(endpoint, body, ParseOptions::default()) else { return };
    request
        .apply_headers([("x-claude-code-session-id", "s"), ("x-codex-turn-metadata", "{\"a\":1}")]);
    let _ = request.conversation.breakpoints();
    let spelling = Spelling::of("<think>", Family::Hermes, |_| None);
    if let Ok(Some(form)) = constraint(&mut request, &spelling, flags & 4 != 0) {
        assert!(!form.spec.is_empty());
    }
}
