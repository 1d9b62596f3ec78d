//! The CPU.

use mainstay_kernels::{KvPool, KvShape, KvType, Pool};

use super::{Compute, Failure};
use crate::LoadError;
use crate::checkpoint::Dtype;
use crate::config::ModelConfig;
use crate::model::{Batch, Model, Scratch};

/// A model that the processor's kernels compute.
pub struct Processor {
    model: Model,
    kv: KvPool,
    scratch: Scratch,
}

impl Processor {
    /// With an empty cache of so many blocks.
    ///
    /// # Errors
    /// That there is no memory for it.
    pub fn new(model: Model, block_tokens: usize, blocks: u32) -> Result<Self, LoadError> {
        let shape = model.kv_shape(block_tokens);
        let kv = KvPool::try_new(shape, blocks as usize, model.kv_type()).map_err(|e| {
            let block_bytes = shape.block_elements() as u128 * model.kv_type().bytes() as u128;
            LoadError::Memory { bytes: block_bytes * u128::from(blocks), reason: e.to_string() }
        })?;
        Ok(Self { model, kv, scratch: Scratch::default() })
    }
}

impl Compute for Processor {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn dtype(&self) -> Dtype {
        self.model.dtype()
    }

    fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }

    fn name(&self) -> &str {
        "cpu"
    }

    fn kv_shape(&self) -> KvShape {
        self.kv.shape()
    }

    fn kv_type(&self) -> KvType {
        self.kv.kv_type()
    }

    fn blocks(&self) -> u32 {
        self.kv.blocks() as u32
    }

    fn step(&mut self, batch: &Batch<'_>, threads: &Pool) -> Result<&mut [f32], Failure> {
        self.model
            .forward(batch, &mut self.kv, &mut self.scratch, threads)
            .map_err(|e| Failure { reason: e.to_string(), is_last: false })
    }

    fn read_block(&self, block: u32, bytes: &mut [u8]) -> Result<(), Failure> {
        bytes.copy_from_slice(self.kv.block_bytes(block));
        Ok(())
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), Failure> {
        self.kv.block_bytes_mut(block).copy_from_slice(bytes);
        Ok(())
    }
}
