//! The engine's own configuration: one JSON object, unknown members refused so that a typing mistake is not a silent
//! default. What a built engine's `config.json` says need not be given; what is given wins.

use std::path::{Path, PathBuf};

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use serde::Deserialize;

use crate::bridge::Settings;
use crate::error::TrtllmError;

const CONFIG_BYTES_MAX: u64 = 1 << 20;
const BLOCK_TOKENS_MAX: u32 = 1024;
const CONTEXT_TOKENS_MAX: u32 = 1 << 22;
const REQUESTS_MAX: u32 = 4096;
const VOCAB_MAX: u32 = 1 << 24;
const BLOCKS_MAX: u64 = 1 << 32;
/// Events that wait for us: a step of a large batch tells some hundreds.
const EVENT_BUFFER: u32 = 1 << 16;
const EVENT_BUFFER_MAX: u32 = 1 << 24;
const REQUEST_SECONDS_MAX: u32 = 86_400 * 7;
/// Tokens that end an answer: models have a handful.
const ENDS_MAX: usize = 64;

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) model_dir: String,
    pub(crate) model_name: String,
    pub(crate) block_tokens: u32,
    pub(crate) vocab: u32,
    pub(crate) context_tokens_max: u32,
    pub(crate) requests_max: u32,
    /// Blocks of the device's cache, where somebody said.
    pub(crate) blocks: Option<u64>,
    /// Tokens that end an answer.
    pub(crate) ends: Vec<u32>,
    pub(crate) allotted_ms: u64,
    pub(crate) hash_key: HashKey,
    pub(crate) hash_key_given: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    engine_dir: PathBuf,
    model_dir: String,
    model_name: String,
    block_tokens: Option<u32>,
    vocab: Option<u32>,
    context_tokens_max: Option<u32>,
    requests_max: Option<u32>,
    blocks: Option<u64>,
    end_tokens: Option<Vec<u32>>,
    kv_tokens_max: Option<u32>,
    kv_fraction: Option<f32>,
    host_cache_mib: Option<u32>,
    offload_priority_min: Option<u8>,
    event_buffer: Option<u32>,
    request_seconds_max: Option<u32>,
    hash_key: Option<String>,
}

/// What of `config.json` in a built engine's folder is of use.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Built {
    pretrained_config: Pretrained,
    build_config: Build,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pretrained {
    vocab_size: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Build {
    max_seq_len: Option<u32>,
    max_batch_size: Option<u32>,
    plugin_config: Plugin,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Plugin {
    tokens_per_block: Option<u32>,
}

/// One token or several, as models' descriptions have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ends {
    One(u32),
    Several(Vec<u32>),
}

fn wrong(message: impl Into<String>) -> TrtllmError {
    TrtllmError::Options(message.into())
}

/// What is given, or what the engine's folder says, within bounds.
fn known(
    member: &str,
    given: Option<u32>,
    built: Option<u32>,
    most: u32,
) -> Result<u32, TrtllmError> {
    match given.or(built) {
        Some(value) if (1..=most).contains(&value) => Ok(value),
        Some(value) => Err(wrong(format!("`{member}` is {value}; it must lie in 1..={most}"))),
        None => Err(wrong(format!(
            "the engine's config.json does not say it; give `{member}` (1..={most})"
        ))),
    }
}

fn within(member: &str, given: Option<u32>, most: u32) -> Result<Option<u32>, TrtllmError> {
    given.map(|value| known(member, Some(value), None, most)).transpose()
}

/// A JSON file, if there is one.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, TrtllmError> {
    let cannot = |reason: String| wrong(format!("cannot read {}: {reason}", path.display()));
    match std::fs::metadata(path) {
        Err(_) => return Ok(None),
        Ok(meta) if meta.len() > CONFIG_BYTES_MAX => {
            return Err(cannot(format!("{} bytes are too many", meta.len())));
        }
        Ok(_) => {}
    }
    let json = std::fs::read(path).map_err(|e| cannot(e.to_string()))?;
    serde_json::from_slice(&json).map(Some).map_err(|e| cannot(e.to_string()))
}

