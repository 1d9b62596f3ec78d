//! The limits of the boundary, the `MSE_*_MAX` of the header.
//!
//! A pointer and a length from the other side are only as good as the length is sane: above these,
//! the receiver refuses the call (`MSE_E_INVALID`) or takes the engine for broken.

/// Prompt tokens of one request.
pub const REQUEST_TOKENS_MAX: u64 = 1 << 22;
/// Leases of one request.
pub const LEASES_MAX: u64 = 16;
/// Retention ranges of one request.
pub const RANGES_MAX: u64 = 1024;
/// Stop tokens of one request.
pub const STOP_TOKENS_MAX: u64 = 1024;
/// Value of `mse_sampling.logprobs`.
pub const LOGPROBS_MAX: u32 = 129;
/// Bytes of the form that an output must have.
pub const GUIDED_BYTES_MAX: u64 = 1 << 20;
/// Blocks of one pin.
pub const PIN_BLOCKS_MAX: u64 = 1 << 18;
/// Blocks of one export or import.
pub const TRANSFER_BLOCKS_MAX: u64 = 1 << 12;
/// Bytes of one export or import.
pub const TRANSFER_BYTES_MAX: u64 = 1 << 26;
/// Bytes of the configuration.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Bytes of any other string.
pub const STRING_BYTES_MAX: u64 = 1 << 16;
/// Items of one batch.
pub const BATCH_ITEMS_MAX: u32 = 1 << 16;
/// Entries of each of a batch's arrays: tokens, logprobs, blocks, bytes.
pub const BATCH_ENTRIES_MAX: u64 = 1 << 22;
/// Bytes of a struct that is passed by pointer, or of one item of a batch.
pub const STRUCT_BYTES_MAX: u32 = 4096;
/// Nodes of an extension chain.
pub const EXT_NODES_MAX: usize = 64;
