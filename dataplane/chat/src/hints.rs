//! Hints: what a client knows about its own future.
//!
//! They come from `nvext` (the names NVIDIA Dynamo and its clients use), from `cache_control`,
//! and from a few members of each API. A hint is never worth failing a request for: unknown
//! members, wrong types and values out of range turn into warnings, and the rest of the hints
//! still count. Every form that clients were ever told to send is read, and each that was is noted
//! in [`Request::uses`].

mod kv;
mod members;
mod nat;

use serde_json::{Map, Value};

use crate::ir::CacheControl;
use crate::limits::TTL_DEFAULT_MS;
use crate::request::{Request, push_warning};
use crate::session::SessionIds;
use crate::ttl::parse_ttl;
use members::Members;
pub(crate) use nat::HeaderHints;

/// What the client told about urgency, length and reuse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// `agent_hints.priority`: higher is more urgent.
    pub priority: Option<i32>,
    /// `agent_hints.strict_priority`: queue tier that always goes first.
    pub strict_priority: Option<u32>,
    /// `agent_hints.latency_sensitivity`: how much this turn minds waiting; 1 and above is all that counts.
    pub latency_sensitivity: Option<f64>,
    /// `agent_hints.osl`: expected output tokens.
    pub osl: Option<u32>,
    /// `agent_hints.speculative_prefill`: warm the next turn after this one.
    pub speculative_prefill: bool,
    /// `agent_hints.prefix_id`: the client's name for its shared prefix.
    pub prefix_id: Option<String>,
    /// `agent_hints.total_requests`: requests expected under that prefix.
    pub total_requests: Option<u32>,
    /// `agent_hints.iat`: milliseconds expected between them.
    pub iat_ms: Option<u32>,
    /// Keep the whole prompt: `nvext.cache_control`, or `cache_control` beside `messages`.
    pub cache_control: Option<CacheControl>,
    /// `recompute` in that `cache_control`: keep the tokens with the pin, so that it can be computed again.
    pub recompute: Option<bool>,
    /// `nvext.cache_control.scope`: `global`, `region` or `region:NAME`; of all that the request keeps.
    pub pin_scope: Option<String>,
    /// `nvext.cache_salt` or `cache_salt`: keeps this cache apart from others of the tenant.
    pub cache_salt: Option<String>,
    /// `nvext.router.ttft_target` in milliseconds.
    pub ttft_target_ms: Option<f64>,
    /// `nvext.router.itl_target` in milliseconds.
    pub itl_target_ms: Option<f64>,
    /// `nvext.extra_fields`: what the client wants told beside the answer.
    pub extra_fields: Vec<String>,
    /// `prompt_cache_key`: groups requests that share a prefix; not unique to an agent.
    pub prompt_cache_key: Option<String>,
    /// `prompt_cache_retention` in milliseconds.
    pub prompt_cache_retention_ms: Option<u64>,
    /// `metadata.user_id` or `user`, when it is a plain name.
    pub user_id: Option<String>,
}

/// Members of `nvext` that were known in some version of it and change nothing here; no warning for them.
const NVEXT_IDLE: [&str; 24] = [
    "nvext.greed_sampling",
    "nvext.use_raw_prompt",
    "nvext.backend_instance_id",
    "nvext.prefill_worker_id",
    "nvext.decode_worker_id",
    "nvext.dp_rank",
    "nvext.prefill_dp_rank",
    "nvext.token_data",
    "nvext.metadata_upload",
    "nvext.request_timestamp_ms",
    "nvext.routing_constraints",
    "nvext.session_params",
    "nvext.guided_json",
    "nvext.guided_regex",
    "nvext.guided_grammar",
    "nvext.guided_choice",
    "nvext.guided_decoding_backend",
    "nvext.ignore_eos",
    "nvext.top_k",
    "nvext.min_p",
    "nvext.repetition_penalty",
    "nvext.strict_priority",
    "nvext.program_id",
    "nvext.engine_data",
];
/// What `nvext.cache_control` takes the place of.
const LESSER_CACHE_CONTROLS: [&str; 3] = ["cache_control", "kv_hints.kv.pin", "kv_hints.kv.retain"];
/// As long as a region's name may be.
const REGION_BYTES_MAX: usize = 64;

