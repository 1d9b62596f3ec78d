//! The engine's own configuration: one JSON object, every member optional, unknown members refused
//! so that a typing mistake is not a silent default.

use std::path::{Path, PathBuf};

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_kernels::Precision;
use serde::Deserialize;

use crate::LoadError;
use mainstay_engine_blocks::BLOCKS_MAX;

/// The name of the bundled model in `model_dir`.
pub const DEMO: &str = "demo";
/// Cache bytes where nothing is said; the system hands them out only as they are used.
pub const KV_BYTES_DEFAULT: u64 = 1 << 30;
/// The most tokens of a block.
pub const BLOCK_TOKENS_MAX: usize = 1024;
/// The most GPUs of a machine.
const DEVICES_MAX: usize = 64;
/// The most threads.
pub const THREADS_MAX: usize = 256;
/// The most rows of a step.
pub const STEP_TOKENS_MAX: usize = 1 << 16;
/// The most requests that run at a time.
pub const REQUESTS_MAX: usize = 4096;
/// The most tokens that a request may guess in a step.
pub const DRAFT_TOKENS_MAX: usize = 64;

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPlace {
    /// Linked into the program.
    Bundled,
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
}

/// Where the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// On the first GPU if it will do, else on the CPU.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the GPU of that number.
    Cuda(usize),
}

/// How large the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheSize {
    /// What the device has for it.
    Auto,
    /// As many blocks as fit.
    Bytes(u64),
    /// So many blocks.
    Blocks(u32),
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The model.
    pub place: ModelPlace,
    /// Its name for clients; the folder's name where nothing is said.
    pub model_name: String,
    /// The cache.
    pub cache: CacheSize,
    /// Tokens per block; must equal the router's.
    pub block_tokens: usize,
    /// Where it computes.
    pub device: DeviceChoice,
    /// Threads that compute.
    pub threads: usize,
    /// Rows per step, where that is said.
    pub step_tokens_max: Option<usize>,
    /// The longest sequence, where it shall be shorter than the model's own.
    pub context_tokens_max: Option<usize>,
    /// The cluster's secret for sequence hashes.
    pub hash_key: HashKey,
    /// Whether `hash_key` was given; without it hashes can be guessed, which only a single tenant
    /// may accept.
    pub hash_key_given: bool,
    /// Share of the cache that pins may hold.
    pub pin_fraction: f64,
    /// The arithmetic of bf16 weights.
    pub precision: Precision,
    /// Requests that run at a time.
    pub requests_max: usize,
    /// Tokens that a request may guess in a step, where that is said; none turns it off.
    pub draft_tokens_max: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    model_dir: String,
    model_name: String,
    kv_bytes: Option<u64>,
    blocks: Option<u32>,
    block_tokens: Option<usize>,
    device: Option<String>,
    threads: Option<usize>,
    step_tokens_max: Option<usize>,
    context_tokens_max: Option<usize>,
    hash_key: Option<String>,
    pin_fraction: Option<f64>,
    precision: Option<String>,
    requests_max: Option<usize>,
    draft_tokens_max: Option<usize>,
}

