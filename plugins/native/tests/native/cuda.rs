//! The engine on a GPU that is emulated: the driver's double, and the kernels' own sources on the CPU.
//!
//! What is shown is that everything fits together, near what transformers computed and the same bits however a sequence
//! is computed; nothing here has met a GPU.

use std::sync::Arc;

use mainstay_conformance::reading::outputs;
use mainstay_cuda_double::{Fault, set_fault, turn};
use mainstay_engine_abi::sdk::{Code, Engine, Finish, Health, HostLog, Lanes};
use mainstay_kernels::{Pool, Span};
use mainstay_native::NativeEngine;
use mainstay_native::checkpoint::Checkpoint;
use mainstay_native::compute::{Compute, Device, DeviceLimits};
use mainstay_native::config::ModelConfig;
use mainstay_native::model::Batch;
use serde_json::{Value, json};

use crate::common::{Bench, Golden, config, folder, golden, request};

/// Those whose heads are of a size that has a kernel.
const MODELS: [&str; 3] = ["llama-f32", "qwen2-f32", "qwen3-f32-sharded"];
/// bf16 weights, activations and cache against f32: logits of these models have a standard deviation of about 3.
const TOLERANCE: f32 = 0.3;

fn device(name: &str, block_tokens: usize) -> Device {
    let bytes = std::fs::read(folder(name).join("config.json")).unwrap();
    let config = ModelConfig::parse("config.json", &bytes).unwrap();
    let checkpoint = Checkpoint::open(&folder(name)).unwrap();
    let limits = DeviceLimits {
        step_tokens_max: 640,
        logits_rows_max: 256,
        block_tokens,
        context_tokens_max: 512,
    };
    Device::open(0, config, &checkpoint, limits, |_, _| Ok(211)).unwrap()
}

/// Logits of every position of `tokens`, computed in chunks beside `company`, with blocks anywhere.
fn logits(device: &mut Device, tokens: &[u32], chunk: usize, company: &[&[u32]]) -> Vec<f32> {
    let block_tokens = device.kv_shape().block_tokens;
    let mut taken = 0;
    let mut table = |length: usize| -> Vec<u32> {
        let count = length.div_ceil(block_tokens) as u32;
        taken += count;
        (taken - count..taken).map(|block| (block + 1) * 37 % 211).collect()
    };
    let sequences: Vec<&[u32]> = company.iter().copied().chain([tokens]).collect();
    let tables: Vec<Vec<u32>> = sequences.iter().map(|s| table(s.len())).collect();
    let mut out = Vec::new();
    let mut start = 0;
    while start < tokens.len() {
        let (mut batch_tokens, mut spans) = (Vec::new(), Vec::new());
        for (sequence, table) in sequences.iter().zip(&tables) {
            let begin = start.min(sequence.len());
            let rows = chunk.min(sequence.len() - begin);
            if rows > 0 {
                let row_offset = batch_tokens.len();
                spans.push(Span { block_table: table, start: begin, rows, row_offset });
                batch_tokens.extend_from_slice(&sequence[begin..begin + rows]);
            }
        }
        let own = *spans.last().unwrap();
        let logits_rows: Vec<u32> =
            (own.row_offset..own.row_offset + own.rows).map(|row| row as u32).collect();
        let batch = Batch { tokens: &batch_tokens, spans: &spans, logits_rows: &logits_rows };
        out.extend_from_slice(device.step(&batch, &Pool::new(1)).unwrap());
        start += own.rows;
    }
    out
}

#[test]
fn logits_stay_near_those_of_transformers_and_do_not_depend_on_how_they_are_computed() {
    let _turn = turn();
    for name in MODELS {
        let Golden { input, logits: wanted, greedy } = golden(name);
        let whole = logits(&mut device(name, 16), &input, usize::MAX, &[]);
        let off = whole.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        println!("{name} on the emulated device: off by {off:.2e}");
        assert!(off <= TOLERANCE && whole.iter().all(|x| x.is_finite()), "{name}: {off}");
        let same = |other: Vec<f32>, how: &str| {
            let same = whole.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && whole.len() == other.len(), "{name}: {how}");
        };
        same(logits(&mut device(name, 16), &input, 13, &[]), "chunks of 13");
        same(logits(&mut device(name, 4), &input, 64, &[&greedy, &input[..1]]), "in company");
    }
    let Golden { input, .. } = golden(MODELS[0]);
    let short = &input[..20];
    let whole = logits(&mut device(MODELS[0], 16), short, usize::MAX, &[]);
    assert_eq!(logits(&mut device(MODELS[0], 16), short, 1, &[]), whole, "token by token");
}

fn on_gpu(changes: &Value) -> Value {
    let mut all = json!({
        "device": "cuda", "precision": "fast", "step_tokens_max": 64, "requests_max": 8,
    });
    for (member, value) in changes.as_object().unwrap() {
        all[member] = value.clone();
    }
    all
}

