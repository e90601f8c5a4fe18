//! The SigLIP vision transformer of Idefics2: with variable resolution and bucketed positions, and without a pooling
//! head.
//!
//! Papers: SigLIP, <https://arxiv.org/abs/2303.15343>; positions, <https://arxiv.org/abs/2307.06304>. Reference:
//! `Idefics2VisionTransformer` in `modeling_idefics2.py`, Transformers 5.23.0.
//!
//! Axes: `n_images` is the number of real images in the batch; padding images are removed beforehand. `patches` is the
//! number of patches in the grid that the images share. `d` is `hidden_size`.
//!
//! Numerics: layer norms accumulate in f32; GELU is the tanh approximation.

use burn::module::{Module, Param};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, assert_shape};
use idefics_nn::{Embedding, LayerNorm, linear, normal};

use crate::{Encoder, PatchLayout, VisionConfig};

/// A vision tower that encodes images to one vector per patch.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patch and position embeddings.
    pub embeddings: VisionEmbeddings,
    /// The transformer layers.
    pub encoder: Encoder,
    /// Final norm.
    pub post_layernorm: LayerNorm,
}

impl VisionTransformer {
    pub(crate) fn new(config: &VisionConfig, device: &Device) -> Self {
        Self {
            embeddings: VisionEmbeddings::new(config, device),
            encoder: Encoder::new(config, device),
            post_layernorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
        }
    }

    /// Encodes a batch of images.
    ///
    /// # Shapes
    /// - `pixel_values`: `[n_images, 3, height, width]`, normalised; each image is at the top left, and the rest is
    ///   padding
    /// - `layout`: patch grids of the images; pixels beyond the shared grid are ignored
    /// - returns `[n_images, patches, d]`, with patches in row-major order of the shared grid; outputs of padding
    ///   patches are unspecified
    ///
    /// # Panics
    /// If the number of images differs between `pixel_values` and `layout`, or the images are smaller than the shared
    /// grid.
    pub fn forward(&self, pixel_values: Tensor<4>, layout: &PatchLayout) -> Tensor<3> {
        self.forward_observed(pixel_values, layout, |_, _| ())
    }

    /// Encodes a batch of images like [`Self::forward`]. Also calls `observe` with the index of each encoder layer and
    /// its output, `[n_images, patches, d]`.
    pub fn forward_observed(
        &self,
        pixel_values: Tensor<4>,
        layout: &PatchLayout,
        mut observe: impl FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let mask = patch_mask(layout, &pixel_values.device());
        let mut hidden_states = self.embeddings.forward(pixel_values, layout); // [n_images, patches, d]
        for (layer_idx, layer) in self.encoder.layers.iter().enumerate() {
            hidden_states = layer.forward(hidden_states, mask.clone());
            observe(layer_idx, &hidden_states);
        }
        self.post_layernorm.forward(hidden_states)
    }
}

/// Creates the attention mask of a batch: `[n_images, 1, patches, patches]`, true where the key is a padding patch.
/// Returns `None` if there is no padding.
pub fn patch_mask(layout: &PatchLayout, device: &Device) -> Option<Tensor<4, Bool>> {
    let real = layout.attention_mask()?;
    let (n_images, patches) = (layout.n_images(), layout.shared().patches());
    let padding: Vec<bool> = real.into_iter().map(|real| !real).collect();
    let padding = Tensor::<4, Bool>::from_data(TensorData::new(padding, [n_images, 1, 1, patches]), device);
    Some(padding.expand([n_images, 1, patches, patches]))
}

/// The sum of patch embeddings and position embeddings.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// Projects the pixels of each patch to a vector.
    pub patch_embedding: PatchEmbedding,
    /// Position embeddings of the trained square grid, in row-major order.
    pub position_embedding: Embedding,
}

impl VisionEmbeddings {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let positions = config.positions_per_side().pow(2);
        Self {
            patch_embedding: PatchEmbedding::new(config, device),
            position_embedding: Embedding::new(positions, config.hidden_size, device),
        }
    }

    /// Embeds the patches of a batch of images.
    ///
    /// # Shapes
    /// The same as for [`VisionTransformer::forward`].
    pub fn forward(&self, pixel_values: Tensor<4>, layout: &PatchLayout) -> Tensor<3> {
        assert_shape!(pixel_values, [layout.n_images(), _, _, _]);
        let grid = layout.shared();
        let positions = TensorData::new(layout.position_ids(), [layout.n_images(), grid.patches()]);
        let position_ids = Tensor::<2, Int>::from_data(positions, (&pixel_values.device(), DType::I32));
        let patch_embeds = self.patch_embedding.forward(pixel_values, grid.rows, grid.cols); // [n_images, patches, d]
        patch_embeds + self.position_embedding.forward(position_ids)
    }
}

/// Projects the pixels of each patch to a vector: a convolution with equal stride and kernel size, computed as a
/// matrix product with one row per patch.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// Weight of the convolution, `[d, channels, patch_size, patch_size]`.
    pub weight: Param<Tensor<4>>,
    /// Bias, `[d]`; `None` in CLIP.
    pub bias: Option<Param<Tensor<1>>>,
}

impl PatchEmbedding {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let VisionConfig { hidden_size, num_channels, patch_size, .. } = *config;
        Self {
            bias: Some(normal([hidden_size], 0.0, 0.02, device)),
            ..Self::new_without_bias(hidden_size, num_channels, patch_size, device)
        }
    }

    pub(crate) fn new_without_bias(
        hidden_size: usize,
        num_channels: usize,
        patch_size: usize,
        device: &Device,
    ) -> Self {
        let weight = normal([hidden_size, num_channels, patch_size, patch_size], 0.0, 0.02, device);
        Self { weight, bias: None }
    }

    pub(crate) fn forward(&self, pixel_values: Tensor<4>, rows: usize, cols: usize) -> Tensor<3> {
        let weight = self.weight.val();
        let [d, channels, patch, _] = weight.dims();
        let n_images = pixel_values.dims()[0];
        let n_pixels = channels * patch * patch;
        let pixels = pixel_values
            .cast(weight.dtype())
            .narrow(2, 0, rows * patch)
            .narrow(3, 0, cols * patch)
            .reshape([n_images, channels, rows, patch, cols, patch])
            .permute([0, 2, 4, 1, 3, 5]) // [n_images, rows, cols, channels, patch, patch]
            .reshape([n_images * rows * cols, n_pixels]);
        let bias = self.bias.as_ref().map(Param::val);
        let patch_embeds = linear(pixels, weight.reshape([d, n_pixels]), bias);
        patch_embeds.reshape([n_images, rows * cols, d])
    }
}
