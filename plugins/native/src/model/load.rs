//! From a checkpoint's tensors to matrices in the kernels' order. Products that share an input are
//! fused into one matrix (query, key and value; gate and up), so that a step makes fewer and larger
//! calls.

use half::bf16;
use mainstay_kernels::{PackedMatrix, Precision};

use super::{Embedding, Layer, Linear, Model};
use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;

/// How weights are read.
pub(super) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    precision: Precision,
    /// Bytes of packed weights so far.
    bytes: usize,
}

impl<'a> Loader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, precision: Precision) -> Self {
        Self { checkpoint, precision, bytes: 0 }
    }

    /// A vector, widened.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let mut out = Vec::with_capacity(length);
        self.checkpoint.tensor(name, &[length])?.append_f32(&mut out);
        Ok(out)
    }

    /// The matrices of `parts` stacked into one, with their biases where `biased`. `prefix` ends in
    /// a dot.
    fn linear(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Linear, LoadError> {
        let outputs = parts.iter().map(|part| part.1).sum();
        let mut tensors = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            tensors
                .push(self.checkpoint.tensor(&format!("{prefix}{name}.weight"), &[*rows, inputs])?);
        }
        let matrix = if tensors.iter().all(|t| t.dtype() == Dtype::Bf16) {
            let mut rows: Vec<bf16> = Vec::with_capacity(outputs * inputs);
            tensors.iter().for_each(|tensor| tensor.append_bf16(&mut rows));
            PackedMatrix::from_bf16(&rows, outputs, inputs, self.precision)
        } else {
            let mut rows: Vec<f32> = Vec::with_capacity(outputs * inputs);
            tensors.iter().for_each(|tensor| tensor.append_f32(&mut rows));
            PackedMatrix::from_f32(&rows, outputs, inputs)
        };
        self.bytes += matrix.bytes();
        let mut bias = None;
        if biased {
            let mut all = Vec::with_capacity(outputs);
            for (name, rows) in parts {
                let tensor = self.checkpoint.tensor(&format!("{prefix}{name}.bias"), &[*rows])?;
                tensor.append_f32(&mut all);
            }
            bias = Some(all);
        }
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
        let gate_up = [("gate_proj", config.intermediate), ("up_proj", config.intermediate)];
        let down = [("down_proj", hidden)];
        Ok(Layer {
            attention_norm: self.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            qkv: self.linear(&attention, &qkv, hidden, config.qkv_bias)?,
            query_norm,
            key_norm,
            output: self.linear(&attention, &[("o_proj", hidden)], query, config.output_bias)?,
            mlp_norm: self.vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate_up: self.linear(&mlp, &gate_up, hidden, config.mlp_bias)?,
            down: self.linear(&mlp, &down, config.intermediate, config.mlp_bias)?,
        })
    }

    fn embedding(&mut self, config: &ModelConfig) -> Result<Embedding, LoadError> {
        let shape = [config.vocab, config.hidden];
        let tensor = self.checkpoint.tensor("model.embed_tokens.weight", &shape)?;
        let count = config.vocab * config.hidden;
        Ok(if tensor.dtype() == Dtype::Bf16 {
            let mut table = Vec::with_capacity(count);
            tensor.append_bf16(&mut table);
            self.bytes += count * size_of::<bf16>();
            Embedding::Bf16(table)
        } else {
            let mut table = Vec::with_capacity(count);
            tensor.append_f32(&mut table);
            self.bytes += count * size_of::<f32>();
            Embedding::F32(table)
        })
    }

    pub(super) fn model(mut self, config: ModelConfig) -> Result<Model, LoadError> {
        // Its own tensor says how the model is stored; norms may be wider.
        let shape = [config.vocab, config.hidden];
        let dtype = self.checkpoint.tensor("model.embed_tokens.weight", &shape)?.dtype();
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(self.layer(&config, index)?);
        }
        let (embedding, head) = if config.tied {
            let head =
                self.linear("model.", &[("embed_tokens", config.vocab)], config.hidden, false)?;
            (Embedding::Tied, head)
        } else {
            let embedding = self.embedding(&config)?;
            (embedding, self.linear("", &[("lm_head", config.vocab)], config.hidden, false)?)
        };
        let final_norm = self.vector("model.norm.weight", config.hidden)?;
        let (frequencies, scale) = config.rope.frequencies(config.head_dim);
        let rope = mainstay_kernels::Rope::new(&frequencies, scale, config.context_tokens_max);
        let exact = self.precision == Precision::F32Math || dtype != Dtype::Bf16;
        let weight_bytes = self.bytes;
        Ok(Model {
            embedding,
            layers,
            final_norm,
            head: head.matrix,
            rope,
            dtype,
            exact,
            weight_bytes,
            config,
        })
    }
}