/// The tokens that end an answer, by the model's own description.
fn ends_of(model_dir: &str) -> Result<Vec<u32>, TrtllmError> {
    #[derive(Deserialize)]
    struct Described {
        eos_token_id: Option<Ends>,
    }
    if model_dir.is_empty() {
        return Ok(Vec::new());
    }
    for name in ["generation_config.json", "config.json"] {
        let described: Option<Described> = read(&Path::new(model_dir).join(name))?;
        match described.and_then(|described| described.eos_token_id) {
            Some(Ends::One(end)) => return Ok(vec![end]),
            Some(Ends::Several(ends)) => return Ok(ends),
            None => {}
        }
    }
    Ok(Vec::new())
}

fn checked_ends(ends: Vec<u32>, vocab: u32) -> Result<Vec<u32>, TrtllmError> {
    if ends.len() > ENDS_MAX || ends.iter().any(|end| *end >= vocab) {
        let message = format!(
            "`end_tokens` (or the model's eos_token_id) must be at most {ENDS_MAX} tokens below the vocabulary's {vocab}"
        );
        return Err(wrong(message));
    }
    Ok(ends)
}

fn settings(raw: &Raw, requests_max: u32) -> Result<Settings, TrtllmError> {
    let fraction = raw.kv_fraction.unwrap_or(0.0);
    if raw.kv_fraction.is_some() && !(fraction > 0.0 && fraction < 1.0) {
        return Err(wrong("`kv_fraction` must lie between 0 and 1"));
    }
    if raw.offload_priority_min.is_some_and(|priority| priority > 100) {
        return Err(wrong("`offload_priority_min` must lie in 0..=100"));
    }
    let event_buffer = within("event_buffer", raw.event_buffer, EVENT_BUFFER_MAX)?;
    let kv_tokens_max = within("kv_tokens_max", raw.kv_tokens_max, i32::MAX as u32)?;
    Ok(Settings {
        engine_dir: raw.engine_dir.display().to_string(),
        event_buffer: event_buffer.unwrap_or(EVENT_BUFFER) as usize,
        kv_tokens_max: kv_tokens_max.map_or(0, u32::cast_signed),
        kv_fraction: fraction,
        host_cache_bytes: (raw.host_cache_mib.unwrap_or(0) as usize) << 20,
        offload_priority_min: raw.offload_priority_min.map_or(-1, i32::from),
        requests_max: requests_max.cast_signed(),
    })
}

