//! The tower of the first Idefics.

use burn::tensor::Device;
use idefics_vision::clip::VisionConfig;

use crate::common::{Case, Model, assert_close, part, random};
use crate::{PREFIX, REFERENCE, SAME};

#[test]
fn every_case_matches_the_reference() {
    let device = Device::flex();
    for case in Case::all_of("idefics", "vision.last_hidden_state") {
        let config: VisionConfig = case.model.section("vision_config");
        config.validate().unwrap();
        let tower = case.model.load(config.init(&device), PREFIX);
        let output = tower.forward(case.whole_pictures(&device));
        let expected = case.floats::<3>("vision.last_hidden_state", &device);
        assert_eq!(output.dims()[1], config.vectors_per_image());
        assert_close(&case.name, &output, &expected, REFERENCE);
    }
}

#[test]
fn images_of_a_batch_do_not_mix() {
    let device = Device::flex();
    let model = Model::named("idefics1-float");
    let config: VisionConfig = model.section("vision_config");
    let tower = model.load(config.init(&device), PREFIX);
    let pixels = random(1, [3, 3, config.image_size, config.image_size], &device);
    let all = tower.forward(pixels.clone());
    for image in 0..3 {
        let alone = tower.forward(part(&pixels, 0, image, image + 1));
        assert_close("alone", &alone, &part(&all, 0, image, image + 1), SAME);
    }
}

#[test]
fn another_size_gets_positions_of_its_own() {
    let device = Device::flex();
    let model = Model::named("idefics1-float");
    let config: VisionConfig = model.section("vision_config");
    let tower = model.load(config.init(&device), PREFIX);
    let (rows, cols, patch) = (6, 3, config.patch_size);
    let output = tower.forward(random(2, [1, 3, rows * patch, cols * patch], &device));
    assert_eq!(output.dims(), [1, 1 + rows * cols, config.embed_dim]);
}

#[test]
fn the_real_tower_has_257_vectors_of_1280() {
    let config = VisionConfig::clip_vit_h_14();
    config.validate().unwrap();
    assert_eq!((config.vectors_per_image(), config.embed_dim), (257, 1280));
}
