//! SGLang's `/generate`, which speaks token ids by itself.

use mainstay_engine_abi::sdk::{EngineError, Logprob, Request};
use serde_json::{Value, json};

use super::{Call, Delta, End, Manner, count, float, ranked, seed, token, tokens};

pub(super) fn call(request: &Request, manner: &Manner) -> Call {
    let sampling = &request.sampling;
    let mut params = json!({
        "max_new_tokens": sampling.tokens_max,
        "min_new_tokens": sampling.tokens_min,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) },
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": sampling.stop_tokens,
        "skip_special_tokens": false,
        "no_stop_trim": true,
    });
    if let Some(seed) = seed(request, 31) {
        params["sampling_seed"] = json!(seed);
    }
    let mut body = json!({
        "input_ids": request.tokens,
        "sampling_params": params,
        "stream": true,
        "extra_key": manner.salt,
    });
    if sampling.logprobs > 0 {
        body["return_logprob"] = json!(true);
        body["top_logprobs_num"] = json!(sampling.logprobs - 1);
        body["logprob_start_len"] = json!(-1);
    }
    if manner.priority && request.priority != 0 {
        body["priority"] = json!(request.priority);
    }
    Call { path: "/generate", body }
}

/// What is new in a list of which `before` was there: all of it, or its tail where every event repeats all.
fn news<T>(list: &[T], before: usize, total: usize) -> Option<&[T]> {
    if list.len() == total {
        list.get(before..)
    } else if list.len() + before == total {
        Some(list)
    } else {
        None
    }
}

pub(super) fn read(value: &Value, before: usize) -> Result<Delta, &'static str> {
    const WRONG: &str = "tokens that do not add up";
    let meta = value.get("meta_info").ok_or("an event without meta_info")?;
    let mut delta = Delta { cached_tokens: count(meta.get("cached_tokens")), ..Delta::default() };
    let list = tokens(value.get("output_ids"))?;
    let total = count(meta.get("completion_tokens")).ok_or("no completion_tokens")? as usize;
    delta.tokens = news(&list, before, total).ok_or(WRONG)?.to_vec();
    if let Some(logprobs) = meta.get("output_token_logprobs").and_then(Value::as_array) {
        let own = news(logprobs, before, total).ok_or(WRONG)?;
        let top = meta.get("output_top_logprobs").and_then(Value::as_array);
        let top = match top {
            Some(top) => news(top, before, total).ok_or(WRONG)?,
            None => &[],
        };
        delta.logprobs = read_logprobs(own, top)?;
    }
    let reason = meta.get("finish_reason").filter(|reason| !reason.is_null());
    if let Some(reason) = reason {
        delta.end = Some(end(reason)?);
        delta.is_last = true;
    }
    Ok(delta)
}

fn end(reason: &Value) -> Result<End, &'static str> {
    match reason.get("type").and_then(Value::as_str) {
        Some("length") => Ok(End::Length),
        Some("stop") => Ok(End::Stop(reason.get("matched").and_then(token))),
        Some("abort") => {
            let said = crate::http::message_of(reason.to_string().as_bytes());
            let status = reason.get("status_code").and_then(Value::as_u64).unwrap_or(500);
            let text = format!("SGLang aborts: {said}");
            Ok(End::Failed(if (400..500).contains(&status) {
                EngineError::invalid(text)
            } else {
                EngineError::unavailable(text)
            }))
        }
        _ => Err("an end of an unknown kind"),
    }
}

/// `[logprob, token, text]`.
fn pair(value: &Value) -> Option<(u32, f32)> {
    Some((value.get(1).and_then(token)?, float(value.get(0))?))
}

fn read_logprobs(own: &[Value], top: &[Value]) -> Result<Vec<Logprob>, &'static str> {
    const WRONG: &str = "logprobs of another form";
    let mut all = Vec::new();
    for (position, value) in own.iter().enumerate() {
        let chosen = pair(value).ok_or(WRONG)?;
        let likeliest: Option<Vec<(u32, f32)>> =
            top.get(position).and_then(Value::as_array).into_iter().flatten().map(pair).collect();
        all.extend(ranked(position, chosen, likeliest.ok_or(WRONG)?));
    }
    Ok(all)
}
