//! From a checkpoint's tensors to matrices in the kernels' order. Products that share an input are
//! fused into one matrix (query, key and value; gate and up), so that a step makes fewer and larger
//! calls.

use mainstay_kernels::{PackedMatrix, Precision, Rope};

use super::read::{Reader, Rows};
use super::{Embedding, Layer, Linear, Model};
use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;

/// How weights are read.
pub(super) struct Loader<'a> {
    reader: Reader<'a>,
    precision: Precision,
    /// Bytes of packed weights so far.
    bytes: usize,
}

impl<'a> Loader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, precision: Precision) -> Self {
        Self { reader: Reader::new(checkpoint), precision, bytes: 0 }
    }

    /// The matrices of `parts` stacked into one, with their biases where `biased`.
    fn linear(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Linear, LoadError> {
        let outputs = parts.iter().map(|part| part.1).sum();
        let matrix = match self.reader.rows(prefix, parts, inputs)? {
            Rows::Bf16(rows) => PackedMatrix::from_bf16(&rows, outputs, inputs, self.precision),
            Rows::F32(rows) => PackedMatrix::from_f32(&rows, outputs, inputs),
        };
        self.bytes += matrix.bytes();
        let bias = if biased { Some(self.reader.biases(prefix, parts)?) } else { None };
        Ok(Linear { matrix, bias })
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, LoadError> {
        let at = format!("model.layers.{index}");
        let (attention, mlp) = (format!("{at}.self_attn."), format!("{at}.mlp."));
        let (hidden, query, kv) = (config.hidden, config.query_width(), config.kv_width());
        let head_norm = |name: &str| match config.qk_norm {
            true => {
                self.reader.vector(&format!("{attention}{name}.weight"), config.head_dim).map(Some)
            }
            false => Ok(None),
        };
        let (query_norm, key_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let qkv = [("q_proj", query), ("k_proj", kv), ("v_proj", kv)];
        let gate_up = [("gate_proj", config.intermediate), ("up_proj", config.intermediate)];
        let down = [("down_proj", hidden)];
        Ok(Layer {
            attention_norm: self.reader.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            qkv: self.linear(&attention, &qkv, hidden, config.qkv_bias)?,
            query_norm,
            key_norm,
            output: self.linear(&attention, &[("o_proj", hidden)], query, config.output_bias)?,
            mlp_norm: self
                .reader
                .vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate_up: self.linear(&mlp, &gate_up, hidden, config.mlp_bias)?,
            down: self.linear(&mlp, &down, config.intermediate, config.mlp_bias)?,
        })
    }

    fn embedding(&mut self, config: &ModelConfig) -> Result<Embedding, LoadError> {
        let parts = [("embed_tokens", config.vocab)];
        Ok(match self.reader.rows("model.", &parts, config.hidden)? {
            Rows::Bf16(table) => {
                self.bytes += size_of_val(table.as_slice());
                Embedding::Bf16(table)
            }
            Rows::F32(table) => {
                self.bytes += size_of_val(table.as_slice());
                Embedding::F32(table)
            }
        })
    }

    pub(super) fn model(mut self, config: ModelConfig) -> Result<Model, LoadError> {
        let dtype = self.reader.dtype(&config)?;
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
        let final_norm = self.reader.vector("model.norm.weight", config.hidden)?;
        let (frequencies, scale) = config.rope.frequencies(config.head_dim);
        let rope = Rope::new(&frequencies, scale, config.context_tokens_max);
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
