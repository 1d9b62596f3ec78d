//! Opening an engine: where it comes from, and the checks before it is handed out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine_abi::sdk::{EntryPoint, OpDone, Output};
use tokio::sync::mpsc;

use crate::error::{ExitReason, LoadError};
use crate::handle::{EngineHandle, Link, Receivers};
use crate::instance::Instance;
use crate::remote::{Outlets, Remote};
use crate::shared::Shared;
use crate::{KV_BATCHES_MAX, KvBatch, OPS_WAITING_MAX, OUTPUT_BATCHES_MAX, library, local, log};

/// Where an engine comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Linked into this program.
    Linked(EntryPoint),
    /// A library loaded into this process; its crash is this process's crash.
    Library(PathBuf),
    /// A process of its own: `host_program` is started with exactly `args` and must call
    /// [`child::run`](crate::child::run), or [`child::run_linked`](crate::child::run_linked), whose
    /// engine is used when `library` is `None`.
    Child { library: Option<PathBuf>, host_program: PathBuf, args: Vec<String> },
}

impl Source {
    /// A child of the `mainstay` program, by its hidden subcommand.
    pub fn child(host_program: impl Into<PathBuf>, library: Option<PathBuf>) -> Self {
        let args = vec!["engine-child".to_owned()];
        Self::Child { library, host_program: host_program.into(), args }
    }
}

/// Opens an engine and starts its lanes. It waits for the engine to load, off the async threads.
///
/// Must be called within a tokio runtime, which the lanes of a child then use.
///
/// # Errors
/// See [`LoadError`]; nothing is left running.
pub async fn open(
    source: Source,
    config_json: &str,
) -> Result<(EngineHandle, Receivers), LoadError> {
    let (shared, exit) = Shared::new();
    let shared = Arc::new(shared);
    let (outputs, outputs_rx) = mpsc::channel(OUTPUT_BATCHES_MAX);
    let (kv, kv_rx) = mpsc::channel(KV_BATCHES_MAX);
    let (ops, ops_rx) = mpsc::channel(OPS_WAITING_MAX);
    let receivers = Receivers { outputs: outputs_rx, kv: kv_rx, ops: ops_rx, exit };
    let handle = match source {
        Source::Child { library, host_program, args } => {
            let outlets = Outlets { outputs, kv, ops };
            let library = library.map(|path| existing(&path)).transpose()?;
            let (remote, opened) =
                Remote::open(&host_program, &args, library, config_json, &shared, outlets)
                    .await
                    .inspect_err(|_| drop(shared.end(ExitReason::Stopped)))?;
            let link = Link::Remote(remote);
            EngineHandle::new(opened.identity, opened.info, opened.caps, shared, link)
        }
        Source::Linked(entry) => {
            let config = config_json.to_owned();
            let create =
                move || Instance::open(&entry, "the linked engine", &config, log::to_tracing());
            in_process(create, shared, outputs, kv, ops).await?
        }
        Source::Library(path) => {
            let config = config_json.to_owned();
            let create = move || {
                let entry = library::load(&path)?;
                Instance::open(&entry, &path.display().to_string(), &config, log::to_tracing())
            };
            in_process(create, shared, outputs, kv, ops).await?
        }
    };
    Ok((handle, receivers))
}

async fn in_process(
    create: impl FnOnce() -> Result<Instance, LoadError> + Send + 'static,
    shared: Arc<Shared>,
    outputs: mpsc::Sender<Vec<Output>>,
    kv: mpsc::Sender<KvBatch>,
    ops: mpsc::Sender<OpDone>,
) -> Result<EngineHandle, LoadError> {
    let created = tokio::task::spawn_blocking(create).await;
    let instance = created.map_err(|error| LoadError::Resources {
        what: "threads".into(),
        reason: error.to_string(),
    })??;
    let instance = Arc::new(instance);
    local::start(&instance, &shared, outputs, kv, ops)?;
    let (identity, info, caps) = (instance.identity.clone(), instance.info.clone(), instance.caps);
    Ok(EngineHandle::new(identity, info, caps, shared, Link::Local(Some(instance))))
}

/// The child may have another working directory one day, and an early word is a clear one.
fn existing(path: &Path) -> Result<PathBuf, LoadError> {
    path.canonicalize().map_err(|error| LoadError::FileMissing {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}
