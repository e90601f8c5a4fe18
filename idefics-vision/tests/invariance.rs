//! Tests that the encoding of an image does not depend on the other images of the batch.

use burn::tensor::{Device, Tensor};
use idefics_vision::{PatchGrid, PatchLayout, VisionConfig, VisionTransformer};

use crate::SAME;
use crate::common::{Model, assert_close, part, random};
use crate::reference::tower;

/// Heights and widths of the test images, in pixels. The model has patches of 8 pixels and 7 positions per side; not
/// all sizes are multiples of 8.
const SIZES: [(usize, usize); 5] = [(24, 40), (56, 56), (8, 8), (17, 55), (56, 9)];

struct Images {
    config: VisionConfig,
    tower: VisionTransformer,
    device: Device,
}

impl Images {
    fn new() -> Self {
        let device = Device::flex();
        let (config, tower) = tower(&Model::named("odd-heads"), &device);
        Self { config, tower, device }
    }

    fn grid(&self, image: usize) -> PatchGrid {
        let (height, width) = SIZES[image];
        PatchGrid::whole_patches(height, width, self.config.patch_size).unwrap()
    }

    /// Returns `height` × `width` pixels with the image at the top left. The other pixels are random.
    fn pixels(&self, image: usize, height: usize, width: usize, padding_seed: u64) -> Tensor<4> {
        let (real_height, real_width) = SIZES[image];
        let padding = random(padding_seed, [1, 3, height, width], &self.device) * 1e3;
        let real = random(image as u64, [1, 3, real_height, real_width], &self.device);
        padding.slice_assign([0..1, 0..3, 0..real_height, 0..real_width], real)
    }

    /// Encodes images in one batch. Returns the real patches of each image: `[1, patches, d]`.
    fn encode(&self, images: &[usize], padding_seed: u64) -> Vec<Tensor<3>> {
        let height = images.iter().map(|&image| SIZES[image].0).max().unwrap();
        let width = images.iter().map(|&image| SIZES[image].1).max().unwrap();
        self.encode_in(images, height, width, padding_seed)
    }

    fn encode_in(&self, images: &[usize], height: usize, width: usize, padding_seed: u64) -> Vec<Tensor<3>> {
        let grids: Vec<PatchGrid> = images.iter().map(|&image| self.grid(image)).collect();
        let layout = PatchLayout::new(&grids, self.config.positions_per_side());
        let pixels = images.iter().map(|&image| self.pixels(image, height, width, padding_seed + image as u64));
        let output = self.tower.forward(Tensor::cat(pixels.collect(), 0), &layout);
        let cols = layout.shared().cols;
        grids
            .iter()
            .enumerate()
            .map(|(row, grid)| {
                let image = part(&output, 0, row, row + 1);
                let rows = (0..grid.rows).map(|row| part(&image, 1, row * cols, row * cols + grid.cols));
                Tensor::cat(rows.collect(), 1)
            })
            .collect()
    }
}

#[test]
fn image_alone_matches_image_in_batch() {
    let images = Images::new();
    for batch in [&[0, 1][..], &[1, 0, 2], &[4, 3, 2, 1, 0], &[2, 2, 2]] {
        for (image, together) in batch.iter().zip(images.encode(batch, 100)) {
            assert_close(&format!("image {image} of {batch:?}"), &images.encode(&[*image], 0)[0], &together, SAME);
        }
    }
}

#[test]
fn padding_does_not_affect_real_patches() {
    let images = Images::new();
    for (image, (first, second)) in
        images.encode(&[0, 1, 3], 100).iter().zip(images.encode(&[0, 1, 3], 200)).enumerate()
    {
        assert_close(&format!("image {image}"), first, &second, SAME);
    }
    // Pixels beyond the last whole patch or beyond the shared grid do not matter.
    let (alone, wide) = (images.encode(&[3], 0), images.encode_in(&[3], 56, 64, 300));
    assert_close("partial patches", &alone[0], &wide[0], SAME);
}

#[test]
fn outputs_keep_the_order_of_images() {
    let images = Images::new();
    let forward = images.encode(&[0, 1, 2, 3, 4], 100);
    let backward = images.encode(&[4, 3, 2, 1, 0], 100);
    for (image, (one, other)) in forward.iter().zip(backward.iter().rev()).enumerate() {
        assert_close(&format!("image {image}"), one, other, 0.0);
    }
}

#[test]
fn results_are_reproducible_bit_for_bit() {
    let images = Images::new();
    let first = images.encode(&[0, 3], 100);
    for _ in 0..5 {
        for (one, other) in first.iter().zip(images.encode(&[0, 3], 100)) {
            assert_close("again", one, &other, 0.0);
        }
    }
}
