//! Weights and the cache of keys and values in a GPU's memory.

use std::sync::Arc;

use half::bf16;

use super::driver::{Buffer, Context, CudaError};
use crate::attention::kv::KvShape;

/// Rows of matrices and of what is multiplied with them are padded with zeros to a multiple of so many numbers.
pub const PAD: usize = 64;

/// A matrix of bf16 weights, `[n][k]`, its rows padded.
pub struct Matrix {
    pub(super) buffer: Buffer,
    n: usize,
    k: usize,
}

impl Matrix {
    /// Copies `[n][k]` numbers to the GPU.
    ///
    /// # Errors
    /// That there is no room for them.
    ///
    /// # Panics
    /// When there are not `n * k` numbers.
    pub fn new(
        context: &Arc<Context>,
        rows: &[bf16],
        n: usize,
        k: usize,
    ) -> Result<Self, CudaError> {
        assert_eq!(rows.len(), n * k, "a matrix must hold n * k numbers");
        let stride = k.next_multiple_of(PAD);
        if stride == k {
            return Ok(Self { buffer: Buffer::from_slice(context, rows)?, n, k });
        }
        let mut padded = vec![bf16::ZERO; n * stride];
        for (row, to) in rows.chunks_exact(k.max(1)).zip(padded.chunks_exact_mut(stride)) {
            to[..k].copy_from_slice(row);
        }
        Ok(Self { buffer: Buffer::from_slice(context, &padded)?, n, k })
    }

    /// Rows: what a product gives.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns: what a product takes.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Numbers from row to row.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.k.next_multiple_of(PAD)
    }

    /// Bytes on the GPU.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }
}

/// Blocks of keys and values, bf16, each in the order that the CPU's pool has.
pub struct DeviceCache {
    pub(super) buffer: Buffer,
    shape: KvShape,
    blocks: usize,
}

impl DeviceCache {
    /// Room for `blocks` blocks, zeroed.
    ///
    /// # Errors
    /// That there is none.
    ///
    /// # Panics
    /// When a block does not have a power of two of tokens.
    pub fn new(context: &Arc<Context>, shape: KvShape, blocks: usize) -> Result<Self, CudaError> {
        assert!(shape.block_tokens.is_power_of_two(), "blocks must have a power of two of tokens");
        let block_bytes = shape.block_elements() * size_of::<bf16>();
        let buffer = Buffer::zeroed(context, block_bytes.saturating_mul(blocks))?;
        Ok(Self { buffer, shape, blocks })
    }

    /// The dimensions of a block.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How many blocks there are.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block.
    #[must_use]
    pub fn bytes_per_block(&self) -> usize {
        self.shape.block_elements() * size_of::<bf16>()
    }

    /// Copies a block's bytes to the host.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When there is no such block or the room is of another size.
    pub fn read_block(&self, block: u32, bytes: &mut [u8]) -> Result<(), CudaError> {
        assert_eq!(bytes.len(), self.bytes_per_block(), "the room must be a block's");
        self.buffer.download(block as usize * bytes.len(), bytes)
    }

    /// Copies a block's bytes from the host. Any bytes are sound.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When there is no such block or they are of another size.
    pub fn write_block(&self, block: u32, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(bytes.len(), self.bytes_per_block(), "the bytes must be a block's");
        self.buffer.upload(block as usize * bytes.len(), bytes)
    }
}
