//! From a checkpoint's tensors to a GPU's memory. Weights that are not bf16 are rounded to it.

use std::sync::Arc;

use mainstay_kernels::Rope;
use mainstay_kernels::cuda::{Buffer, Context, HEAD_DIMS, Matrix};

use super::{DeviceLimits, Layer, Linear, Weights};
use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;
use crate::model::read::Reader;

/// Heads of queries that share keys: as many as a tile of attention has rows.
const GROUP_MAX: usize = 64;

/// Whether there are kernels for the model.
pub(super) fn check(config: &ModelConfig, limits: &DeviceLimits) -> Result<(), LoadError> {
    let unsupported = |what: String| LoadError::Unsupported {
        file: "config.json".to_owned(),
        what,
        hint: "compute it on the CPU (`device`: \"cpu\")",
    };
    if !HEAD_DIMS.contains(&config.head_dim) {
        return Err(unsupported(format!(
            "on a GPU a head of {} numbers (there are kernels for {HEAD_DIMS:?})",
            config.head_dim
        )));
    }
    if config.heads / config.kv_heads > GROUP_MAX {
        return Err(unsupported(format!("on a GPU more than {GROUP_MAX} heads on one of keys")));
    }
    if !limits.block_tokens.is_power_of_two() {
        let message = "`block_tokens` must be a power of two on a GPU".to_owned();
        return Err(LoadError::Options(message));
    }
    Ok(())
}

struct Loader<'a> {
    context: &'a Arc<Context>,
    reader: Reader<'a>,
    bytes: usize,
}

pub(super) fn weights(
    context: &Arc<Context>,
    config: &ModelConfig,
    checkpoint: &Checkpoint,
    limits: &DeviceLimits,
) -> Result<(Weights, Dtype), LoadError> {
    let reader = Reader::new(checkpoint);
    let dtype = reader.dtype(config)?;
    let mut loader = Loader { context, reader, bytes: 0 };
    let mut layers = Vec::with_capacity(config.layers);
    for index in 0..config.layers {
        layers.push(loader.layer(config, index)?);
    }
    let vocab = config.vocab;
    let table = loader.linear("model.", &[("embed_tokens", vocab)], config.hidden, false)?;
    let head = if config.tied {
        None
    } else {
        Some(loader.linear("", &[("lm_head", vocab)], config.hidden, false)?.matrix)
    };
    let final_norm = loader.vector("model.norm.weight", config.hidden)?;
    let (frequencies, scale) = config.rope.frequencies(config.head_dim);
    let angles = Rope::new(&frequencies, scale, 0).table(limits.context_tokens_max);
    let angles = Buffer::from_slice(context, &angles)?;
    let (bytes, half) = (loader.bytes, frequencies.len());
    let embedding = table.matrix;
    Ok((Weights { embedding, head, layers, final_norm, angles, half, bytes }, dtype))
}

impl Loader<'_> {
    fn vector(&self, name: &str, length: usize) -> Result<Buffer, LoadError> {
        Ok(Buffer::from_slice(self.context, &self.reader.vector(name, length)?)?)
    }

    fn linear(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Linear, LoadError> {
        let rows = self.reader.rows(prefix, parts, inputs)?.into_bf16();
        let bias = if biased { Some(self.reader.biases(prefix, parts)?) } else { None };
        self.upload(&rows, bias, inputs)
    }

    /// Gate and up, row by row in turns.
    fn gate_up(&mut self, config: &ModelConfig, mlp: &str) -> Result<Linear, LoadError> {
        let (inner, hidden) = (config.intermediate, config.hidden);
        let parts = [("gate_proj", inner), ("up_proj", inner)];
        let rows = self.reader.rows(mlp, &parts, hidden)?.into_bf16();
        let bias = if config.mlp_bias { Some(self.reader.biases(mlp, &parts)?) } else { None };
        let bias = bias.map(|bias| in_turns(&bias, 1));
        self.upload(&in_turns(&rows, hidden), bias, hidden)
    }

    fn upload(
        &mut self,
        rows: &[half::bf16],
        bias: Option<Vec<f32>>,
        inputs: usize,
    ) -> Result<Linear, LoadError> {
        let matrix = Matrix::new(self.context, rows, rows.len() / inputs, inputs)?;
        self.bytes += matrix.bytes();
        let bias = bias.map(|bias| Buffer::from_slice(self.context, &bias)).transpose()?;
        Ok(Linear { matrix, bias })
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, LoadError> {
        let at = format!("model.layers.{index}");
        let (attention, mlp) = (format!("{at}.self_attn."), format!("{at}.mlp."));
        let (hidden, query, kv) = (config.hidden, config.query_width(), config.kv_width());
        let head_norm = |name: &str| match config.qk_norm {
            true => self.vector(&format!("{attention}{name}.weight"), config.head_dim).map(Some),
            false => Ok(None),
        };
        let (query_norm, key_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let qkv = [("q_proj", query), ("k_proj", kv), ("v_proj", kv)];
        let down = [("down_proj", hidden)];
        Ok(Layer {
            attention_norm: self.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            qkv: self.linear(&attention, &qkv, hidden, config.qkv_bias)?,
            query_norm,
            key_norm,
            output: self.linear(&attention, &[("o_proj", hidden)], query, config.output_bias)?,
            mlp_norm: self.vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate_up: self.gate_up(config, &mlp)?,
            down: self.linear(&mlp, &down, config.intermediate, config.mlp_bias)?,
        })
    }
}

/// Two halves as pairs: a row of the first, then the same row of the second.
fn in_turns<T: Copy>(rows: &[T], width: usize) -> Vec<T> {
    let (first, second) = rows.split_at(rows.len() / 2);
    let pairs = first.chunks_exact(width).zip(second.chunks_exact(width));
    pairs.flat_map(|(a, b)| a.iter().chain(b).copied()).collect()
}
