//! The engine's own configuration: one JSON object, every member optional, unknown members refused
//! so that a typing mistake is not a silent default.

use std::path::PathBuf;

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_engine_blocks::BLOCKS_MAX;
use serde::Deserialize;

use crate::SimError;

/// The name of the bundled tokenizer in `model_dir`.
const DEMO: &str = "demo";
/// The longest sequence where nothing is said; a harness's whole day fits.
const CONTEXT_TOKENS_DEFAULT: usize = 1 << 20;
/// The longest sequence that can be asked for: what the interface allows in one request.
const CONTEXT_TOKENS_MAX: usize = 1 << 22;
/// Blocks where nothing is said: two million tokens in blocks of 16.
const BLOCKS_DEFAULT: u32 = 1 << 17;
/// What a token of cache would take; nothing is held, but `kv_bytes` and status need a size.
const TOKEN_BYTES: u64 = 1024;
const BLOCK_TOKENS_MAX: usize = 1024;
const REQUESTS_MAX: usize = 4096;
/// The slowest rate: a second a token.
const US_PER_TOKEN_MAX: u64 = 1_000_000;

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Folder of tokenizer.json and config.json; `None` is the bundled tokenizer.
    pub(crate) model_dir: Option<PathBuf>,
    pub(crate) model_name: String,
    pub(crate) script: Option<PathBuf>,
    pub(crate) blocks: u32,
    pub(crate) block_tokens: usize,
    pub(crate) context_tokens_max: usize,
    pub(crate) hash_key: HashKey,
    pub(crate) hash_key_given: bool,
    pub(crate) pin_fraction: f64,
    pub(crate) requests_max: usize,
    pub(crate) prefill_us_per_token: u64,
    pub(crate) decode_us_per_token: u64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    model_dir: String,
    model_name: String,
    script: Option<PathBuf>,
    kv_bytes: Option<u64>,
    blocks: Option<u32>,
    block_tokens: Option<usize>,
    /// Accepted since every engine gets it; there is nothing to spread over threads.
    threads: Option<usize>,
    context_tokens_max: Option<usize>,
    hash_key: Option<String>,
    pin_fraction: Option<f64>,
    requests_max: Option<usize>,
    prefill_us_per_token: u64,
    decode_us_per_token: u64,
}

impl Options {
    /// Reads the configuration; an empty object gives the bundled tokenizer with defaults.
    pub(crate) fn parse(json: &str) -> Result<Self, SimError> {
        let raw: Raw = serde_json::from_str(json).map_err(|e| SimError::Options(e.to_string()))?;
        let model_dir = match raw.model_dir.as_str() {
            "" | DEMO => None,
            folder => Some(PathBuf::from(folder)),
        };
        let block_tokens = within("block_tokens", raw.block_tokens, 16, BLOCK_TOKENS_MAX)?;
        let pin_fraction = raw.pin_fraction.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&pin_fraction) {
            return Err(wrong("`pin_fraction` must lie in 0..=1"));
        }
        for (member, rate) in [
            ("prefill_us_per_token", raw.prefill_us_per_token),
            ("decode_us_per_token", raw.decode_us_per_token),
        ] {
            if rate > US_PER_TOKEN_MAX {
                return Err(wrong(&format!("`{member}` must lie in 0..={US_PER_TOKEN_MAX}")));
            }
        }
        let hash_key = match &raw.hash_key {
            None => HashKey([0; 16]),
            Some(text) => HashKey::from_hex(text)
                .ok_or_else(|| wrong("`hash_key` must be 32 hexadecimal digits"))?,
        };
        let context = within(
            "context_tokens_max",
            raw.context_tokens_max,
            CONTEXT_TOKENS_DEFAULT,
            CONTEXT_TOKENS_MAX,
        )?;
        let blocks = blocks(raw.kv_bytes, raw.blocks, block_tokens)?;
        let requests_max = within("requests_max", raw.requests_max, 256, REQUESTS_MAX)?;
        Ok(Self {
            model_name: if raw.model_name.is_empty() { DEMO.to_owned() } else { raw.model_name },
            model_dir,
            script: raw.script,
            blocks,
            block_tokens,
            // What does not fit into the cache cannot be served.
            context_tokens_max: context.min(blocks as usize * block_tokens),
            hash_key,
            hash_key_given: raw.hash_key.is_some(),
            pin_fraction,
            requests_max,
            prefill_us_per_token: raw.prefill_us_per_token,
            decode_us_per_token: raw.decode_us_per_token,
        })
    }

    /// Bytes that a block would have.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_tokens as u64 * TOKEN_BYTES
    }
}

fn blocks(bytes: Option<u64>, blocks: Option<u32>, block_tokens: usize) -> Result<u32, SimError> {
    match (bytes, blocks) {
        (Some(_), Some(_)) => Err(wrong("`kv_bytes` and `blocks` exclude each other; give one")),
        (_, Some(blocks)) if (1..=BLOCKS_MAX).contains(&blocks) => Ok(blocks),
        (_, Some(_)) => Err(wrong(&format!("`blocks` must lie in 1..={BLOCKS_MAX}"))),
        (None, None) => Ok(BLOCKS_DEFAULT),
        (Some(bytes), None) => match bytes / (block_tokens as u64 * TOKEN_BYTES) {
            0 => Err(wrong("`kv_bytes` is less than one block; a token counts for 1 KiB")),
            many => Ok(many.min(u64::from(BLOCKS_MAX)) as u32),
        },
    }
}

fn wrong(message: &str) -> SimError {
    SimError::Options(message.to_owned())
}

fn within(
    member: &str,
    value: Option<usize>,
    default: usize,
    most: usize,
) -> Result<usize, SimError> {
    match value {
        None => Ok(default),
        Some(value) if (1..=most).contains(&value) => Ok(value),
        Some(_) => Err(wrong(&format!("`{member}` must lie in 1..={most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_has_a_million_tokens_of_context() {
        let options = Options::parse("{}").unwrap();
        assert_eq!((options.context_tokens_max, options.blocks), (1 << 20, 1 << 17));
        assert_eq!((options.model_name.as_str(), options.block_tokens), ("demo", 16));
        let small = Options::parse(r#"{"kv_bytes": 1048576, "threads": 2}"#).unwrap();
        assert_eq!((small.blocks, small.context_tokens_max), (64, 1024));
    }

    #[test]
    fn mistakes_are_errors() {
        for (json, word) in [
            ("", "EOF"),
            (r#"{"scirpt": ""}"#, "scirpt"),
            (r#"{"block_tokens": 0}"#, "block_tokens"),
            (r#"{"blocks": 0}"#, "blocks"),
            (r#"{"kv_bytes": 7}"#, "kv_bytes"),
            (r#"{"blocks": 1, "kv_bytes": 1}"#, "exclude"),
            (r#"{"hash_key": "xyz"}"#, "hash_key"),
            (r#"{"pin_fraction": 1.5}"#, "pin_fraction"),
            (r#"{"decode_us_per_token": 1000001}"#, "decode_us_per_token"),
            (r#"{"context_tokens_max": 0}"#, "context_tokens_max"),
        ] {
            let error = Options::parse(json).expect_err(json).to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
    }
}
