//! The host's side of the engine boundary: opens an engine, checks it, drives it, survives it.
//!
//! One call, [`open`], and three ways in: linked into this program, a library loaded into this
//! process, or a library loaded into a child process, which is how a vendor's code is run so that its
//! crash costs its requests and not the worker. All three go through the same C functions and give
//! the same [`EngineHandle`] and [`Receivers`].
//!
//! What the host promises whatever the engine does: each request that [`EngineHandle::submit`]
//! accepted ends in exactly one output with a `finish`; lanes are bounded, and a consumer that does
//! not keep up makes the engine hold back; a gap in the cache events is reported as a reset; the end
//! of the engine is told once through [`Receivers::exit`].

pub mod child;
mod decode;
mod elf;
mod encode;
mod error;
mod handle;
mod instance;
mod library;
mod live;
mod local;
mod log;
mod magic;
mod open;
mod remote;
mod shared;
mod transfer;
mod wire;

pub use error::{ExitReason, HostError, LoadError};
pub use handle::{EngineHandle, Receivers};
pub use magic::EngineIdentity;
pub use mainstay_engine_abi::sdk;
pub use mainstay_engine_abi::sdk::{EntryPoint, OpDone};
pub use open::{Source, open};
pub use transfer::{HOST_OP, KvImport, Whole};

/// What the conformance kit shares with the host, so that both judge an engine's words alike. The kit drives an
/// engine through its raw functions; nobody else has a reason to.
pub mod kit {
    pub use crate::decode::{Broken, KvItems, kv, ops, outputs};
    pub use crate::encode::{lease, pin, request};
    pub use crate::library::load;
    pub use crate::log::{LogTarget, Sink};
    pub use crate::magic::check as identity;
}

/// Output batches that may wait in [`Receivers::outputs`].
pub const OUTPUT_BATCHES_MAX: usize = 64;
/// Event batches that may wait in [`Receivers::kv`].
pub const KV_BATCHES_MAX: usize = 64;
/// Ended operations that may wait in [`Receivers::ops`].
pub const OPS_WAITING_MAX: usize = 4096;

/// A stretch of an engine's cache events, all of one epoch of the engine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KvBatch {
    pub epoch: u64,
    /// The sequence number of the stretch's first item (a RESET counts as one).
    pub first_seq: u64,
    /// Forget all that the engine held; it holds `events` from here on.
    pub reset: bool,
    /// Events before this stretch are missing. `reset` is set too; ask for a
    /// [`EngineHandle::kv_snapshot`] to learn what the engine holds.
    pub gap: bool,
    pub events: Vec<sdk::KvEvent>,
}
