//! A GPU.
//!
//! Weights, cache and all buffers lie in its memory; what travels is a plan of some kilobytes there and the wanted rows'
//! logits back. Buffers are as large as the largest step from the start, so that what fits once always fits. The bits of
//! a row do not depend on batch, chunk or place, as on the CPU; they are not the CPU's.

mod load;

use std::sync::Arc;

use mainstay_kernels::cuda::{
    Attention, Buffer, Context, CudaError, DeviceCache, End, HostBuffer, Kernels, Matrix, PAD,
    Plan, PlanShape, Turning,
};
use mainstay_kernels::{KvShape, KvType, Pool};

use super::{Compute, Failure};
use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;
use crate::model::Batch;

/// A matrix and its bias.
struct Linear {
    matrix: Matrix,
    bias: Option<Buffer>,
}

struct Layer {
    attention_norm: Buffer,
    qkv: Linear,
    query_norm: Option<Buffer>,
    key_norm: Option<Buffer>,
    output: Linear,
    mlp_norm: Buffer,
    /// Rows of gate and up by turns, as the kernel wants them.
    gate_up: Linear,
    down: Linear,
}

struct Weights {
    /// The rows of the head where the model ties them.
    embedding: Matrix,
    head: Option<Matrix>,
    layers: Vec<Layer>,
    final_norm: Buffer,
    /// For each position cosines and sines.
    angles: Buffer,
    /// How many numbers of a head turn with as many others.
    half: usize,
    bytes: usize,
}

/// The largest step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Rows.
    pub step_tokens_max: usize,
    /// Rows whose logits are wanted.
    pub logits_rows_max: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Positions that are ever used.
    pub context_tokens_max: usize,
}

/// Room for a step's numbers.
struct Scratch {
    residual: Buffer,
    normed: Buffer,
    qkv: Buffer,
    query: Buffer,
    attended: Buffer,
    gated: Buffer,
    chosen: Buffer,
    logits: Buffer,
    parts: [Buffer; 2],
    fetched: HostBuffer<f32>,
}

/// A model in a GPU's memory.
pub struct Device {
    config: ModelConfig,
    dtype: Dtype,
    name: String,
    limits: DeviceLimits,
    kernels: Kernels,
    weights: Weights,
    cache: DeviceCache,
    plan: Plan,
    scratch: Scratch,
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        // After any other error a GPU's context is of no use any more.
        let is_last = !matches!(error, CudaError::Memory { .. });
        Self { reason: error.to_string(), is_last }
    }
}

impl Device {
    /// Whether there are kernels for the model.
    ///
    /// # Errors
    /// What there are none for.
    pub fn check(config: &ModelConfig, limits: &DeviceLimits) -> Result<(), LoadError> {
        load::check(config, limits)
    }

    /// Loads the weights that `config` implies to GPU `ordinal`. `blocks` says how many blocks the cache has, from the
    /// bytes of one and those that are free.
    ///
    /// # Errors
    /// That there is no such GPU, that it lacks memory, or that it has no kernel for the model.
    pub fn open(
        ordinal: usize,
        config: ModelConfig,
        checkpoint: &Checkpoint,
        limits: DeviceLimits,
        blocks: impl FnOnce(usize, usize) -> Result<u32, LoadError>,
    ) -> Result<Self, LoadError> {
        Self::check(&config, &limits)?;
        let context = Context::open(ordinal)?;
        let kernels = Kernels::load(&context)?;
        let name = format!("cuda:{ordinal} {}", context.found().name);
        let (weights, dtype) = load::weights(&context, &config, checkpoint, &limits)?;
        let scratch = Scratch::new(&context, &config, &limits)?;
        let shape = kv_shape(&config, limits.block_tokens);
        let free = context.free_bytes()?;
        let blocks = blocks(shape.block_elements() * KvType::Bf16.bytes(), free)?;
        let cache = DeviceCache::new(&context, shape, blocks as usize)?;
        let plan = Plan::new(&context)?;
        Ok(Self { config, dtype, name, limits, kernels, weights, cache, plan, scratch })
    }

    /// All of a step but the last product; answers with how many rows' logits are wanted.
    fn hidden(&mut self, batch: &Batch<'_>) -> Result<usize, CudaError> {
        let (config, weights, scratch) = (&self.config, &self.weights, &mut self.scratch);
        let (rows, epsilon) = (batch.tokens.len(), config.norm_epsilon);
        let shape = PlanShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            vocab: config.vocab,
            multiprocessors: self.kernels.context().found().multiprocessors as usize,
        };
        self.plan.set(batch.tokens, batch.spans, batch.logits_rows, shape, &self.cache)?;
        self.kernels.embed(&self.plan, &weights.embedding, &scratch.residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            self.kernels.rms_norm(
                rows,
                &scratch.residual,
                &layer.attention_norm,
                epsilon,
                &scratch.normed,
            )?;
            attend(config, &self.kernels, &self.plan, weights, layer, index, &self.cache, scratch)?;
            let normed = &scratch.normed;
            self.kernels.rms_norm(rows, &scratch.residual, &layer.mlp_norm, epsilon, normed)?;
            let (gated, stride) = (&scratch.gated, config.intermediate.next_multiple_of(PAD));
            product(&self.kernels, rows, normed, &layer.gate_up, End::Gated, gated, stride)?;
            let residual = &scratch.residual;
            product(&self.kernels, rows, gated, &layer.down, End::Add, residual, config.hidden)?;
        }
        let normed = &scratch.normed;
        self.kernels.rms_norm(rows, &scratch.residual, &weights.final_norm, epsilon, normed)?;
        let row_bytes = config.hidden.next_multiple_of(PAD) * 2;
        self.kernels.gather_rows(&self.plan, normed, row_bytes, &scratch.chosen)?;
        Ok(batch.logits_rows.len())
    }

    fn logits(&mut self, rows: usize) -> Result<&mut [f32], CudaError> {
        let (weights, scratch, vocab) = (&self.weights, &mut self.scratch, self.config.vocab);
        if rows == 0 {
            self.kernels.context().wait()?;
            return Ok(&mut []);
        }
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let (chosen, logits) = (&scratch.chosen, &scratch.logits);
        self.kernels.matmul(rows, chosen, head, None, End::F32, logits, vocab)?;
        scratch.fetched.fetch(&scratch.logits, rows * vocab)
    }
}