impl Options {
    /// Reads the configuration and the files that it names.
    pub(crate) fn parse(json: &str) -> Result<Self, TrtllmError> {
        let raw: Raw = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        if raw.engine_dir.as_os_str().is_empty() {
            return Err(wrong(
                "no `engine_dir`; name the folder of an engine built by trtllm-build",
            ));
        }
        let built: Option<Built> = read(&raw.engine_dir.join("config.json"))?;
        let built = built.unwrap_or_default();
        let tokens = built.build_config.plugin_config.tokens_per_block;
        let (context, batch) = (built.build_config.max_seq_len, built.build_config.max_batch_size);
        let vocab = known("vocab", raw.vocab, built.pretrained_config.vocab_size, VOCAB_MAX)?;
        let requests_max = known("requests_max", raw.requests_max, batch, REQUESTS_MAX)?;
        let ends = match &raw.end_tokens {
            Some(ends) => ends.clone(),
            None => ends_of(&raw.model_dir)?,
        };
        if raw.blocks.is_some_and(|blocks| blocks == 0 || blocks > BLOCKS_MAX) {
            return Err(wrong(format!("`blocks` must lie in 1..={BLOCKS_MAX}")));
        }
        let seconds = within("request_seconds_max", raw.request_seconds_max, REQUEST_SECONDS_MAX)?;
        let hash_key = match &raw.hash_key {
            None => HashKey([0; 16]),
            Some(text) => HashKey::from_hex(text)
                .ok_or_else(|| wrong("`hash_key` must be 32 hexadecimal digits"))?,
        };
        Ok(Self {
            settings: settings(&raw, requests_max)?,
            block_tokens: known("block_tokens", raw.block_tokens, tokens, BLOCK_TOKENS_MAX)?,
            vocab,
            context_tokens_max: known(
                "context_tokens_max",
                raw.context_tokens_max,
                context,
                CONTEXT_TOKENS_MAX,
            )?,
            requests_max,
            blocks: raw.blocks,
            ends: checked_ends(ends, vocab)?,
            allotted_ms: u64::from(seconds.unwrap_or(0)) * 1000,
            hash_key,
            hash_key_given: raw.hash_key.is_some(),
            model_dir: raw.model_dir,
            model_name: raw.model_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"pretrained_config": {"vocab_size": 1000, "architecture": "x"}, "build_config":
            {"max_seq_len": 2048, "max_batch_size": 16, "plugin_config": {"tokens_per_block": 32}}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    fn parse(
        mut json: serde_json::Value,
        folder: &tempfile::TempDir,
    ) -> Result<Options, TrtllmError> {
        json["engine_dir"] = folder.path().to_str().unwrap().into();
        Options::parse(&json.to_string())
    }

    #[test]
    fn the_engines_folder_says_what_nobody_says() {
        let folder = folder();
        let options = parse(serde_json::json!({"context_tokens_max": 512}), &folder).unwrap();
        assert_eq!((options.block_tokens, options.vocab, options.requests_max), (32, 1000, 16));
        assert_eq!((options.context_tokens_max, options.blocks), (512, None));
        assert_eq!(options.settings.offload_priority_min, -1);
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), r#"{"eos_token_id": 7}"#).unwrap();
        let named = serde_json::json!({"model_dir": model});
        assert_eq!(parse(named.clone(), &folder).unwrap().ends, [7]);
        std::fs::write(model.join("generation_config.json"), r#"{"eos_token_id": [8, 9]}"#)
            .unwrap();
        assert_eq!(parse(named, &folder).unwrap().ends, [8, 9]);
        let said = serde_json::json!({"model_dir": model, "end_tokens": [3]});
        assert_eq!(parse(said, &folder).unwrap().ends, [3]);
    }

    #[test]
    fn mistakes_are_errors_that_say_what_to_type() {
        let folder = folder();
        for (json, word) in [
            (serde_json::json!({"blokcs": 1}), "blokcs"),
            (serde_json::json!({"blocks": 0}), "blocks"),
            (serde_json::json!({"block_tokens": 0}), "1..=1024"),
            (serde_json::json!({"vocab": 0}), "vocab"),
            (serde_json::json!({"kv_fraction": 1.5}), "kv_fraction"),
            (serde_json::json!({"kv_tokens_max": 0}), "kv_tokens_max"),
            (serde_json::json!({"offload_priority_min": 101}), "0..=100"),
            (serde_json::json!({"event_buffer": 0}), "event_buffer"),
            (serde_json::json!({"request_seconds_max": 0}), "request_seconds_max"),
            (serde_json::json!({"end_tokens": [1000]}), "end_tokens"),
            (serde_json::json!({"hash_key": "xyz"}), "hash_key"),
        ] {
            let error = parse(json.clone(), &folder).expect_err(word).to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
        assert!(Options::parse("{}").unwrap_err().to_string().contains("trtllm-build"));
        let bare = tempfile::tempdir().unwrap();
        let error = parse(serde_json::json!({}), &bare).unwrap_err().to_string();
        assert!(error.contains("give `vocab`"), "{error}");
        std::fs::write(bare.path().join("config.json"), "{").unwrap();
        assert!(
            parse(serde_json::json!({}), &bare).unwrap_err().to_string().contains("config.json")
        );
    }
}
