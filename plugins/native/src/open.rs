//! From options to a scheduler that is ready to serve: files, model, cache, limits.

use std::path::Path;

use mainstay_kernels::Pool;
use mainstay_kernels::cuda::probe;

use crate::LoadError;
use crate::bundled::bundled_demo;
use crate::checkpoint::Checkpoint;
use crate::compute::{Compute, Device, DeviceLimits, Processor};
use crate::config::ModelConfig;
use crate::json::read_bounded;
use crate::model::Model;
use crate::options::{DeviceChoice, KV_BYTES_DEFAULT, ModelPlace, Options};
use crate::scheduler::{DRAFT_ROWS_MAX, Limits, Scheduler};

/// The largest config.json that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";

/// The rows of a step where nothing is said: on the CPU a step is some tens of milliseconds long, a GPU wants more.
const STEP_TOKENS: usize = 512;
const STEP_TOKENS_DEVICE: usize = 8192;
/// Tokens that a request guesses where nothing is said: on a GPU nobody has measured what rows of guesses cost.
const DRAFT_TOKENS: usize = 8;
const DRAFT_TOKENS_DEVICE: usize = 0;
/// Of what is free on a GPU once weights and buffers are there, the cache takes this share where nothing is said; the
/// rest is for parts of attention and for others.
const CACHE_SHARE: f64 = 0.9;

/// Loads a model for the CPU, as the options say.
pub fn load_model(options: &Options) -> Result<Model, LoadError> {
    let (config, checkpoint) = files(options)?;
    Model::load(config, &checkpoint, options.precision)
}

fn files(options: &Options) -> Result<(ModelConfig, Checkpoint), LoadError> {
    Ok(match &options.place {
        ModelPlace::Folder(folder) => (folder_config(folder)?, Checkpoint::open(folder)?),
        ModelPlace::Bundled => {
            let bundled = bundled_demo();
            let file = |name: &str| bundled.file(name).unwrap_or_default();
            let mut config = ModelConfig::parse(CONFIG, file(CONFIG))?;
            config.add_generation_config(GENERATION, file(GENERATION))?;
            (config, Checkpoint::linked(WEIGHTS, file(WEIGHTS))?)
        }
    })
}

fn folder_config(folder: &Path) -> Result<ModelConfig, LoadError> {
    let bytes = read_bounded(&folder.join(CONFIG), CONFIG_BYTES_MAX)?;
    let mut config = ModelConfig::parse(CONFIG, &bytes)?;
    let generation = folder.join(GENERATION);
    if generation.exists() {
        config.add_generation_config(GENERATION, &read_bounded(&generation, CONFIG_BYTES_MAX)?)?;
    }
    Ok(config)
}

/// Loads a model where the options want it computed, and builds its scheduler.
pub fn open_scheduler(options: &Options) -> Result<Scheduler, LoadError> {
    let (config, checkpoint) = files(options)?;
    let own = config.context_tokens_max;
    if options.context_tokens_max.is_some_and(|wanted| wanted > own) {
        let message = format!("`context_tokens_max` is above the model's own {own}");
        return Err(LoadError::Options(message));
    }
    let context_tokens_max = options.context_tokens_max.unwrap_or(own);
    let device_limits = DeviceLimits {
        // Prompts move on by a block however many others there are.
        step_tokens_max: options.step_tokens(STEP_TOKENS_DEVICE) + options.block_tokens,
        logits_rows_max: options.requests_max + DRAFT_ROWS_MAX,
        block_tokens: options.block_tokens,
        context_tokens_max,
    };
    let device = device(options, &config, &device_limits);
    let (compute, step_tokens_max, draft_tokens): (Box<dyn Compute>, usize, usize) = match device {
        None => {
            let model = Model::load(config, &checkpoint, options.precision)?;
            let block_bytes =
                model.kv_shape(options.block_tokens).block_elements() * model.kv_type().bytes();
            let blocks = options.blocks(block_bytes, KV_BYTES_DEFAULT)?;
            let processor = Processor::new(model, options.block_tokens, blocks)?;
            (Box::new(processor), options.step_tokens(STEP_TOKENS), DRAFT_TOKENS)
        }
        Some(ordinal) => {
            let blocks = |block_bytes: usize, free: usize| {
                options.blocks(block_bytes, (free as f64 * CACHE_SHARE) as u64)
            };
            let device = Device::open(ordinal, config, &checkpoint, device_limits, blocks)?;
            (Box::new(device), options.step_tokens(STEP_TOKENS_DEVICE), DRAFT_TOKENS_DEVICE)
        }
    };
    let limits = Limits {
        block_tokens: options.block_tokens,
        blocks: compute.blocks(),
        pin_fraction: options.pin_fraction,
        step_tokens_max,
        context_tokens_max: context_tokens_max
            .min(compute.blocks() as usize * options.block_tokens),
        requests_max: options.requests_max,
        hash_key: options.hash_key,
        draft_tokens_max: options.draft_tokens_max.unwrap_or(draft_tokens),
    };
    Ok(Scheduler::new(compute, Pool::new(options.threads), limits))
}

/// Which GPU computes, if one does; whether it will do is seen when it is opened.
fn device(options: &Options, config: &ModelConfig, limits: &DeviceLimits) -> Option<usize> {
    match options.device {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(ordinal) => Some(ordinal),
        // Whatever is wrong with it, the CPU goes on; `doctor` tells what it is.
        DeviceChoice::Auto => {
            let will_do = Device::check(config, limits).is_ok() && probe(0).is_ok();
            will_do.then_some(0)
        }
    }
}
