//! The forward pass against transformers, and against itself: whatever the chunks, the batch, the
//! blocks' size and places or the number of threads, the bits are the same.

use crate::common::{Bench, FIXTURES, Golden, folder, golden, request};
use mainstay_kernels::{KvPool, Pool, Precision, Span};
use mainstay_native::model::{Batch, Model, Scratch};
use mainstay_native::options::{ModelPlace, Options};
use mainstay_native::{bundled_demo, load_model};
use serde_json::json;

/// The bound that any f32 implementation keeps.
const TOLERANCE: f32 = 1e-3;
/// bf16 arithmetic and cache against f32: logits of these models have a standard deviation of about
/// 3.
const TOLERANCE_BF16: f32 = 0.3;

fn load(name: &str, precision: Precision) -> Model {
    let mut options = Options::parse("{}").unwrap();
    options.place = ModelPlace::Folder(folder(name));
    options.precision = precision;
    load_model(&options).unwrap()
}

struct Setting<'a> {
    block_tokens: usize,
    chunk: usize,
    threads: usize,
    /// Multiplies block numbers, so that a sequence's blocks lie scattered.
    scatter: u32,
    /// Other sequences in every batch.
    company: &'a [&'a [u32]],
}

impl Default for Setting<'_> {
    fn default() -> Self {
        Self { block_tokens: 16, chunk: usize::MAX, threads: 1, scatter: 1, company: &[] }
    }
}

const BLOCKS: u32 = 211;

/// Logits of every position of `tokens`, computed in chunks.
fn logits(model: &Model, tokens: &[u32], setting: &Setting<'_>) -> Vec<f32> {
    let pool = Pool::new(setting.threads);
    let mut kv =
        KvPool::new(model.kv_shape(setting.block_tokens), BLOCKS as usize, model.kv_type());
    let mut scratch = Scratch::default();
    let mut taken = 0;
    let mut table = |length: usize| -> Vec<u32> {
        let count = length.div_ceil(setting.block_tokens) as u32;
        taken += count;
        (taken - count..taken).map(|block| (block + 1) * setting.scatter % BLOCKS).collect()
    };
    let sequences: Vec<&[u32]> = setting.company.iter().copied().chain([tokens]).collect();
    let tables: Vec<Vec<u32>> = sequences.iter().map(|s| table(s.len())).collect();
    let mut out = Vec::new();
    let mut start = 0;
    while start < tokens.len() {
        let mut batch_tokens = Vec::new();
        let mut spans = Vec::new();
        for (sequence, table) in sequences.iter().zip(&tables) {
            let begin = start.min(sequence.len());
            let rows = setting.chunk.min(sequence.len() - begin);
            let row_offset = batch_tokens.len();
            batch_tokens.extend_from_slice(&sequence[begin..begin + rows]);
            if rows > 0 {
                spans.push(Span { block_table: table, start: begin, rows, row_offset });
            }
        }
        let own = *spans.last().unwrap();
        let logits_rows: Vec<u32> =
            (own.row_offset..own.row_offset + own.rows).map(|r| r as u32).collect();
        let batch = Batch { tokens: &batch_tokens, spans: &spans, logits_rows: &logits_rows };
        out.extend_from_slice(model.forward(&batch, &mut kv, &mut scratch, &pool).unwrap());
        start += own.rows;
    }
    out
}

fn worst(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |w, d| if d.is_nan() { d } else { w.max(d) })
}

#[test]
fn prefill_chunks_and_decoding_agree_with_transformers() {
    for name in FIXTURES {
        let Golden { input, logits: wanted, .. } = golden(name);
        let model = load(name, Precision::F32Math);
        for chunk in [200, 64, 16, 7, 1] {
            let got = logits(&model, &input, &Setting { chunk, ..Setting::default() });
            let worst = worst(&got, &wanted);
            println!("{name} exact, chunks of {chunk}: off by {worst:.2e}");
            assert!(worst <= TOLERANCE, "{name}: {worst}");
        }
    }
}

#[test]
fn bf16_arithmetic_stays_near() {
    let Golden { input, logits: wanted, .. } = golden("llama-bf16-legacy");
    let model = load("llama-bf16-legacy", Precision::Bf16Math);
    for chunk in [200, 1] {
        let worst =
            worst(&logits(&model, &input, &Setting { chunk, ..Setting::default() }), &wanted);
        println!("fast, chunks of {chunk}: off by {worst:.2e}");
        assert!(worst <= TOLERANCE_BF16, "{worst}");
    }
}

