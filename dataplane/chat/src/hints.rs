//! Hints: what a client knows about its own future.
//!
//! They come from `nvext` (the names NVIDIA Dynamo and its clients use), from `cache_control`,
//! and from a few members of each API. A hint is never worth failing a request for: unknown
//! members, wrong types and values out of range turn into warnings, and the rest of the hints
//! still count.

use serde_json::{Map, Value};

use crate::ir::CacheControl;
use crate::limits::{ID_BYTES_MAX, TTL_DEFAULT_MS};
use crate::request::{Request, push_warning};
use crate::session::SessionIds;
use crate::ttl::parse_ttl;

/// What the client told about urgency, length and reuse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// `agent_hints.priority`: higher is more urgent.
    pub priority: Option<i32>,
    /// `agent_hints.strict_priority`: queue tier that always goes first.
    pub strict_priority: Option<u32>,
    /// `agent_hints.latency_sensitivity`: how much this turn minds waiting.
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

/// Members of `nvext` that are known but mean nothing here; no warning for them.
const NVEXT_IGNORED: [&str; 14] = [
    "greed_sampling",
    "use_raw_prompt",
    "annotations",
    "backend_instance_id",
    "prefill_worker_id",
    "decode_worker_id",
    "dp_rank",
    "prefill_dp_rank",
    "token_data",
    "metadata_upload",
    "request_timestamp_ms",
    "routing_constraints",
    "guided_json",
    "session_params",
];
const EXTRA_FIELDS_MAX: usize = 16;
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
    let mut hints = Hints::default();
    if let Some(control) = body.get("cache_control") {
        hints.cache_control = parse_cache_control(control, "cache_control", warnings);
        hints.recompute = control.get("recompute").and_then(Value::as_bool);
    }
    let mut top = Members { members: body, path: String::new(), warnings };
    hints.cache_salt = top.text("cache_salt");
    hints.prompt_cache_key = top.text("prompt_cache_key");
    if let Some(retention) = body.get("prompt_cache_retention").filter(|r| !r.is_null()) {
        let text = retention.as_str().unwrap_or_default();
        hints.prompt_cache_retention_ms = parse_ttl(retention).map(|ttl| ttl.ttl_ms);
        if hints.prompt_cache_retention_ms.is_none() && !text.starts_with("in") {
            top.ignored("prompt_cache_retention", "a time like \"24h\"");
        }
    }
    request.hints = hints;
    match body.get("nvext") {
        None | Some(Value::Null) => {}
        Some(Value::Object(nvext)) => parse_nvext(nvext, request),
        Some(_) => request.warn("`nvext` ignored: expected an object"),
    }
}

fn parse_nvext(nvext: &Map<String, Value>, request: &mut Request) {
    for (name, value) in nvext {
        let hints = &mut request.hints;
        let warnings = &mut request.warnings;
        let mut members = Members { members: nvext, path: "nvext.".to_owned(), warnings };
        match name.as_str() {
            "agent_hints" => parse_agent_hints(value, hints, members.warnings),
            "cache_control" => {
                let control = parse_cache_control(value, "nvext.cache_control", members.warnings);
                hints.cache_control = control.or(hints.cache_control);
                let recompute = value.get("recompute").and_then(Value::as_bool);
                hints.recompute = recompute.or(hints.recompute);
                hints.pin_scope = parse_scope(value, members.warnings);
            }
            "cache_salt" => hints.cache_salt = members.text("cache_salt"),
            "router" => parse_router(value, hints, members.warnings),
            "extra_fields" => hints.extra_fields = members.texts("extra_fields"),
            "max_thinking_tokens" => {
                let tokens = members.number("max_thinking_tokens", 0.0, f64::from(u32::MAX));
                request.thinking_tokens_max = tokens.map(|tokens| tokens as u32);
            }
            "agent_context" => parse_agent_context(value, request),
            "session_id" => {
                let session = members.text("session_id");
                request.body_identity.explicit.session = session;
            }
            "session_control" => parse_session_control(value, request),
            known if NVEXT_IGNORED.contains(&known) => {}
            unknown => {
                let shown: String = unknown.chars().take(64).collect();
                request.warn(format!("`nvext.{shown}` ignored: unknown"));
            }
        }
    }
}

