//! The SDK for engines in Rust: implement [`Engine`], call [`export_engine!`](crate::export_engine).
//!
//! An engine sees owned Rust values only. Everything that comes through the C boundary is checked
//! first (sizes, tails, extension nodes, pointers, lengths, ranges), panics end at the boundary as
//! `MSE_E_INTERNAL`, and [`Lanes`] keeps the promises of the header's rule R8 for the engine.
//!
//! In short: `create` starts the engine's threads and keeps the `Arc<Lanes>`; `submit` and `cancel`
//! only queue work for those threads; the threads report through [`Lanes::output`], [`Lanes::kv`]
//! and [`Lanes::op`]; `Drop` stops and joins them.

mod batch;
mod check;
mod decode;
mod engine;
mod entry;
mod error;
mod kv;
mod lanes;
mod log;
mod op;
mod out;
mod shim;
mod transfer;
mod types;

pub use engine::Engine;
pub use entry::{EntryPoint, entry_point, magic, open};
pub use error::{Code, EngineError};
pub use lanes::{KvTaken, Lanes, OPS_MAX, OUT_ITEMS_SOFT, OpDone, Waited};
pub use log::{HostLog, Level};
pub use transfer::{Export, Import};
pub use types::{
    Ages, BlockAges, Cause, Finish, Guided, GuidedKind, Health, Identity, Info, KvEvent,
    LeaseChange, LeaseEnd, Logprob, Output, Pin, Request, RetentionClass, RetentionRange, Sampling,
    Stats, TIER_DEVICE, TIER_DISK, TIER_HOST, TIER_REMOTE, TOKENS_TO_END, caps,
};

/// The words shared with the rest of Mainstay, so that an engine needs this one dependency:
/// `types::BlockHasher` makes the sequence hashes that `caps::CANONICAL_HASH` promises.
pub use mainstay_types as types_of_mainstay;
