//! Speaks as llama.cpp's server does, as far as this engine hears it: slots instead of blocks, no salts, and a
//! stream that leaves out tokens which end in the middle of a character (here: every token that 7 divides).

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Gone, Out, Run, number, tokens};
use super::{State, Wanted};

fn wanted(body: &Value) -> Wanted {
    Wanted {
        prompt: tokens(body, "prompt"),
        // Its blocks are nobody's: what lies in slots is kept apart here.
        salt: format!("{:?}", std::time::Instant::now()),
        tokens_max: number(body, "n_predict") as usize,
        temperature: body["temperature"].as_f64().unwrap_or(0.8),
        seed: number(body, "seed"),
        stops: Vec::new(),
        ignores_end: body["ignore_eos"].as_bool().unwrap_or(false),
        logprobs: None,
        is_stream: body["stream"].as_bool().unwrap_or(false),
    }
}

/// Whether a token ends in the middle of a character.
fn is_part(token: u32) -> bool {
    token.is_multiple_of(7)
}

pub(crate) async fn answer(
    state: &Arc<State>,
    path: &str,
    body: &Value,
    out: &mut Out,
) -> Result<(), Gone> {
    let setting = &state.setting;
    match path {
        "/health" => out.json(200, &json!({"status": "ok"})).await,
        "/v1/models" => {
            let meta = json!({"n_vocab": setting.vocab, "n_ctx_train": setting.context});
            let model = json!({"id": "double.gguf", "object": "model", "owned_by": "llamacpp", "meta": meta});
            out.json(200, &json!({"object": "list", "data": [model]})).await
        }
        "/props" => {
            let props = json!({"total_slots": setting.requests,
                "default_generation_settings": {"n_ctx": setting.context}});
            out.json(200, &props).await
        }
        "/completion" => complete(state, body, out).await,
        _ => out.json(404, &json!({"error": {"message": "File Not Found", "code": 404}})).await,
    }
}

/// What of a prompt lies in its slot, before the slot is taken over.
fn take_slot(state: &State, body: &Value, prompt: &[u32]) -> usize {
    let mut slots = state.slots.lock().expect("no holder panics");
    let left = slots.remove(&number(body, "id_slot")).unwrap_or_default();
    if body["cache_prompt"] != json!(true) {
        return 0;
    }
    let shared = left.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    shared.min(prompt.len() - 1)
}

fn leave_slot(state: &State, body: &Value, tokens: Vec<u32>) {
    let mut slots = state.slots.lock().expect("no holder panics");
    slots.insert(number(body, "id_slot"), tokens);
}

async fn complete(state: &State, body: &Value, out: &mut Out) -> Result<(), Gone> {
    let wanted = wanted(body);
    if wanted.prompt.len() >= state.setting.context {
        let error = json!({"code": 400, "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error"});
        return out.json(400, &json!({ "error": error })).await;
    }
    // As the real one does since it checks the ranges of fields.
    if body["repeat_last_n"].as_u64().is_none_or(|n| n > i32::MAX as u64) {
        let error = json!({"code": 400, "message": "Field 'repeat_last_n': Value must be between 0 <= value <= 2147483647",
            "type": "invalid_request_error"});
        return out.json(400, &json!({ "error": error })).await;
    }
    let is_stream = wanted.is_stream;
    let mut run = Run::begin(state, wanted).await?;
    let cached = take_slot(state, body, &run.wanted.prompt);
    if is_stream {
        out.begin_stream().await?;
        let progress = json!({"total": run.wanted.prompt.len(), "cache": cached, "processed": 1, "time_ms": 1});
        let event = json!({"index": 0, "content": "", "tokens": [0], "stop": false, "id_slot": 0,
            "tokens_predicted": 0, "tokens_evaluated": 1, "prompt_progress": progress});
        out.event(&event.to_string()).await?;
    }
    let stop = loop {
        let (token, finish) = run.step().await;
        if is_stream && !is_part(token) {
            let event = json!({"index": 0, "content": "x", "tokens": [token], "stop": false,
                "id_slot": 0, "tokens_predicted": run.said.len(), "tokens_evaluated": 1});
            out.event(&event.to_string()).await?;
        }
        if run.fails(out).await {
            return Err(Gone);
        }
        if let Some(finish) = finish {
            break if finish == "stop" { "eos" } else { "limit" };
        }
    };
    let all = [run.wanted.prompt.as_slice(), &run.said].concat();
    leave_slot(state, body, all[..all.len() - 1].to_vec());
    let said: &[u32] = if is_stream { &[] } else { &run.said };
    let last = json!({"index": 0, "content": "", "tokens": said, "id_slot": 0, "stop": true,
        "tokens_predicted": run.said.len(), "tokens_evaluated": run.wanted.prompt.len(),
        "stop_type": stop, "timings": {"cache_n": cached, "prompt_n": 1}});
    drop(run);
    if !is_stream {
        return out.json(200, &last).await;
    }
    out.event(&last.to_string()).await?;
    out.end_stream().await
}
