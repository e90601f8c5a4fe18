//! Idefics2's connector: patch features to image tokens in the decoder's space.
//!
//! Paper: <https://arxiv.org/abs/2405.02246>. Reference: `Idefics2Connector`, `Idefics2MLP`, Transformers 5.23.0.
//!
//! Axes: `n_images`, `patches`, `n_latents` vectors an image.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use idefics_nn::GatedMlp;

use crate::{ConnectorConfig, PerceiverResampler};

/// Patches of all images that are projected together, at most.
const PATCHES: usize = 1024;

/// Projects patch features to the decoder's width, then compresses each image to a few vectors.
#[derive(Module, Debug)]
pub struct Connector {
    /// Vision width to text width.
    pub modality_projection: GatedMlp,
    /// Patches to latents.
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

    /// # Shapes
    /// - `image_hidden_states`: `[n_images, patches, vision_hidden_size]`, the vision tower's output
    /// - `attention_mask`: `[n_images, patches]`, true where a patch holds picture; `None` if all do
    /// - returns `[n_images, n_latents, text_hidden_size]`
    pub fn forward(&self, image_hidden_states: Tensor<3>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let context = self.project(image_hidden_states); // [n_images, patches, text_hidden_size]
        self.perceiver_resampler.forward(context, attention_mask)
    }

    /// The projection of [`PATCHES`] at a time: it is many times as wide inside as what it reads.
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
