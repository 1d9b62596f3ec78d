//! Simulated clusters of the control plane: the real replicated log, machine and barrier, in virtual time, over a
//! network, disks and clocks that misbehave as a seed says.
//!
//! A schedule is a [`plan::Plan`]; [`run::run`] plays it and judges what clients saw by the invariants, one file
//! each. A seed gives the same run every time, exactly so when built with `--cfg tokio_unstable`, by which tokio's
//! own choices come from the seed too.
#![forbid(unsafe_code)]

mod client;
pub mod dice;
pub mod history;
pub mod invariants;
mod member;
mod network;
pub mod plan;
pub mod run;

pub use mainstay_raft::simulation::Safeguard;
