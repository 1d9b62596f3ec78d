//! Speaks as vLLM 0.32's API server does, as far as this engine hears it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Gone, Out, Run, number, tokens};
use super::{State, Wanted};

fn wanted(body: &Value) -> Wanted {
    Wanted {
        prompt: tokens(body, "prompt"),
        salt: body["cache_salt"].as_str().unwrap_or_default().to_owned(),
        tokens_max: number(body, "max_tokens") as usize,
        temperature: body["temperature"].as_f64().unwrap_or(1.0),
        seed: number(body, "seed"),
        stops: tokens(body, "stop_token_ids"),
        ignores_end: body["ignore_eos"].as_bool().unwrap_or(false),
        logprobs: body["logprobs"].as_u64().map(|n| n as usize),
        is_stream: body["stream"].as_bool().unwrap_or(false),
    }
}

pub(crate) async fn answer(
    state: &Arc<State>,
    path: &str,
    body: &Value,
    out: &mut Out,
) -> Result<(), Gone> {
    let setting = &state.setting;
    match path {
        "/health" => out.whole(200, "text/plain", "").await,
        "/v1/models" => {
            let model = json!({"id": "double", "object": "model", "owned_by": "vllm",
                "root": "/nowhere", "max_model_len": setting.context});
            out.json(200, &json!({"object": "list", "data": [model]})).await
        }
        "/metrics" => {
            let (size, blocks) = (setting.block_tokens, setting.blocks);
            let text = format!(
                "vllm:cache_config_info{{block_size=\"{size}\",engine=\"0\",num_gpu_blocks=\"{blocks}\"}} 1.0\n"
            );
            out.whole(200, "text/plain", &text).await
        }
        "/reset_prefix_cache" => {
            reset(state);
            out.whole(200, "text/plain", "").await
        }
        "/v1/completions" => complete(state, body, out).await,
        _ => out.json(404, &json!({"detail": "Not Found"})).await,
    }
}

async fn complete(state: &State, body: &Value, out: &mut Out) -> Result<(), Gone> {
    let wanted = wanted(body);
    if wanted.prompt.is_empty() || wanted.prompt.len() + wanted.tokens_max > state.setting.context {
        let error =
            json!({"message": "the context is too short", "type": "BadRequestError", "code": 400});
        return out.json(400, &json!({ "error": error })).await;
    }
    let mut run = Run::begin(state, wanted).await?;
    out.begin_stream().await?;
    loop {
        let (token, finish) = run.step().await;
        let reason =
            if finish == Some("stop") && token != super::END { json!(token) } else { Value::Null };
        let choice = json!({"index": 0, "text": format!("t{token} "), "token_ids": [token],
            "logprobs": logprobs(&run, token), "finish_reason": finish, "stop_reason": reason});
        let event = json!({"id": "cmpl-1", "object": "text_completion", "created": 1,
            "model": "double", "choices": [choice], "usage": null});
        out.event(&event.to_string()).await?;
        if run.fails(out).await {
            return Err(Gone);
        }
        if finish.is_some() {
            break;
        }
    }
    let (prompt, said) = (run.wanted.prompt.len(), run.said.len());
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": run.cached_tokens()}});
    drop(run);
    out.event(&json!({"id": "cmpl-1", "choices": [], "usage": usage}).to_string()).await?;
    out.event("[DONE]").await?;
    out.end_stream().await
}

fn logprobs(run: &Run<'_>, token: u32) -> Value {
    let Some(count) = run.wanted.logprobs else { return Value::Null };
    let mut top = serde_json::Map::new();
    top.insert(format!("token_id:{token}"), json!(-0.25));
    for n in 1..count as u32 {
        top.insert(format!("token_id:{}", (token + n) % 1000), json!(-1.0 - f64::from(n)));
    }
    let name = format!("token_id:{token}");
    json!({"token_logprobs": [-0.25], "tokens": [name], "top_logprobs": [top], "text_offset": [0]})
}

/// Empties the cache, and tells it.
fn reset(state: &State) {
    let mut cache = state.cache();
    cache.clear();
    super::http::publish(state, &mut cache);
}
