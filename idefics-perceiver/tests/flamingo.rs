//! Tests of the Flamingo resampler of IDEFICS v1.

use burn::tensor::Device;
use idefics_perceiver::flamingo::{PerceiverConfig, ResamplerConfig};
use serde::Deserialize;

use crate::REFERENCE;
use crate::common::{Case, assert_close, part};

const PREFIX: &str = "model.perceiver_resampler.";

#[derive(Deserialize)]
struct Tower {
    embed_dim: usize,
}

#[test]
fn all_cases_match_reference() {
    let device = Device::flex();
    let mut resampled = 0;
    for case in Case::all_of("idefics", "image_hidden_states") {
        let features = case.floats::<3>("vision.last_hidden_state", &device);
        let expected = case.floats::<3>("image_hidden_states", &device);
        if features.dims() == expected.dims() {
            continue; // this model has no resampler
        }
        // The default of the reference for a missing key.
        let defaults = PerceiverConfig { qk_layer_norms_perceiver: false, ..PerceiverConfig::idefics_9b() };
        let perceiver = case.model.section_over("perceiver_config", &defaults);
        perceiver.validate().unwrap();
        let vision_embed_dim = case.model.section::<Tower>("vision_config").embed_dim;
        let config = ResamplerConfig { vision_embed_dim, perceiver };
        let resampler = case.model.load(config.init(&device).unwrap(), PREFIX);
        let output = resampler.forward(features.clone());
        assert_close(&case.name, &output, &expected, REFERENCE);
        let first = resampler.forward(part(&features, 0, 0, 1));
        assert_close("images are independent", &first, &part(&output, 0, 0, 1), 1e-5);
        resampled += 1;
    }
    assert!(resampled >= 3, "{resampled} cases with a resampler");
}
