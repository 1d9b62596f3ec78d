//! The configuration file and what is read from disk at start: unknown keys are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use mainstay_gateway::{ApiKey, GatewayConfig, Media, ModelAliases, Recompute};
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::logging::LogConfig;
use crate::settings::{Layers, ROLES};
use crate::weights;

/// `--config FILE`, TOML, without the flags of roles: those are put in front of clap by [`settings`](crate::settings).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileConfig {
    /// API keys and their tenants. Without any, no key is asked for.
    pub(crate) keys: Vec<KeyConfig>,
    /// What gateways do about pins.
    pub(crate) pins: PinsConfig,
    /// Names of models, and what is not text.
    pub(crate) models: ModelsConfig,
    /// How the Responses API is served.
    pub(crate) responses: ResponsesConfig,
    /// The page for people.
    pub(crate) console: ConsoleConfig,
    /// What is logged, and how.
    pub(crate) log: LogConfig,
    /// Passed to the engine as it is, beside what flags set.
    pub(crate) engine: toml::Table,
}

/// `[pins]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PinsConfig {
    /// Which pins keep their tokens where a request does not say: `explicit`, `all` or `off`.
    recompute: Option<String>,
}

/// `[models]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelsConfig {
    /// Other names of models; `*` in one stands for any text.
    aliases: BTreeMap<String, String>,
    /// What becomes of images and other content that is not text: `text` or `refuse`.
    media: Option<String>,
}

/// `[responses]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ResponsesConfig {
    /// Whether over WebSocket, too; true if it does not say.
    websocket: Option<bool>,
}

/// `[console]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConsoleConfig {
    /// Whether gateways serve it; true if it does not say.
    enabled: Option<bool>,
}

/// One API key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyConfig {
    key: String,
    tenant: String,
}

impl std::fmt::Debug for KeyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyConfig").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl FileConfig {
    /// Reads the file, if one is named, and the environment.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        Self::of(Layers::read(path, std::env::vars_os())?)
    }

    /// What is left of the layers beside flags.
    pub(crate) fn of(layers: Layers) -> anyhow::Result<Self> {
        let mut table = layers.table;
        ROLES.iter().for_each(|role| drop(table.remove(*role)));
        table.try_into().context("in the configuration")
    }

    /// The gateway's form of the keys.
    fn api_keys(&self) -> Vec<ApiKey> {
        let key = |k: &KeyConfig| ApiKey { key: k.key.clone(), tenant: k.tenant.clone() };
        self.keys.iter().map(key).collect()
    }

    /// Tells a gateway all that it wants to know.
    pub(crate) fn apply(&self, gateway: &mut GatewayConfig) -> anyhow::Result<()> {
        gateway.keys = self.api_keys();
        gateway.recompute = self.recompute()?;
        let aliases = self.models.aliases.iter().map(|(a, b)| (a.clone(), b.clone()));
        gateway.aliases = ModelAliases::new(aliases).map_err(|e| anyhow!("models.aliases: {e}"))?;
        gateway.websocket = self.responses.websocket.unwrap_or(gateway.websocket);
        gateway.console = self.console.enabled.unwrap_or(gateway.console);
        if let Some(name) = &self.models.media {
            gateway.media = Media::from_name(name).with_context(|| {
                let names: Vec<&str> = Media::ALL.iter().map(|choice| choice.name()).collect();
                format!("models.media is {name:?}; write one of {}", names.join(", "))
            })?;
        }
        Ok(())
    }

    /// Which pins keep their tokens.
    fn recompute(&self) -> anyhow::Result<Recompute> {
        let Some(name) = &self.pins.recompute else { return Ok(Recompute::default()) };
        Recompute::from_name(name).with_context(|| {
            let names: Vec<&str> = Recompute::ALL.iter().map(|choice| choice.name()).collect();
            format!("pins.recompute is {name:?}; write one of {}", names.join(", "))
        })
    }

    /// The engine's table as JSON.
    pub(crate) fn engine_json(&self) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
        match serde_json::to_value(&self.engine)? {
            serde_json::Value::Object(map) => Ok(map),
            _ => Ok(serde_json::Map::new()),
        }
    }
}

/// What a model folder gives to gateways.
const GATEWAY_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// A model: its name, what tells it from another of that name, and the files for gateways.
pub(crate) struct ModelFiles {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) files: Vec<(String, bytes::Bytes)>,
}

/// Reads a model folder; without one, takes the bundled model.
pub(crate) fn model_files(dir: Option<&Path>, name: Option<&str>) -> anyhow::Result<ModelFiles> {
    let Some(dir) = dir else {
        let bundled = mainstay_native::bundled_demo();
        let files: Vec<(String, bytes::Bytes)> = bundled
            .files
            .iter()
            .filter(|(file, _)| GATEWAY_FILES.contains(file))
            .map(|(file, content)| ((*file).to_owned(), bytes::Bytes::from_static(content)))
            .collect();
        let weights = weights::digest_in_memory(bundled.files.iter().copied());
        let revision = revision_of(&files, weights);
        return Ok(ModelFiles { name: name.unwrap_or("demo").to_owned(), revision, files });
    };
    if !dir.is_dir() {
        bail!(
            "{} is not a folder; give the folder of a checkpoint in Hugging Face layout",
            dir.display()
        );
    }
    let mut files = Vec::new();
    for file in GATEWAY_FILES {
        match std::fs::read(dir.join(file)) {
            Ok(content) => files.push((file.to_owned(), bytes::Bytes::from(content))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", dir.join(file).display()));
            }
        }
    }
    for needed in ["config.json", "tokenizer.json"] {
        if !files.iter().any(|(name, _)| name == needed) {
            bail!("{} has no {needed}; a checkpoint in Hugging Face layout has one", dir.display());
        }
    }
    let own_name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_str()?.to_owned()));
    let name = name.map(str::to_owned).or(own_name).unwrap_or_else(|| "model".to_owned());
    let kept = default_data_dir("digests");
    let revision = revision_of(&files, weights::digest_of_folder(dir, Some(&kept))?);
    Ok(ModelFiles { name, revision, files })
}

/// Tells checkpoints of one name apart by their content: that of the small files and that of the weights. Workers with
/// equal files have equal revisions, wherever the files lie.
fn revision_of(files: &[(String, bytes::Bytes)], weights: u128) -> String {
    let mut parts: Vec<(String, u128)> =
        files.iter().map(|(name, content)| (name.clone(), xxh3_128(content))).collect();
    // No file has this name.
    parts.push((String::new(), weights));
    format!("{:032x}", weights::fold(&mut parts))[..16].to_owned()
}

/// The size of the weights in a folder.
pub(crate) fn weights_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let weights =
        entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "safetensors"));
    weights.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

/// Where state lives unless a flag says otherwise: the user's data folder.
pub(crate) fn default_data_dir(role: &str) -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("."));
    base.join("mainstay").join(role)
}
