//! The engine's own configuration: one JSON object, unknown members refused so that a typing mistake is not a
//! silent default. What the server says of itself need not be given; what is given wins.

use std::path::PathBuf;
use std::time::Duration;

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use serde::Deserialize;

use crate::RemoteError;

/// Requests at the server at once, where nobody says how many it runs.
const REQUESTS_DEFAULT: u32 = 256;
const REQUESTS_MAX: u32 = 4096;
/// How long a stream may be silent: a long prompt on a busy server takes its time before the first token.
const SILENCE_S: u64 = 600;
const SILENCE_S_MAX: u64 = 86_400;
const BLOCK_TOKENS_MAX: u32 = 1024;
const CONTEXT_TOKENS_MAX: u32 = 1 << 22;
const KEY_BYTES_MAX: u64 = 4096;
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The servers that this engine can speak to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Server {
    Vllm,
    Sglang,
    LlamaCpp,
}

impl Server {
    /// Its name, for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// Whose blocks are this engine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cache {
    /// What the server holds outlives this engine: the next one finds it.
    #[default]
    Server,
    /// Every engine starts with an empty cache, by a salt of its own: for tests.
    Engine,
}

/// A key, which no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `http://host:port`, perhaps with a path, without a slash at its end.
    pub(crate) upstream: String,
    pub(crate) server: Option<Server>,
    pub(crate) model: Option<String>,
    pub(crate) kv_events: Option<String>,
    pub(crate) kv_replay: Option<String>,
    pub(crate) kv_topic: String,
    pub(crate) api_key: Option<Secret>,
    pub(crate) priority: bool,
    pub(crate) cache: Cache,
    pub(crate) model_dir: String,
    pub(crate) model_name: String,
    pub(crate) block_tokens: Option<u32>,
    pub(crate) blocks: Option<u64>,
    pub(crate) vocab: Option<u32>,
    pub(crate) context_tokens_max: Option<u32>,
    pub(crate) requests_max: Option<u32>,
    pub(crate) silence: Duration,
    pub(crate) hash_key: HashKey,
    pub(crate) hash_key_given: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    upstream: String,
    server: Option<Server>,
    model: Option<String>,
    kv_events: Option<String>,
    kv_replay: Option<String>,
    kv_topic: String,
    api_key_file: Option<PathBuf>,
    priority: bool,
    cache: Cache,
    model_dir: String,
    model_name: String,
    block_tokens: Option<u32>,
    blocks: Option<u64>,
    vocab: Option<u32>,
    context_tokens_max: Option<u32>,
    requests_max: Option<u32>,
    silence_s: Option<u64>,
    hash_key: Option<String>,
}

impl Options {
    /// Reads the configuration and the files that it names.
    pub(crate) fn parse(json: &str) -> Result<Self, RemoteError> {
        let raw: Raw =
            serde_json::from_str(json).map_err(|e| RemoteError::Options(e.to_string()))?;
        let hash_key = match &raw.hash_key {
            None => HashKey([0; 16]),
            Some(text) => HashKey::from_hex(text)
                .ok_or_else(|| wrong("`hash_key` must be 32 hexadecimal digits"))?,
        };
        if raw.kv_replay.is_some() && raw.kv_events.is_none() {
            return Err(wrong("`kv_replay` without `kv_events`; give both, or neither"));
        }
        if raw.blocks == Some(0) {
            return Err(wrong("`blocks` must be at least 1"));
        }
        let silence_s = raw.silence_s.unwrap_or(SILENCE_S);
        if !(1..=SILENCE_S_MAX).contains(&silence_s) {
            return Err(wrong(&format!("`silence_s` must lie in 1..={SILENCE_S_MAX}")));
        }
        let vocab = match raw.vocab {
            None => vocab_of(&raw.model_dir)?,
            given => given,
        };
        Ok(Self {
            upstream: upstream(&raw.upstream)?,
            server: raw.server,
            model: raw.model,
            kv_events: raw.kv_events.map(|text| endpoint("kv_events", text)).transpose()?,
            kv_replay: raw.kv_replay.map(|text| endpoint("kv_replay", text)).transpose()?,
            kv_topic: raw.kv_topic,
            api_key: raw.api_key_file.map(|file| api_key(&file)).transpose()?,
            priority: raw.priority,
            cache: raw.cache,
            model_dir: raw.model_dir,
            model_name: raw.model_name,
            block_tokens: within("block_tokens", raw.block_tokens, BLOCK_TOKENS_MAX)?,
            blocks: raw.blocks,
            vocab: within("vocab", vocab, u32::MAX)?,
            context_tokens_max: within(
                "context_tokens_max",
                raw.context_tokens_max,
                CONTEXT_TOKENS_MAX,
            )?,
            requests_max: within("requests_max", raw.requests_max, REQUESTS_MAX)?,
            silence: Duration::from_secs(silence_s),
            hash_key,
            hash_key_given: raw.hash_key.is_some(),
        })
    }