impl Options {
    /// Reads the configuration; an empty object gives the bundled model with defaults.
    pub fn parse(json: &str) -> Result<Self, LoadError> {
        let raw: Raw = serde_json::from_str(json).map_err(|e| LoadError::Options(e.to_string()))?;
        let place = match raw.model_dir.as_str() {
            "" | DEMO => ModelPlace::Bundled,
            folder => ModelPlace::Folder(PathBuf::from(folder)),
        };
        let block_tokens = within("block_tokens", raw.block_tokens, 16, 1..=BLOCK_TOKENS_MAX)?;
        let requests_max = within("requests_max", raw.requests_max, 64, 1..=REQUESTS_MAX)?;
        let step_tokens_max = raw
            .step_tokens_max
            .map(|n| within("step_tokens_max", Some(n), 0, 1..=STEP_TOKENS_MAX))
            .transpose()?;
        let (device, precision) = device_and_precision(&raw)?;
        let threads = within("threads", raw.threads, threads_default(), 1..=THREADS_MAX)?;
        let pin_fraction = raw.pin_fraction.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&pin_fraction) {
            return Err(wrong("`pin_fraction` must lie in 0..=1"));
        }
        let hash_key = match &raw.hash_key {
            None => HashKey([0; 16]),
            Some(text) => HashKey::from_hex(text)
                .ok_or_else(|| wrong("`hash_key` must be 32 hexadecimal digits"))?,
        };
        Ok(Self {
            model_name: name(&raw.model_name, &place),
            place,
            cache: cache_size(raw.kv_bytes, raw.blocks)?,
            block_tokens,
            threads,
            device,
            step_tokens_max,
            context_tokens_max: raw
                .context_tokens_max
                .map(|n| {
                    within("context_tokens_max", Some(n), 0, 1..=crate::config::CONTEXT_TOKENS_MAX)
                })
                .transpose()?,
            hash_key,
            hash_key_given: raw.hash_key.is_some(),
            pin_fraction,
            precision,
            requests_max,
            draft_tokens_max: raw
                .draft_tokens_max
                .map(|n| within("draft_tokens_max", Some(n), 0, 0..=DRAFT_TOKENS_MAX))
                .transpose()?,
        })
    }

    /// Rows per step, where nothing is said `default`: every running request must find room for its next token, and a
    /// prompt for a block.
    #[must_use]
    pub fn step_tokens(&self, default: usize) -> usize {
        self.step_tokens_max.unwrap_or(default).max(self.requests_max).max(self.block_tokens)
    }

    /// How many blocks of that size the cache has; where nothing is said, as many as fit into `bytes_default`.
    pub fn blocks(&self, block_bytes: usize, bytes_default: u64) -> Result<u32, LoadError> {
        let blocks = match self.cache {
            CacheSize::Auto => bytes_default / (block_bytes as u64).max(1),
            CacheSize::Blocks(blocks) => u64::from(blocks),
            CacheSize::Bytes(bytes) => bytes / (block_bytes as u64).max(1),
        };
        if blocks == 0 {
            return Err(wrong(&format!(
                "`kv_bytes` is less than one block of {block_bytes} bytes"
            )));
        }
        Ok(blocks.min(u64::from(BLOCKS_MAX)) as u32)
    }
}

fn device_and_precision(raw: &Raw) -> Result<(DeviceChoice, Precision), LoadError> {
    let device = match raw.device.as_deref() {
        None | Some("cpu") => DeviceChoice::Cpu,
        Some("auto") => DeviceChoice::Auto,
        Some("cuda") => DeviceChoice::Cuda(0),
        Some(text) => {
            let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let number = number.filter(|number| *number < DEVICES_MAX);
            let text = "`device` must be \"cpu\", \"cuda\", \"cuda:N\" or \"auto\"";
            DeviceChoice::Cuda(number.ok_or_else(|| wrong(text))?)
        }
    };
    let precision = match raw.precision.as_deref() {
        None | Some("fast") => Precision::Bf16Math,
        Some("exact") if device == DeviceChoice::Cpu => Precision::F32Math,
        Some("exact") => return Err(wrong("`precision` \"exact\" is the CPU's: `device` \"cpu\"")),
        Some(_) => return Err(wrong("`precision` must be \"exact\" or \"fast\"")),
    };
    Ok((device, precision))
}

fn wrong(message: &str) -> LoadError {
    LoadError::Options(message.to_owned())
}

fn within(
    member: &str,
    value: Option<usize>,
    default: usize,
    range: std::ops::RangeInclusive<usize>,
) -> Result<usize, LoadError> {
    match value {
        None => Ok(default.clamp(*range.start(), *range.end())),
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) => {
            Err(wrong(&format!("`{member}` must lie in {}..={}", range.start(), range.end())))
        }
    }
}

