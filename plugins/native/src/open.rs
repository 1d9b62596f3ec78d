//! From options to a scheduler that is ready to serve: files, model, cache, limits.

use std::path::Path;

use mainstay_kernels::Pool;

use crate::LoadError;
use crate::bundled::bundled_demo;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::json::read_bounded;
use crate::model::Model;
use crate::options::{ModelPlace, Options};
use crate::scheduler::{Limits, Scheduler};

/// The largest config.json that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";

/// Loads a model as the options say.
pub fn load_model(options: &Options) -> Result<Model, LoadError> {
    let (config, checkpoint) = match &options.place {
        ModelPlace::Folder(folder) => (folder_config(folder)?, Checkpoint::open(folder)?),
        ModelPlace::Bundled => {
            let bundled = bundled_demo();
            let file = |name: &str| bundled.file(name).unwrap_or_default();
            let mut config = ModelConfig::parse(CONFIG, file(CONFIG))?;
            config.add_generation_config(GENERATION, file(GENERATION))?;
            (config, Checkpoint::linked(WEIGHTS, file(WEIGHTS))?)
        }
    };
    Model::load(config, &checkpoint, options.precision)
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

/// Builds the scheduler of a loaded model.
pub fn open_scheduler(model: Model, options: &Options) -> Result<Scheduler, LoadError> {
    let block_elements = model.kv_shape(options.block_tokens).block_elements();
    let blocks = options.blocks(block_elements * model.kv_type().bytes())?;
    let own = model.config().context_tokens_max;
    if options.context_tokens_max.is_some_and(|wanted| wanted > own) {
        let message = format!("`context_tokens_max` is above the model's own {own}");
        return Err(LoadError::Options(message));
    }
    let cache_tokens = blocks as usize * options.block_tokens;
    let limits = Limits {
        block_tokens: options.block_tokens,
        blocks,
        pin_fraction: options.pin_fraction,
        step_tokens_max: options.step_tokens_max,
        context_tokens_max: options.context_tokens_max.unwrap_or(own).min(cache_tokens),
        requests_max: options.requests_max,
        hash_key: options.hash_key,
    };
    Scheduler::new(model, Pool::new(options.threads), limits)
}