    /// How many requests the server shall run at once, where it says nothing itself.
    pub(crate) fn requests_or(&self, own: Option<u32>) -> u32 {
        self.requests_max.or(own).unwrap_or(REQUESTS_DEFAULT).clamp(1, REQUESTS_MAX)
    }
}

fn wrong(message: &str) -> RemoteError {
    RemoteError::Options(message.to_owned())
}

fn within(member: &str, value: Option<u32>, most: u32) -> Result<Option<u32>, RemoteError> {
    match value {
        Some(value) if value == 0 || value > most => {
            Err(wrong(&format!("`{member}` must lie in 1..={most}")))
        }
        value => Ok(value),
    }
}

fn upstream(text: &str) -> Result<String, RemoteError> {
    if text.is_empty() {
        return Err(wrong("no `upstream`; say --upstream http://HOST:PORT"));
    }
    if text.starts_with("https:") {
        return Err(wrong(
            "`upstream` is https, which this build does not speak; put a tunnel or a proxy on this machine",
        ));
    }
    let url = reqwest::Url::parse(text)
        .map_err(|e| wrong(&format!("`upstream` is no address ({e}); write http://HOST:PORT")))?;
    if url.scheme() != "http" || url.host_str().is_none() {
        return Err(wrong("`upstream` must be http://HOST:PORT"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("`upstream` holds a password; put the key into `api_key_file`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("`upstream` ends with a question or a fragment; write http://HOST:PORT"));
    }
    // Who knows a server by its API's root means the server.
    let text = url.as_str().trim_end_matches('/');
    Ok(text.strip_suffix("/v1").unwrap_or(text).to_owned())
}

fn endpoint(member: &str, text: String) -> Result<String, RemoteError> {
    let is_tcp = text.strip_prefix("tcp://").is_some_and(|rest| {
        rest.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && host != "*" && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    });
    let is_ipc = text.strip_prefix("ipc://").is_some_and(|path| path.starts_with('/'));
    if is_tcp || is_ipc {
        return Ok(text);
    }
    Err(wrong(&format!("`{member}` must be tcp://HOST:PORT or ipc:///PATH, not {text:?}")))
}

fn api_key(file: &std::path::Path) -> Result<Secret, RemoteError> {
    let cannot =
        |reason: String| wrong(&format!("cannot read `api_key_file` {}: {reason}", file.display()));
    let meta = std::fs::metadata(file).map_err(|e| cannot(e.to_string()))?;
    if meta.len() > KEY_BYTES_MAX {
        return Err(cannot(format!("{} bytes; a key has at most {KEY_BYTES_MAX}", meta.len())));
    }
    let key = std::fs::read_to_string(file).map_err(|e| cannot(e.to_string()))?;
    let key = key.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(cannot("it must hold one key of printable characters".to_owned()));
    }
    Ok(Secret(key.to_owned()))
}

/// `vocab_size` of the model's own description, where there is one.
fn vocab_of(model_dir: &str) -> Result<Option<u32>, RemoteError> {
    #[derive(Deserialize)]
    struct Config {
        vocab_size: Option<u32>,
        text_config: Option<Box<Config>>,
    }
    if model_dir.is_empty() {
        return Ok(None);
    }
    let path = std::path::Path::new(model_dir).join("config.json");
    let cannot = |reason: String| wrong(&format!("cannot read {}: {reason}", path.display()));
    match std::fs::metadata(&path) {
        Err(_) => return Ok(None),
        Ok(meta) if meta.len() > CONFIG_BYTES_MAX => {
            return Err(cannot(format!("{} bytes are too many", meta.len())));
        }
        Ok(_) => {}
    }
    let json = std::fs::read(&path).map_err(|e| cannot(e.to_string()))?;
    let config: Config = serde_json::from_slice(&json).map_err(|e| cannot(e.to_string()))?;
    Ok(config.vocab_size.or_else(|| config.text_config.and_then(|inner| inner.vocab_size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_enough_and_its_tail_is_cut() {
        let options = Options::parse(r#"{"upstream": "http://h:1/v1/"}"#).unwrap();
        assert_eq!(options.upstream, "http://h:1");
        assert_eq!((options.cache, options.requests_or(None)), (Cache::Server, 256));
        assert_eq!(options.requests_or(Some(4)), 4);
        let below = Options::parse(r#"{"upstream": "http://h:1/a/b"}"#).unwrap();
        assert_eq!(below.upstream, "http://h:1/a/b");
    }

    #[test]
    fn mistakes_are_errors_that_say_what_to_type() {
        for (json, word) in [
            ("{}", "--upstream"),
            (r#"{"upstream": "http://h:1", "upsteam": 1}"#, "upsteam"),
            (r#"{"upstream": "https://h:1"}"#, "tunnel"),
            (r#"{"upstream": "h:1"}"#, "http://HOST:PORT"),
            (r#"{"upstream": "http://me:secret@h:1"}"#, "api_key_file"),
            (r#"{"upstream": "http://h:1?x"}"#, "http://HOST:PORT"),
            (r#"{"upstream": "http://h:1", "kv_events": "tcp://*:5557"}"#, "kv_events"),
            (r#"{"upstream": "http://h:1", "kv_events": "tcp://h"}"#, "tcp://HOST:PORT"),
            (r#"{"upstream": "http://h:1", "kv_replay": "tcp://h:1"}"#, "kv_events"),
            (r#"{"upstream": "http://h:1", "server": "ollama"}"#, "ollama"),
            (r#"{"upstream": "http://h:1", "block_tokens": 0}"#, "block_tokens"),
            (r#"{"upstream": "http://h:1", "blocks": 0}"#, "blocks"),
            (r#"{"upstream": "http://h:1", "silence_s": 0}"#, "silence_s"),
            (r#"{"upstream": "http://h:1", "hash_key": "xyz"}"#, "hash_key"),
            (r#"{"upstream": "http://h:1", "api_key_file": "/nowhere"}"#, "/nowhere"),
        ] {
            let error = Options::parse(json).expect_err(json).to_string();
            assert!(error.contains(word), "{json}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn keys_and_vocabularies_are_read_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("key"), "s3cret\n").unwrap();
        std::fs::write(path("config.json"), r#"{"text_config": {"vocab_size": 77}}"#).unwrap();
        let json = serde_json::json!({
            "upstream": "http://h:1", "api_key_file": path("key"), "model_dir": folder.path(),
        });
        let options = Options::parse(&json.to_string()).unwrap();
        assert_eq!((&options.api_key, options.vocab), (&Some(Secret("s3cret".into())), Some(77)));
        assert!(!format!("{options:?}").contains("s3cret"));
        std::fs::write(path("key"), "two\nlines").unwrap();
        assert!(Options::parse(&json.to_string()).is_err());
    }
}