/// Reads `cache_control`; `None` with a warning if it makes no sense.
pub(crate) fn parse_cache_control(
    value: &Value,
    path: &str,
    warnings: &mut Vec<String>,
) -> Option<CacheControl> {
    let Some(members) = value.as_object() else {
        if !value.is_null() {
            push_warning(warnings, format!("`{path}` ignored: expected an object"));
        }
        return None;
    };
    if members.get("type").and_then(Value::as_str).is_some_and(|kind| kind != "ephemeral") {
        push_warning(warnings, format!("`{path}` ignored: only type `ephemeral` is known"));
        return None;
    }
    let Some(ttl) = members.get("ttl").filter(|ttl| !ttl.is_null()) else {
        return Some(CacheControl { ttl_ms: TTL_DEFAULT_MS });
    };
    match parse_ttl(ttl) {
        Some(ttl) => {
            if ttl.clipped {
                push_warning(warnings, format!("`{path}.ttl` clipped to {} ms", ttl.ttl_ms));
            }
            Some(CacheControl { ttl_ms: ttl.ttl_ms })
        }
        None => {
            let text = format!("`{path}.ttl` not understood, using 5m; write it like \"1h\"");
            push_warning(warnings, text);
            Some(CacheControl { ttl_ms: TTL_DEFAULT_MS })
        }
    }
}

/// Reads `scope` beside a `ttl`: where copies have to be. A region's name is up to whoever knows regions.
fn parse_scope(cache_control: &Value, warnings: &mut Vec<String>) -> Option<String> {
    let scope = cache_control.get("scope").filter(|scope| !scope.is_null())?;
    let fine = |text: &&str| {
        let region = text.strip_prefix("region:");
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let named = |n: &str| (1..=REGION_BYTES_MAX).contains(&n.len()) && n.bytes().all(plain);
        matches!(*text, "global" | "region") || region.is_some_and(named)
    };
    let text = scope.as_str().filter(fine).map(str::to_owned);
    if text.is_none() {
        let text = "`nvext.cache_control.scope` ignored: `region`, `region:NAME` or `global`";
        push_warning(warnings, text.to_owned());
    }
    text
}

/// Reads the hints that any body may carry beside its own members.
pub(crate) fn parse_body_hints(body: &Map<String, Value>, request: &mut Request) {
    let warnings = &mut request.warnings;
    let uses = &mut request.uses;
    let mut hints = Hints::default();
    if let Some(control) = body.get("cache_control") {
        hints.cache_control = parse_cache_control(control, "cache_control", warnings);
        hints.recompute = control.get("recompute").and_then(Value::as_bool);
        if hints.cache_control.is_some() {
            uses.used("cache_control");
        }
    }
    let mut top = Members { members: body, path: String::new(), warnings, uses };
    hints.cache_salt = top.text("cache_salt");
    top.used("cache_salt", hints.cache_salt.is_some());
    // What it is good for is known once it is known who names the session.
    hints.prompt_cache_key = top.text("prompt_cache_key");
    top.idle("prompt_cache_key", hints.prompt_cache_key.is_some());
    if let Some(retention) = body.get("prompt_cache_retention").filter(|r| !r.is_null()) {
        let text = retention.as_str().unwrap_or_default();
        hints.prompt_cache_retention_ms = parse_ttl(retention).map(|ttl| ttl.ttl_ms);
        if hints.prompt_cache_retention_ms.is_none() && !text.starts_with("in") {
            top.ignored("prompt_cache_retention", "a time like \"24h\"");
        } else {
            top.idle("prompt_cache_retention", true);
        }
    }
    request.hints = hints;
    kv::parse_body(body, request);
    match body.get("nvext") {
        None | Some(Value::Null) => {}
        Some(Value::Object(nvext)) => parse_nvext(nvext, request),
        Some(_) => request.warn("`nvext` ignored: expected an object"),
    }
}

