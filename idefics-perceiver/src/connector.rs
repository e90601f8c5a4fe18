//! Idefics2's connector: maps patch features to image vectors in the decoder's embedding space.
//!
//! Paper: <https://arxiv.org/abs/2405.02246>. Reference: `Idefics2Connector` and `Idefics2MLP`, Transformers 5.23.0.
//!
//! Axes: `n_images` images, with `patches` patches and `n_latents` image vectors each.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use idefics_nn::GatedMlp;

use crate::{ConnectorConfig, PerceiverResampler};

/// Maximum number of patches, over all images, that are projected together.
const PATCHES: usize = 1024;

/// Projects patch features to the decoder's width, then compresses each image to `n_latents` vectors.
#[derive(Module, Debug)]
pub struct Connector {
    /// Projection from the vision tower's width to the decoder's width.
    pub modality_projection: GatedMlp,
    /// Compresses the patches of each image to latents.
    pub perceiver_resampler: PerceiverResampler,
}

impl Connector {
    pub(crate) fn new(config: &ConnectorConfig, device: &Device) -> Self {
        Self {
            modality_projection: GatedMlp::new(
                config.vision_hidden_size,
                config.text_intermediate_size,
                config.text_hidden_size,
                config.text_hidden_act,
                device,
            ),
            perceiver_resampler: PerceiverResampler::new(&config.perceiver, device),
        }
    }

    /// Computes the image vectors of a batch of images.
    ///
    /// # Shapes
    /// - `image_hidden_states`: `[n_images, patches, vision_hidden_size]`, the vision tower's output
    /// - `attention_mask`: `[n_images, patches]`, true for real patches, false for padding; `None` if all are real
    /// - returns `[n_images, n_latents, text_hidden_size]`
    pub fn forward(&self, image_hidden_states: Tensor<3>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let context = self.project(image_hidden_states); // [n_images, patches, text_hidden_size]
        self.perceiver_resampler.forward(context, attention_mask)
    }

    /// Projects at most [`PATCHES`] patches at a time, because the inner activations are many times wider than the
    /// input.
    fn project(&self, image_hidden_states: Tensor<3>) -> Tensor<3> {
        let [n_images, patches, d] = image_hidden_states.dims();
        if n_images * patches <= PATCHES {
            return self.modality_projection.forward(image_hidden_states);
        }
        let rows = image_hidden_states.reshape([n_images * patches, d]);
        let n_rows = n_images * patches;
        let step = n_rows.div_ceil(n_rows.div_ceil(PATCHES)); // chunks of about the same length
        let projected = rows.split(step, 0).into_iter().map(|rows| self.modality_projection.forward(rows));
        let context = Tensor::cat(projected.collect(), 0); // [n_images · patches, text_hidden_size]
        let width = context.dims()[1];
        context.reshape([n_images, patches, width])
    }
}
