//! Requests and answers in each server's own words, as they were seen or read.

use mainstay_engine_abi::sdk::{Code, Sampling};
use serde_json::json;

use super::*;

fn request() -> Request {
    let sampling = Sampling {
        temperature: 0.5,
        top_k: 7,
        tokens_max: 9,
        seed: Some(u64::MAX),
        logprobs: 3,
        stop_tokens: vec![4, 5],
        ..Sampling::default()
    };
    Request { tokens: vec![1, 2, 3], priority: 6, sampling, ..Request::default() }
}

fn manner() -> Manner {
    Manner { model: "m".into(), salt: "s".into(), priority: true, slot: 2, ..Manner::default() }
}

#[test]
fn a_request_says_all_that_was_asked_for() {
    let body = call(Server::Vllm, &request(), &manner()).body;
    for (key, value) in [
        ("prompt", json!([1, 2, 3])),
        ("max_tokens", json!(9)),
        ("top_k", json!(7)),
        ("stop_token_ids", json!([4, 5])),
        ("cache_salt", json!("s")),
        ("priority", json!(-6)),
        ("logprobs", json!(2)),
        ("seed", json!(i64::MAX)),
        ("return_token_ids", json!(true)),
    ] {
        assert_eq!(body[key], value, "{key}");
    }
    let body = call(Server::Sglang, &request(), &manner()).body;
    assert_eq!((&body["input_ids"], &body["priority"]), (&json!([1, 2, 3]), &json!(6)));
    assert_eq!((&body["extra_key"], &body["top_logprobs_num"]), (&json!("s"), &json!(2)));
    let params = &body["sampling_params"];
    assert_eq!((&params["sampling_seed"], &params["top_k"]), (&json!(i32::MAX), &json!(7)));
    let body = call(Server::LlamaCpp, &request(), &manner()).body;
    assert_eq!((&body["id_slot"], &body["cache_prompt"]), (&json!(2), &json!(false)));
    assert_eq!((&body["n_predict"], &body["stream"]), (&json!(9), &json!(true)));
}