fn kv_shape(config: &ModelConfig, block_tokens: usize) -> KvShape {
    KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        block_tokens,
    }
}

fn product(
    kernels: &Kernels,
    rows: usize,
    x: &Buffer,
    linear: &Linear,
    end: End,
    out: &Buffer,
    stride: usize,
) -> Result<(), CudaError> {
    kernels.matmul(rows, x, &linear.matrix, linear.bias.as_ref(), end, out, stride)
}

/// Attention of a layer, from normed rows to what it adds to the residual.
#[expect(clippy::too_many_arguments, reason = "each is a different kind of thing")]
fn attend(
    config: &ModelConfig,
    kernels: &Kernels,
    plan: &Plan,
    weights: &Weights,
    layer: &Layer,
    index: usize,
    cache: &DeviceCache,
    scratch: &mut Scratch,
) -> Result<(), CudaError> {
    let width = config.query_width() + 2 * config.kv_width();
    let rows = plan.rows();
    product(kernels, rows, &scratch.normed, &layer.qkv, End::Bf16, &scratch.qkv, width)?;
    let turning = Turning {
        query_norm: layer.query_norm.as_ref(),
        key_norm: layer.key_norm.as_ref(),
        angles: &weights.angles,
        half: weights.half,
        heads: config.heads,
        epsilon: config.norm_epsilon,
    };
    kernels.turn(plan, &scratch.qkv, &turning, cache, index, &scratch.query)?;
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    let attention = Attention { cache, layer: index, heads: config.heads, scale };
    kernels.attend(plan, &scratch.query, &attention, &mut scratch.parts, &scratch.attended)?;
    let (attended, residual) = (&scratch.attended, &scratch.residual);
    product(kernels, rows, attended, &layer.output, End::Add, residual, config.hidden)
}

impl Scratch {
    fn new(
        context: &Arc<Context>,
        config: &ModelConfig,
        limits: &DeviceLimits,
    ) -> Result<Self, CudaError> {
        let (rows, chosen) = (limits.step_tokens_max, limits.logits_rows_max);
        let padded = |width: usize| width.next_multiple_of(PAD) * 2;
        // Zeroed once: nobody writes what pads a row.
        let of = |rows: usize, row_bytes: usize| Buffer::zeroed(context, rows * row_bytes);
        let width = config.query_width() + 2 * config.kv_width();
        Ok(Self {
            residual: of(rows, config.hidden * 4)?,
            normed: of(rows, padded(config.hidden))?,
            qkv: of(rows, width * 2)?,
            query: of(rows, padded(config.query_width()))?,
            attended: of(rows, padded(config.query_width()))?,
            gated: of(rows, padded(config.intermediate))?,
            chosen: of(chosen, padded(config.hidden))?,
            logits: of(chosen, config.vocab * 4)?,
            parts: [of(0, 0)?, of(0, 0)?],
            fetched: HostBuffer::new(context, chosen * config.vocab)?,
        })
    }
}

impl Compute for Device {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn kv_shape(&self) -> KvShape {
        self.cache.shape()
    }

    fn kv_type(&self) -> KvType {
        KvType::Bf16
    }

    fn blocks(&self) -> u32 {
        self.cache.blocks() as u32
    }

    fn step(&mut self, batch: &Batch<'_>, _threads: &Pool) -> Result<&mut [f32], Failure> {
        let refused = |reason: String| Failure { reason, is_last: false };
        let vocab = self.config.vocab;
        if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(refused(format!("token {token} is outside a vocabulary of {vocab}")));
        }
        let limits = &self.limits;
        if batch.tokens.len() > limits.step_tokens_max
            || batch.logits_rows.len() > limits.logits_rows_max
        {
            return Err(refused(format!("a step is larger than {limits:?}")));
        }
        if batch.tokens.is_empty() {
            return Ok(&mut []);
        }
        let rows = self.hidden(batch)?;
        Ok(self.logits(rows)?)
    }

    fn read_block(&self, block: u32, bytes: &mut [u8]) -> Result<(), Failure> {
        Ok(self.cache.read_block(block, bytes)?)
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.cache.write_block(block, bytes)?)
    }
}
