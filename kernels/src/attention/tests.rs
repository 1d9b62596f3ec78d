//! Tests of attention: each instruction set against double precision, and rows that depend neither
//! on chunks, nor on blocks, nor on the company they are computed in.

use proptest::prelude::*;

use super::kv::{KvPool, KvShape, KvType};
use super::{Span, attention_on};
use crate::isa::Isa;
use crate::matmul::tests::numbers;
use crate::pool::Pool;

/// A sequence's queries, keys and values, apart from any pool.
struct Sequence {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, tokens: usize, seed: u64) -> Sequence {
        let q = numbers(tokens * heads * head_dim, seed).iter().map(|x| x * 4.0).collect();
        let k = numbers(tokens * kv_heads * head_dim, seed + 1);
        let v = numbers(tokens * kv_heads * head_dim, seed + 2);
        Sequence { heads, kv_heads, head_dim, q, k, v }
    }

    fn tokens(&self) -> usize {
        self.q.len() / (self.heads * self.head_dim)
    }

    fn shape(&self, block_tokens: usize) -> KvShape {
        KvShape { layers: 2, kv_heads: self.kv_heads, head_dim: self.head_dim, block_tokens }
    }

    /// Writes keys and values to layer 1 through `table`.
    fn write(&self, kv: &mut KvPool, table: &[u32]) {
        let (width, block_tokens) = (self.kv_heads * self.head_dim, kv.shape().block_tokens);
        for position in 0..self.tokens() {
            let (k, v) = (&self.k[position * width..][..width], &self.v[position * width..]);
            let block = table[position / block_tokens];
            kv.write(1, block, position % block_tokens, k, &v[..width]);
        }
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// One row in double precision.
    fn reference(&self, position: usize, head: usize) -> Vec<f64> {
        let (hd, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let kv_head = head / (self.heads / self.kv_heads);
        let q = &self.q[(position * self.heads + head) * hd..][..hd];
        let at = |j: usize| j * width + kv_head * hd;
        let dot = |j: usize| -> f64 {
            let terms = q.iter().zip(&self.k[at(j)..]);
            terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * f64::from(self.scale())
        };
        let scores: Vec<f64> = (0..=position).map(dot).collect();
        let peak = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - peak).exp()).sum();
        let mut out = vec![0.0; hd];
        for (j, s) in scores.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(&self.v[at(j)..]) {
                *out += (s - peak).exp() / sum * f64::from(*v);
            }
        }
        out
    }

    /// All rows, in chunks of `chunk`, through blocks of `block_tokens` in the order of `table`.
    fn run(&self, isa: Isa, kv_type: KvType, layout: &Layout) -> Vec<f32> {
        let mut kv = KvPool::new(self.shape(layout.block_tokens), layout.blocks, kv_type);
        // What other sequences left behind must not matter, not even if it is no number.
        for block in 0..layout.blocks as u32 {
            kv.block_bytes_mut(block).fill(0xff);
        }
        self.write(&mut kv, &layout.table);
        let pool = Pool::new(layout.threads);
        let mut out = vec![f32::NAN; self.q.len()];
        for start in (0..self.tokens()).step_by(layout.chunk) {
            let rows = layout.chunk.min(self.tokens() - start);
            let span = Span { block_table: &layout.table, start, rows, row_offset: start };
            attention_on(isa, &self.q, self.heads, &[span], 1, &kv, self.scale(), &mut out, &pool);
        }
        out
    }
}

/// How a sequence is stored and computed.
struct Layout {
    block_tokens: usize,
    blocks: usize,
    table: Vec<u32>,
    chunk: usize,
    threads: usize,
}

