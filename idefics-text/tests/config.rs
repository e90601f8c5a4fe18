use burn::tensor::{DType, Device};
use idefics_text::{AlphaType, ConfigError, CrossAttentionConfig, TextConfig};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Reads a section of the configuration. Keys that it omits get the values of Mistral-7B.
fn config(section: Value) -> TextConfig {
    TextConfig::from_section(section, &TextConfig::mistral_7b()).unwrap()
}

fn error(section: Value) -> ConfigError {
    let config = config(section);
    let error = config.validate().unwrap_err();
    assert_eq!(config.init(&Device::flex()).err(), Some(error.clone()));
    error
}

#[test]
fn presets_are_valid() {
    let mistral = TextConfig::mistral_7b();
    mistral.validate().unwrap();
    assert_eq!((mistral.head_dim(), mistral.n_kv_heads(), mistral.sliding_window), (128, 8, Some(4096)));
    let llama = TextConfig::llama_7b();
    llama.validate().unwrap();
    assert_eq!((llama.head_dim(), llama.n_kv_heads(), llama.sliding_window), (128, 32, None));
}

#[test]
fn only_optional_keys_may_be_missing() {
    let preset = TextConfig::mistral_7b();
    let section = serde_json::to_value(&preset).unwrap();
    for (key, value) in section.as_object().unwrap() {
        let mut section = section.clone();
        section.as_object_mut().unwrap().remove(key);
        let read = serde_json::from_value::<TextConfig>(section.clone());
        match key.as_str() {
            "num_key_value_heads" => assert_eq!(read.unwrap().num_key_value_heads, None),
            "sliding_window" => assert_eq!(read.unwrap().sliding_window, None),
            _ if value.is_null() => assert_eq!(read.unwrap(), preset),
            _ => assert!(read.unwrap_err().to_string().contains(&format!("missing field `{key}`"))),
        }
        assert_eq!(config(section), preset);
    }
}

#[test]
fn null_differs_from_missing_key() {
    let config = config(json!({"num_key_value_heads": null, "sliding_window": null, "head_dim": null}));
    assert_eq!((config.n_kv_heads(), config.sliding_window, config.head_dim()), (32, None, 128));
}

#[test]
fn accepts_any_even_head_width() {
    let config = config(json!({"hidden_size": 10, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6}));
    config.validate().unwrap();
    let decoder = config.init(&Device::flex()).unwrap();
    let attention = &decoder.layers[0].self_attn;
    assert_eq!((attention.q_proj.dims(), attention.o_proj.dims()), ([18, 10], [10, 18]));
    assert_eq!(config.cache_bytes(2, 100, DType::BF16), 2 * 32 * 2 * 3 * 100 * 6 * 2);
}

#[test]
fn errors_name_numbers_out_of_range() {
    for (key, value) in [
        ("vocab_size", 0_u64),
        ("vocab_size", 1 << 40),
        ("hidden_size", 0),
        ("hidden_size", 1 << 31),
        ("intermediate_size", 0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1_000_000_000),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", 1 << 63),
        ("sliding_window", 0),
        ("head_dim", 0),
        ("head_dim", 7), // rotary embedding needs an even width
        ("head_dim", 1 << 20),
    ] {
        let error = error(json!({ key: value }));
        let ConfigError::Range { field, value: found, .. } = &error else { panic!("{key} = {value}: {error:?}") };
        assert_eq!((*field, found.as_str()), (format!("text_config.{key}").as_str(), value.to_string().as_str()));
    }
    for eps in [0.0, -1.0] {
        assert!(matches!(error(json!({"rms_norm_eps": eps})), ConfigError::Range { .. }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// No accessor divides by zero, even before the configuration is validated.
    #[test]
    fn init_rejects_invalid_configurations(
        numbers in prop::array::uniform8(prop_oneof![Just(0_usize), 1..40_usize, Just(usize::MAX)])
    ) {
        let [vocab_size, hidden_size, inner, layers, heads, kv_heads, cross_layer_interval, context_size] = numbers;
        let text = TextConfig {
            vocab_size,
            hidden_size,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv_heads),
            ..TextConfig::mistral_7b()
        };
        text.head_dim();
        prop_assert_eq!(text.init(&Device::flex()).is_ok(), text.validate().is_ok());
        let config = CrossAttentionConfig {
            text,
            additional_vocab_size: 2,
            cross_layer_interval,
            qk_layer_norms: true,
            alpha_type: AlphaType::Float,
            context_size,
        };
        config.n_gated_layers();
        prop_assert_eq!(config.init(&Device::flex()).is_ok(), config.validate().is_ok());
    }
}

#[test]
fn widths_must_be_divisible_by_heads() {
    assert_eq!(
        error(json!({"num_attention_heads": 7, "num_key_value_heads": 7})).to_string(),
        "`text_config.hidden_size` is 4096; expected a multiple of `text_config.num_attention_heads`, which is 7"
    );
    assert_eq!(
        error(json!({"num_key_value_heads": 5})).to_string(),
        "`text_config.num_attention_heads` is 32; expected a multiple of `text_config.num_key_value_heads`, which is 5"
    );
}

#[test]
fn reads_old_and_new_rope_keys() {
    let new = config(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}));
    let old = config(json!({"rope_theta": 700.0, "rope_scaling": null}));
    let [new, old] = [new, old].map(|config| format!("{:?}", config.rotary().unwrap()));
    assert_eq!(new, old);
    let [new, old] = [
        json!({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    ]
    .map(|section| format!("{:?}", config(section).rotary().unwrap()));
    assert_eq!(new, old);
}

#[test]
fn rejects_unsupported_and_invalid_rope() {
    let error_of = |rope| error(json!({"rope_parameters": rope}));
    assert_eq!(
        error_of(json!({"rope_type": "mrope", "factor": 4.0})).to_string(),
        "`text_config.rope_parameters.rope_type` is \"mrope\"; supported: default, linear, dynamic, yarn, llama3, \
         longrope"
    );
    let partial = error_of(json!({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}));
    assert!(matches!(partial, ConfigError::Unsupported { .. }), "{partial}");
    assert_eq!(
        error_of(json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})).to_string(),
        "`text_config.rope_parameters.short_factor` is a list of 1; expected 64 numbers, half of head_dim"
    );
    for rope in [
        json!({"rope_type": "linear"}),
        json!({"rope_type": "linear", "factor": 0.0}),
        json!({"rope_type": "dynamic", "factor": -1.0}),
        json!({"rope_type": "dynamic"}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}),
        json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": -32.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "mscale": -100.0, "mscale_all_dim": 1.0}),
        json!({"rope_type": "longrope", "short_factor": vec![1.0; 64], "long_factor": vec![0.0; 64]}),
        json!({"rope_theta": 0.0}),
        json!({"rope_theta": -1.0}),
        json!({"rope_type": "llama3"}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}),
        json!({"rope_type": "llama3", "factor": 0.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ] {
        let error = error_of(rope.clone());
        assert!(matches!(error, ConfigError::Range { .. }), "{rope}: {error:?}");
    }
    // Equal bounds leave no range to interpolate over; this must not produce NaN.
    let equal = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    assert!(!format!("{:?}", config(json!({"rope_parameters": equal})).rotary()).contains("NaN"));
}

#[test]
fn rejects_values_of_the_wrong_type() {
    for section in [json!({"hidden_size": "4096"}), json!({"hidden_size": -1}), json!({"hidden_act": "mish"})] {
        assert!(TextConfig::from_section(section, &TextConfig::mistral_7b()).is_err());
    }
}
