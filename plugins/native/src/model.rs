//! The forward pass over ragged batches: any mix of prompts' chunks and single new tokens, all over
//! the paged cache.
//!
//! Every row is computed from its own sequence alone, by kernels that promise the same bits
//! whatever the batch, so results do not depend on chunking, on what else is in the batch or on
//! where blocks lie. The last layer computes only the rows whose logits are asked for: the others'
//! sole purpose there is their keys and values.

mod load;
pub(crate) mod read;

use half::bf16;
use mainstay_kernels::{
    KernelError, KvPool, KvShape, KvType, PackedMatrix, Pool, Precision, Rope, Span, add_assign,
    add_rms_norm, attention, gather_bf16, gather_f32, rms_norm, silu_mul,
};

use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;
use crate::parallel::each_stretch;

/// A matrix and its bias.
struct Linear {
    matrix: PackedMatrix,
    bias: Option<Vec<f32>>,
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: Linear,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    output: Linear,
    mlp_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
}

enum Embedding {
    /// The rows of the output matrix.
    Tied,
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// A loaded model.
pub struct Model {
    config: ModelConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: PackedMatrix,
    rope: Rope,
    dtype: Dtype,
    exact: bool,
    weight_bytes: usize,
}

/// One step's rows.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// The rows' tokens.
    pub tokens: &'a [u32],
    /// Sequences, in the order of their rows, which they cover without a gap.
    pub spans: &'a [Span<'a>],
    /// Rows whose logits are wanted, ascending.
    pub logits_rows: &'a [u32],
}

/// Buffers that are reused from step to step; they grow to the largest batch.
#[derive(Default)]
pub struct Scratch {
    residual: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    attended: Vec<f32>,
    delta: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    logits: Vec<f32>,
}

fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

impl Model {
    /// Loads the weights that `config` implies. `precision` matters to bf16 weights only.
    pub fn load(
        config: ModelConfig,
        checkpoint: &Checkpoint,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        load::Loader::new(checkpoint, precision).model(config)
    }

