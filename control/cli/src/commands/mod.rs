//! The commands, one module each.

pub(crate) mod admin;
pub(crate) mod bench;
pub(crate) mod block;
pub(crate) mod bundle;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod engine;
pub(crate) mod engine_check;
pub(crate) mod gateway;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod members;
pub(crate) mod offline;
pub(crate) mod pin;
pub(crate) mod queue;
pub(crate) mod reference;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod tenant;
pub(crate) mod tiers;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod traces;
pub(crate) mod worker;

use mainstay_gateway::PromptMemory;

/// Resolves at SIGINT or SIGTERM.
pub(crate) async fn asked_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Splits `a:1,b:2`.
pub(crate) fn addresses(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect()
}

/// How a gateway may be called.
#[derive(clap::Args)]
pub(crate) struct HostArgs {
    /// Names that a gateway may be called by while it asks nobody for a key, as NAME,…; addresses and names that nobody can
    /// register, such as localhost, always pass
    #[arg(long, value_name = "NAME,…")]
    allow_host: Option<String>,
}

impl HostArgs {
    pub(crate) fn names(&self) -> Vec<String> {
        self.allow_host.as_deref().map(addresses).unwrap_or_default()
    }
}

/// What a gateway may remember, shared by `serve` and `gateway`.
#[derive(clap::Args)]
pub(crate) struct MemoryArgs {
    /// What may be remembered of prompts and the tokens made of them, so that a turn costs what is new in it; each
    /// further model gets as much again, what is known of sessions a sixth more [default: 768M]
    #[arg(long, value_name = "SIZE", value_parser = parse_prompt_memory)]
    prompt_memory: Option<PromptMemory>,
}

impl MemoryArgs {
    pub(crate) fn prompts(&self) -> PromptMemory {
        self.prompt_memory.unwrap_or_default()
    }
}

fn parse_prompt_memory(text: &str) -> Result<PromptMemory, String> {
    let bytes = engine::parse_bytes(text)?;
    let least = PromptMemory::BYTES_MIN;
    let enough = bytes >= least;
    enough.then(|| PromptMemory::new(bytes)).ok_or_else(|| format!("give {}M or more", least >> 20))
}

/// Reads `--region`.
pub(crate) fn parse_region(text: &str) -> Result<mainstay_types::Region, String> {
    mainstay_types::Region::new(text).ok_or_else(|| {
        let most = mainstay_types::Region::BYTES_MAX;
        format!("a region has 1 to {most} of a-z A-Z 0-9 - _ .")
    })
}

/// Resolves with the reason when a control member has ended by itself.
pub(crate) async fn control_ended(handle: &mainstay_control::ControlHandle) -> String {
    let mut ended = handle.group().ended();
    let reason = ended.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
    reason.unwrap_or_else(|| "its tasks have ended".to_owned())
}

/// Why a worker ended that nobody had asked to.
pub(crate) fn worker_ended(ended: Result<(), mainstay_worker::WorkerError>) -> anyhow::Error {
    match ended {
        Err(error) => anyhow::Error::new(error).context("the worker ended"),
        Ok(()) => anyhow::anyhow!("the worker ended"),
    }
}