#[test]
fn bits_do_not_depend_on_how_a_sequence_is_computed() {
    for (name, precision) in FIXTURES
        .map(|name| (name, Precision::F32Math))
        .into_iter()
        .chain([("llama-bf16-legacy", Precision::Bf16Math)])
    {
        let Golden { input, greedy, .. } = golden(name);
        let model = load(name, precision);
        let plain = logits(&model, &input, &Setting::default());
        let company: [&[u32]; 3] = [&greedy, &input[..1], &input[50..]];
        for setting in [
            Setting { chunk: 1, ..Setting::default() },
            Setting { chunk: 13, ..Setting::default() },
            Setting { chunk: 32, threads: 3, ..Setting::default() },
            Setting { block_tokens: 4, ..Setting::default() },
            Setting { block_tokens: 64, chunk: 100, ..Setting::default() },
            Setting { scatter: 37, threads: 2, ..Setting::default() },
            Setting { company: &company, threads: 2, ..Setting::default() },
            Setting {
                company: &company,
                chunk: 9,
                scatter: 50,
                block_tokens: 8,
                ..Setting::default()
            },
        ] {
            let other = logits(&model, &input, &setting);
            let same = plain.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                same && plain.len() == other.len(),
                "{name} {precision:?}: block_tokens {} chunk {} threads {} company {}",
                setting.block_tokens,
                setting.chunk,
                setting.threads,
                setting.company.len()
            );
        }
    }
}

#[test]
fn only_the_wanted_rows_are_answered() {
    let Golden { input, .. } = golden("qwen3-f32-sharded");
    let model = load("qwen3-f32-sharded", Precision::F32Math);
    let all = logits(&model, &input, &Setting::default());
    let vocab = model.config().vocab;
    let pool = Pool::new(2);
    let mut kv = KvPool::new(model.kv_shape(16), 32, model.kv_type());
    let (front, back): (Vec<u32>, Vec<u32>) = ((0..13).collect(), (13..26).collect());
    let spans = [
        Span { block_table: &front, start: 0, rows: 120, row_offset: 0 },
        Span { block_table: &back, start: 0, rows: 80, row_offset: 120 },
    ];
    let tokens: Vec<u32> = input[..120].iter().chain(&input[..80]).copied().collect();
    let rows = [3, 119, 120, 199];
    let batch = Batch { tokens: &tokens, spans: &spans, logits_rows: &rows };
    let mut scratch = Scratch::default();
    let got = model.forward(&batch, &mut kv, &mut scratch, &pool).unwrap();
    for (row, position) in got.chunks(vocab).zip([3, 119, 0, 79]) {
        assert_eq!(row, &all[position * vocab..][..vocab]);
    }
    let none = Batch { logits_rows: &[], ..batch };
    assert!(model.forward(&none, &mut kv, &mut scratch, &pool).unwrap().is_empty());
    let outside = Batch { tokens: &[vocab as u32], spans: &spans[..0], logits_rows: &[] };
    assert!(model.forward(&outside, &mut kv, &mut scratch, &pool).is_err());
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    for name in FIXTURES {
        let Golden { input, greedy, .. } = golden(name);
        for step_tokens_max in [512, 48, 16] {
            let changes = json!({ "step_tokens_max": step_tokens_max, "requests_max": 8 });
            let ending = Bench::new(name, changes).run(request(1, &input, greedy.len() as u32));
            assert_eq!(ending.tokens, greedy, "{name}, {step_tokens_max} tokens per step");
        }
    }
}

#[test]
fn the_bundled_model_loads_and_is_whole() {
    let files = bundled_demo().files;
    assert!(files.iter().all(|(name, bytes)| !bytes.is_empty() && !name.is_empty()));
    let model = load_model(&Options::parse("{}").unwrap()).unwrap();
    assert!(!model.config().eos_tokens.is_empty());
    let tokens: Vec<u32> = (0..64).collect();
    let out = logits(&model, &tokens, &Setting { chunk: 32, ..Setting::default() });
    assert!(out.iter().all(|x| x.is_finite()));
}
