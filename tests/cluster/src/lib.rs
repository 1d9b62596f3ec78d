//! Real processes on loopback: starts roles of the built binary, speaks HTTP to them, kills them.
//!
//! The binary is the one of this build, two folders above the test's own file; `MAINSTAY_BIN` names another.
#![forbid(unsafe_code)]

mod client;
mod process;

pub use client::{Client, Reply, Streamed};
pub use process::{Cluster, Process, Shape, binary, free_port, library, run_cli};