#[test]
fn requests_are_served_from_the_cache_and_blocks_move() {
    let _turn = turn();
    let name = MODELS[0];
    let Golden { input, .. } = golden(name);
    let mut bench = Bench::new(name, on_gpu(&json!({})));
    assert_eq!(bench.scheduler.compute().name(), "cuda:0 emulated device");
    let first = bench.run(request(1, &input, 12));
    assert_eq!((first.tokens.len(), first.cached_tokens), (12, 0));
    let again = bench.run(request(2, &input, 12));
    assert!(again.cached_tokens as usize >= input.len() / 16 * 16 - 16, "{}", again.cached_tokens);
    assert_eq!((&again.tokens, &again.logprobs), (&first.tokens, &first.logprobs));
    // Beside others, with other chunks.
    let mut other = Bench::new(name, on_gpu(&json!({ "step_tokens_max": 24, "block_tokens": 8 })));
    for id in 0..4 {
        other.submit(request(id, &input[..input.len() - 7 * id as usize], 12));
    }
    other.finish();
    assert_eq!(other.ending(0).tokens, first.tokens);
}

#[test]
fn blocks_that_move_to_another_gpu_need_not_be_computed_there() {
    let _turn = turn();
    let name = MODELS[0];
    let Golden { input, .. } = golden(name);
    let (mut from, mut to) = (device(name, 16), device(name, 16));
    let whole = logits(&mut from, &input, usize::MAX, &[]);
    let (held, pool) = (64, Pool::new(1));
    let there = |block: u32| (block + 1) * 37 % 211;
    let table: Vec<u32> = (0..input.len().div_ceil(16) as u32).map(|block| block * 5).collect();
    let mut bytes = vec![0; to.block_bytes()];
    for block in 0..held as u32 / 16 {
        from.read_block(there(block), &mut bytes).unwrap();
        to.write_block(table[block as usize], &bytes).unwrap();
    }
    let rows = input.len() - held;
    let span = Span { block_table: &table, start: held, rows, row_offset: 0 };
    let all: Vec<u32> = (0..rows as u32).collect();
    let batch = Batch { tokens: &input[held..], spans: &[span], logits_rows: &all };
    assert_eq!(*to.step(&batch, &pool).unwrap(), whole[held * from.config().vocab..]);
}

#[test]
fn what_a_gpu_lacks_is_told_and_the_cpu_goes_on() {
    let _turn = turn();
    let create = |changes: Value| {
        let lanes = Arc::new(Lanes::new());
        let config = config(MODELS[0], changes);
        let engine = NativeEngine::create(&config, Arc::clone(&lanes), HostLog::silent());
        engine.map(|engine| (engine, lanes))
    };
    let error = |changes: Value| create(changes).err().unwrap();
    set_fault(Fault::NoDevice);
    let none = error(on_gpu(&json!({})));
    assert_eq!(none.rc, Code::Unavailable);
    assert!(none.message.contains("nvidia-smi"), "{}", none.message);
    let (engine, lanes) = create(on_gpu(&json!({ "device": "auto" }))).unwrap();
    assert_eq!(engine.info().device, "cpu");
    engine.submit(request(1, &[5, 6, 7], 3)).unwrap();
    assert_eq!(outputs(&lanes, 1).last().unwrap().finish, Some(Finish::Length));
    set_fault(Fault::NoMemory);
    let small = error(on_gpu(&json!({})));
    assert_eq!(small.rc, Code::Exhausted);
    assert!(small.message.contains("MiB"), "{}", small.message);
    set_fault(Fault::None);
    let other = error(on_gpu(&json!({ "model_dir": folder("llama-bf16-legacy") })));
    assert!(other.message.contains("a head of 8 numbers"), "{}", other.message);
    let unknown = json!({ "model_dir": folder("llama-bf16-legacy"), "device": "auto" });
    assert_eq!(create(on_gpu(&unknown)).unwrap().0.info().device, "cpu");
    let odd = error(on_gpu(&json!({ "block_tokens": 24 })));
    assert!(odd.message.contains("power of two"), "{}", odd.message);
    // A GPU that fails is the engine's end, and every request hears of it.
    let (engine, lanes) = create(on_gpu(&json!({ "device": "auto" }))).unwrap();
    assert_eq!(engine.info().device, "cuda:0 emulated device");
    set_fault(Fault::LaunchFails);
    engine.submit(request(1, &[5, 6, 7], 3)).unwrap();
    let all = outputs(&lanes, 1);
    let Some(Finish::Error { message, .. }) = &all.last().unwrap().finish else {
        panic!("{all:?}");
    };
    assert!(message.contains("CUDA_ERROR_LAUNCH_FAILED"), "{message}");
    let started = std::time::Instant::now();
    while engine.stats().health != Health::Fatal {
        assert!(started.elapsed() < mainstay_conformance::reading::PATIENCE, "still healthy");
        std::thread::yield_now();
    }
    assert_eq!(engine.submit(request(2, &[5], 1)).unwrap_err().rc, Code::Unavailable);
    set_fault(Fault::None);
}