    /// The shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The format of the checkpoint.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes of weights in memory.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// The shape of a cache block of that many tokens.
    #[must_use]
    pub fn kv_shape(&self, block_tokens: usize) -> KvShape {
        KvShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            block_tokens,
        }
    }

    /// How keys and values are kept: rounded where the arithmetic rounds anyway.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        if self.exact { KvType::F32 } else { KvType::Bf16 }
    }

    /// Computes a step: writes the rows' keys and values to `kv`, answers with `[logits_rows,
    /// vocab]`.
    pub fn forward<'s>(
        &self,
        batch: &Batch<'_>,
        kv: &mut KvPool,
        scratch: &'s mut Scratch,
        pool: &Pool,
    ) -> Result<&'s mut [f32], KernelError> {
        let mut rows = batch.tokens.len();
        let Some(last) = self.layers.len().checked_sub(1).filter(|_| rows > 0) else {
            return Ok(&mut []);
        };
        let hidden = self.config.hidden;
        self.embed(batch.tokens, sized(&mut scratch.residual, rows * hidden))?;
        sized(&mut scratch.normed, rows * hidden);
        self.norm(&self.layers[0].attention_norm, rows, scratch, pool);
        let narrow: Vec<Span<'_>>;
        let mut spans = batch.spans;
        for (index, layer) in self.layers.iter().enumerate() {
            self.turn(layer, rows, spans, scratch, pool);
            self.keep(index, spans, kv, scratch);
            if index == last && batch.logits_rows.len() < rows {
                if batch.logits_rows.is_empty() {
                    return Ok(&mut []);
                }
                narrow = self.narrow(batch, scratch);
                (spans, rows) = (&narrow, narrow.len());
                self.attend_and_mix(index, rows, spans, kv, scratch, pool);
                break;
            }
            self.attend_and_mix(index, rows, spans, kv, scratch, pool);
        }
        let logits = sized(&mut scratch.logits, rows * self.config.vocab);
        self.head.matmul(&scratch.normed[..rows * hidden], rows, logits, pool);
        Ok(logits)
    }

    fn embed(&self, tokens: &[u32], out: &mut [f32]) -> Result<(), KernelError> {
        let hidden = self.config.hidden;
        match &self.embedding {
            Embedding::F32(table) => gather_f32(table, hidden, tokens, out),
            Embedding::Bf16(table) => gather_bf16(table, hidden, tokens, out),
            Embedding::Tied => {
                for (token, row) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
                    if *token as usize >= self.head.n() {
                        return Err(KernelError::TokenOutOfRange {
                            token: *token,
                            rows: self.head.n(),
                        });
                    }
                    self.head.unpack_row(*token as usize, row);
                }
                Ok(())
            }
        }
    }

    fn norm(&self, weight: &[f32], rows: usize, scratch: &mut Scratch, pool: &Pool) {
        let (hidden, epsilon) = (self.config.hidden, self.config.norm_epsilon);
        let residual = &mut scratch.residual[..rows * hidden];
        let normed = &mut scratch.normed[..rows * hidden];
        each_stretch(pool, rows, [residual, normed], |_, [residual, normed]| {
            rms_norm(residual, weight, epsilon, normed);
        });
    }

    /// Adds `delta` and a bias to the residual and norms the sum.
    fn add_and_norm(
        &self,
        bias: Option<&[f32]>,
        weight: &[f32],
        rows: usize,
        scratch: &mut Scratch,
        pool: &Pool,
    ) {
        let (hidden, epsilon) = (self.config.hidden, self.config.norm_epsilon);
        let residual = &mut scratch.residual[..rows * hidden];
        let normed = &mut scratch.normed[..rows * hidden];
        let delta = &mut scratch.delta[..rows * hidden];
        each_stretch(pool, rows, [residual, normed, delta], |_, [residual, normed, delta]| {
            add_bias(delta, bias);
            add_rms_norm(residual, delta, weight, epsilon, normed);
        });
    }

    /// Queries, keys and values of all rows: product, biases, head norms, rotation.
    fn turn(
        &self,
        layer: &Layer,
        rows: usize,
        spans: &[Span<'_>],
        scratch: &mut Scratch,
        pool: &Pool,
    ) {
        let config = &self.config;
        let (query_width, kv_width) = (config.query_width(), config.kv_width());
        let width = query_width + 2 * kv_width;
        let qkv = sized(&mut scratch.qkv, rows * width);
        layer.qkv.matrix.matmul(&scratch.normed[..rows * config.hidden], rows, qkv, pool);
        let query = sized(&mut scratch.query, rows * query_width);
        let key = sized(&mut scratch.key, rows * kv_width);
        let head_norm = |norm: &Option<Vec<f32>>, from: &[f32], to: &mut [f32]| match norm {
            Some(weight) => rms_norm(from, weight, config.norm_epsilon, to),
            None => to.copy_from_slice(from),
        };
        each_stretch(pool, rows, [qkv, query, key], |first, [qkv, query, key]| {
            add_bias(qkv, layer.qkv.bias.as_deref());
            let turned = query.chunks_exact_mut(query_width).zip(key.chunks_exact_mut(kv_width));
            let mut position = Positions::new(spans, first);
            for (row, (query, key)) in qkv.chunks_exact(width).zip(turned) {
                let position = position.next();
                head_norm(&layer.query_norm, &row[..query_width], query);
                head_norm(&layer.key_norm, &row[query_width..query_width + kv_width], key);
                self.rope.apply(query, config.head_dim, position);
                self.rope.apply(key, config.head_dim, position);
            }
        });
    }

    /// Writes keys and values to the cache.
    fn keep(&self, layer: usize, spans: &[Span<'_>], kv: &mut KvPool, scratch: &Scratch) {
        let (query_width, kv_width) = (self.config.query_width(), self.config.kv_width());
        let width = query_width + 2 * kv_width;
        let block_tokens = kv.shape().block_tokens;
        for span in spans {
            for index in 0..span.rows {
                let (row, position) = (span.row_offset + index, span.start + index);
                let key = &scratch.key[row * kv_width..][..kv_width];
                let value = &scratch.qkv[row * width + query_width + kv_width..][..kv_width];
                let block = span.block_table[position / block_tokens];
                kv.write(layer, block, position % block_tokens, key, value);
            }
        }
    }

    /// Attention and the feed-forward layer, up to the next layer's normed input.
    fn attend_and_mix(
        &self,
        index: usize,
        rows: usize,
        spans: &[Span<'_>],
        kv: &KvPool,
        scratch: &mut Scratch,
        pool: &Pool,
    ) {
        let config = &self.config;
        let layer = &self.layers[index];
        let (hidden, query_width, inner) =
            (config.hidden, config.query_width(), config.intermediate);
        let query = &scratch.query[..rows * query_width];
        let attended = sized(&mut scratch.attended, rows * query_width);
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        attention(query, config.heads, spans, index, kv, scale, attended, pool);
        let delta = sized(&mut scratch.delta, rows * hidden);
        layer.output.matrix.matmul(attended, rows, delta, pool);
        self.add_and_norm(layer.output.bias.as_deref(), &layer.mlp_norm, rows, scratch, pool);
        let gate_up = sized(&mut scratch.gate_up, rows * 2 * inner);
        layer.gate_up.matrix.matmul(&scratch.normed[..rows * hidden], rows, gate_up, pool);
        let gated = sized(&mut scratch.gated, rows * inner);
        each_stretch(pool, rows, [gate_up, gated], |_, [gate_up, gated]| {
            add_bias(gate_up, layer.gate_up.bias.as_deref());
            for (both, out) in gate_up.chunks_exact(2 * inner).zip(gated.chunks_exact_mut(inner)) {
                let (gate, up) = both.split_at(inner);
                silu_mul(gate, up, out);
            }
        });
        let delta = sized(&mut scratch.delta, rows * hidden);
        layer.down.matrix.matmul(&scratch.gated[..rows * inner], rows, delta, pool);
        let next = self.layers.get(index + 1).map_or(&self.final_norm, |next| &next.attention_norm);
        self.add_and_norm(layer.down.bias.as_deref(), next, rows, scratch, pool);
    }

    /// Moves the rows whose logits are wanted to the front and answers with a span for each.
    fn narrow<'a>(&self, batch: &Batch<'a>, scratch: &mut Scratch) -> Vec<Span<'a>> {
        let (hidden, query_width) = (self.config.hidden, self.config.query_width());
        let mut spans = Vec::with_capacity(batch.logits_rows.len());
        let mut of = batch.spans.iter();
        let mut current = of.next();
        for (index, row) in batch.logits_rows.iter().enumerate() {
            let row = *row as usize;
            while current.is_some_and(|span| row >= span.row_offset + span.rows) {
                current = of.next();
            }
            let Some(span) = current else { break };
            // Rows ascend, so nothing that is still wanted is overwritten.
            scratch.residual.copy_within(row * hidden..(row + 1) * hidden, index * hidden);
            scratch
                .query
                .copy_within(row * query_width..(row + 1) * query_width, index * query_width);
            let start = span.start + row - span.row_offset;
            spans.push(Span { block_table: span.block_table, start, rows: 1, row_offset: index });
        }
        spans
    }
}

fn add_bias(rows: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    }
}

/// The positions of successive rows.
struct Positions<'a> {
    spans: std::slice::Iter<'a, Span<'a>>,
    position: usize,
    left: usize,
}

impl<'a> Positions<'a> {
    fn new(spans: &'a [Span<'a>], row: usize) -> Self {
        let at = spans.partition_point(|span| span.row_offset + span.rows <= row);
        let mut positions = Self { spans: spans[at..].iter(), position: 0, left: 0 };
        positions.open();
        let skipped = spans.get(at).map_or(0, |span| row - span.row_offset);
        positions.position += skipped;
        positions.left -= skipped;
        positions
    }

    fn open(&mut self) {
        if let Some(span) = self.spans.next() {
            (self.position, self.left) = (span.start, span.rows);
        }
    }

    /// The next row's position; rows past all spans go on counting, and nobody reads them.
    fn next(&mut self) -> usize {
        if self.left == 0 {
            self.open();
        }
        self.left = self.left.saturating_sub(1);
        self.position += 1;
        self.position - 1
    }
}
