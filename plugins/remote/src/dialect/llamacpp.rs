//! llama.cpp's `/completion`.
//!
//! Its stream leaves out tokens that end in the middle of a character, and says so only by its count; such a hole
//! is told, and the request goes on at once from where it was ([`Delta::has_hole`]). Its probabilities have the
//! same holes where an answer comes at once, so logprobs are not offered.

use mainstay_engine_abi::sdk::Request;
use serde_json::{Value, json};

use super::{Call, Delta, End, Manner, count, seed, tokens};

pub(super) fn call(request: &Request, manner: &Manner) -> Call {
    let sampling = &request.sampling;
    let mut body = json!({
        "prompt": request.tokens,
        "n_predict": sampling.tokens_max,
        "stream": !manner.at_once,
        "return_tokens": true,
        "return_progress": !manner.at_once,
        "id_slot": manner.slot,
        "cache_prompt": manner.reuse,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": penalised(request),
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "ignore_eos": sampling.ignore_eos,
        // Only what was asked for, whatever the server was started with.
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "stop": [],
    });
    if let Some(seed) = seed(request, 31) {
        body["seed"] = json!(seed);
    }
    Call { path: "/completion", body }
}

/// How many tokens back penalties look: over all that there can be, which it has no word for.
fn penalised(request: &Request) -> usize {
    let sampling = &request.sampling;
    let has_none = sampling.repetition_penalty == 1.0
        && sampling.frequency_penalty == 0.0
        && sampling.presence_penalty == 0.0;
    let all = request.tokens.len().saturating_add(sampling.tokens_max as usize);
    if has_none { 0 } else { all.min(i32::MAX as usize) }
}

pub(super) fn read(value: &Value, before: usize) -> Result<Delta, &'static str> {
    let mut delta = Delta::default();
    if let Some(cached) = value.pointer("/prompt_progress/cache") {
        // A word about the prompt; the token that stands in it is none.
        delta.cached_tokens = count(Some(cached));
        return Ok(delta);
    }
    if let Some(cached) = value.pointer("/timings/cache_n") {
        delta.cached_tokens = count(Some(cached));
    }
    delta.tokens = tokens(value.get("tokens"))?;
    let made = count(value.get("tokens_predicted")).unwrap_or(0) as usize;
    if made > before + delta.tokens.len() {
        delta.has_hole = true;
        // What follows the hole has no place yet.
        delta.tokens.clear();
        return Ok(delta);
    }
    if value.get("stop").and_then(Value::as_bool) == Some(true) {
        delta.is_last = true;
        let kind = value.get("stop_type").and_then(Value::as_str);
        delta.end = Some(match kind {
            Some("eos" | "word") => End::Stop(None),
            Some("limit" | "none") | None => End::Length,
            Some(_) => return Err("an end of an unknown kind"),
        });
    }
    Ok(delta)
}
