//! A model as the gateway needs it: tokenizer, chat template, the tokens that end a turn. It comes from a
//! worker that serves it, so that a gateway needs no files of its own.

mod detokenizer;
mod memory;
mod pieces;
mod prompts;
mod segments;
mod tokenizer;
mod words;

use std::sync::Arc;

use bytes::Bytes;
use mainstay_chat::template::ChatTemplate;
use mainstay_chat::{Family, Spelling};
use mainstay_proto::v1;

pub(crate) use detokenizer::Detokenizer;
pub use memory::PromptMemory;
pub(crate) use prompts::{Naming, Prepared};
pub(crate) use tokenizer::Tokenizer;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    /// The worker did not send a file that is needed.
    #[error("the model has no {0}; put it beside the checkpoint")]
    MissingFile(&'static str),
    /// `tokenizer.json` cannot be read, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be read.
    #[error("chat template: {0}")]
    Template(String),
    /// A JSON file cannot be read.
    #[error("{0}: {1}")]
    Json(&'static str, String),
}

/// A model that can be served.
pub(crate) struct ModelCard {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) block_tokens: u32,
    pub(crate) context_tokens_max: u32,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: ChatTemplate,
    /// Tokens that end a turn and never show as text.
    pub(crate) end_tokens: Vec<u32>,
    /// What its first worker computes on; an engine without a model says `simulated`.
    pub(crate) device: String,
    /// How it writes thoughts and calls.
    pub(crate) spelling: Spelling,
    /// Whether its engine can hold an answer to a form.
    pub(crate) takes_guided: bool,
}

impl ModelCard {
    /// Builds the card from a worker's description, with room to remember prompts.
    pub(crate) fn new(reply: &v1::DescribeReply, memory: PromptMemory) -> Result<Self, ModelError> {
        let file = |name: &str| reply.files.iter().find(|f| f.name == name).map(|f| &f.content);
        let tokenizer = Tokenizer::new(
            file("tokenizer.json").ok_or(ModelError::MissingFile("tokenizer.json"))?,
            memory,
        )?;
        let config = json("tokenizer_config.json", file("tokenizer_config.json"))?;
        let source = match file("chat_template.jinja") {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => template_of(&config).ok_or(ModelError::MissingFile("chat_template.jinja"))?,
        };
        let bos = special(&config, "bos_token").unwrap_or_default();
        let eos = special(&config, "eos_token").unwrap_or_default();
        let template = ChatTemplate::new(&source, &bos, &eos)
            .map_err(|e| ModelError::Template(e.to_string()))?
            .with_memory(memory.messages());
        let mut end_tokens: Vec<u32> = tokenizer.id_of(&eos).into_iter().collect();
        for name in ["generation_config.json", "config.json"] {
            end_tokens.extend(eos_ids(&json(name, file(name))?));
        }
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let family = Family::of(&source, &tokenizer.added());
        let spelling = Spelling::of(&source, family, |text| tokenizer.added_id(text));
        Ok(Self {
            spelling,
            takes_guided: reply.takes_guided,
            name: reply.model.clone(),
            revision: reply.revision.clone(),
            block_tokens: reply.block_tokens.max(1),
            context_tokens_max: reply.context_tokens_max,
            tokenizer: Arc::new(tokenizer),
            template,
            end_tokens,
            device: reply.device.clone(),
        })
    }
}

fn json(name: &'static str, bytes: Option<&Bytes>) -> Result<serde_json::Value, ModelError> {
    let Some(bytes) = bytes else { return Ok(serde_json::Value::Null) };
    serde_json::from_slice(bytes).map_err(|e| ModelError::Json(name, e.to_string()))
}

/// A special token is written as a string or as an object with its content.
fn special(config: &serde_json::Value, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The template is a string, or a list of named ones of which `default` is meant.
fn template_of(config: &serde_json::Value) -> Option<String> {
    let value = config.get("chat_template")?;
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let list = value.as_array()?;
    let default = list.iter().find(|t| t.get("name").is_some_and(|n| n == "default"))?;
    default.get("template")?.as_str().map(str::to_owned)
}

fn eos_ids(config: &serde_json::Value) -> Vec<u32> {
    let id = |v: &serde_json::Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match config.get("eos_token_id") {
        Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}
