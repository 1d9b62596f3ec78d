//! The simulated engine: everything an engine promises, without a model.
//!
//! It exists so that whole clusters and real clients can be run and proven on any machine, with
//! prompts of up to a million tokens: blocks, events, pins, priorities, retention and preemption
//! are those of the cache that the native engine uses; what takes time takes as long as it is
//! configured to, and what it says comes from a script. It never pretends: its device is
//! `simulated`, and without a script its only sentence says that no model has read the prompt. It
//! cannot constrain what it says. Scripts, settings and requests are hostile and end in typed
//! errors; the same prompt, script and seed give the same tokens on every worker, so a request can
//! move between two of them in the middle.

#![cfg_attr(not(feature = "export"), forbid(unsafe_code))]

mod answer;
mod engine;
mod error;
mod options;
mod scheduler;
mod script;
mod sequence;
mod text;

use mainstay_engine_abi::sdk::{EntryPoint, entry_point};

pub use engine::SimEngine;
pub use error::SimError;

/// What `Info::device` says.
pub const DEVICE: &str = "simulated";

/// The C entry point, for a host that has the engine linked in.
#[must_use]
pub fn entry() -> EntryPoint {
    entry_point::<SimEngine>()
}

#[cfg(feature = "export")]
mainstay_engine_abi::export_engine!(SimEngine);
