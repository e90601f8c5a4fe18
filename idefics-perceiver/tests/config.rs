use burn::tensor::Device;
use idefics_nn::Activation;
use idefics_perceiver::{ConfigError, ConnectorConfig, PerceiverConfig, flamingo};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Returns the error of a public configuration with one key changed. Checks that `init` returns the same error.
fn error(key: &str, value: Value) -> ConfigError {
    let perceiver = PerceiverConfig::from_section(json!({ key: value }), &PerceiverConfig::idefics2_8b()).unwrap();
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
fn presets_are_valid() {
    ConnectorConfig::idefics2_8b().validate().unwrap();
    flamingo::PerceiverConfig::idefics_9b().validate().unwrap();
}

#[test]
fn every_key_is_required_unless_there_are_defaults() {
    let preset = PerceiverConfig::idefics2_8b();
    let section = serde_json::to_value(&preset).unwrap();
    for key in section.as_object().unwrap().keys() {
        let mut section = section.clone();
        section.as_object_mut().unwrap().remove(key);
        let error = serde_json::from_value::<PerceiverConfig>(section.clone()).unwrap_err();
        assert!(error.to_string().contains(&format!("missing field `{key}`")), "{error}");
        assert_eq!(PerceiverConfig::from_section(section, &preset).unwrap(), preset);
    }
    let section = json!({"resampler_n_latents": 64});
    assert!(serde_json::from_value::<flamingo::PerceiverConfig>(section).is_err());
}

#[test]
fn connector_reads_three_sections() {
    let defaults = ConnectorConfig::idefics2_8b();
    let read = |file: Value| ConnectorConfig::from_sections(&file, &defaults);
    assert_eq!(read(json!({"model_type": "idefics2", "vision_config": null})).unwrap(), defaults);
    let small = json!({"text_config": {"hidden_size": 32, "rms_norm_eps": 0.5}, "vision_config": {"hidden_size": 24},
        "perceiver_config": {"resampler_depth": 1}});
    let perceiver = PerceiverConfig { hidden_size: 32, rms_norm_eps: 0.5, resampler_depth: 1, ..defaults.perceiver };
    let expected = ConnectorConfig { vision_hidden_size: 24, text_hidden_size: 32, perceiver, ..defaults.clone() };
    assert_eq!(read(small).unwrap(), expected);
    assert!(read(json!({"text_config": {"hidden_size": "32"}})).is_err());
    assert!(read(json!({"text_config": 5})).is_err());
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
            ..PerceiverConfig::idefics2_8b()
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
            ..flamingo::PerceiverConfig::idefics_9b()
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
        perceiver: PerceiverConfig { hidden_size: 8, ..PerceiverConfig::idefics2_8b() },
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
