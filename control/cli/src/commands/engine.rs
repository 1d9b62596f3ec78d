//! Which engine a worker hosts, and what it is told.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mainstay_engine_host::Source;
use serde_json::{Map, Value, json};

/// Flags about the engine, shared by `serve` and `worker`.
#[derive(clap::Args, Clone)]
pub(crate) struct EngineArgs {
    /// A checkpoint in Hugging Face layout; the bundled model if left out
    #[arg(value_name = "MODEL_DIR")]
    pub(crate) model_dir: Option<PathBuf>,
    /// `native`, or a vendor's FILE.so, which runs in a child process
    #[arg(long, default_value = "native")]
    pub(crate) engine: String,
    /// The name clients ask for [default: the folder's name]
    #[arg(long)]
    pub(crate) model_name: Option<String>,
    /// Threads of the engine [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Memory for the KV cache, such as 512M or 8G
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) kv_bytes: Option<u64>,
    /// The longest prompt plus output, in tokens [default: the model's own]
    #[arg(long)]
    pub(crate) context_tokens: Option<u32>,
}

/// The native engine, linked in and entered through the C ABI like any other.
pub(crate) fn native() -> Source {
    Source::Linked(mainstay_engine_abi::sdk::entry_point::<mainstay_native::NativeEngine>())
}

/// Reads `512M`, `8G`, `1024`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(['B', 'b', 'i']).char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 =
        digits.trim().parse().map_err(|_| "give a size such as 512M or 8G".to_owned())?;
    number.checked_shl(shift).filter(|v| v >> shift == number).ok_or_else(|| "too large".to_owned())
}

impl EngineArgs {
    /// Where the engine's code is.
    pub(crate) fn source(&self) -> anyhow::Result<Source> {
        match self.engine.as_str() {
            "native" => Ok(native()),
            "sim" | "remote" => {
                bail!("engine {:?} is not in this build; use native or a FILE.so", self.engine)
            }
            file => {
                let path = Path::new(file);
                if !path.is_file() {
                    bail!("engine {file:?} is neither `native` nor a file");
                }
                let host_program =
                    std::env::current_exe().context("finding this program's own file")?;
                Ok(Source::Child {
                    library: Some(path.canonicalize().context("finding the engine's file")?),
                    host_program,
                    args: vec!["engine-child".to_owned()],
                })
            }
        }
    }

    /// What the engine is told: the file's table, then the flags.
    pub(crate) fn config(&self, name: &str, file: Map<String, Value>) -> anyhow::Result<Value> {
        let mut config = file;
        let dir = match &self.model_dir {
            Some(dir) => {
                dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?
            }
            None => PathBuf::new(),
        };
        config.insert("model_dir".into(), json!(dir.to_string_lossy()));
        config.insert("model_name".into(), json!(name));
        let numbers = [
            ("threads", self.threads.map(|n| n as u64)),
            ("kv_bytes", self.kv_bytes),
            ("context_tokens_max", self.context_tokens.map(u64::from)),
        ];
        for (key, value) in numbers {
            if let Some(value) = value {
                config.insert(key.into(), json!(value));
            }
        }
        Ok(Value::Object(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_limits() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes("77"), Ok(77));
        assert!(parse_bytes("x").is_err());
        assert!(parse_bytes("99999999999G").is_err());
    }
}
