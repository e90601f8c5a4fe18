use burn::tensor::{Device, Tensor};
use idefics_vision::{PatchGrid, PatchLayout, VisionConfig, VisionTransformer};

use crate::common::{Case, Model, assert_close, part};
use crate::{PREFIX, REFERENCE};

/// Loads the tower of a checkpoint folder. Every parameter must have a tensor in the folder.
pub(crate) fn tower(model: &Model, device: &Device) -> (VisionConfig, VisionTransformer) {
    let config = model.section_over("vision_config", &VisionConfig::siglip_so400m_980());
    config.validate().unwrap();
    let tower = model.load(config.init(device).unwrap(), PREFIX);
    (config, tower)
}

#[test]
fn all_cases_match_reference() {
    let device = Device::flex();
    for case in Case::all_with("vision.last_hidden_state") {
        let (config, tower) = tower(&case.model, &device);
        let pixel_values = case.floats::<5>("processor.pixel_values", &device).flatten::<4>(0, 1);
        let pictures = case.pictures();
        let real = pictures.iter().map(|picture| part(&pixel_values, 0, picture.index, picture.index + 1)).collect();
        let grids: Vec<PatchGrid> = pictures
            .iter()
            .map(|&picture| PatchGrid::whole_patches(picture.height, picture.width, config.patch_size).unwrap())
            .collect();

        let layout = PatchLayout::new(&grids, config.positions_per_side());
        let output = tower.forward(Tensor::cat(real, 0), &layout);
        let expected = case.floats::<3>("vision.last_hidden_state", &device);
        assert_eq!(output.dims(), expected.dims(), "{}", case.name);
        for (image, grid) in grids.iter().enumerate() {
            // Compare only real patches: the first columns of each row of the shared grid.
            for row in 0..grid.rows {
                let start = row * layout.shared().cols;
                let real = |states: &Tensor<3>| part(&part(states, 0, image, image + 1), 1, start, start + grid.cols);
                let name = format!("{}, image {image}, row {row}", case.name);
                assert_close(&name, &real(&output), &real(&expected), REFERENCE);
            }
        }
    }
}

#[test]
fn forward_observed_reports_each_layer() {
    let device = Device::flex();
    let (config, tower) = tower(&Model::named("tiny-idefics2"), &device);
    let layout = PatchLayout::new(&[PatchGrid { rows: 2, cols: 3 }], config.positions_per_side());
    let pixel_values = Tensor::zeros([1, 3, 28, 42], &device);
    let mut seen = Vec::new();
    let observed =
        tower.forward_observed(pixel_values.clone(), &layout, |index, states| seen.push((index, states.clone())));
    assert_eq!(seen.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
    assert_close("last", &tower.post_layernorm.forward(seen[1].1.clone()), &observed, 0.0);
    assert_close("unobserved", &tower.forward(pixel_values, &layout), &observed, 0.0);
}
