//! The engine's door: threads, lanes, draining, death and configuration.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_conformance::reading::{PATIENCE, op, outputs, pins_and_snapshots};
use mainstay_engine_abi::sdk::{Code, Engine, Finish, Health, HostLog, Lanes, Request, caps};
use mainstay_native::NativeEngine;
use serde_json::{Value, json};

use crate::common::{Golden, config, folder, golden, request};

const LLAMA: &str = "llama-f32";

fn open(changes: Value) -> (NativeEngine, Arc<Lanes>) {
    let lanes = Arc::new(Lanes::new());
    let engine =
        NativeEngine::create(&config(LLAMA, changes), Arc::clone(&lanes), HostLog::silent())
            .unwrap();
    (engine, lanes)
}

#[test]
fn requests_go_through_the_lanes() {
    let Golden { input, greedy, .. } = golden(LLAMA);
    let (engine, lanes) = open(json!({}));
    let info = engine.info();
    assert_eq!((info.vocab, info.context_tokens_max, info.block_tokens), (288, 512, 16));
    assert_eq!((info.model.as_str(), info.device.as_str()), (LLAMA, "cpu"));
    assert_eq!(info.model_dir, folder(LLAMA).to_string_lossy());
    assert_eq!(engine.stats().health, Health::Ok);
    for id in 0..4 {
        engine.submit(request(id, &input, 32)).unwrap();
    }
    let all = outputs(&lanes, 4);
    for id in 0..4 {
        let tokens: Vec<u32> =
            all.iter().filter(|o| o.id == id).flat_map(|o| o.tokens.clone()).collect();
        assert_eq!(tokens, greedy);
    }
    assert!(all.iter().filter(|o| o.first).count() == 4);
    let stats = engine.stats();
    assert!(stats.decode_tokens >= 4 * 31 && stats.running == 0 && stats.blocks_used == 0);
}

#[test]
fn live_ids_are_refused_and_free_again_after_their_end() {
    let (engine, lanes) = open(json!({}));
    engine.submit(request(7, &[5, 6, 7], 400)).unwrap();
    assert_eq!(engine.submit(request(7, &[5], 1)).unwrap_err().rc, Code::Exists);
    engine.cancel(7);
    engine.cancel(7);
    engine.cancel(8);
    let all = outputs(&lanes, 1);
    assert_eq!(all.last().unwrap().finish, Some(Finish::Cancelled));
    engine.submit(request(7, &[5], 1)).unwrap();
    assert_eq!(outputs(&lanes, 1).last().unwrap().finish, Some(Finish::Length));
}

#[test]
fn wrong_requests_are_refused_at_the_door() {
    let (engine, _lanes) = open(json!({ "blocks": 4 }));
    for wrong in
        [request(1, &[], 1), request(1, &[1; 65], 1), request(1, &[288], 1), request(1, &[1], 0)]
    {
        assert_eq!(engine.submit(wrong).unwrap_err().rc, Code::Invalid);
    }
    assert_eq!(engine.stats().waiting, 0);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let (engine, lanes) = open(json!({ "requests_max": 1 }));
    let mut accepted = 0u64;
    let error = loop {
        match engine.submit(request(accepted, &[3; 100], 400)) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10_000, "the queue is not bounded");
    };
    assert_eq!(error.rc, Code::Exhausted);
    assert!(error.retry_after_ms > 0);
    assert!(accepted > 1000);
    drop(engine);
    let finals = outputs(&lanes, accepted as usize);
    assert_eq!(finals.iter().filter(|o| o.finish.is_some()).count() as u64, accepted);
}

#[test]
fn draining_refuses_waits_and_cancels_what_is_left() {
    let (engine, lanes) = open(json!({ "requests_max": 1 }));
    for id in 0..40 {
        engine.submit(request(id, &[3 + id as u32; 50], 450)).unwrap();
    }
    engine.drain(Duration::from_millis(20)).unwrap();
    assert_eq!(engine.submit(request(99, &[3], 1)).unwrap_err().rc, Code::Unavailable);
    assert_eq!(engine.stats().health, Health::Draining);
    let all = outputs(&lanes, 40);
    assert!(all.iter().any(|o| o.finish == Some(Finish::Cancelled)));
    engine.drain(Duration::ZERO).unwrap();
}

