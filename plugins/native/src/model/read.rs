//! A checkpoint's tensors by what they are for, stacked where products share an input.

use half::bf16;

use crate::LoadError;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::ModelConfig;

/// Reads tensors and checks their shapes.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
}

/// Rows of a matrix: bf16 where all of them are stored so.
pub(crate) enum Rows {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Rows {
    /// Rounded, unless they are stored so.
    pub(crate) fn into_bf16(self) -> Vec<bf16> {
        match self {
            Self::Bf16(rows) => rows,
            Self::F32(rows) => rows.into_iter().map(bf16::from_f32).collect(),
        }
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// How the model is stored: its embedding says, norms may be wider.
    pub(crate) fn dtype(&self, config: &ModelConfig) -> Result<Dtype, LoadError> {
        let shape = [config.vocab, config.hidden];
        Ok(self.checkpoint.tensor("model.embed_tokens.weight", &shape)?.dtype())
    }

    /// A vector, widened.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let mut out = Vec::with_capacity(length);
        self.checkpoint.tensor(name, &[length])?.append_f32(&mut out);
        Ok(out)
    }

    /// The matrices of `parts` stacked into one. `prefix` ends in a dot, or is empty.
    pub(crate) fn rows(
        &self,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> Result<Rows, LoadError> {
        let mut tensors = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            tensors
                .push(self.checkpoint.tensor(&format!("{prefix}{name}.weight"), &[*rows, inputs])?);
        }
        let count = parts.iter().map(|part| part.1).sum::<usize>() * inputs;
        if tensors.iter().all(|t| t.dtype() == Dtype::Bf16) {
            let mut rows = Vec::with_capacity(count);
            tensors.iter().for_each(|tensor| tensor.append_bf16(&mut rows));
            return Ok(Rows::Bf16(rows));
        }
        let mut rows = Vec::with_capacity(count);
        tensors.iter().for_each(|tensor| tensor.append_f32(&mut rows));
        Ok(Rows::F32(rows))
    }

    /// The biases of `parts`, one after the other.
    pub(crate) fn biases(
        &self,
        prefix: &str,
        parts: &[(&str, usize)],
    ) -> Result<Vec<f32>, LoadError> {
        let mut all = Vec::new();
        for (name, rows) in parts {
            let tensor = self.checkpoint.tensor(&format!("{prefix}{name}.bias"), &[*rows])?;
            tensor.append_f32(&mut all);
        }
        Ok(all)
    }
}
