//! The remote engine: an engine of our ABI that computes nothing and serves by another server over HTTP.
//!
//! It speaks to vLLM, SGLang and llama.cpp's server, each in its own words, with token ids both ways, so that
//! text stays the gateway's business. A server that tells what its cache holds (vLLM and SGLang, over ZeroMQ) has
//! its blocks renamed to Mainstay's own; of one that does not, nothing is claimed. It holds no pins, since none
//! of these servers can. What comes from the server is as hostile as what comes from a client: it is bounded,
//! and ends in typed errors. The server must be this engine's alone, as far as tenants are to be kept apart.

#![cfg_attr(not(feature = "export"), forbid(unsafe_code))]

mod dialect;
mod engine;
mod error;
mod flight;
mod http;
mod inner;
mod kv;
mod options;
mod probe;
mod queue;
mod slots;
mod sse;

use mainstay_engine_abi::sdk::{EntryPoint, entry_point};

pub use engine::RemoteEngine;
pub use error::RemoteError;

/// The C entry point, for a host that has the engine linked in.
#[must_use]
pub fn entry() -> EntryPoint {
    entry_point::<RemoteEngine>()
}

#[cfg(feature = "export")]
mainstay_engine_abi::export_engine!(RemoteEngine);
