//! Which engine a worker hosts, and what it is told.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mainstay_engine_host::Source;
use serde_json::{Map, Value, json};

const SIM: &str = "sim";
const REMOTE: &str = "remote";
const NATIVE: &str = "native";

/// Flags about the engine, shared by `serve` and `worker`.
#[derive(clap::Args, Clone)]
pub(crate) struct EngineArgs {
    /// A checkpoint in Hugging Face layout; the bundled model if left out
    #[arg(value_name = "MODEL_DIR")]
    pub(crate) model_dir: Option<PathBuf>,
    /// `native`, `sim` (no model, answers by --script), `remote` (another server, by --upstream), or a vendor's
    /// FILE.so, which runs in a child process
    #[arg(long, default_value = NATIVE)]
    pub(crate) engine: String,
    /// Serve by this server, vLLM, SGLang or llama.cpp's, such as http://127.0.0.1:8001; MODEL_DIR needs its tokenizer
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,
    /// Where that server publishes its cache's events, such as tcp://127.0.0.1:5557
    #[arg(long, value_name = "ENDPOINT", requires = "upstream")]
    pub(crate) kv_events: Option<String>,
    /// Where it gives old events again, such as tcp://127.0.0.1:5558
    #[arg(long, value_name = "ENDPOINT", requires = "kv_events")]
    pub(crate) kv_replay: Option<String>,
    /// The name clients ask for [default: the folder's name]
    #[arg(long)]
    pub(crate) model_name: Option<String>,
    /// Where the native engine computes: `cpu`, `cuda` or `cuda:N`, or `auto`, which is a GPU if there is one that will do
    /// [default: cpu]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Threads of the engine [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Memory for the KV cache, such as 512M or 8G [default: 1 GiB (native), nine tenths of what is free on a GPU, 2 GiB
    /// (sim, where a token counts for 1 KiB and nothing is held)]
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) kv_bytes: Option<u64>,
    /// The longest prompt plus output, in tokens [default: the model's own; 1,048,576 (sim)]
    #[arg(long)]
    pub(crate) context_tokens: Option<u32>,
    /// What the sim engine says: a TOML file of rules
    #[arg(long, value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
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
    /// What tells this model from another of its name: one that is simulated shares its files with a real one, but
    /// neither its blocks nor its answers.
    pub(crate) fn revision(&self, revision: String) -> String {
        if self.engine == SIM { format!("{SIM}-{revision}") } else { revision }
    }

    /// The engine's word: who names an upstream means the remote one.
    fn kind(&self) -> &str {
        if self.upstream.is_some() && self.engine == NATIVE { REMOTE } else { &self.engine }
    }

    /// What the remote engine is told, and what it can't be told.
    fn config_remote(&self, config: &mut Map<String, Value>) -> anyhow::Result<()> {
        if self.kind() != REMOTE {
            if self.upstream.is_some() {
                bail!("only `--engine remote` has an --upstream; leave out one of the two");
            }
            return Ok(());
        }
        if self.model_dir.is_none() {
            bail!(
                "the remote engine needs the tokenizer and the chat template of its server's model: name their \
                 folder, as in `mainstay serve MODEL_DIR --upstream http://HOST:PORT`"
            );
        }
        if self.threads.is_some() || self.kv_bytes.is_some() {
            bail!(
                "--threads and --kv-bytes are the server's own with `--engine remote`; set them there"
            );
        }
        for (key, value) in [
            ("upstream", &self.upstream),
            ("kv_events", &self.kv_events),
            ("kv_replay", &self.kv_replay),
        ] {
            if let Some(value) = value {
                config.insert(key.into(), json!(value));
            }
        }
        if !config.contains_key("upstream") {
            bail!("`--engine remote` needs the server: --upstream http://HOST:PORT");
        }
        Ok(())
    }

    /// Where the engine's code is.
    pub(crate) fn source(&self) -> anyhow::Result<Source> {
        match self.kind() {
            NATIVE => Ok(native()),
            SIM => Ok(Source::Linked(mainstay_sim::entry())),
            REMOTE => Ok(Source::Linked(mainstay_remote::entry())),
            file => {
                let path = Path::new(file);
                if !path.is_file() {
                    bail!("engine {file:?} is neither `native`, `sim`, `remote` nor a file");
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
        self.config_remote(&mut config)?;
        let dir = match &self.model_dir {
            Some(dir) => {
                dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?
            }
            None => PathBuf::new(),
        };
        config.insert("model_dir".into(), json!(dir.to_string_lossy()));
        config.insert("model_name".into(), json!(name));
        if let Some(script) = &self.script {
            if self.engine != SIM {
                bail!("only `--engine sim` has a --script");
            }
            let script =
                script.canonicalize().with_context(|| format!("no script {}", script.display()))?;
            config.insert("script".into(), json!(script.to_string_lossy()));
        }
        if let Some(device) = &self.device {
            if self.kind() != NATIVE {
                bail!(
                    "only `--engine native` has a --device; other engines have settings of their own"
                );
            }
            config.insert("device".into(), json!(device));
        }
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

    fn args(flags: &[&str]) -> EngineArgs {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            engine: EngineArgs,
        }
        let all = ["program"].iter().chain(flags);
        <Program as clap::Parser>::parse_from(all).engine
    }

    #[test]
    fn the_sim_engine_is_linked_in_and_alone_has_a_script() {
        let sim = args(&["--engine", "sim", "--script", "Cargo.toml"]);
        assert!(matches!(sim.source(), Ok(Source::Linked(_))));
        let config = sim.config("m", Map::new()).unwrap();
        assert!(config["script"].as_str().unwrap().ends_with("/Cargo.toml"));
        let native = args(&["--script", "Cargo.toml"]).config("m", Map::new());
        assert!(native.unwrap_err().to_string().contains("sim"));
        assert!(args(&["--engine", "nothing"]).source().is_err());
        let device = args(&["--device", "cuda:1"]).config("m", Map::new()).unwrap();
        assert_eq!(device["device"], "cuda:1");
        let sim = args(&["--engine", "sim", "--device", "cuda"]).config("m", Map::new());
        assert!(sim.unwrap_err().to_string().contains("--device"));
    }

    #[test]
    fn an_upstream_means_the_remote_engine_and_says_what_it_lacks() {
        let url = "http://127.0.0.1:1";
        let whole = args(&[".", "--upstream", url, "--kv-events", "tcp://127.0.0.1:2"]);
        assert!(matches!(whole.source(), Ok(Source::Linked(_))));
        let config = whole.config("m", Map::new()).unwrap();
        assert_eq!(
            (&config["upstream"], &config["kv_events"]),
            (&json!(url), &json!("tcp://127.0.0.1:2"))
        );
        for (flags, word) in [
            (&["--upstream", url][..], "MODEL_DIR"),
            (&[".", "--engine", "remote"][..], "--upstream"),
            (&[".", "--engine", "sim", "--upstream", url][..], "leave out"),
            (&[".", "--upstream", url, "--threads", "2"][..], "set them there"),
        ] {
            let error = args(flags).config("m", Map::new()).unwrap_err().to_string();
            assert!(error.contains(word), "{flags:?}: {error}");
        }
    }

    #[test]
    fn sizes_have_suffixes_and_limits() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes("77"), Ok(77));
        assert!(parse_bytes("x").is_err());
        assert!(parse_bytes("99999999999G").is_err());
    }
}
