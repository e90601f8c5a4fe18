//! The vision stages: features of the vision tower, and image hidden states.

use anyhow::{Result, bail, ensure};
use burn::tensor::Tensor;
use idefics_generate::processor::ProcessedInputs;
use idefics_generate::processor::image::{ImageTile, PaddedImages};
use idefics_generate::{ImageBatch, ImageVectors, Model, VisionBatch};

use super::case::Expected;
use super::compare::Comparison;
use super::stages::{Stages, floats};

impl Stages<'_> {
    /// Returns the real images in the expected processor tensors, or the images that this project computes if the case
    /// has none.
    pub(super) fn images(&self, processed: &ProcessedInputs) -> Result<Vec<ImageTile>> {
        let Some(pixel_values) = self.case.expected("processor.pixel_values") else {
            return Ok(processed.images.iter().flatten().cloned().collect());
        };
        let &[batch, n_images, 3, height, width] = pixel_values.shape.as_slice() else {
            bail!("`processor.pixel_values` has shape {:?}; expected [batch, n_images, 3, h, w]", pixel_values.shape);
        };
        let pixel_attention_mask = match self.case.expected("processor.pixel_attention_mask") {
            Some(mask) => {
                ensure!(
                    mask.shape == [batch, n_images, height, width],
                    "`processor.pixel_attention_mask` must have the images and sizes of `processor.pixel_values`"
                );
                mask.ints()?.to_vec()
            }
            None => vec![1; batch * n_images * height * width],
        };
        let pixel_values = pixel_values.floats()?.to_vec();
        let images = PaddedImages { batch, n_images, height, width, pixel_values, pixel_attention_mask };
        Ok(images.tiles()?.into_iter().flatten().collect())
    }

    /// Compares the image vectors, and the features that `vision_features` computes for a batch,
    /// `[n_images, patches, hidden]`.
    pub(super) fn vision(
        &mut self,
        model: &dyn Model,
        vision_features: &dyn Fn(&ImageBatch<'_>) -> Tensor<3>,
        images: &[ImageTile],
    ) -> Result<Option<ImageVectors>> {
        let batches = model.shape().image_batches(images, VisionBatch::default())?;
        let features: Vec<Tensor<3>> = batches.iter().map(vision_features).collect();
        if let Some(expected) = self.case.expected("vision.last_hidden_state") {
            let comparison = self.compare_features(model, &batches, &features, expected)?;
            self.report.stage("vision.last_hidden_state", &comparison);
        }
        let image_hidden_states = model.encode_images(images)?;
        match &image_hidden_states {
            Some(states) => self.image_vectors(states.clone())?,
            None => {
                ensure!(self.case.expected("image_hidden_states").is_none(), "`image_hidden_states` needs an image");
            }
        }
        Ok(image_hidden_states)
    }

    /// Compares the image vectors, `[images, n_vectors, d]`.
    fn image_vectors(&mut self, image_hidden_states: ImageVectors) -> Result<()> {
        let Some(states) = image_hidden_states.into_equal() else {
            bail!("the images have different numbers of vectors, which `image_hidden_states` cannot express");
        };
        self.tensor("image_hidden_states", &states, |_| true)
    }

    /// Compares the features of real patches. The reference pads all images to one patch grid. The features that this
    /// project computes contain only real patches, which are copied to their positions in that grid.
    fn compare_features(
        &self,
        model: &dyn Model,
        batches: &[ImageBatch<'_>],
        features: &[Tensor<3>],
        expected: &Expected,
    ) -> Result<Comparison> {
        let &[n_images, n_patches, hidden] = expected.shape.as_slice() else {
            bail!("`vision.last_hidden_state` has shape {:?}; expected [images, patches, hidden]", expected.shape);
        };
        let n_ours: usize = batches.iter().map(|batch| batch.image_indices.len()).sum();
        let grid_width = match self.case.expected("processor.pixel_values") {
            Some(pixel_values) => pixel_values.shape[4] / model.shape().patch_size,
            None => batches.iter().map(|batch| batch.grid.cols).max().unwrap_or(0),
        };
        let mut ours = vec![0.0; n_images * n_patches * hidden];
        let mut real = vec![false; n_images * n_patches];
        for (batch, features) in batches.iter().zip(features) {
            let grid = batch.grid;
            let [_, patches, width] = features.dims();
            let last_patch = (grid.rows - 1) * grid_width + grid.cols;
            if n_ours != n_images || width != hidden || last_patch > n_patches {
                return Ok(Comparison::shape(&[n_ours, patches, width], &expected.shape));
            }
            let values = floats(features.clone());
            for (in_batch, &image_idx) in batch.image_indices.iter().enumerate() {
                for patch in 0..patches {
                    let slot = image_idx * n_patches + patch / grid.cols * grid_width + patch % grid.cols;
                    let from = (in_batch * patches + patch) * hidden;
                    ours[slot * hidden..(slot + 1) * hidden].copy_from_slice(&values[from..from + hidden]);
                    real[slot] = true;
                }
            }
        }
        let expected_values = expected.floats()?;
        let tolerance = self.model_tolerance("vision.last_hidden_state", expected_values);
        Ok(Comparison::floats(&expected.shape, &ours, expected_values, tolerance, |index| real[index / hidden]))
    }
}