impl Layout {
    /// Blocks scattered over a pool larger than the sequence.
    fn scattered(tokens: usize, block_tokens: usize, chunk: usize, seed: u64) -> Layout {
        let blocks = tokens.div_ceil(block_tokens) * 2 + 1;
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        for (i, x) in numbers(blocks, seed).iter().enumerate() {
            table.swap(i, (x.abs() * blocks as f32) as usize % blocks);
        }
        table.truncate(tokens.div_ceil(block_tokens));
        Layout { block_tokens, blocks, table, chunk, threads: 1 + seed as usize % 3 }
    }
}

fn check(sequence: &Sequence, isa: Isa, kv_type: KvType, layout: &Layout) {
    let out = sequence.run(isa, kv_type, layout);
    let tolerance = if kv_type == KvType::F32 { 3e-6 } else { 3e-2 };
    for (row, out) in out.chunks(sequence.head_dim).enumerate() {
        let want = sequence.reference(row / sequence.heads, row % sequence.heads);
        for (out, want) in out.iter().zip(want) {
            let error = (f64::from(*out) - want).abs();
            assert!(error < tolerance, "{isa:?} {kv_type:?} row {row}: {out} instead of {want}");
        }
    }
}

#[test]
fn every_instruction_set_matches_double_precision() {
    for (heads, kv_heads, head_dim, tokens) in [
        (1, 1, 1, 1),
        (2, 1, 3, 70),
        (4, 2, 48, 131),
        (14, 2, 64, 65),
        (16, 8, 128, 40),
        (3, 3, 20, 200),
        (40, 1, 33, 20),
        (130, 1, 8, 9),
    ] {
        let sequence = Sequence::new(heads, kv_heads, head_dim, tokens, 5);
        for isa in Isa::available() {
            for kv_type in [KvType::F32, KvType::Bf16] {
                check(&sequence, isa, kv_type, &Layout::scattered(tokens, 16, tokens, 1));
            }
        }
    }
}

#[test]
fn rows_depend_neither_on_chunks_nor_on_blocks() {
    for (heads, kv_heads, head_dim) in [(4, 2, 48), (7, 1, 64), (2, 2, 20)] {
        let tokens = 211;
        let sequence = Sequence::new(heads, kv_heads, head_dim, tokens, 11);
        for isa in Isa::available() {
            for kv_type in [KvType::F32, KvType::Bf16] {
                let whole = sequence.run(isa, kv_type, &Layout::scattered(tokens, 16, tokens, 1));
                for (chunk, block_tokens) in
                    [(1, 16), (7, 1), (16, 7), (33, 64), (64, 128), (100, 300)]
                {
                    let layout = Layout::scattered(tokens, block_tokens, chunk, chunk as u64);
                    let out = sequence.run(isa, kv_type, &layout);
                    assert!(out == whole, "{isa:?} {kv_type:?} {head_dim} {chunk} {block_tokens}");
                }
            }
        }
    }
}

/// Several sequences in one call, some with one row and some with many: as each alone.
#[test]
fn rows_do_not_depend_on_their_company() {
    let lengths = [5, 190, 64, 65, 1];
    let sequences: Vec<Sequence> =
        lengths.iter().map(|tokens| Sequence::new(6, 3, 32, *tokens, *tokens as u64)).collect();
    for isa in Isa::available() {
        let mut kv = KvPool::new(sequences[0].shape(16), 40, KvType::F32);
        let mut next = 0;
        let mut tables = Vec::new();
        for sequence in &sequences {
            let blocks = sequence.tokens().div_ceil(16) as u32;
            tables.push((next..next + blocks).rev().collect::<Vec<u32>>());
            next += blocks;
            sequence.write(&mut kv, tables.last().expect("just pushed"));
        }
        let row = 6 * 32;
        let (mut q, mut spans, mut want) = (Vec::new(), Vec::new(), Vec::new());
        for ((sequence, table), rows) in sequences.iter().zip(&tables).zip([5, 1, 40, 1, 1]) {
            let start = sequence.tokens() - rows;
            spans.push(Span { block_table: table, start, rows, row_offset: q.len() / row });
            q.extend_from_slice(&sequence.q[start * row..]);
            let layout = Layout::scattered(sequence.tokens(), 16, sequence.tokens(), 3);
            want.extend_from_slice(&sequence.run(isa, KvType::F32, &layout)[start * row..]);
        }
        q.extend_from_slice(&[0.0; 6 * 32]);
        want.extend_from_slice(&[7.0; 6 * 32]);
        for threads in [1, 2, 4] {
            let mut out = vec![7.0; q.len()];
            let scale = sequences[0].scale();
            let pool = Pool::new(threads);
            attention_on(isa, &q, 6, &spans, 1, &kv, scale, &mut out, &pool);
            assert!(out == want, "{isa:?} {threads} threads");
        }
    }
}