fn parse_nvext(nvext: &Map<String, Value>, request: &mut Request) {
    let mut given: Vec<(&String, &Value)> = nvext.iter().filter(|(_, v)| !v.is_null()).collect();
    // What wins over what must not depend on the order in which a client writes.
    given.sort_by_key(|(name, _)| match name.as_str() {
        "agent_context" => 0,
        "agent_hints" => 1,
        "annotations" => 3,
        _ => 2,
    });
    for (name, value) in given {
        let hints = &mut request.hints;
        let (warnings, uses) = (&mut request.warnings, &mut request.uses);
        let mut members = Members { members: nvext, path: "nvext.".to_owned(), warnings, uses };
        match name.as_str() {
            "agent_hints" => parse_agent_hints(value, request),
            "priority" => parse_bare_priority(&mut members, hints),
            "cache_control" => {
                let control = parse_cache_control(value, "nvext.cache_control", members.warnings);
                if control.is_some() {
                    members.uses.had_no_effect(&LESSER_CACHE_CONTROLS);
                    members.used("nvext.cache_control", true);
                }
                hints.cache_control = control.or(hints.cache_control);
                let recompute = value.get("recompute").and_then(Value::as_bool);
                hints.recompute = recompute.or(hints.recompute);
                hints.pin_scope = parse_scope(value, members.warnings);
            }
            "cache_salt" => {
                let salt = members.text("cache_salt");
                members.used("nvext.cache_salt", salt.is_some());
                hints.cache_salt = salt.or(hints.cache_salt.take());
            }
            "router" => parse_router(value, request),
            "extra_fields" => {
                hints.extra_fields = members.texts("extra_fields");
                let wants = |name: &str| hints.extra_fields.iter().any(|field| field == name);
                members.used("nvext.extra_fields", wants("used"));
                members.idle("nvext.extra_fields", !hints.extra_fields.is_empty());
            }
            "max_thinking_tokens" => {
                let tokens = members.number("max_thinking_tokens", 0.0, f64::from(u32::MAX));
                members.idle("nvext.max_thinking_tokens", tokens.is_some());
                request.thinking_tokens_max = tokens.map(|tokens| tokens as u32);
            }
            "annotations" => nat::parse_annotations(value, request),
            "kv_hints" | "kv_hint" => kv::parse(value, "nvext.kv_hints", request),
            "agent_context" => parse_agent_context(value, request),
            "session_id" => {
                let session = members.text("session_id");
                let explicit = &mut request.body_identity.explicit;
                if session.is_some() && explicit.session.is_none() {
                    explicit.named_by = Some("nvext.session_id");
                    explicit.session = session;
                }
            }
            "session_control" => parse_session_control(value, request),
            other => {
                let known = NVEXT_IDLE.iter().find(|n| n.strip_prefix("nvext.") == Some(other));
                match known {
                    Some(known) => members.idle(known, true),
                    None => {
                        let shown: String = other.chars().take(64).collect();
                        request.warn(format!("`nvext.{shown}` ignored: unknown"));
                    }
                }
            }
        }
    }
}

/// `priority` without `agent_hints` around it, as some clients put it; the one inside wins.
fn parse_bare_priority(members: &mut Members<'_>, hints: &mut Hints) {
    let priority = members.priority();
    let Some(priority) = priority else { return };
    if hints.priority.is_none() {
        hints.priority = Some(priority);
        members.used("nvext.priority", true);
    } else {
        members.idle("nvext.priority", true);
    }
}

fn parse_agent_hints(value: &Value, request: &mut Request) {
    let (warnings, uses) = (&mut request.warnings, &mut request.uses);
    let Some(mut members) = Members::of(value, "nvext.agent_hints", warnings, uses) else { return };
    const KNOWN: [&str; 8] = [
        "priority",
        "strict_priority",
        "latency_sensitivity",
        "osl",
        "speculative_prefill",
        "prefix_id",
        "total_requests",
        "iat",
    ];
    members.warn_unknown(&KNOWN);
    let hints = &mut request.hints;
    let u32_max = f64::from(u32::MAX);
    if let Some(priority) = members.priority() {
        hints.priority = Some(priority);
        members.used("agent_hints.priority", true);
        members.uses.had_no_effect(&["nvext.priority"]);
    }
    hints.strict_priority = members.number("strict_priority", 0.0, u32_max).map(|p| p as u32);
    members.used("agent_hints.strict_priority", hints.strict_priority.is_some());
    hints.latency_sensitivity = members.number("latency_sensitivity", 0.0, 1e9);
    if let Some(sensitivity) = hints.latency_sensitivity {
        members.used("agent_hints.latency_sensitivity", true);
        // It was the older form of `priority`, too.
        if hints.priority.is_none() {
            hints.priority = Some(sensitivity.round() as i32);
        }
    }
    if let Some(osl) = members.length("osl", nat::OSL_TOKENS) {
        hints.osl = Some(osl);
        members.used("agent_hints.osl", true);
    }
    hints.speculative_prefill = members.flag("speculative_prefill").unwrap_or(false);
    members.used("agent_hints.speculative_prefill", hints.speculative_prefill);
    let nat = nat::Nat {
        prefix_id: members.text("prefix_id"),
        total_requests: members.number("total_requests", 0.0, u32_max).map(|n| n as u32),
        iat_ms: members.length("iat", nat::IAT_MS),
        osl: None,
    };
    nat.apply(hints, &mut request.uses, &nat::AGENT_HINTS);
}

