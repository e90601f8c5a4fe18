//! Tests that the latents of an image do not depend on the other images of the batch.

use burn::tensor::{Device, Tensor};
use idefics_perceiver::Connector;

use crate::SAME;
use crate::common::{Model, assert_close, bool_mask, part, random};
use crate::reference::connector;

/// Number of real patches of each test image.
const PATCHES: [usize; 4] = [6, 25, 1, 17];

struct Images {
    connector: Connector,
    width: usize,
    device: Device,
}

impl Images {
    fn new(model: &str) -> Self {
        let device = Device::flex();
        let (config, connector) = connector(&Model::named(model), &device);
        Self { connector, width: config.vision_hidden_size, device }
    }

    /// Computes the latents of each image, `[1, n_latents, d]`, in one batch. Images are padded to `patches` patches
    /// with random features.
    fn compress(&self, images: &[usize], patches: usize, padding_seed: u64) -> Vec<Tensor<3>> {
        let features = images.iter().map(|&image| {
            let real = random(image as u64, [1, PATCHES[image], self.width], &self.device);
            let padding = random(padding_seed + image as u64, [1, patches, self.width], &self.device) * 1e3;
            Tensor::cat(vec![real, part(&padding, 1, PATCHES[image], patches)], 1)
        });
        let features = Tensor::cat(features.collect(), 0);
        let real = images.iter().flat_map(|&image| (0..patches).map(move |patch| patch < PATCHES[image])).collect();
        let output = self.connector.forward(features, Some(bool_mask(real, [images.len(), patches], &self.device)));
        (0..images.len()).map(|row| part(&output, 0, row, row + 1)).collect()
    }

    /// Computes the latents of one image, without padding and without a mask.
    fn alone(&self, image: usize) -> Tensor<3> {
        self.connector.forward(random(image as u64, [1, PATCHES[image], self.width], &self.device), None)
    }
}

#[test]
fn image_alone_matches_image_in_padded_batch() {
    for model in ["odd-heads", "wide-heads", "sliding-sharded"] {
        let images = Images::new(model);
        for (batch, patches) in
            [(&[0, 1][..], 26), (&[2, 0, 3], 31), (&[3, 3], 18), (&[0, 1, 2, 3], 40), (&[1, 0], 700)]
        {
            for (image, together) in batch.iter().zip(images.compress(batch, patches, 100)) {
                let name = format!("{model}, image {image} of {batch:?}");
                assert_close(&name, &together, &images.alone(*image), SAME);
            }
        }
    }
}

#[test]
fn padding_does_not_affect_latents() {
    let images = Images::new("odd-heads");
    let [first, second] = [100, 200].map(|padding_seed| images.compress(&[0, 2, 3], 26, padding_seed));
    for (image, (first, second)) in first.iter().zip(&second).enumerate() {
        assert_close(&format!("image {image}"), first, second, SAME);
    }
}

#[test]
fn outputs_keep_the_order_of_images() {
    let images = Images::new("odd-heads");
    let forward = images.compress(&[0, 1, 2, 3], 26, 100);
    let backward = images.compress(&[3, 2, 1, 0], 26, 100);
    for (image, (one, other)) in forward.iter().zip(backward.iter().rev()).enumerate() {
        assert_close(&format!("image {image}"), one, other, 0.0);
    }
}

#[test]
fn order_of_patches_does_not_matter() {
    // The resampler adds no positions; the features already contain them.
    let images = Images::new("wide-heads");
    let features = random(1, [1, 25, images.width], &images.device);
    let output = images.connector.forward(features.clone(), None);
    assert_close("flipped", &images.connector.forward(features.flip([1]), None), &output, SAME);
}

#[test]
fn image_without_real_patches_gives_finite_latents() {
    let images = Images::new("odd-heads");
    let features = random(1, [1, 4, images.width], &images.device);
    let nothing = Some(bool_mask(vec![false; 4], [1, 4], &images.device));
    let output = images.connector.forward(features.clone(), nothing.clone());
    // All patches are hidden, so the latents attend only to each other.
    assert_close("latents", &output, &images.connector.forward(features * 7.0, nothing), SAME);
}
