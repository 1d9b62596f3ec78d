//! The KV-hints envelope: versioned actions on a cache, as routers send them to engines.
//!
//! `{"protocol_version", "message_id", "actions": [{"action_id", "action_type", "action_version", "payload"}]}`, found
//! under the names that the engines' own servers give it. An action is advice: one that is unknown here, or about
//! blocks that only the sender's own hashes name, is told as without effect and changes nothing. `kv.pin` and
//! `kv.retain` without such a target are about the prompt that they come with, which is then kept for the time they
//! say; the flat forms `deref` and `evict_session` end the session.

use serde_json::{Map, Value};

use crate::ir::CacheControl;
use crate::limits::{KV_ACTIONS_MAX, TTL_DEFAULT_MS};
use crate::request::Request;
use crate::ttl::parse_ttl;

/// Actions that are known elsewhere and do nothing here.
const IDLE: [&str; 7] = [
    "kv_hints.kv.fetch",
    "kv_hints.kv.source_locations",
    "kv_hints.kv.prefetch",
    "kv_hints.kv.demote",
    "kv_hints.kv.share",
    "kv_hints.kv.pin",
    "kv_hints.kv.retain",
];
/// Members of a payload that name blocks by somebody else's hashes, or a part of the prompt.
const TARGETS: [&str; 6] =
    ["block_hashes", "blocks", "token_range", "token_ranges", "ranges", "session_id"];

/// Reads an envelope beside the body's own members, also where routers hide it from older engines.
pub(super) fn parse_body(body: &Map<String, Value>, request: &mut Request) {
    for name in ["kv_hints", "kv_hint"] {
        if let Some(value) = body.get(name) {
            parse(value, "kv_hints", request);
        }
        if let Some(value) = body.get("kv_transfer_params").and_then(|params| params.get(name)) {
            parse(value, "kv_hints", request);
        }
    }
}

/// Reads one envelope.
pub(super) fn parse(value: &Value, path: &str, request: &mut Request) {
    let Some(envelope) = value.as_object() else {
        if !value.is_null() {
            request.warn(format!("`{path}` ignored: expected an object"));
        }
        return;
    };
    // One that names blocks or another session is about those, not about this session.
    let flat =
        |name: &str| envelope.get(name).is_some_and(|v| v.is_object() && !aims(v) || *v == true);
    if flat("deref") || flat("evict_session") {
        request.body_identity.explicit.session_final = true;
        request.uses.used("kv_hints.evict_session");
    }
    let actions = match envelope.get("actions") {
        Some(Value::Array(actions)) => actions.as_slice(),
        None | Some(Value::Null) => &[],
        Some(_) => {
            request.warn(format!("`{path}.actions` ignored: expected an array"));
            &[]
        }
    };
    for (at, action) in actions.iter().take(KV_ACTIONS_MAX).enumerate() {
        if !take(action, request) {
            request.warn(format!("`{path}.actions[{at}]` ignored: not understood"));
        }
    }
    if actions.len() > KV_ACTIONS_MAX {
        request.warn(format!("`{path}.actions` ignored: those after the first {KV_ACTIONS_MAX}"));
    }
}

/// Whether an action is about something other than the prompt or the session that it came with.
fn aims(payload: &Value) -> bool {
    TARGETS.iter().any(|target| payload.get(*target).is_some_and(|value| !value.is_null()))
}

/// Takes an action; false if it is not one that anybody knows. Its version is looked at by nobody yet: there is one.
fn take(action: &Value, request: &mut Request) -> bool {
    let Some(kind) = action.get("action_type").and_then(Value::as_str) else { return false };
    let Some(name) = IDLE.iter().find(|name| name.strip_prefix("kv_hints.") == Some(kind)) else {
        return false;
    };
    let keeps = matches!(kind, "kv.pin" | "kv.retain");
    let payload = action.get("payload").filter(|payload| !payload.is_null());
    if !keeps || payload.is_some_and(aims) {
        request.uses.idle(name);
        return payload.is_none_or(Value::is_object);
    }
    let Some(ttl_ms) = life_ms(payload) else { return false };
    // A member of the client's own API says it better.
    if request.hints.cache_control.is_none() {
        request.hints.cache_control = Some(CacheControl { ttl_ms });
        request.uses.used(name);
    } else {
        request.uses.idle(name);
    }
    true
}

/// For how long; the usual time where the payload does not say.
fn life_ms(payload: Option<&Value>) -> Option<u64> {
    let Some(payload) = payload else { return Some(TTL_DEFAULT_MS) };
    let members = payload.as_object()?;
    let said = |name: &str| members.get(name).filter(|value| !value.is_null());
    if let Some(ttl) = said("ttl").or_else(|| said("ttl_s")).or_else(|| said("duration")) {
        return parse_ttl(ttl).map(|ttl| ttl.ttl_ms);
    }
    match said("ttl_ms").or_else(|| said("duration_ms")) {
        Some(ms) => {
            let ms = ms.as_u64()?;
            parse_ttl(&Value::from(format!("{ms}ms"))).map(|ttl| ttl.ttl_ms)
        }
        None => Some(TTL_DEFAULT_MS),
    }
}
