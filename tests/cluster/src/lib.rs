//! Real processes on loopback: starts roles of the built binary, speaks HTTP to them, kills them.
//!
//! For the promises under faults: [`fleet`] runs members behind [`proxy`] links, [`faults`] does them harm from a
//! seed, [`clients`] make a [`history`], and its checker says whether every promise was kept.
//!
//! For several datacenters: [`datacenters`] puts members, gateways and workers behind slow links.
//!
//! The binary is the one of this build, two folders above the test's own file; `MAINSTAY_BIN` names another.
#![forbid(unsafe_code)]

mod client;
pub mod clients;
pub mod collector;
pub mod datacenters;
pub mod faults;
pub mod fleet;
pub mod history;
pub mod memory;
mod process;
pub mod proxy;
pub mod rng;
pub mod s3;
pub mod schema;

pub use client::{Client, Reply, Streamed};
pub use process::{Cluster, Process, Shape, binary, free_port, library, run_cli};
