//! The engine behind the interface: its door and its thread are the shell's, the cache and the answers the scheduler's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Engine, EngineError, HostLog, Identity, Info, Lanes, LeaseChange, Pin, Request, Stats, caps,
};
use mainstay_engine_shell::{Ask, Shell};

use crate::DEVICE;
use crate::options::Options;
use crate::scheduler::Scheduler;
use crate::script::Script;
use crate::text::Text;

const TARGET: &str = "sim";

/// An engine without a model.
pub struct SimEngine {
    shell: Shell<Scheduler>,
    info: Info,
}

fn info(options: &Options, vocab: u32) -> Info {
    let folder = options.model_dir.as_ref();
    Info {
        block_tokens: options.block_tokens as u32,
        vocab,
        context_tokens_max: options.context_tokens_max as u32,
        requests_max: options.requests_max as u32,
        blocks_total: u64::from(options.blocks),
        block_bytes: options.block_bytes(),
        model: options.model_name.clone(),
        model_dir: folder.map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default(),
        device: DEVICE.to_owned(),
        kv_layout: 0,
    }
}

impl Engine for SimEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "sim", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PIN
        | caps::PRIORITY
        | caps::RETENTION
        | caps::LOGPROBS
        | caps::CANONICAL_HASH
        | caps::LEASE
        | caps::RESUME;

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let script = options.script.as_deref().map(Script::read).transpose()?.unwrap_or_default();
        let text = Text::load(&options)?;
        let info = info(&options, text.vocab);
        let requests_max = options.requests_max;
        log.warn(TARGET, "answers of this engine are simulated: no model is loaded");
        if !options.hash_key_given {
            log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
        }
        let work = Scheduler::new(options, script, text);
        let shell = Shell::open(TARGET, work, requests_max, Instant::now(), lanes, log)?;
        Ok(Self { shell, info })
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        self.shell.door.stats()
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        request.check(self.info.context_tokens_max, 0, self.info.vocab)?;
        self.shell.door.submit(request)
    }

    fn cancel(&self, id: u64) {
        self.shell.door.cancel(id);
    }

    fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        self.shell.door.drain(timeout)
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Snapshot(op_id))
    }

    fn pin(&self, pin: Pin) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Pin(pin))
    }

    fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Unpin(op_id, pin_id))
    }

    fn lease(&self, change: LeaseChange) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Lease(change))
    }
}
