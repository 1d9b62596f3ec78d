//! The engine behind the interface: its door and its thread are the shell's, the work the scheduler's. Requests with a
//! form come to it by a thread that compiles forms.

mod forms;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, EngineError, Export, HostLog, Identity, Import, Info, Lanes, LeaseChange, Pin,
    Request, Stats, caps,
};
use mainstay_engine_shell::{Ask, Shell};
use mainstay_kernels::cuda::CudaError;

use crate::LoadError;
use crate::guided::Compiler;
use crate::open::open_scheduler;
use crate::options::{ModelPlace, Options};
use crate::scheduler::{Limits, Scheduler, check};
use forms::Forms;

const TARGET: &str = "native";

/// Llama, Qwen2 and Qwen3 on the CPU or a GPU.
pub struct NativeEngine {
    // Ends first: then nobody waits for forms any more.
    shell: Shell<Scheduler>,
    forms: Forms,
    limits: Limits,
    vocab: usize,
    info: Info,
}

impl From<LoadError> for EngineError {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::Read { .. } => Code::NotFound,
            LoadError::Memory { .. } | LoadError::Device(CudaError::Memory { .. }) => {
                Code::Exhausted
            }
            LoadError::Device(_) => Code::Unavailable,
            _ => Code::Invalid,
        };
        Self::new(code, error.to_string())
    }
}

fn info(options: &Options, scheduler: &Scheduler) -> Info {
    let limits = scheduler.limits();
    let model_dir = match &options.place {
        ModelPlace::Bundled => String::new(),
        ModelPlace::Folder(folder) => folder.to_string_lossy().into_owned(),
    };
    Info {
        block_tokens: limits.block_tokens as u32,
        vocab: scheduler.compute().config().vocab as u32,
        context_tokens_max: limits.context_tokens_max as u32,
        requests_max: limits.requests_max as u32,
        blocks_total: u64::from(limits.blocks),
        block_bytes: scheduler.block_bytes() as u64,
        model: options.model_name.clone(),
        model_dir,
        device: scheduler.compute().name().to_owned(),
        kv_layout: scheduler.kv_layout(),
    }
}

impl Engine for NativeEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "native", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PIN
        | caps::PRIORITY
        | caps::RETENTION
        | caps::LOGPROBS
        | caps::CANONICAL_HASH
        | caps::GUIDED
        | caps::TRANSFER
        | caps::LEASE
        | caps::RESUME;

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let started = Instant::now();
        let scheduler = open_scheduler(&options)?;
        let compute = scheduler.compute();
        let line = format!(
            "loaded {} ({}, {} MiB of weights) in {} ms on {}; {} blocks of {} tokens, {} threads",
            options.model_name,
            compute.dtype().name(),
            compute.weight_bytes() >> 20,
            started.elapsed().as_millis(),
            compute.name(),
            scheduler.limits().blocks,
            options.block_tokens,
            options.threads,
        );
        log.info(TARGET, &line);
        if !options.hash_key_given {
            log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
        }
        let (info, limits) = (info(&options, &scheduler), *scheduler.limits());
        let eos_tokens = &scheduler.compute().config().eos_tokens;
        let compiler = Compiler::new(options.place.clone(), info.vocab as usize, eos_tokens);
        let shell = Shell::open(TARGET, scheduler, limits.requests_max, started, lanes, log)?;
        let forms = Forms::open(compiler, Arc::clone(&shell.door))?;
        Ok(Self { shell, forms, limits, vocab: info.vocab as usize, info })
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        self.shell.door.stats()
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        check(&request, &self.limits, self.vocab)?;
        if request.guided.is_none() {
            return self.shell.door.submit(request);
        }
        self.shell.door.announce(&request)?;
        self.forms.push(request);
        Ok(())
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

    fn kv_export(&self, export: Export) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Export(export))
    }

    fn kv_import(&self, import: Import) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Import(import))
    }

    fn lease(&self, change: LeaseChange) -> Result<(), EngineError> {
        self.shell.door.ask(Ask::Lease(change))
    }
}
