//! The error of the crate: what a caller can get wrong with data it did not make itself.
//!
//! Shapes that disagree are a caller's bug and panic; sizes and ids that come from a file or a
//! request end up here instead.

/// Why a kernel refused its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A token id points past the embedding table.
    #[error("token {token} is outside a table of {rows} rows; check the tokenizer's vocabulary")]
    TokenOutOfRange {
        /// The id asked for.
        token: u32,
        /// Rows the table has.
        rows: usize,
    },
    /// The pool of blocks does not fit into memory.
    #[error("no memory for {blocks} blocks of {block_bytes} bytes; lower the number of blocks")]
    PoolTooLarge {
        /// Blocks asked for.
        blocks: usize,
        /// Bytes of one block.
        block_bytes: usize,
    },
    /// A pool's shape has a dimension of zero or one that overflows.
    #[error("a block's shape needs every dimension between 1 and 2^20")]
    BadShape,
}
