//! Runs a batch of images through a vision transformer, a few layers at a time.

use burn::tensor::{Bool, Tensor};
use idefics_vision::EncoderLayer;

use super::StepwiseEncoder;

/// A [`StepwiseEncoder`] that runs the layers of a vision transformer, and then a connector.
pub(crate) struct TowerEncoder<'m, F> {
    layers: &'m [EncoderLayer],
    mask: Option<Tensor<4, Bool>>,
    next_layer: usize,
    /// Output of the last layer that has run, `[n_images, patches, d_vision]`; `None` once the image vectors have been
    /// returned.
    hidden_states: Option<Tensor<3>>,
    connect: F,
}

impl<'m, F: Fn(Tensor<3>) -> Tensor<3> + Send + 'm> TowerEncoder<'m, F> {
    /// Starts with the embedded patches, `[n_images, patches, d_vision]`, the input of the first of `layers`. `connect`
    /// turns the output of the last layer into image vectors. `mask`, `[n_images, 1, patches, patches]`, is true for
    /// keys that are padding.
    pub(crate) fn new(
        patch_embeds: Tensor<3>,
        layers: &'m [EncoderLayer],
        mask: Option<Tensor<4, Bool>>,
        connect: F,
    ) -> Self {
        Self { layers, mask, next_layer: 0, hidden_states: Some(patch_embeds), connect }
    }
}

impl<'m, F: Fn(Tensor<3>) -> Tensor<3> + Send + 'm> StepwiseEncoder for TowerEncoder<'m, F> {
    fn step(&mut self, n_layers: usize) -> Option<Tensor<3>> {
        let mut hidden_states = self.hidden_states.take().expect("`step` was called after it returned the vectors");
        let left = &self.layers[self.next_layer..];
        if left.is_empty() {
            return Some((self.connect)(hidden_states));
        }
        let now = &left[..n_layers.clamp(1, left.len())];
        for layer in now {
            hidden_states = layer.forward(hidden_states, self.mask.clone());
        }
        self.next_layer += now.len();
        self.hidden_states = Some(hidden_states);
        None
    }
}
