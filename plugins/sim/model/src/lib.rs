//! A GPU serving engine as a model in virtual time: what it computes when, and which blocks it holds.
//!
//! It exists so that policies can be compared on thousands of workers that nobody has. It schedules as engines with
//! continuous batching do and keeps its blocks in the same pool as our own engines; how long a step takes is a
//! formula over a [`Profile`], and no measurement. Pure and deterministic: time comes in, events and notes go out.
//! A request that can never fit is refused with a note, whatever its sizes.
//!
//! Layout: `profile` reads the constants and costs a step, `engine` plans steps, `sequence` is one request in it, `host`
//! the memory beside the device.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod engine;
mod host;
mod profile;
mod sequence;

pub use engine::{Counters, Engine, Load, Note};
pub use mainstay_engine_blocks::{Figures, PinError};
pub use profile::{Profile, ProfileError};
pub use sequence::{Claim, Fetch, Request};
