//! What config.json may say, in both dialects, and what it may not.

use serde_json::{Value, json};

use super::rope::RopeScaling;
use super::*;

fn base() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "eos_token_id": 2
    })
}

fn with(changes: Value) -> Value {
    let mut value = base();
    for (name, change) in changes.as_object().unwrap() {
        value[name] = change.clone();
    }
    value
}

fn parse(value: &Value) -> Result<ModelConfig, LoadError> {
    ModelConfig::parse("config.json", &serde_json::to_vec(value).unwrap())
}

#[test]
fn a_plain_llama_is_read_with_its_defaults() {
    let config = parse(&base()).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.head_dim, config.query_width(), config.kv_width()), (16, 64, 32));
    assert_eq!(config.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default });
    assert!(!config.tied && !config.qkv_bias && !config.output_bias && !config.qk_norm);
    assert_eq!(config.eos_tokens, [2]);
}

#[test]
fn families_differ_in_biases_and_norms() {
    let qwen2 = parse(&with(json!({"architectures": ["Qwen2ForCausalLM"]}))).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
    let qwen3 = parse(&with(json!({"architectures": null, "model_type": "qwen3"}))).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.head_dim, 128, "Qwen3's default is not hidden over heads");
    let biased = parse(&with(json!({"attention_bias": true, "mlp_bias": true}))).unwrap();
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
}

#[test]
fn both_dialects_of_rope_mean_the_same() {
    let parts = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256});
    let mut new = parts.clone();
    new["rope_theta"] = json!(500_000.0);
    let old = parse(&with(json!({"rope_theta": 500_000.0, "rope_scaling": parts}))).unwrap();
    let new = parse(&with(json!({"rope_parameters": new}))).unwrap();
    assert_eq!(old.rope, new.rope);
    assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { original_context: 256, .. }));
    let typed = parse(&with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}}))).unwrap();
    assert_eq!(typed.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn yarn_implies_its_attention_factor() {
    let yarn = |extra: Value| {
        let mut section =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
        for (name, value) in extra.as_object().unwrap() {
            section[name] = value.clone();
        }
        match parse(&with(json!({"rope_parameters": section}))).unwrap().rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            other => panic!("{other:?}"),
        }
    };
    assert!((yarn(json!({})) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    assert_eq!(yarn(json!({"attention_factor": 1.5})), 1.5);
    assert_eq!(yarn(json!({"mscale": 1.0, "mscale_all_dim": 1.0})), 1.0);
}

#[test]
fn end_tokens_come_from_both_files() {
    let mut config = parse(&with(json!({"eos_token_id": [2, 5]}))).unwrap();
    config.add_generation_config("generation_config.json", br#"{"eos_token_id": [5, 7]}"#).unwrap();
    assert_eq!(config.eos_tokens, [2, 5, 7]);
    let error = config.add_generation_config("g.json", br#"{"eos_token_id": 100}"#).unwrap_err();
    assert!(error.to_string().contains("below 100"), "{error}");
}

#[test]
fn wrong_members_are_named() {
    for (change, word) in [
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"hidden_size": -4}), "hidden_size"),
        (json!({"hidden_size": 1e30}), "hidden_size"),
        (json!({"hidden_size": "64"}), "hidden_size"),
        (json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_attention_heads": 3, "num_key_value_heads": 3}), "head_dim"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"head_dim": 100_000}), "head_dim"),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size"),
        (json!({"eos_token_id": 100}), "eos_token_id"),
        (json!({"eos_token_id": "x"}), "eos_token_id"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"rms_norm_eps": "tiny"}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"rope_scaling": "linear"}), "rope_scaling"),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_type"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}), "low_freq_factor"),
        (json!({"architectures": null}), "architectures"),
        (json!({"architectures": "LlamaForCausalLM"}), "architectures"),
    ] {
        let error = parse(&with(change.clone())).expect_err(&change.to_string());
        assert!(matches!(error, LoadError::Member { .. }), "{change}: {error}");
        assert!(error.to_string().contains(word), "{change}: {error}");
    }
}

#[test]
fn unknown_mathematics_is_refused_with_a_hint() {
    for change in [
        json!({"architectures": ["MambaForCausalLM"]}),
        json!({"hidden_act": "gelu"}),
        json!({"quantization_config": {"bits": 4}}),
        json!({"use_sliding_window": true}),
        json!({"layer_types": ["full_attention", "sliding_attention"]}),
        json!({"partial_rotary_factor": 0.5}),
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    ] {
        let error = parse(&with(change.clone())).expect_err(&change.to_string());
        assert!(matches!(error, LoadError::Unsupported { .. }), "{change}: {error}");
    }
}

#[test]
fn anything_but_an_object_is_refused() {
    for text in ["", "[]", "null", "{", "{\"a\":}", "\u{0}"] {
        assert!(matches!(
            ModelConfig::parse("config.json", text.as_bytes()),
            Err(LoadError::Json { .. })
        ));
    }
}

// Computed by transformers 5 for heads of 16 numbers.
#[test]
fn frequencies_agree_with_the_reference() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 128,
        attention_factor: 1.138_629_4,
        truncate: true,
    };
    let smooth = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 16.0,
        beta_slow: 2.0,
        original_context: 128,
        attention_factor: 1.0,
        truncate: false,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    for (scaling, wanted) in [
        (RopeScaling::Default, [1.0, 0.316_227_77, 0.1, 0.031_622_776]),
        (RopeScaling::Linear { factor: 4.0 }, [0.25, 0.079_056_94, 0.025, 0.007_905_695]),
        (llama3, [1.0, 0.244_384_59, 0.013_042_256, 0.003_952_847_3]),
        (yarn, [1.0, 0.237_170_81, 0.049_999_997, 0.007_905_695]),
        (smooth, [1.0, 0.212_468_68, 0.025_664_398, 0.007_905_695]),
    ] {
        let (got, _) = RopeConfig { theta: 10_000.0, scaling }.frequencies(16);
        assert_eq!(got.len(), 8);
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() <= 1e-6 * wanted, "{scaling:?}: {got} {wanted}");
        }
    }
}
