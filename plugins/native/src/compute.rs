//! What the scheduler asks of hardware: the logits of a step, and the bytes of blocks.
//!
//! Everything else (which rows, whose blocks, which token is drawn) is the same code on every device.

mod device;
mod processor;

use mainstay_kernels::{KvShape, KvType, Pool};

use crate::checkpoint::Dtype;
use crate::config::ModelConfig;
use crate::model::Batch;
pub use device::{Device, DeviceLimits};
pub use processor::Processor;

/// Why a step or a copy came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub reason: String,
    /// Nothing will ever be computed again.
    pub is_last: bool,
}

/// A model with its cache, where it computes.
pub trait Compute: Send {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// The format of its checkpoint.
    fn dtype(&self) -> Dtype;

    /// Bytes of weights in memory.
    fn weight_bytes(&self) -> usize;

    /// Where it computes, for people.
    fn name(&self) -> &str;

    /// The shape of the cache's blocks.
    fn kv_shape(&self) -> KvShape;

    /// The numbers in them.
    fn kv_type(&self) -> KvType;

    /// How many there are.
    fn blocks(&self) -> u32;

    /// Bytes of one.
    fn block_bytes(&self) -> usize {
        self.kv_shape().block_elements() * self.kv_type().bytes()
    }

    /// Computes a step: keeps the rows' keys and values, answers with `[logits_rows, vocab]`.
    ///
    /// # Errors
    /// What went wrong; nothing is promised of the rows' places in the cache then.
    fn step(&mut self, batch: &Batch<'_>, threads: &Pool) -> Result<&mut [f32], Failure>;

    /// Copies a block out.
    ///
    /// # Errors
    /// What the device says.
    fn read_block(&self, block: u32, bytes: &mut [u8]) -> Result<(), Failure>;

    /// Copies a block in.
    ///
    /// # Errors
    /// What the device says.
    fn write_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), Failure>;
}
