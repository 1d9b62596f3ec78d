//! The errors of loading a model, each naming the file and what to do next: a checkpoint comes from
//! anywhere, so every way it can be wrong has a name here and none of them is a panic.

use std::io;
use std::path::PathBuf;

/// Why a model or the engine's own configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operating system would not give the file.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is larger than any honest one.
    #[error("{file} has {bytes} bytes, more than the limit of {limit}; is it the right file?")]
    TooLarge {
        /// Which file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A file that should hold JSON does not.
    #[error("{file} is not valid JSON: {reason}; download it again")]
    Json {
        /// Which file.
        file: String,
        /// Where parsing stopped.
        reason: String,
    },
    /// A member of a JSON file is missing, of the wrong type or out of range.
    #[error("{file}: `{member}` {reason}")]
    Member {
        /// Which file.
        file: String,
        /// Which member.
        member: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The model needs something this engine does not compute.
    #[error("{file}: {what} is not supported; {hint}")]
    Unsupported {
        /// Which file says so.
        file: String,
        /// The feature.
        what: String,
        /// What would work.
        hint: &'static str,
    },
    /// A weight file is damaged.
    #[error("{file} is not a whole safetensors file: {reason}; download it again")]
    Corrupt {
        /// Which file.
        file: String,
        /// What does not hold.
        reason: String,
    },
    /// A tensor that the configuration implies is in no weight file.
    #[error(
        "{file}: tensor `{tensor}` is missing; the weights and config.json belong to different models"
    )]
    MissingTensor {
        /// The file or folder that was searched.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// A tensor's shape is not the one that the configuration implies.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?} instead of {expected:?}; the weights and config.json belong to \
         different models"
    )]
    Shape {
        /// Which file.
        file: String,
        /// Its name.
        tensor: String,
        /// As stored.
        found: Vec<usize>,
        /// As implied.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a number format that this engine does not read.
    #[error(
        "{file}: tensor `{tensor}` is stored as {dtype}; convert the model to bf16, f16 or f32"
    )]
    Dtype {
        /// Which file.
        file: String,
        /// Its name.
        tensor: String,
        /// The format's name.
        dtype: String,
    },
    /// The engine's own configuration is wrong.
    #[error("engine configuration: {0}")]
    Options(String),
    /// The cache would not fit, or its size overflows.
    #[error(
        "the block cache of {bytes} bytes cannot be had: {reason}; lower `kv_bytes` or `blocks`"
    )]
    Memory {
        /// What was asked for.
        bytes: u128,
        /// Why not.
        reason: String,
    },
    /// A GPU, its driver or its memory.
    #[error("device: {0}")]
    Device(#[from] mainstay_kernels::cuda::CudaError),
    /// A computing kernel refused a matrix or a setting.
    #[error("{what}: {reason}")]
    Kernel {
        /// Which part of the model.
        what: String,
        /// What it said.
        reason: String,
    },
}
