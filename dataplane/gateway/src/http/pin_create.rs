//! `POST /v1/pins`: pins the prefix of a conversation, written as a chat-completions body.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use mainstay_chat::template::RenderOptions;
use mainstay_chat::{ApiError, Endpoint, ErrorKind};
use mainstay_types::{PinScope, Region, SessionId, TenantId};
use serde_json::Value;

use super::admin::{AdminError, pin_json};
use super::{App, read_body, span_of, ttl_ms};
use crate::answer::compute_held;
use crate::pins::{Wish, scope_of};
use crate::prompt::{self, options_of};
use crate::seal::parsing_of;

/// A pin's life when the caller names none: Anthropic's default.
const TTL_DEFAULT_MS: u64 = 300_000;

/// The body's members that are about the pin rather than about the conversation.
struct Terms {
    ttl_ms: u64,
    copies_min: u32,
    owner: Option<SessionId>,
    recompute: Option<bool>,
    scope: PinScope,
}

fn terms(body: &Value, region: &Region) -> Result<Terms, ApiError> {
    let ttl_ms = ttl_ms(body)
        .unwrap_or(Some(TTL_DEFAULT_MS))
        .ok_or_else(|| ApiError::invalid("ttl", "give a duration such as \"30m\" or \"1h\""))?;
    let copies_min = match body.get("copies_min") {
        None | Some(Value::Null) => 1,
        Some(copies) => copies
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n >= 1)
            .ok_or_else(|| ApiError::invalid("copies_min", "expected a number of at least 1"))?,
    };
    let owner =
        match body.get("session") {
            None | Some(Value::Null) => None,
            Some(session) => Some(session.as_str().and_then(SessionId::new).ok_or_else(|| {
                ApiError::invalid("session", "expected a name of 1 to 256 bytes")
            })?),
        };
    let recompute = match body.get("recompute") {
        None | Some(Value::Null) => None,
        Some(asked) => Some(
            asked.as_bool().ok_or_else(|| ApiError::invalid("recompute", "expected a boolean"))?,
        ),
    };
    let scope = match body.get("scope") {
        None | Some(Value::Null) => scope_of(None, region),
        Some(scope) => scope.as_str().and_then(|text| scope_of(Some(text), region)),
    };
    let scope = scope.ok_or_else(|| {
        ApiError::invalid("scope", "expected \"region\", \"region:NAME\" or \"global\"")
    })?;
    Ok(Terms { ttl_ms, copies_min, owner, recompute, scope })
}

/// The prefix that a body describes.
fn wish(app: &App, tenant: TenantId, body: &[u8]) -> Result<Wish, ApiError> {
    let parsed = mainstay_chat::plain_json::from_slice(body)
        .map_err(|e| ApiError::invalid("", &format!("not JSON: {e}")))?;
    let terms = terms(&parsed, &app.region)?;
    let conversation = mainstay_chat::parse(
        Endpoint::Chat,
        body,
        parsing_of(&tenant, &app.replica, &app.parsing),
    )?;
    let card = app.model(&conversation.model)?;
    let key = app.replica.read(mainstay_state::Machine::hash_key).ok_or_else(|| {
        ApiError::new(ErrorKind::Unavailable, "the control plane has not answered yet")
    })?;
    // A pin is about what was said, not about the answer to come.
    let options =
        RenderOptions { add_generation_prompt: false, ..options_of(&conversation, &tenant) };
    let block_tokens = card.block_tokens;
    let prompt = prompt::prepare(&conversation, options, &card, &tenant, key)?;
    if prompt.blocks.is_empty() {
        let problem = format!("shorter than one block of {block_tokens} tokens; nothing to pin");
        return Err(ApiError::invalid("messages", &problem));
    }
    let keeps = app.recompute.applies(terms.recompute, true);
    let tokens = keeps.then(|| prompt.kept_tokens(prompt.blocks.len(), &card));
    let prefix_tokens = u32::try_from(prompt.blocks.len()).unwrap_or(u32::MAX);
    Ok(Wish {
        tenant,
        namespace: prompt.namespace,
        owner: terms.owner,
        prefix_tokens: prefix_tokens.saturating_mul(block_tokens),
        blocks: prompt.blocks.to_vec(),
        ttl_ms: terms.ttl_ms,
        copies_min: terms.copies_min,
        tokens,
        scope: terms.scope,
    })
}

pub(super) async fn create_pin(
    State(app): State<App>,
    request: Request<Body>,
) -> Result<Json<Value>, AdminError> {
    let span = span_of("POST /v1/pins", request.headers());
    // The permit is kept until the pin is made.
    let admitted = app.admit(request.headers())?;
    let (_, body, admitted) = read_body(request, admitted).await?;
    let (worker, tenant) = (app.clone(), admitted.tenant.clone());
    let bytes = body.len();
    let read = move || wish(&worker, tenant, &body);
    let (wish, _admitted) = compute_held(admitted, bytes, read).await?;
    let reply = app.pins.make(wish, &span).await?;
    Ok(Json(reply.pin.as_ref().map(pin_json).unwrap_or_default()))
}
