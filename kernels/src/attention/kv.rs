//! The pool of key and value blocks.
//!
//! A block holds the keys and values of all layers for `block_tokens` positions in one piece,
//! `[layer][K|V][kv_head][token][head_dim]`, so that moving a block between tiers or workers is one
//! copy. The memory is asked for as zeroed pages, so blocks that are never written cost nothing.

use half::bf16;

use crate::error::KernelError;
use crate::memory::Memory;

/// Upper bound of each dimension of a block.
const MAX_DIMENSION: usize = 1 << 20;

/// The number type of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// Exact: what was computed is what is read back.
    F32,
    /// Half the memory; keys and values are rounded when written.
    Bf16,
}

impl KvType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::Bf16 => 2,
        }
    }
}

/// The dimensions of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key and value heads per layer.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Positions per block.
    pub block_tokens: usize,
}

impl KvShape {
    /// Numbers in one block.
    pub fn block_elements(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.block_tokens * self.head_dim
    }

    fn checked_block_elements(&self) -> Option<usize> {
        [self.layers, 2, self.kv_heads, self.block_tokens, self.head_dim].into_iter().try_fold(
            1usize,
            |product, dimension| {
                let sane = (1..=MAX_DIMENSION).contains(&dimension);
                product.checked_mul(dimension).filter(|_| sane)
            },
        )
    }
}

/// Blocks of keys and values in memory.
pub struct KvPool {
    shape: KvShape,
    kv_type: KvType,
    blocks: usize,
    memory: Memory,
}

impl KvPool {
    /// A pool of `blocks` zeroed blocks.
    ///
    /// # Panics
    /// When [`KvPool::try_new`] would fail.
    pub fn new(shape: KvShape, blocks: usize, kv_type: KvType) -> KvPool {
        match KvPool::try_new(shape, blocks, kv_type) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// A pool of `blocks` zeroed blocks, or why there can't be one.
    pub fn try_new(shape: KvShape, blocks: usize, kv_type: KvType) -> Result<KvPool, KernelError> {
        let elements = shape.checked_block_elements().ok_or(KernelError::BadShape)?;
        let block_bytes = elements.checked_mul(kv_type.bytes()).ok_or(KernelError::BadShape)?;
        let too_large = KernelError::PoolTooLarge { blocks, block_bytes };
        let memory = block_bytes.checked_mul(blocks).and_then(Memory::zeroed).ok_or(too_large)?;
        Ok(KvPool { shape, kv_type, blocks, memory })
    }

    /// The dimensions of a block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The number type.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Bytes of one block.
    pub fn bytes_per_block(&self) -> usize {
        self.shape.block_elements() * self.kv_type.bytes()
    }

    /// The bytes of a block, in the machine's byte order.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block_bytes(&self, block: u32) -> &[u8] {
        let start = self.block_start(block);
        &self.memory.bytes()[start..start + self.bytes_per_block()]
    }

