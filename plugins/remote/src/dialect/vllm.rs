//! vLLM's `/v1/completions`, with token ids both ways.

use mainstay_engine_abi::sdk::{Logprob, Request};
use serde_json::{Value, json};

use super::{Call, Delta, End, Manner, count, float, ranked, seed, token, tokens};

pub(super) fn call(request: &Request, manner: &Manner) -> Call {
    let sampling = &request.sampling;
    let mut body = json!({
        "model": manner.model,
        "prompt": request.tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
        "return_token_ids": true,
        "cache_salt": manner.salt,
        "max_tokens": sampling.tokens_max,
        "min_tokens": sampling.tokens_min,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        // 0 was no value before 0.9; -1 is off in every version.
        "top_k": if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) },
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": sampling.stop_tokens,
        "skip_special_tokens": false,
    });
    if let Some(seed) = seed(request, 63) {
        body["seed"] = json!(seed);
    }
    if sampling.logprobs > 0 {
        body["logprobs"] = json!(sampling.logprobs - 1);
        body["return_tokens_as_token_ids"] = json!(true);
    }
    if manner.priority && request.priority != 0 {
        // The other way round: lower is earlier.
        body["priority"] = json!(-i64::from(request.priority));
    }
    Call { path: "/v1/completions", body }
}

pub(super) fn read(value: &Value) -> Result<Delta, &'static str> {
    let mut delta = Delta::default();
    let cached = value.pointer("/usage/prompt_tokens_details/cached_tokens");
    delta.cached_tokens = count(cached);
    let Some(choice) = value.pointer("/choices/0") else {
        // The last event before the end has the usage alone.
        return Ok(delta);
    };
    delta.tokens = tokens(choice.get("token_ids"))?;
    if let Some(logprobs) = choice.get("logprobs").filter(|logprobs| !logprobs.is_null()) {
        delta.logprobs = read_logprobs(logprobs, &delta.tokens)?;
    }
    let has_text = choice.get("text").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    if has_text && choice.get("token_ids").is_none_or(Value::is_null) {
        return Err("text without its tokens; it is too old to return them");
    }
    delta.end = match choice.get("finish_reason").and_then(Value::as_str) {
        None => None,
        Some("length") => Some(End::Length),
        Some("stop") => Some(End::Stop(choice.get("stop_reason").and_then(token))),
        Some("abort") => {
            let message = "the request was aborted at the server";
            Some(End::Failed(mainstay_engine_abi::sdk::EngineError::unavailable(message)))
        }
        Some(_) => return Err("an end of an unknown kind"),
    };
    Ok(delta)
}

fn named(text: &str) -> Option<u32> {
    text.strip_prefix("token_id:")?.parse().ok()
}

fn read_logprobs(value: &Value, chosen: &[u32]) -> Result<Vec<Logprob>, &'static str> {
    const WRONG: &str = "logprobs that do not fit their tokens";
    let of_chosen = value.get("token_logprobs").and_then(Value::as_array).ok_or(WRONG)?;
    let likeliest = value.get("top_logprobs").and_then(Value::as_array);
    if of_chosen.len() != chosen.len() {
        return Err(WRONG);
    }
    let mut all = Vec::new();
    for (position, (token, own)) in chosen.iter().zip(of_chosen).enumerate() {
        let own = float(Some(own)).ok_or(WRONG)?;
        let top = likeliest.and_then(|list| list.get(position)).and_then(Value::as_object);
        let top: Option<Vec<(u32, f32)>> = top
            .into_iter()
            .flatten()
            .map(|(name, value)| Some((named(name)?, float(Some(value))?)))
            .collect();
        all.extend(ranked(position, (*token, own), top.ok_or(WRONG)?));
    }
    Ok(all)
}