#[test]
fn no_rows_and_scores_without_bounds_are_no_accident() {
    let kv = KvPool::new(
        KvShape { layers: 1, kv_heads: 1, head_dim: 8, block_tokens: 4 },
        1,
        KvType::F32,
    );
    let pool = Pool::new(2);
    for isa in Isa::available() {
        attention_on(isa, &[], 2, &[], 0, &kv, 1.0, &mut [], &pool);
        let empty = Span { block_table: &[], start: 0, rows: 0, row_offset: 0 };
        attention_on(isa, &[], 2, &[empty], 0, &kv, 1.0, &mut [], &pool);
        let mut kv = KvPool::new(kv.shape(), 1, KvType::F32);
        kv.write(0, 0, 0, &[f32::NEG_INFINITY; 8], &[1.0; 8]);
        let span = Span { block_table: &[0], start: 0, rows: 1, row_offset: 0 };
        let mut out = [f32::NAN; 8];
        attention_on(isa, &[1.0; 8], 1, &[span], 0, &kv, 1.0, &mut out, &pool);
        assert_eq!(out, [0.0; 8], "{isa:?}");
    }
}

#[test]
fn spans_that_reach_too_far_are_refused() {
    let kv = KvPool::new(
        KvShape { layers: 1, kv_heads: 1, head_dim: 2, block_tokens: 4 },
        2,
        KvType::F32,
    );
    let pool = Pool::new(1);
    let good = Span { block_table: &[0, 1], start: 0, rows: 2, row_offset: 0 };
    let refused = |spans: &[Span<'_>], heads: usize, layer: usize| {
        let mut out = vec![0.0; 2 * 2 * heads];
        let q = out.clone();
        let run = std::panic::AssertUnwindSafe(|| {
            attention_on(Isa::best(), &q, heads, spans, layer, &kv, 1.0, &mut out, &pool);
        });
        std::panic::catch_unwind(run).is_err()
    };
    assert!(!refused(&[good], 1, 0));
    assert!(refused(&[good], 0, 0));
    assert!(refused(&[good], 1, 1));
    assert!(refused(&[good, good], 1, 0));
    assert!(refused(&[Span { rows: 3, ..good }], 1, 0));
    assert!(refused(&[Span { start: 7, ..good }], 1, 0));
    assert!(refused(&[Span { start: usize::MAX, ..good }], 1, 0));
    assert!(refused(&[Span { row_offset: usize::MAX, ..good }], 1, 0));
    assert!(refused(&[Span { block_table: &[2], ..good }], 1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape_matches_double_precision(
        kv_heads in 1usize..4, group in 1usize..6, head_dim in 1usize..80, tokens in 1usize..180,
        block_tokens in 1usize..40, chunk in 1usize..90, seed in 0u64..1000,
    ) {
        let sequence = Sequence::new(kv_heads * group, kv_heads, head_dim, tokens, seed);
        let layout = Layout::scattered(tokens, block_tokens, chunk, seed);
        for isa in Isa::available() {
            for kv_type in [KvType::F32, KvType::Bf16] {
                check(&sequence, isa, kv_type, &layout);
            }
        }
    }
}
