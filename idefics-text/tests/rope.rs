//! Compares rotary scalings with `MistralRotaryEmbedding`; the fixture is written by `xtask/reference/rope_fixture.py`.

use burn::tensor::{DType, Device, Int, Tensor};
use idefics_text::{DecoderStack, KvCache, TextConfig};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Entry {
    name: String,
    text_config: Value,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    positions: Vec<usize>,
    /// Cosines of the first half of a head, position by position.
    cos: Vec<f32>,
    /// Sines of the first half of a head, position by position.
    sin: Vec<f32>,
}

fn entries() -> Vec<Entry> {
    let mut fixture: Value = serde_json::from_str(include_str!("fixtures/rope.json")).unwrap();
    serde_json::from_value(fixture["entries"].take()).unwrap()
}

/// Computes the cosines and sines of each position. Rotates a head with ones in its first half and zeros in its second
/// half. The first half of the result contains the cosines, the second half the sines.
fn cos_sin(config: &TextConfig, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let device = Device::flex();
    let half = config.head_dim() / 2;
    let ones = Tensor::<4>::ones([1, 1, positions.len(), half], &device);
    let states = Tensor::cat(vec![ones.clone(), ones.zeros_like()], 3);
    let angles = config.rotary().unwrap().at(positions, 1, DType::F32, &device);
    let turned = angles.rotate(states).into_data().try_into_vec::<f32>().unwrap();
    let halves = |first: bool| {
        let part = move |head: &[f32]| if first { head[..half].to_vec() } else { head[half..].to_vec() };
        turned.chunks(2 * half).flat_map(part).collect()
    };
    (halves(true), halves(false))
}

#[test]
fn all_scalings_match_the_reference() {
    let entries = entries();
    for entry in &entries {
        let config = TextConfig::from_section(entry.text_config.clone(), &crate::mistral_defaults()).unwrap();
        config.validate().unwrap();
        for call in &entry.calls {
            let (cos, sin) = cos_sin(&config, &call.positions);
            assert_eq!((cos.len(), sin.len()), (call.cos.len(), call.sin.len()));
            let pairs = cos.iter().zip(&call.cos).chain(sin.iter().zip(&call.sin));
            for (index, (found, expected)) in pairs.enumerate() {
                let position = call.positions[index / 8 % call.positions.len()];
                // Rounding differences of a frequency grow with the position.
                let tolerance = 1e-6 + 1.2e-7 * position as f32;
                let place = format!("{}: {:?}, value {index}", entry.name, call.positions);
                assert!((found - expected).abs() <= tolerance, "{place}: {found}; expected {expected}");
            }
        }
    }
    for kind in ["default", "linear", "dynamic", "yarn", "llama3", "longrope"] {
        assert!(entries.iter().any(|entry| entry.name.starts_with(kind)), "{kind}");
    }
}

fn scaled(rope: Value) -> TextConfig {
    let section = json!({"vocab_size": 10, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": null, "max_position_embeddings": 24,
        "rope_parameters": rope});
    TextConfig::from_section(section, &crate::mistral_defaults()).unwrap()
}

fn dynamic() -> TextConfig {
    scaled(json!({"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}))
}

pub(crate) fn longrope() -> TextConfig {
    let factors = |factor: f64| vec![factor; 8];
    scaled(json!({"rope_type": "longrope", "rope_theta": 500.0, "original_max_position_embeddings": 12,
        "short_factor": factors(1.0), "long_factor": factors(4.0)}))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]

    /// The length of the whole prompt determines the angles, not the length of a chunk.
    #[test]
    fn chunked_prefill_uses_the_length_of_the_whole_prompt(
        seq in 1usize..40, chunk in 1usize..40, padding in 0usize..30, is_long: bool,
    ) {
        let device = Device::flex();
        let config = if is_long { longrope() } else { dynamic() };
        let decoder = config.init(&device).unwrap();
        let padding = padding.min(seq - 1);
        let left_padding = vec![padding, padding / 2];
        let ids = Tensor::<1, Int>::from_ints([vec![3; seq], vec![7; seq]].concat().as_slice(), &device);
        let inputs_embeds = decoder.embed(ids.reshape([2, seq]));
        let run = |n_tokens: usize| {
            let mut cache: KvCache = config.cache(left_padding.clone(), seq);
            let states = decoder.forward_in_chunks(inputs_embeds.clone(), n_tokens, &mut cache);
            states.slice(burn::tensor::s![.., padding.., ..]).into_data().try_into_vec::<f32>().unwrap()
        };
        for (found, expected) in run(2 * chunk).into_iter().zip(run(2 * seq)) {
            prop_assert!((found - expected).abs() < crate::SAME, "{} {}", found, expected);
        }
    }
}

#[test]
fn no_slot_positions_if_angles_depend_on_the_length() {
    let device = Device::flex();
    for (config, has_slot_places) in
        [(dynamic(), false), (longrope(), false), (scaled(json!({"rope_type": "linear", "factor": 2.0})), true)]
    {
        let decoder = config.init(&device).unwrap();
        let cache = config.cache(vec![0], 8);
        assert_eq!(decoder.slot_positions(&Tensor::zeros([1, 1, 32], &device), &cache).is_some(), has_slot_places);
    }
}
