//! Speaks as SGLang 0.5's server does, as far as this engine hears it: every event repeats all tokens.

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Gone, Out, Run, number, tokens};
use super::{State, Wanted};

fn wanted(body: &Value) -> Wanted {
    let params = &body["sampling_params"];
    Wanted {
        prompt: tokens(body, "input_ids"),
        salt: body["extra_key"].as_str().unwrap_or_default().to_owned(),
        tokens_max: number(params, "max_new_tokens") as usize,
        temperature: params["temperature"].as_f64().unwrap_or(1.0),
        seed: number(params, "sampling_seed"),
        stops: tokens(params, "stop_token_ids"),
        ignores_end: params["ignore_eos"].as_bool().unwrap_or(false),
        logprobs: body["return_logprob"]
            .as_bool()
            .unwrap_or(false)
            .then(|| number(body, "top_logprobs_num") as usize),
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
            let model = json!({"id": "double", "object": "model", "owned_by": "sglang",
                "root": "/nowhere", "max_model_len": setting.context});
            out.json(200, &json!({"object": "list", "data": [model]})).await
        }
        "/get_server_info" => {
            let info = json!({"page_size": setting.block_tokens, "version": "0.5.23",
                "max_total_num_tokens": setting.block_tokens * setting.blocks,
                "max_running_requests": setting.requests});
            out.json(200, &info).await
        }
        "/generate" => generate(state, body, out).await,
        _ => out.json(404, &json!({"detail": "Not Found"})).await,
    }
}

async fn generate(state: &State, body: &Value, out: &mut Out) -> Result<(), Gone> {
    let wanted = wanted(body);
    if wanted.prompt.is_empty() || wanted.prompt.len() + wanted.tokens_max > state.setting.context {
        let error = json!({"message": "Requested token count exceeds the context"});
        return out.json(400, &json!({ "error": error })).await;
    }
    let mut run = Run::begin(state, wanted).await?;
    out.begin_stream().await?;
    loop {
        let (token, finish) = run.step().await;
        let reason = match finish {
            Some("stop") => json!({"type": "stop", "matched": token}),
            Some(_) => json!({"type": "length", "length": run.said.len()}),
            None => Value::Null,
        };
        let mut meta = json!({"id": "r", "prompt_tokens": run.wanted.prompt.len(),
            "completion_tokens": run.said.len(), "cached_tokens": run.cached_tokens(),
            "finish_reason": reason});
        if let Some(count) = run.wanted.logprobs {
            let of = |token: &u32| json!([-0.25, token, null]);
            let top = |token: &u32| {
                let pair = |n: u32| json!([-0.25 - f64::from(n), (token + n) % 1000, null]);
                Value::Array((0..count as u32).map(pair).collect())
            };
            meta["output_token_logprobs"] = run.said.iter().map(of).collect();
            meta["output_top_logprobs"] = run.said.iter().map(top).collect();
        }
        let event = json!({"text": "x", "output_ids": run.said, "meta_info": meta});
        out.event(&event.to_string()).await?;
        if run.fails(out).await {
            return Err(Gone);
        }
        if finish.is_some() {
            break;
        }
    }
    drop(run);
    out.event("[DONE]").await?;
    out.end_stream().await
}
