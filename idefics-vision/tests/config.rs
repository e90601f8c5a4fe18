use std::fmt::Debug;

use burn::tensor::Device;
use idefics_vision::{ConfigError, VisionConfig, clip};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Returns the error of a public configuration with one key changed. Checks that `init` returns the same error.
fn error(key: &str, value: Value) -> ConfigError {
    let config = VisionConfig::from_section(json!({ key: value }), &VisionConfig::siglip_so400m_980()).unwrap();
    let error = config.validate().unwrap_err();
    assert_eq!(config.init(&Device::flex()).err(), Some(error.clone()));
    error
}

#[test]
fn presets_are_valid() {
    VisionConfig::siglip_so400m_980().validate().unwrap();
    clip::VisionConfig::clip_vit_h_14().validate().unwrap();
    assert_eq!(VisionConfig::siglip_so400m_980().positions_per_side(), 70);
}

/// Checks that a missing key is an error, unless the value can be read from defaults.
fn keys_are_required<C: Serialize + DeserializeOwned + PartialEq + Debug>(preset: &C) {
    let section = serde_json::to_value(preset).unwrap();
    for key in section.as_object().unwrap().keys() {
        let mut section = section.clone();
        section.as_object_mut().unwrap().remove(key);
        let error = serde_json::from_value::<C>(section.clone()).unwrap_err();
        assert!(error.to_string().contains(&format!("missing field `{key}`")), "{error}");
        assert_eq!(idefics_vision::nn::from_section(section, preset).unwrap(), *preset);
    }
}

#[test]
fn every_key_is_required_unless_there_are_defaults() {
    keys_are_required(&VisionConfig::siglip_so400m_980());
    keys_are_required(&clip::VisionConfig::clip_vit_h_14());
}

#[test]
fn range_errors_name_the_key() {
    for (key, value) in [
        ("hidden_size", 0_u64),
        ("hidden_size", 1 << 31),
        ("intermediate_size", 0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1_000_000_000),
        ("num_attention_heads", 0),
        ("num_channels", 1),
        ("patch_size", 0),
        ("image_size", 0),
        ("image_size", 13), // smaller than a patch
        ("image_size", 1 << 40),
    ] {
        let error = error(key, json!(value));
        let ConfigError::Range { field, value: found, .. } = &error else { panic!("{key} = {value}: {error:?}") };
        assert_eq!((*field, found.as_str()), (format!("vision_config.{key}").as_str(), value.to_string().as_str()));
    }
    let one_value = error("num_channels", json!(1)).to_string();
    assert_eq!(one_value, "`vision_config.num_channels` is 1; expected 3");
    for eps in [0.0, -1e-6] {
        assert!(matches!(error("layer_norm_eps", json!(eps)), ConfigError::Range { .. }));
    }
    let nan = VisionConfig { layer_norm_eps: f64::NAN, ..VisionConfig::siglip_so400m_980() };
    assert!(matches!(nan.validate(), Err(ConfigError::Range { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Nothing divides by zero, even if `validate` was not called first.
    #[test]
    fn init_validates_the_config(
        numbers in prop::array::uniform6(prop_oneof![Just(0_usize), 1..40_usize, Just(usize::MAX)])
    ) {
        let [hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size, patch_size] = numbers;
        let config = VisionConfig {
            hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size, patch_size,
            ..VisionConfig::siglip_so400m_980()
        };
        config.positions_per_side();
        prop_assert_eq!(config.init(&Device::flex()).is_ok(), config.validate().is_ok());
        let config = clip::VisionConfig {
            embed_dim: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size, patch_size,
            ..clip::VisionConfig::clip_vit_h_14()
        };
        config.positions_per_side();
        prop_assert_eq!(config.init(&Device::flex()).is_ok(), config.validate().is_ok());
    }
}

#[test]
fn width_must_be_a_multiple_of_heads() {
    let error = error("num_attention_heads", json!(7));
    assert_eq!(
        error.to_string(),
        "`vision_config.hidden_size` is 1152; expected a multiple of `vision_config.num_attention_heads`, which is 7"
    );
}

#[test]
fn rejects_values_of_wrong_type_and_ignores_unknown_keys() {
    let preset = VisionConfig::siglip_so400m_980();
    for section in [
        json!({"hidden_size": "768"}),
        json!({"hidden_size": -1}),
        json!({"hidden_size": 1.5}),
        json!({"hidden_act": "mish"}),
    ] {
        assert!(VisionConfig::from_section(section, &preset).is_err());
    }
    let section = json!({"model_type": "idefics2", "attention_dropout": 0.0});
    assert_eq!(VisionConfig::from_section(section, &preset).unwrap(), preset);
}
