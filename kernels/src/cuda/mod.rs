//! The kernels on NVIDIA GPUs, and what it takes to launch them.
//!
//! The driver is looked for when somebody asks ([`probe`]); a program with this module needs no CUDA to be built or
//! started. The kernels are PTX that the driver compiles for its GPU; their sources are in `kernels/cuda`, the text is
//! made by `.ci/kernels`. All work goes to one stream in order. Lengths that do not fit are a caller's mistake and
//! panic, as on the CPU; whatever the driver says is an error.

mod driver;
mod launch;
mod matrix;
mod plan;
mod probe;

pub use driver::{Buffer, Context, CudaError, HostBuffer, Plain};
pub use launch::{Attention, End, HEAD_DIMS, Kernels, Turning};
pub use matrix::{DeviceCache, Matrix, PAD};
pub use plan::{Plan, PlanShape};
pub use probe::{Found, SYMBOLS, Unavailable, probe};

/// The kernels' text, with the hash of their sources in its first line.
pub const PTX: &str = include_str!("../../ptx/compute_80.ptx");
