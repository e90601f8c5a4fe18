//! A batch of images on its way through a vision transformer.

use burn::tensor::{Bool, Tensor};
use idefics_vision::EncoderLayer;

use super::StepwiseEncoder;

/// A [`StepwiseEncoder`] over the layers of an encoder.
pub(crate) struct TowerEncoder<'m, F> {
    layers: &'m [EncoderLayer],
    mask: Option<Tensor<4, Bool>>,
    next_layer: usize,
    /// `[n_images, patches, d_vision]`; `None` once the vectors have been returned.
    hidden_states: Option<Tensor<3>>,
    connect: F,
}

impl<'m, F: Fn(Tensor<3>) -> Tensor<3> + 'm> TowerEncoder<'m, F> {
    /// Starts with embedded patches, `[n_images, patches, d_vision]`, before the first of `layers`. `connect`
    /// turns the output of the last layer into image vectors. `mask` hides padding: `[n_images, 1, patches,
    /// patches]`, true hides the key.
    pub(crate) fn new(
        patch_embeds: Tensor<3>,
        layers: &'m [EncoderLayer],
        mask: Option<Tensor<4, Bool>>,
        connect: F,
    ) -> Self {
        Self { layers, mask, next_layer: 0, hidden_states: Some(patch_embeds), connect }
    }
}

impl<'m, F: Fn(Tensor<3>) -> Tensor<3> + 'm> StepwiseEncoder for TowerEncoder<'m, F> {
    fn step(&mut self, n_layers: usize) -> Option<Tensor<3>> {
        let mut hidden_states = self.hidden_states.take().expect("the vectors were already returned");
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