#[test]
fn what_is_off_is_said_so_and_priority_only_where_it_is_taken() {
    let mut plain = Request { tokens: vec![1], priority: 6, ..Request::default() };
    plain.sampling = Sampling::default();
    let quiet = Manner { priority: false, ..manner() };
    let body = call(Server::Vllm, &plain, &quiet).body;
    assert_eq!(body["top_k"], json!(-1));
    for absent in ["priority", "seed", "logprobs"] {
        assert!(body.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_request_that_moved_draws_other_numbers() {
    let mut moved = request();
    moved.sampled_before = 5;
    assert_ne!(seed(&request(), 63), seed(&moved, 63));
    let bounded =
        Request { sampling: Sampling { seed: Some(u64::MAX), ..moved.sampling }, ..moved };
    assert!(seed(&bounded, 31).unwrap() <= i32::MAX as u64);
}

#[test]
fn llama_cpp_looks_back_over_everything_where_something_is_penalised() {
    let last_n = |sampling: Sampling| {
        let request = Request { tokens: vec![1; 30], sampling, ..Request::default() };
        call(Server::LlamaCpp, &request, &manner()).body["repeat_last_n"].clone()
    };
    let plain = Sampling { tokens_max: 9, ..Sampling::default() };
    assert_eq!(last_n(plain.clone()), json!(0));
    assert_eq!(last_n(Sampling { repetition_penalty: 1.1, ..plain.clone() }), json!(39));
    assert_eq!(last_n(Sampling { presence_penalty: 0.5, ..plain.clone() }), json!(39));
    let endless = Sampling { tokens_max: u32::MAX, frequency_penalty: 1.0, ..plain };
    assert_eq!(last_n(endless), json!(i32::MAX));
}

#[test]
fn llama_cpp_says_what_it_lacks() {
    let least = Sampling { tokens_min: 2, ..Sampling::default() };
    assert_eq!(check(Server::LlamaCpp, &least).unwrap_err().rc, Code::Unimplemented);
    assert!(check(Server::Vllm, &least).is_ok());
}

fn read_all(server: Server, events: &[Value]) -> Vec<Delta> {
    let mut reader = Reader::default();
    events.iter().map(|event| reader.read(server, event.to_string().as_bytes()).unwrap()).collect()
}

#[test]
fn a_stream_of_vllm_is_read() {
    let deltas = read_all(
        Server::Vllm,
        &[
            json!({"choices": [{"index": 0, "text": "a", "token_ids": [7], "finish_reason": null,
                "prompt_token_ids": [1, 2, 3], "logprobs": {"token_logprobs": [-0.5],
                "tokens": ["token_id:7"], "top_logprobs": [{"token_id:9": -0.7, "token_id:7": -0.5}]}}]}),
            json!({"choices": [{"index": 0, "text": "", "token_ids": [8], "finish_reason": "stop",
                "stop_reason": 8}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}),
        ],
    );
    assert_eq!(deltas[0].tokens, [7]);
    let ranks: Vec<_> = deltas[0].logprobs.iter().map(|l| (l.token, l.rank)).collect();
    assert_eq!(ranks, [(7, 0), (7, 1), (9, 2)]);
    assert_eq!((&deltas[1].tokens[..], &deltas[1].end), (&[8][..], &Some(End::Stop(Some(8)))));
    assert_eq!((deltas[2].cached_tokens, deltas[2].is_last), (Some(2), false));
    assert!(Reader::default().read(Server::Vllm, b"[DONE]").unwrap().is_last);
}

#[test]
fn a_stream_of_sglang_is_read_whether_it_repeats_or_not() {
    let event = |ids: &[u32], total: u32, end: Value| {
        json!({"text": "x", "output_ids": ids, "meta_info": {"completion_tokens": total,
            "cached_tokens": 16, "finish_reason": end}})
    };
    let stop = json!({"type": "stop", "matched": 3});
    for second in [&[1, 2, 3][..], &[2, 3]] {
        let deltas = read_all(
            Server::Sglang,
            &[event(&[1], 1, Value::Null), event(second, 3, stop.clone())],
        );
        assert_eq!((&deltas[0].tokens[..], &deltas[1].tokens[..]), (&[1][..], &[2, 3][..]));
        assert_eq!((deltas[0].cached_tokens, deltas[1].is_last), (Some(16), true));
        assert_eq!(deltas[1].end, Some(End::Stop(Some(3))));
    }
    let aborted = event(&[], 0, json!({"type": "abort", "message": "no", "status_code": 400}));
    let deltas = read_all(Server::Sglang, &[aborted]);
    let Some(End::Failed(error)) = &deltas[0].end else { panic!("{deltas:?}") };
    assert_eq!((error.rc, error.message.as_str()), (Code::Invalid, "SGLang aborts: no"));
}

#[test]
fn a_stream_of_llama_cpp_is_read_and_its_holes_are_seen() {
    let token = |token: u32, made: u32| json!({"tokens": [token], "stop": false, "tokens_predicted": made, "content": "x"});
    let progress = json!({"tokens": [0], "stop": false, "tokens_predicted": 0,
        "prompt_progress": {"total": 9, "cache": 4, "processed": 9}});
    let last = json!({"tokens": [], "stop": true, "tokens_predicted": 2, "stop_type": "eos",
        "timings": {"cache_n": 4}});
    let deltas = read_all(Server::LlamaCpp, &[progress, token(5, 1), token(6, 2), last]);
    let tokens: Vec<u32> = deltas.iter().flat_map(|delta| delta.tokens.clone()).collect();
    assert_eq!((tokens, deltas[0].cached_tokens), (vec![5, 6], Some(4)));
    assert_eq!((&deltas[3].end, deltas[3].is_last), (&Some(End::Stop(None)), true));
    let deltas = read_all(Server::LlamaCpp, &[token(5, 1), token(7, 4)]);
    assert!(deltas[1].has_hole && deltas[1].tokens.is_empty());
}

#[test]
fn nonsense_is_an_error_in_words() {
    for (server, data) in [
        (Server::Vllm, "<html>"),
        (Server::Vllm, r#"{"choices": [{"token_ids": "x"}]}"#),
        (Server::Vllm, r#"{"choices": [{"text": "a", "token_ids": null}]}"#),
        (Server::Vllm, r#"{"choices": [{"token_ids": [99999999999]}]}"#),
        (Server::Vllm, r#"{"choices": [{"token_ids": [], "finish_reason": "bored"}]}"#),
        (Server::Sglang, r#"{"output_ids": [1]}"#),
        (Server::Sglang, r#"{"output_ids": [1], "meta_info": {"completion_tokens": 7}}"#),
        (Server::LlamaCpp, r#"{"tokens": [-1]}"#),
        (Server::LlamaCpp, r#"{"tokens": [], "stop": true, "stop_type": "bored"}"#),
    ] {
        let error = Reader::default().read(server, data.as_bytes()).unwrap_err();
        assert!(error.message.contains("sends"), "{data}: {error}");
    }
    let told = br#"{"error": {"message": "too long", "code": 400}}"#;
    let delta = Reader::default().read(Server::Vllm, told).unwrap();
    assert!(matches!(delta.end, Some(End::Failed(error)) if error.rc == Code::Invalid));
}
