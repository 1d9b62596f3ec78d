//! The global block index: which worker holds which block in which tier.
//!
//! Every control member and every gateway keeps one, fed by the same numbered event streams, so it has to give
//! the same answer everywhere and for holes too: a worker's overlap with a prompt is the count of *leading*
//! blocks that it holds, even where a chain was cut in the middle. It is one hash table over blocks and one set
//! per worker; it never grows past its limit, and what did not fit is counted, because an index that forgets
//! costs a cache miss while one that eats all memory costs the cluster.
//!
//! Layout: [`BlockIndex`] is the whole of it, `holders` the list of workers per block, `tiers` the set of tiers,
//! `digest` the order-free digest that workers compare with.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod block_index;
mod digest;
mod holders;
mod tiers;

pub use block_index::{Applied, BlockIndex, BlockView, HeldBlock, Overlap, RestoreError};
pub use digest::entry_digest;
pub use holders::Holder;
pub use tiers::TierSet;
