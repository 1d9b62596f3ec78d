//! What `tests/gpu/check.py` has the engine do on a GPU: logits of given tokens, and times of steps.
//!
//! Usage: gpu logits MODEL_DIR TOKENS.bin OUT.bin CHUNK     u32 in, f32 out, machine's byte order
//!        gpu time MODEL_DIR                                 one JSON object a line

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mainstay_kernels::{Pool, Span};
use mainstay_native::checkpoint::Checkpoint;
use mainstay_native::compute::{Compute, Device, DeviceLimits};
use mainstay_native::config::ModelConfig;
use mainstay_native::model::Batch;
use serde_json::json;

const BLOCK_TOKENS: usize = 16;
const STEP_TOKENS: usize = 8192;
const LOGITS_ROWS: usize = 512;
/// Steps of a measurement, the first of which do not count.
const WARM: usize = 3;
const RUNS: usize = 15;
/// Batch and context of the decoding that is measured.
const DECODES: [(usize, usize); 6] =
    [(1, 16), (1, 1_024), (1, 131_056), (32, 16), (32, 2_048), (32, 16_384)];
const PREFILLS: [usize; 3] = [512, 4_096, 8_192];
const RESTORED_BLOCKS: u32 = 512;

fn open(folder: &Path, context: usize, blocks: u32) -> Result<Device> {
    let bytes = std::fs::read(folder.join("config.json")).context("reading config.json")?;
    let config = ModelConfig::parse("config.json", &bytes)?;
    let limits = DeviceLimits {
        step_tokens_max: STEP_TOKENS,
        logits_rows_max: LOGITS_ROWS,
        block_tokens: BLOCK_TOKENS,
        context_tokens_max: context.min(config.context_tokens_max),
    };
    let checkpoint = Checkpoint::open(folder)?;
    Ok(Device::open(0, config, &checkpoint, limits, |_, _| Ok(blocks))?)
}

fn step(device: &mut Device, batch: &Batch<'_>) -> Result<Vec<f32>> {
    let logits = device.step(batch, &Pool::new(1));
    Ok(logits.map_err(|failure| anyhow::anyhow!(failure.reason))?.to_vec())
}

fn logits(folder: &Path, tokens: &Path, out: &Path, chunk: usize) -> Result<()> {
    let bytes = std::fs::read(tokens)?;
    let tokens: Vec<u32> =
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    ensure!(chunk > 0 && chunk <= LOGITS_ROWS, "chunks have 1 to {LOGITS_ROWS} tokens");
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
    let mut device = open(folder, tokens.len(), blocks)?;
    let table: Vec<u32> = (0..blocks).rev().collect();
    let mut all = Vec::new();
    for start in (0..tokens.len()).step_by(chunk) {
        let rows = chunk.min(tokens.len() - start);
        let span = Span { block_table: &table, start, rows, row_offset: 0 };
        let wanted: Vec<u32> = (0..rows as u32).collect();
        let batch =
            Batch { tokens: &tokens[start..start + rows], spans: &[span], logits_rows: &wanted };
        all.extend(step(&mut device, &batch)?.into_iter().flat_map(f32::to_ne_bytes));
    }
    std::fs::write(out, all)?;
    Ok(())
}

/// The median of some runs, in milliseconds.
fn median_ms(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for index in 0..WARM + RUNS {
        let started = Instant::now();
        run()?;
        if index >= WARM {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

fn decode(device: &mut Device, batch: usize, context: usize) -> Result<f64> {
    let per = context.div_ceil(BLOCK_TOKENS) + 1;
    let tables: Vec<Vec<u32>> =
        (0..batch).map(|s| (s * per..(s + 1) * per).map(|block| block as u32).collect()).collect();
    let spans: Vec<Span<'_>> = tables
        .iter()
        .enumerate()
        .map(|(row, table)| Span { block_table: table, start: context, rows: 1, row_offset: row })
        .collect();
    let tokens: Vec<u32> = (0..batch as u32).map(|row| row * 7 + 5).collect();
    let wanted: Vec<u32> = (0..batch as u32).collect();
    median_ms(|| {
        step(device, &Batch { tokens: &tokens, spans: &spans, logits_rows: &wanted }).map(drop)
    })
}

fn prefill(device: &mut Device, rows: usize) -> Result<f64> {
    let table: Vec<u32> = (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect();
    let tokens: Vec<u32> = (0..rows as u32).map(|row| row % 1000 + 5).collect();
    let span = Span { block_table: &table, start: 0, rows, row_offset: 0 };
    let wanted = [rows as u32 - 1];
    median_ms(|| {
        step(device, &Batch { tokens: &tokens, spans: &[span], logits_rows: &wanted }).map(drop)
    })
}

fn restore(device: &mut Device) -> Result<f64> {
    let bytes = vec![0u8; device.block_bytes()];
    median_ms(|| {
        for block in 0..RESTORED_BLOCKS {
            device.write_block(block, &bytes).map_err(|failure| anyhow::anyhow!(failure.reason))?;
        }
        // A step waits for the copies before it.
        let table = [0];
        let span = Span { block_table: &table, start: 0, rows: 1, row_offset: 0 };
        step(device, &Batch { tokens: &[5], spans: &[span], logits_rows: &[] }).map(drop)
    })
}

fn time(folder: &Path) -> Result<()> {
    let (mut blocks, mut context) = (RESTORED_BLOCKS as usize, STEP_TOKENS);
    for (batch, tokens) in DECODES {
        blocks = blocks.max(batch * (tokens.div_ceil(BLOCK_TOKENS) + 1));
        context = context.max(tokens + BLOCK_TOKENS);
    }
    let mut device = open(folder, context, blocks as u32)?;
    println!("{}", json!({"device": device.name(), "weight_bytes": device.weight_bytes()}));
    for (batch, context) in DECODES {
        let ms = decode(&mut device, batch, context)?;
        println!("{}", json!({"what": "decode", "batch": batch, "context": context, "ms": ms}));
    }
    for rows in PREFILLS {
        let ms = prefill(&mut device, rows)?;
        println!("{}", json!({"what": "prefill", "tokens": rows, "ms": ms}));
    }
    let ms = restore(&mut device)?;
    let bytes = RESTORED_BLOCKS as usize * device.block_bytes();
    println!("{}", json!({"what": "restore", "bytes": bytes, "ms": ms}));
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["logits", folder, tokens, out, chunk] => {
            logits(folder.as_ref(), tokens.as_ref(), out.as_ref(), chunk.parse()?)
        }
        ["time", folder] => time(folder.as_ref()),
        _ => bail!("gpu logits MODEL_DIR TOKENS.bin OUT.bin CHUNK, or gpu time MODEL_DIR"),
    }
}
