//! The shape of a model as Hugging Face's config.json tells it, for Llama, Qwen2 and Qwen3.
//!
//! Checkpoints of transformers 4 and 5 name the same things differently (`rope_theta` and
//! `rope_scaling` became `rope_parameters`, `torch_dtype` became `dtype`); both are read.
//! Everything is compared with a limit before anything is allocated from it, and whatever would
//! change the mathematics in a way this engine does not know is refused by name instead of being
//! ignored.

mod rope;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::LoadError;
use crate::json::{Object, parse_object};
pub use rope::RopeConfig;

/// The widest model that is accepted.
pub const HIDDEN_MAX: usize = 1 << 16;
/// The widest feed-forward layer.
pub const INTERMEDIATE_MAX: usize = 1 << 20;
/// The deepest model.
pub const LAYERS_MAX: usize = 1024;
/// The most attention heads of one layer.
pub const HEADS_MAX: usize = 1024;
/// The widest attention head.
pub const HEAD_DIM_MAX: usize = 512;
/// The largest vocabulary.
pub const VOCAB_MAX: usize = 1 << 21;
/// The longest context.
pub const CONTEXT_TOKENS_MAX: usize = 1 << 24;

/// A family of dense decoders that differ in biases and norms only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3 and whatever shares their shape.
    Llama,
    /// Qwen2 and Qwen2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: a norm on each head of query and key.
    Qwen3,
}

/// Everything the forward pass must know.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Depth.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// The longest sequence the model was made for.
    pub context_tokens_max: usize,
    /// Added under the root of each norm.
    pub norm_epsilon: f32,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward matrices have biases.
    pub mlp_bias: bool,
    /// Whether each head of query and key is normed.
    pub qk_norm: bool,
    /// Tokens that end a sequence.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Reads config.json; `file` is the name that errors show.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let value = parse_object(file, bytes)?;
        let json = Object { file, value: &value };
        let architecture = architecture(&json)?;
        refuse_unknown_mathematics(&json)?;
        let hidden = json.size_required("hidden_size", HIDDEN_MAX)?;
        let heads = json.size_required("num_attention_heads", HEADS_MAX)?;
        let kv_heads = json.size("num_key_value_heads", HEADS_MAX)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                json.error("num_key_value_heads", format!("must divide the {heads} query heads"))
            );
        }
        let head_dim = head_dim(&json, architecture, hidden, heads)?;
        let vocab = json.size_required("vocab_size", VOCAB_MAX)?;
        let context = json.size("max_position_embeddings", CONTEXT_TOKENS_MAX)?.unwrap_or(2048);
        let attention_bias = json.boolean("attention_bias")?;
        Ok(Self {
            architecture,
            hidden,
            intermediate: json.size_required("intermediate_size", INTERMEDIATE_MAX)?,
            layers: json.size_required("num_hidden_layers", LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context_tokens_max: context,
            norm_epsilon: json.float("rms_norm_eps", 0.0, 1.0)?.unwrap_or(1e-6) as f32,
            rope: RopeConfig::parse(&json, context)?,
            tied: json.boolean("tie_word_embeddings")?.unwrap_or(false),
            // Qwen2 has these biases always; its configuration has no member for them.
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias.unwrap_or(false),
            output_bias: architecture != Architecture::Qwen2 && attention_bias.unwrap_or(false),
            mlp_bias: architecture == Architecture::Llama
                && json.boolean("mlp_bias")?.unwrap_or(false),
            qk_norm: architecture == Architecture::Qwen3,
            eos_tokens: json.tokens("eos_token_id", vocab)?,
        })
    }

    /// Adds the end tokens that generation_config.json names; chat models list the end of a turn
    /// only there.
    pub fn add_generation_config(&mut self, file: &str, bytes: &[u8]) -> Result<(), LoadError> {
        let value = parse_object(file, bytes)?;
        for token in (Object { file, value: &value }).tokens("eos_token_id", self.vocab)? {
            if !self.eos_tokens.contains(&token) {
                self.eos_tokens.push(token);
            }
        }
        Ok(())
    }

    /// Width of all query heads together.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn architecture(json: &Object<'_>) -> Result<Architecture, LoadError> {
    let listed = match json.get("architectures") {
        None => None,
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(_) => return Err(json.error("architectures", "must be a list of names")),
    };
    let model_type = json.string("model_type")?;
    match (listed, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Architecture::Qwen2),
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(Architecture::Qwen3),
        (None, None) => Err(json.error("architectures", "is missing, and so is `model_type`")),
        (Some(name), _) | (None, Some(name)) => Err(LoadError::Unsupported {
            file: json.file.to_owned(),
            what: format!("the architecture {name:.80}"),
            hint: "use a model of LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM",
        }),
    }
}

fn head_dim(
    json: &Object<'_>,
    architecture: Architecture,
    hidden: usize,
    heads: usize,
) -> Result<usize, LoadError> {
    let implied = match architecture {
        // transformers gives Qwen3 a default of its own, whatever the width.
        Architecture::Qwen3 => 128,
        _ if hidden.is_multiple_of(heads) => hidden / heads,
        _ => 0,
    };
    let head_dim = json.size("head_dim", HEAD_DIM_MAX)?.unwrap_or(implied);
    if head_dim == 0 || head_dim > HEAD_DIM_MAX || !head_dim.is_multiple_of(2) {
        let reason = format!("is {head_dim} here; it must be even and in 2..={HEAD_DIM_MAX}");
        return Err(json.error("head_dim", reason));
    }
    Ok(head_dim)
}

/// Members that would change the result in ways not built here.
fn refuse_unknown_mathematics(json: &Object<'_>) -> Result<(), LoadError> {
    let refuse =
        |what: String, hint| Err(LoadError::Unsupported { file: json.file.to_owned(), what, hint });
    let act = json.string("hidden_act")?.unwrap_or("silu");
    if act != "silu" && act != "swish" {
        return refuse(
            format!("the activation {act:.40}"),
            "use a model with `hidden_act` \"silu\"",
        );
    }
    if json.get("quantization_config").is_some() {
        return refuse("a quantized checkpoint".into(), "use the bf16, f16 or f32 original");
    }
    if json.boolean("use_sliding_window")?.unwrap_or(false) {
        return refuse("sliding-window attention".into(), "use a model with full attention");
    }
    let layer_types = json.get("layer_types").and_then(Value::as_array);
    if layer_types.is_some_and(|types| types.iter().any(|t| t.as_str() != Some("full_attention"))) {
        return refuse("a layer without full attention".into(), "use a model with full attention");
    }
    let partial = json.float("partial_rotary_factor", 0.0, 1.0)?.unwrap_or(1.0);
    if partial != 1.0 {
        return refuse("a partial rotary embedding".into(), "use a model that turns whole heads");
    }
    Ok(())
}
