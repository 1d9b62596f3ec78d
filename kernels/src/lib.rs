//! The kernels of the native engine: packed matrix products, paged attention and the row-wise
//! operations around them; the same for NVIDIA GPUs in [`cuda`].
//!
//! They exist so that a language model runs on any machine without a BLAS or a tensor library.
//! Every result depends on its own row alone: batch size, chunking, thread count, the order of
//! blocks in a pool and the size of a block never change a bit of it. Results do differ between
//! instruction sets ([`Isa`]) in the last bits. Slices of wrong length are a caller's mistake and
//! panic with the name of what does not fit; numbers that are not finite pass through as such.
#![deny(missing_docs)]

mod activation;
mod attention;
pub mod cuda;
mod error;
mod isa;
mod matmul;
mod memory;
mod norm;
mod pack;
mod pool;
mod rope;
mod simd;
mod vector;

pub use activation::{silu_mul, silu_mul_on, softmax, softmax_on};
pub use attention::kv::{KvPool, KvShape, KvType};
pub use attention::{Span, attention, attention_on};
pub use error::KernelError;
pub use isa::Isa;
pub use norm::{add_rms_norm, add_rms_norm_on, rms_norm, rms_norm_on};
pub use pack::{PackedMatrix, Precision};
pub use pool::Pool;
pub use rope::Rope;
pub use vector::{add_assign, argmax, gather_bf16, gather_f32};
