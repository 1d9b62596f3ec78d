//! What the fuzz targets of the protocols share: a body is read or refused, and what was read makes a form of answers
//! or is refused, whatever the bytes.

use std::sync::Arc;

use mainstay_chat::{
    ApiError, BodyMemory, Endpoint, Family, KnownBodies, ParseOptions, Request, Spelling,
    constraint, parse,
};

/// What the memory of bodies may take: enough for the largest body of a run.
const BODIES_BYTES_MAX: usize = 64 << 20;

/// Reads a body as the gateway does. `flags` choose what is not in the body.
pub fn read(endpoint: Endpoint, flags: u8, body: &[u8]) {
    let alone = parse(endpoint, body, ParseOptions::default());
    read_beside(endpoint, flags, body, &shown(&alone));
    let Ok(mut request) = alone else { return };
    request
        .apply_headers([("x-claude-code-session-id", "s"), ("x-codex-turn-metadata", "{\"a\":1}")]);
    let _ = request.conversation.breakpoints();
    let spelling = Spelling::of("<think>", Family::Hermes, |_| None);
    if let Ok(Some(form)) = constraint(&mut request, &spelling, flags & 4 != 0) {
        assert!(!form.spec.is_empty());
    }
}

/// Reads a body with a memory that saw one that ends earlier, and that one again: they read as they do alone.
fn read_beside(endpoint: Endpoint, flags: u8, body: &[u8], alone: &str) {
    let known = Arc::new(KnownBodies::new(0, BODIES_BYTES_MAX));
    let bodies = Some(BodyMemory { known, tenant: "t".into() });
    let options = ParseOptions { bodies, ..ParseOptions::default() };
    // Perhaps the end of an item.
    let cuts = body.windows(2).enumerate().filter(|(_, pair)| *pair == b"},").map(|(at, _)| at + 1);
    let cut = cuts.take(1 + usize::from(flags >> 3)).last().unwrap_or_default();
    let earlier = [&body[..cut], b"]}"].concat();
    let earlier_alone = shown(&parse(endpoint, &earlier, ParseOptions::default()));
    for _ in 0..2 {
        assert_eq!(shown(&parse(endpoint, &earlier, options.clone())), earlier_alone);
        assert_eq!(shown(&parse(endpoint, body, options.clone())), alone);
    }
}

/// All of a request but how it was read.
fn shown(read: &Result<Request, ApiError>) -> String {
    let request = match read {
        Ok(request) => request,
        Err(error) => return format!("{error:?}"),
    };
    let Request { endpoint, model, stream, conversation, sampling, hints, session, .. } = request;
    let Request { thinking, n, output_format, continue_final, context, responses, .. } = request;
    let Request { warnings, told, uses, .. } = request;
    format!(
        "{endpoint:?} {model} {stream} {conversation:?} {sampling:?} {hints:?} {session:?} {thinking:?} {n} \
         {output_format:?} {continue_final} {context:?} {responses:?} {warnings:?} {told:?} {uses:?}"
    )
}
