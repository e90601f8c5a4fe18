use burn::tensor::Device;
use idefics_nn::Activation;
use idefics_perceiver::{ConfigError, ConnectorConfig, PerceiverConfig, flamingo};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Returns the error of the default configuration with one key changed. Checks that `init` returns the same error.
fn error(key: &str, value: Value) -> ConfigError {
    let perceiver: PerceiverConfig = serde_json::from_value(json!({ key: value })).unwrap();
    let error = perceiver.validate().unwrap_err();
    let connector = ConnectorConfig {
        vision_hidden_size: 24,
        text_hidden_size: 32,
        text_intermediate_size: 64,
        text_hidden_act: Activation::Silu,
        perceiver,
    };
    assert_eq!(connector.init(&Device::flex()).err(), Some(error.clone()));
    error
}

#[test]
fn defaults_match_reference() {
    let config: PerceiverConfig = serde_json::from_value(json!({"model_type": "idefics2"})).unwrap();
    config.validate().unwrap();
    assert_eq!((config.resampler_n_latents, config.resampler_depth, config.resampler_head_dim), (64, 3, 96));
}

#[test]
fn range_errors_name_the_key() {
    for (key, value) in [
        ("hidden_size", 0_u64),
        ("hidden_size", 1 << 31),
        ("resampler_n_latents", 0),
        ("resampler_n_latents", 1_000_000_000),
        ("resampler_depth", 0),
        ("resampler_n_heads", 0),
        ("resampler_head_dim", 0),
        ("num_key_value_heads", 0),
    ] {
        let error = error(key, json!(value));
        let ConfigError::Range { field, value: found, .. } = &error else { panic!("{key} = {value}: {error:?}") };
        assert_eq!((*field, found.as_str()), (format!("perceiver_config.{key}").as_str(), value.to_string().as_str()));
    }
    assert!(matches!(error("rms_norm_eps", json!(0.0)), ConfigError::Range { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Nothing divides by zero, even if `validate` was not called first.
    #[test]
    fn init_validates_the_config(
        numbers in prop::array::uniform8(prop_oneof![Just(0_usize), 1..40_usize, Just(usize::MAX)])
    ) {
        let [vision, text, inner, latents, resampler_depth, resampler_n_heads, resampler_head_dim, kv_heads] = numbers;
        let perceiver = PerceiverConfig {
            hidden_size: text,
            resampler_n_latents: latents,
            resampler_depth,
            resampler_n_heads,
            resampler_head_dim,
            num_key_value_heads: kv_heads,
            ..PerceiverConfig::default()
        };
        let config = ConnectorConfig {
            vision_hidden_size: vision,
            text_hidden_size: text,
            text_intermediate_size: inner,
            text_hidden_act: Activation::Silu,
            perceiver,
        };
        prop_assert_eq!(config.init(&Device::flex()).is_ok(), config.validate().is_ok());
        let perceiver = flamingo::PerceiverConfig {
            resampler_n_latents: latents,
            resampler_depth,
            resampler_n_heads,
            resampler_head_dim,
            ..flamingo::PerceiverConfig::default()
        };
        let config = flamingo::ResamplerConfig { vision_embed_dim: vision, perceiver };
        prop_assert_eq!(config.init(&Device::flex()).is_ok(), config.validate().is_ok());
    }
}

#[test]
fn width_of_latents_must_match_decoder() {
    let config = ConnectorConfig {
        vision_hidden_size: 8,
        text_hidden_size: 16,
        text_intermediate_size: 8,
        text_hidden_act: Activation::Silu,
        perceiver: PerceiverConfig { hidden_size: 8, ..PerceiverConfig::default() },
    };
    assert_eq!(
        config.init(&Device::flex()).unwrap_err().to_string(),
        "`perceiver_config.hidden_size` is 8; expected 16, which is `text_config.hidden_size`"
    );
}

#[test]
fn heads_must_be_a_multiple_of_key_value_heads() {
    assert_eq!(
        error("num_key_value_heads", json!(3)).to_string(),
        "`perceiver_config.resampler_n_heads` is 16; \
         expected a multiple of `perceiver_config.num_key_value_heads`, which is 3"
    );
}