fn parse_agent_hints(value: &Value, hints: &mut Hints, warnings: &mut Vec<String>) {
    let Some(mut members) = Members::of(value, "nvext.agent_hints", warnings) else { return };
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
    let u32_max = f64::from(u32::MAX);
    hints.priority =
        members.number("priority", f64::from(i32::MIN), f64::from(i32::MAX)).map(|p| p as i32);
    hints.strict_priority = members.number("strict_priority", 0.0, u32_max).map(|p| p as u32);
    hints.latency_sensitivity = members.number("latency_sensitivity", 0.0, 1e9);
    hints.osl = members.number("osl", 0.0, u32_max).map(|tokens| tokens as u32);
    hints.speculative_prefill = members.flag("speculative_prefill").unwrap_or(false);
    hints.prefix_id = members.text("prefix_id");
    hints.total_requests = members.number("total_requests", 0.0, u32_max).map(|n| n as u32);
    hints.iat_ms = members.number("iat", 0.0, u32_max).map(|ms| ms as u32);
}

fn parse_router(value: &Value, hints: &mut Hints, warnings: &mut Vec<String>) {
    let Some(mut members) = Members::of(value, "nvext.router", warnings) else { return };
    hints.ttft_target_ms = members.number("ttft_target", 0.0, 1e9);
    hints.itl_target_ms = members.number("itl_target", 0.0, 1e9);
}

fn parse_agent_context(value: &Value, request: &mut Request) {
    let warnings = &mut request.warnings;
    let Some(mut members) = Members::of(value, "nvext.agent_context", warnings) else { return };
    let session = members.text("session_id");
    let agent = members.text("trajectory_id");
    let identity = SessionIds {
        // A trajectory is one agent's line of a session; alone, it stands for both.
        session: session.or_else(|| agent.clone()),
        parent: members.text("parent_trajectory_id").or_else(|| members.text("parent_session_id")),
        session_final: members.flag("trajectory_final").unwrap_or(false)
            || members.flag("session_final").unwrap_or(false),
        agent,
        ..SessionIds::default()
    };
    request.body_identity.explicit = identity;
}

fn parse_session_control(value: &Value, request: &mut Request) {
    let warnings = &mut request.warnings;
    let Some(mut members) = Members::of(value, "nvext.session_control", warnings) else { return };
    let session = members.text("session_id");
    let closes = members.text("action").as_deref() == Some("close");
    let explicit = &mut request.body_identity.explicit;
    explicit.session = session.or_else(|| explicit.session.take());
    explicit.session_final |= closes;
}

/// Members of a hint object, read leniently.
struct Members<'a> {
    members: &'a Map<String, Value>,
    path: String,
    warnings: &'a mut Vec<String>,
}

impl<'a> Members<'a> {
    fn of(value: &'a Value, path: &str, warnings: &'a mut Vec<String>) -> Option<Members<'a>> {
        match value {
            Value::Object(members) => Some(Members { members, path: format!("{path}."), warnings }),
            Value::Null => None,
            _ => {
                push_warning(warnings, format!("`{path}` ignored: expected an object"));
                None
            }
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    fn ignored(&mut self, name: &str, expected: &str) {
        push_warning(self.warnings, format!("`{}{name}` ignored: expected {expected}", self.path));
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let value = self.get(name)?;
        match value.as_str().filter(|text| !text.is_empty() && text.len() <= ID_BYTES_MAX) {
            Some(text) => Some(text.to_owned()),
            None => {
                self.ignored(name, "a string of 1 to 256 bytes");
                None
            }
        }
    }

    fn texts(&mut self, name: &str) -> Vec<String> {
        let Some(items) = self.get(name).and_then(Value::as_array) else {
            self.ignored(name, "an array of strings");
            return Vec::new();
        };
        items
            .iter()
            .filter_map(Value::as_str)
            .filter(|text| text.len() <= ID_BYTES_MAX)
            .take(EXTRA_FIELDS_MAX)
            .map(str::to_owned)
            .collect()
    }

    fn number(&mut self, name: &str, min: f64, max: f64) -> Option<f64> {
        let value = self.get(name)?;
        let number = value.as_f64().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.ignored(name, &format!("a number from {min} to {max}"));
        }
        number
    }

    fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.get(name)?;
        if !value.is_boolean() {
            self.ignored(name, "true or false");
        }
        value.as_bool()
    }

    fn warn_unknown(&mut self, known: &[&str]) {
        for name in self.members.keys().filter(|name| !known.contains(&name.as_str())) {
            let shown: String = name.chars().take(64).collect();
            push_warning(self.warnings, format!("`{}{shown}` ignored: unknown", self.path));
        }
    }
}