#[test]
fn dropping_ends_every_request_and_answers_every_operation() {
    let (engine, lanes) = open(json!({ "requests_max": 1 }));
    for id in 0..10 {
        engine.submit(request(id, &[3 + id as u32; 50], 450)).unwrap();
    }
    engine.kv_snapshot(5).unwrap();
    drop(engine);
    assert_eq!(outputs(&lanes, 10).iter().filter(|o| o.finish.is_some()).count(), 10);
    assert_eq!(op(&lanes).0, 5);
}

#[test]
fn pins_and_snapshots_are_operations() {
    let Golden { input, .. } = golden(LLAMA);
    let (engine, lanes) = open(json!({}));
    engine.submit(request(1, &input, 1)).unwrap();
    let _ = outputs(&lanes, 1);
    pins_and_snapshots(&engine, &lanes, 12);
}

#[test]
fn a_host_that_does_not_read_holds_decoding_back() {
    // An output for each token: sixty streams of 100 tokens are more than the lane takes.
    let (engine, lanes) = open(json!({ "blocks": 1024, "draft_tokens_max": 0 }));
    for id in 0..60 {
        engine.submit(request(id, &[3 + id as u32; 20], 100)).unwrap();
    }
    let started = Instant::now();
    while lanes.output_has_room() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!lanes.output_has_room());
    let drawn = engine.stats().decode_tokens;
    std::thread::sleep(Duration::from_millis(30));
    assert!(engine.stats().decode_tokens <= drawn + 60, "it went on decoding");
    assert_eq!(engine.stats().running, 60);
    let all = outputs(&lanes, 60);
    let total: usize = all.iter().map(|o| o.tokens.len()).sum();
    assert_eq!(total, 60 * 100);
}

#[test]
fn broken_models_and_settings_are_errors_with_words() {
    let copy = tempfile::TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder(LLAMA).join(file), copy.path().join(file)).unwrap();
    }
    let create = |config: Value| {
        let lanes = Arc::new(Lanes::new());
        NativeEngine::create(&config.to_string(), lanes, HostLog::silent()).err()
    };
    let here = json!({ "model_dir": copy.path(), "blocks": 8 });
    assert!(create(here.clone()).is_none(), "the copy is whole");
    let weights = copy.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    assert!(create(here.clone()).unwrap().message.contains("model.safetensors"));
    fs::write(&weights, &bytes).unwrap();
    let model_config = fs::read_to_string(copy.path().join("config.json")).unwrap();
    for (from, to, word) in [
        ("\"hidden_size\": 64", "\"hidden_size\": 128", "shape"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
        ("\"vocab_size\": 288", "\"vocab_size\": 287", "shape"),
        ("LlamaForCausalLM", "OtherForCausalLM", "OtherForCausalLM"),
        ("{", "", "JSON"),
    ] {
        assert!(model_config.contains(from));
        fs::write(copy.path().join("config.json"), model_config.replacen(from, to, 1)).unwrap();
        let error = create(here.clone()).expect(to);
        assert!(error.message.contains(word), "{to}: {error}");
    }
    fs::write(copy.path().join("config.json"), &model_config).unwrap();
    for (member, value, word) in [
        ("context_tokens_max", json!(513), "512"),
        ("blocks", json!(0), "blocks"),
        ("modle", json!(1), "modle"),
        ("model_dir", json!("/nowhere/at/all"), "config.json"),
    ] {
        let mut wrong = here.clone();
        wrong[member] = value;
        let error = create(wrong).expect(member);
        assert!(error.message.contains(word), "{member}: {error}");
    }
    let huge = create(json!({ "model_dir": copy.path(), "kv_bytes": u64::MAX })).map(|e| e.rc);
    assert!(huge.is_none() || huge == Some(Code::Exhausted), "{huge:?}");
}

#[test]
fn the_bundled_model_is_the_default() {
    let lanes = Arc::new(Lanes::new());
    let engine =
        NativeEngine::create(r#"{"threads": 1}"#, Arc::clone(&lanes), HostLog::silent()).unwrap();
    let info = engine.info();
    assert_eq!((info.model.as_str(), info.model_dir.as_str()), ("demo", ""));
    let sampled = Request { id: 3, ..request(3, &[1, 2, 3], 5) };
    engine.submit(sampled).unwrap();
    let tokens: usize = outputs(&lanes, 1).iter().map(|o| o.tokens.len()).sum();
    assert_eq!(tokens, 5);
    const { assert!(NativeEngine::CAPS & caps::NAMESPACE != 0) };
}