    /// The bytes of a block for writing, in the machine's byte order. Any bytes are sound.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block_bytes_mut(&mut self, block: u32) -> &mut [u8] {
        let (start, bytes) = (self.block_start(block), self.bytes_per_block());
        &mut self.memory.bytes_mut()[start..start + bytes]
    }

    /// Writes the keys and values of one position, `[kv_heads * head_dim]` each.
    ///
    /// # Panics
    /// When layer, block or slot do not exist or a slice has another length.
    pub fn write(&mut self, layer: usize, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let shape = self.shape;
        let width = shape.kv_heads * shape.head_dim;
        assert_eq!(k.len(), width, "keys must hold kv_heads * head_dim numbers");
        assert_eq!(v.len(), width, "values must hold kv_heads * head_dim numbers");
        assert!(layer < shape.layers && slot < shape.block_tokens, "no such layer or slot");
        let kv_type = self.kv_type;
        let bytes = self.block_bytes_mut(block);
        for (which, source) in [k, v].into_iter().enumerate() {
            for (head, row) in source.chunks_exact(shape.head_dim).enumerate() {
                let at = ((layer * 2 + which) * shape.kv_heads + head) * shape.block_tokens + slot;
                let from = at * shape.head_dim * kv_type.bytes();
                let target = &mut bytes[from..][..shape.head_dim * kv_type.bytes()];
                store(row, kv_type, target);
            }
        }
    }

    /// Reads the key of one position and head.
    ///
    /// # Panics
    /// When layer, block, slot or head do not exist or `out` does not hold `head_dim` numbers.
    pub fn read_key(&self, layer: usize, block: u32, slot: usize, head: usize, out: &mut [f32]) {
        self.read(layer, 0, block, slot, head, out);
    }

    /// Reads the value of one position and head.
    ///
    /// # Panics
    /// As [`KvPool::read_key`].
    pub fn read_value(&self, layer: usize, block: u32, slot: usize, head: usize, out: &mut [f32]) {
        self.read(layer, 1, block, slot, head, out);
    }

    fn read(
        &self,
        layer: usize,
        which: usize,
        block: u32,
        slot: usize,
        head: usize,
        out: &mut [f32],
    ) {
        let shape = self.shape;
        assert_eq!(out.len(), shape.head_dim, "out must hold head_dim numbers");
        assert!(slot < shape.block_tokens, "no such slot");
        let run = self.run(layer, which, block, head);
        let bytes = shape.head_dim * self.kv_type.bytes();
        let row = &self.memory.bytes()[run + slot * bytes..][..bytes];
        match self.kv_type {
            KvType::F32 => {
                let cells = row.as_chunks::<4>().0;
                out.iter_mut().zip(cells).for_each(|(out, cell)| *out = f32::from_ne_bytes(*cell));
            }
            KvType::Bf16 => {
                let cells = row.as_chunks::<2>().0.iter().map(|cell| bf16::from_ne_bytes(*cell));
                out.iter_mut().zip(cells).for_each(|(out, cell)| *out = cell.to_f32());
            }
        }
    }

    /// Where in the pool's bytes the keys (`which` 0) or values (1) of one head of a block begin.
    ///
    /// # Panics
    /// When layer, block or head do not exist.
    fn run(&self, layer: usize, which: usize, block: u32, head: usize) -> usize {
        let shape = self.shape;
        assert!(layer < shape.layers, "no such layer");
        assert!(head < shape.kv_heads, "no such head");
        let row = ((layer * 2 + which) * shape.kv_heads + head) * shape.block_tokens;
        self.block_start(block) + row * shape.head_dim * self.kv_type.bytes()
    }

    /// The keys and the values of one head of a block: `block_tokens * head_dim` numbers of the
    /// pool's type behind each pointer.
    ///
    /// # Panics
    /// When layer, block or head do not exist.
    pub(crate) fn head_run(&self, layer: usize, block: u32, head: usize) -> [*const u8; 2] {
        let bytes = self.memory.bytes();
        [0, 1].map(|which| bytes[self.run(layer, which, block, head)..].as_ptr())
    }

    fn block_start(&self, block: u32) -> usize {
        let block = block as usize;
        assert!(block < self.blocks, "no such block");
        block * self.bytes_per_block()
    }
}

fn store(row: &[f32], kv_type: KvType, target: &mut [u8]) {
    match kv_type {
        KvType::F32 => {
            let cells = target.as_chunks_mut::<4>().0;
            row.iter().zip(cells).for_each(|(x, cell)| *cell = x.to_ne_bytes());
        }
        KvType::Bf16 => {
            let cells = target.as_chunks_mut::<2>().0;
            row.iter().zip(cells).for_each(|(x, cell)| *cell = bf16::from_f32(*x).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 3, head_dim: 5, block_tokens: 4 };

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_changes() {
        for kv_type in [KvType::F32, KvType::Bf16] {
            let mut pool = KvPool::new(SHAPE, 3, kv_type);
            assert_eq!(pool.bytes_per_block(), 2 * 2 * 3 * 4 * 5 * kv_type.bytes());
            let k: Vec<f32> = (0..15).map(|i| i as f32 + 1.0).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            pool.write(1, 2, 3, &k, &v);
            let mut out = [0.0; 5];
            for head in 0..3 {
                pool.read_key(1, 2, 3, head, &mut out);
                assert_eq!(out, k[head * 5..][..5]);
                pool.read_value(1, 2, 3, head, &mut out);
                assert_eq!(out, v[head * 5..][..5]);
            }
            let written = |block| pool.block_bytes(block).iter().any(|byte| *byte != 0);
            assert_eq!([0, 1, 2].map(written), [false, false, true]);
            let cells = pool.block_bytes(2).chunks(kv_type.bytes());
            assert_eq!(cells.filter(|cell| cell.iter().any(|byte| *byte != 0)).count(), 30);
        }
    }

    #[test]
    fn a_block_moves_as_its_bytes() {
        let mut pool = KvPool::new(SHAPE, 2, KvType::F32);
        pool.write(0, 0, 1, &[1.5; 15], &[2.5; 15]);
        let bytes = pool.block_bytes(0).to_vec();
        pool.block_bytes_mut(1).copy_from_slice(&bytes);
        let mut out = [0.0; 5];
        pool.read_value(0, 1, 1, 2, &mut out);
        assert_eq!(out, [2.5; 5]);
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let refused = |shape, blocks| KvPool::try_new(shape, blocks, KvType::F32).err();
        let none = KvShape { head_dim: 0, ..SHAPE };
        assert_eq!(refused(none, 1), Some(KernelError::BadShape));
        let vast = KvShape { head_dim: usize::MAX, ..SHAPE };
        assert_eq!(refused(vast, 1), Some(KernelError::BadShape));
        let blocks = usize::MAX / 4;
        let too_large = KernelError::PoolTooLarge { blocks, block_bytes: 960 };
        assert_eq!(refused(SHAPE, blocks), Some(too_large));
        assert_eq!(KvPool::new(SHAPE, 0, KvType::F32).blocks(), 0);
    }
}
