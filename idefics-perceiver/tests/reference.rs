use burn::tensor::Device;
use idefics_perceiver::{Connector, ConnectorConfig};
use serde::Deserialize;

use crate::common::{Case, Model, assert_close, bool_mask};
use crate::{PREFIX, REFERENCE};

/// The field of `vision_config` that the tests use.
#[derive(Deserialize)]
struct Vision {
    patch_size: usize,
}

/// Loads the connector of a checkpoint folder. Every parameter must have a tensor in the folder.
pub(crate) fn connector(model: &Model, device: &Device) -> (ConnectorConfig, Connector) {
    let config = ConnectorConfig::from_sections(&model.config, &ConnectorConfig::idefics2_8b()).unwrap();
    let connector = model.load(config.init(device).unwrap(), PREFIX);
    (config, connector)
}

#[test]
fn all_cases_match_reference() {
    let device = Device::flex();
    for case in Case::all_with("image_hidden_states") {
        let (_, connector) = connector(&case.model, &device);
        let patch_size = case.model.section::<Vision>("vision_config").patch_size;
        let features = case.floats::<3>("vision.last_hidden_state", &device);
        let pictures = case.pictures();
        let [n_images, patches, _] = features.dims();
        assert_eq!(n_images, pictures.len(), "{}", case.name);

        let (_, shape) = case.integers("processor.pixel_attention_mask");
        let (rows, cols) = (shape[2] / patch_size, shape[3] / patch_size);
        assert_eq!(patches, rows * cols, "{}", case.name);
        let real: Vec<bool> = pictures
            .iter()
            .flat_map(|picture| {
                let (real_rows, real_cols) = (picture.height / patch_size, picture.width / patch_size);
                (0..patches).map(move |patch| patch / cols < real_rows && patch % cols < real_cols)
            })
            .collect();
        let expected = case.floats::<3>("image_hidden_states", &device);
        let output = connector.forward(features.clone(), Some(bool_mask(real.clone(), [n_images, patches], &device)));
        assert_close(&case.name, &output, &expected, REFERENCE);
        if real.iter().all(|&real| real) {
            assert_close(&case.name, &connector.forward(features, None), &expected, REFERENCE);
        }
    }
}