fn parse_router(value: &Value, request: &mut Request) {
    let (warnings, uses) = (&mut request.warnings, &mut request.uses);
    let Some(mut members) = Members::of(value, "nvext.router", warnings, uses) else { return };
    let hints = &mut request.hints;
    hints.ttft_target_ms = members.number("ttft_target", 0.0, 1e9);
    hints.itl_target_ms = members.number("itl_target", 0.0, 1e9);
    members.idle("router.ttft_target", hints.ttft_target_ms.is_some());
    members.idle("router.itl_target", hints.itl_target_ms.is_some());
}

fn parse_agent_context(value: &Value, request: &mut Request) {
    let (warnings, uses) = (&mut request.warnings, &mut request.uses);
    let Some(mut members) = Members::of(value, "nvext.agent_context", warnings, uses) else {
        return;
    };
    let session = members.text("session_id");
    let agent = members.text("trajectory_id");
    let evicts = value.pointer("/kv_hints/evict_session").and_then(Value::as_bool);
    let identity = SessionIds {
        // A trajectory is one agent's line of a session; alone, it stands for both.
        session: session.or_else(|| agent.clone()),
        parent: members.text("parent_trajectory_id").or_else(|| members.text("parent_session_id")),
        session_final: members.flag("trajectory_final").unwrap_or(false)
            || members.flag("session_final").unwrap_or(false)
            || evicts == Some(true),
        agent,
        named_by: Some("nvext.agent_context"),
        ..SessionIds::default()
    };
    members.used("agent_context.session_final", identity.session_final);
    let before = std::mem::replace(&mut request.body_identity.explicit, identity);
    let explicit = &mut request.body_identity.explicit;
    explicit.session_final |= before.session_final;
    if explicit.session.is_none() {
        explicit.session = before.session;
        explicit.named_by = before.named_by;
    }
}

fn parse_session_control(value: &Value, request: &mut Request) {
    let (warnings, uses) = (&mut request.warnings, &mut request.uses);
    let Some(mut members) = Members::of(value, "nvext.session_control", warnings, uses) else {
        return;
    };
    let session = members.text("session_id");
    let action = members.text("action");
    let closes = match action.as_deref() {
        Some("close") => true,
        Some("open") | None => false,
        Some(_) => {
            members.ignored("action", "`open` or `close`");
            false
        }
    };
    members.used("session_control.action", closes);
    members.idle("session_control.action", action.as_deref() == Some("open"));
    members.idle("session_control.timeout", members.get("timeout").is_some());
    let explicit = &mut request.body_identity.explicit;
    if session.is_some() {
        explicit.session = session;
        explicit.named_by = Some("nvext.session_control");
    }
    explicit.session_final |= closes;
}

/// Notes what is known of the hints once the whole body was read.
pub(crate) fn settle(request: &mut Request) {
    if !request.conversation.breakpoints().is_empty() {
        request.uses.used("breakpoints");
    }
    // The client's name for what its requests have in common names the session if nothing else does.
    let inferred = &mut request.body_identity.inferred;
    if inferred.session.is_none() && request.hints.prefix_id.is_some() {
        inferred.session.clone_from(&request.hints.prefix_id);
        inferred.named_by = Some("prefix_id");
    }
    let warned = |words: &str| {
        request.warnings.iter().filter(|text| is_hint(text) && text.contains(words)).count()
    };
    let (ignored, clipped) = (warned("` ignored: "), warned("` clipped to "));
    for _ in 0..ignored + warned("` not understood, ") {
        request.tell(HINT_IGNORED);
    }
    for _ in 0..clipped {
        request.tell("hint-clipped");
    }
}

/// Whether a warning is about a hint rather than about a member of the API.
fn is_hint(warning: &str) -> bool {
    let heads = ["`nvext", "`cache_", "`prompt_cache", "`kv_"];
    heads.iter().any(|head| warning.starts_with(head)) || warning.contains("cache_control")
}

/// The word for a hint that made no sense.
pub(crate) const HINT_IGNORED: &str = "hint-ignored";

#[cfg(test)]
mod tests;