fn cache_size(bytes: Option<u64>, blocks: Option<u32>) -> Result<CacheSize, LoadError> {
    match (bytes, blocks) {
        (Some(_), Some(_)) => Err(wrong("`kv_bytes` and `blocks` exclude each other; give one")),
        (_, Some(blocks)) if (1..=BLOCKS_MAX).contains(&blocks) => Ok(CacheSize::Blocks(blocks)),
        (_, Some(_)) => Err(wrong(&format!("`blocks` must lie in 1..={BLOCKS_MAX}"))),
        (bytes, None) => Ok(bytes.map_or(CacheSize::Auto, CacheSize::Bytes)),
    }
}

fn name(wanted: &str, place: &ModelPlace) -> String {
    match place {
        _ if !wanted.is_empty() => wanted.to_owned(),
        ModelPlace::Bundled => DEMO.to_owned(),
        ModelPlace::Folder(folder) => {
            let last = folder.file_name().or_else(|| Path::new("model").file_name());
            last.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}

fn threads_default() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_the_bundled_model() {
        let options = Options::parse("{}").unwrap();
        assert_eq!(options.place, ModelPlace::Bundled);
        assert_eq!((options.model_name.as_str(), options.block_tokens), ("demo", 16));
        assert_eq!(options.blocks(1 << 20, KV_BYTES_DEFAULT).unwrap(), 1024);
        assert_eq!((options.device, options.step_tokens(512)), (DeviceChoice::Cpu, 512));
        assert!(!options.hash_key_given);
    }

    #[test]
    fn members_are_read() {
        let options = Options::parse(
            r#"{"model_dir": "/models/tiny", "blocks": 7, "block_tokens": 8, "threads": 2, "step_tokens_max": 4,
                "context_tokens_max": 100, "hash_key": "000102030405060708090a0b0c0d0e0f", "pin_fraction": 0.25,
                "precision": "exact", "requests_max": 9, "draft_tokens_max": 0}"#,
        )
        .unwrap();
        assert_eq!(options.model_name, "tiny");
        assert_eq!(options.blocks(1, 1).unwrap(), 7);
        assert_eq!(options.hash_key.0[15], 15);
        assert_eq!(options.precision, Precision::F32Math);
        assert_eq!(options.step_tokens(512), 9, "room for one token of each request");
        assert_eq!(options.draft_tokens_max, Some(0));
    }

    #[test]
    fn a_device_is_named() {
        let device =
            |text: &str| Options::parse(&format!(r#"{{"device": "{text}"}}"#)).unwrap().device;
        assert_eq!(
            ["cpu", "auto", "cuda", "cuda:3"].map(device),
            [DeviceChoice::Cpu, DeviceChoice::Auto, DeviceChoice::Cuda(0), DeviceChoice::Cuda(3),]
        );
    }

    #[test]
    fn mistakes_are_errors() {
        for (json, word) in [
            ("", "EOF"),
            ("[1]", "expected"),
            (r#"{"model_dri": ""}"#, "model_dri"),
            (r#"{"threads": 0}"#, "threads"),
            (r#"{"threads": -1}"#, "invalid"),
            (r#"{"block_tokens": 100000}"#, "block_tokens"),
            (r#"{"blocks": 0}"#, "blocks"),
            (r#"{"blocks": 1, "kv_bytes": 1}"#, "exclude"),
            (r#"{"hash_key": "xyz"}"#, "hash_key"),
            (r#"{"pin_fraction": 1.5}"#, "pin_fraction"),
            (r#"{"precision": "int8"}"#, "precision"),
            (r#"{"draft_tokens_max": 65}"#, "draft_tokens_max"),
            (r#"{"precision": "exact", "device": "cuda"}"#, "the CPU's"),
            (r#"{"device": "gpu"}"#, "cuda:N"),
            (r#"{"device": "cuda:-1"}"#, "cuda:N"),
            (r#"{"context_tokens_max": 0}"#, "context_tokens_max"),
        ] {
            let error = Options::parse(json).expect_err(json).to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
        let tiny = Options::parse(r#"{"kv_bytes": 10}"#).unwrap();
        assert!(tiny.blocks(100, 0).is_err());
    }
}
