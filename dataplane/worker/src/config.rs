//! A worker's configuration, checked once before anything is opened.
//!
//! The caller reads files and flags; this module only says what is acceptable. Everything that can be wrong
//! without asking the network or the engine is refused here, with what to change.

use std::net::SocketAddr;

use bytes::Bytes;
use mainstay_engine_host::Source;
use mainstay_identity::{Identity, check_listener};
use mainstay_types::Region;

use crate::error::WorkerError;
use crate::tiers::TierConfig;

/// The longest worker name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// All model files together, in bytes: they travel in one message of [`crate::MESSAGE_BYTES_MAX`].
pub const MODEL_FILES_BYTES_MAX: usize = 60 << 20;
/// Requests in flight at most, whatever the configuration says.
pub const REQUESTS_MAX: usize = 65_536;

/// What a worker needs to start.
pub struct WorkerConfig {
    /// Unique in the cluster; the same name is the same worker, and the later process fences the earlier.
    pub name: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where gateways reach it, as `host:port`; the listening address when absent.
    pub advertise: Option<String>,
    /// The control members, as `host:port`.
    pub control: Vec<String>,
    /// Where it is.
    pub region: Region,
    /// Who it is. With it all its connections are TLS and roles are checked.
    pub identity: Option<Identity>,
    /// Whether it may listen beyond loopback without an identity.
    pub insecure: bool,
    /// The engine to host.
    pub engine: Source,
    /// The engine's own configuration, a JSON object; the worker adds `hash_key`.
    pub engine_config: serde_json::Value,
    /// The name clients ask for; the engine's own name when empty.
    pub model_name: String,
    /// Tells two checkpoints of one name apart.
    pub revision: String,
    /// `tokenizer.json`, the chat template and their like, for gateways that ask.
    pub model_files: Vec<(String, Bytes)>,
    /// Requests in flight at most; more are told to go elsewhere.
    pub requests_max: usize,
    /// How long to wait for the control plane before giving up the start.
    pub start_timeout_ms: u64,
    /// How long a drain waits for requests in flight.
    pub drain_timeout_ms: u64,
    /// Engine crashes in a row that are answered with a restart.
    pub engine_restarts_max: u32,
    /// The tiers below the engine's memory.
    pub tiers: TierConfig,
}

impl WorkerConfig {
    /// The usual settings around what has no usual value.
    #[must_use]
    pub fn new(name: impl Into<String>, control: Vec<String>, engine: Source) -> Self {
        Self {
            name: name.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            control,
            region: Region::default(),
            identity: None,
            insecure: false,
            engine,
            engine_config: serde_json::Value::Object(serde_json::Map::new()),
            model_name: String::new(),
            revision: String::new(),
            model_files: Vec::new(),
            requests_max: 1_024,
            start_timeout_ms: 60_000,
            drain_timeout_ms: 30_000,
            engine_restarts_max: 8,
            tiers: TierConfig::default(),
        }
    }

    /// Takes the engine out, since it is opened by others than those who read the settings.
    pub(crate) fn split(self) -> Result<(Settings, Source), WorkerError> {
        let serde_json::Value::Object(engine_config) = self.engine_config else {
            return Err(WorkerError::Config(
                "the engine configuration must be a JSON object".into(),
            ));
        };
        let settings = Settings {
            name: self.name,
            listen: self.listen,
            advertise: self.advertise,
            control: self.control,
            region: self.region,
            identity: self.identity,
            insecure: self.insecure,
            engine_config,
            model_name: self.model_name,
            revision: self.revision,
            model_files: self.model_files,
            requests_max: self.requests_max,
            start_timeout_ms: self.start_timeout_ms,
            drain_timeout_ms: self.drain_timeout_ms,
            engine_restarts_max: self.engine_restarts_max,
            tiers: self.tiers,
        };
        settings.check()?;
        Ok((settings, self.engine))
    }
}

/// A configuration without its engine.
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) control: Vec<String>,
    pub(crate) region: Region,
    pub(crate) identity: Option<Identity>,
    pub(crate) insecure: bool,
    pub(crate) engine_config: serde_json::Map<String, serde_json::Value>,
    pub(crate) model_name: String,
    pub(crate) revision: String,
    pub(crate) model_files: Vec<(String, Bytes)>,
    pub(crate) requests_max: usize,
    pub(crate) start_timeout_ms: u64,
    pub(crate) drain_timeout_ms: u64,
    pub(crate) engine_restarts_max: u32,
    pub(crate) tiers: TierConfig,
}

impl Settings {
    /// Refuses what can never work.
    pub(crate) fn check(&self) -> Result<(), WorkerError> {
        let refuse = |text: String| Err(WorkerError::Config(text));
        let named = (1..=NAME_BYTES_MAX).contains(&self.name.len());
        if !named || self.name.chars().any(char::is_control) {
            return refuse(format!(
                "a worker's name has 1 to {NAME_BYTES_MAX} bytes without control characters; set --name"
            ));
        }
        if self.control.is_empty() {
            return refuse("no control member is given; set --control HOST:PORT,…".into());
        }
        check_listener(self.listen, self.identity.as_ref(), self.insecure)
            .map_err(|e| WorkerError::Config(e.to_string()))?;
        if let Some(identity) = &self.identity
            && identity.peer().node != self.name
        {
            return refuse(format!(
                "the worker's name is {:?}, but its certificate says {:?}; set --name to that, or leave it out",
                self.name,
                identity.peer().node
            ));
        }
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            return refuse(format!(
                "listening on {} says nothing about how gateways get here; set --advertise HOST:PORT",
                self.listen
            ));
        }
        if !(1..=REQUESTS_MAX).contains(&self.requests_max) {
            return refuse(format!("requests_max must be between 1 and {REQUESTS_MAX}"));
        }
        self.tiers.check().map_err(WorkerError::Config)?;
        let bytes: usize = self.model_files.iter().map(|(n, c)| n.len() + c.len()).sum();
        if bytes > MODEL_FILES_BYTES_MAX {
            return refuse(format!(
                "the model files have {bytes} bytes together, more than {MODEL_FILES_BYTES_MAX}"
            ));
        }
        Ok(())
    }
}
