//! Tests of the CLIP tower of IDEFICS v1.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use idefics_vision::clip::VisionConfig;
use safetensors::SafeTensors;

use crate::common::{Case, Model, assert_close, part, random};
use crate::{PREFIX, REFERENCE, SAME};

#[test]
fn all_cases_match_reference() {
    let device = Device::flex();
    for case in Case::all_of("idefics", "vision.last_hidden_state") {
        let config = case.model.section_over("vision_config", &VisionConfig::clip_vit_h_14());
        config.validate().unwrap();
        let tower = case.model.load(config.init(&device).unwrap(), PREFIX);
        let output = tower.forward(case.whole_pictures(&device));
        let expected = case.floats::<3>("vision.last_hidden_state", &device);
        assert_eq!(output.dims()[1], config.vectors_per_image());
        assert_close(&case.name, &output, &expected, REFERENCE);
    }
}

#[test]
fn images_of_a_batch_are_independent() {
    let device = Device::flex();
    let model = Model::named("idefics1-float");
    let config = model.section_over("vision_config", &VisionConfig::clip_vit_h_14());
    let tower = model.load(config.init(&device).unwrap(), PREFIX);
    let pixels = random(1, [3, 3, config.image_size, config.image_size], &device);
    let all = tower.forward(pixels.clone());
    for image in 0..3 {
        let alone = tower.forward(part(&pixels, 0, image, image + 1));
        assert_close("alone", &alone, &part(&all, 0, image, image + 1), SAME);
    }
}

/// `xtask/reference/interpolation_fixture.py` writes the fixture.
#[test]
fn interpolated_positions_match_reference() {
    let device = Device::flex();
    let model = Model::named("idefics1-float");
    let config = model.section_over("vision_config", &VisionConfig::clip_vit_h_14());
    let tower = model.load(config.init(&device).unwrap(), PREFIX);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/interpolated.safetensors");
    let file = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let read = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        TensorData::new(values.collect::<Vec<f32>>(), tensor.shape().to_vec())
    };
    for grid in ["6x3", "2x5", "8x2"] {
        let pixels = Tensor::<4>::from_data(read(&format!("{grid}.pixel_values")), &device);
        let expected = Tensor::<3>::from_data(read(&format!("{grid}.features")), &device);
        assert_close(grid, &tower.forward(pixels), &expected, REFERENCE);
    }
}

#[test]
fn vit_h_14_has_257_vectors_of_width_1280() {
    let config = VisionConfig::clip_vit_h_14();
    config.validate().unwrap();
    assert_eq!((config.vectors_per_image(), config.embed_dim), (257, 1280));
}
