//! SigLIP vision transformer as Idefics2 uses it: variable resolution, bucketed positions, no pooling head.
//!
//! Papers: <https://arxiv.org/abs/2303.15343>; positions, <https://arxiv.org/abs/2307.06304>.
//! Reference: `Idefics2VisionTransformer`, `modeling_idefics2.py`, Transformers 5.23.0.
//!
//! Axes: `n_images` real images of the batch (padding images never reach the graph), `patches` of the grid that they
//! share, `d` = `hidden_size`.
//!
//! Numerics: layer norms accumulate in f32; GELU is the tanh approximation.

use burn::module::{Module, Param};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, assert_shape};
use idefics_nn::{Embedding, LayerNorm, normal, product};

use crate::{Encoder, PatchLayout, VisionConfig};

/// Turns pixels into one vector a patch.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patches and their positions.
    pub embeddings: VisionEmbeddings,
    /// The transformer.
    pub encoder: Encoder,
    /// Norm of the result.
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
    /// - `pixel_values`: `[n_images, 3, height, width]`, normalised; each image in the top left corner, the rest padding
    /// - `layout`: the images' patch grids; pixels beyond the shared grid are ignored
    /// - returns `[n_images, patches, d]`, row after row of the shared grid; what padding gives means nothing
    ///
    /// # Panics
    /// If `pixel_values` holds another number of images than `layout`, or fewer pixels than its grid.
    pub fn forward(&self, pixel_values: Tensor<4>, layout: &PatchLayout) -> Tensor<3> {
        self.forward_observed(pixel_values, layout, |_, _| ())
    }

    /// As [`Self::forward`], also showing `observe` the output of each encoder layer, `[n_images, patches, d]`.
    pub fn forward_observed(
        &self,
        pixel_values: Tensor<4>,
        layout: &PatchLayout,
        mut observe: impl FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let masked_out = patch_mask(layout, &pixel_values.device());
        let mut hidden_states = self.embeddings.forward(pixel_values, layout); // [n_images, patches, d]
        for (layer_idx, layer) in self.encoder.layers.iter().enumerate() {
            hidden_states = layer.forward(hidden_states, masked_out.clone());
            observe(layer_idx, &hidden_states);
        }
        self.post_layernorm.forward(hidden_states)
    }
}

/// True where a patch is padding, for every query alike: `[n_images, 1, patches, patches]`; `None` if nothing is.
pub fn patch_mask(layout: &PatchLayout, device: &Device) -> Option<Tensor<4, Bool>> {
    let real = layout.attention_mask()?;
    let (n_images, patches) = (layout.n_images(), layout.shared().patches());
    let padding: Vec<bool> = real.into_iter().map(|real| !real).collect();
    let padding = Tensor::<4, Bool>::from_data(TensorData::new(padding, [n_images, 1, 1, patches]), device);
    Some(padding.expand([n_images, 1, patches, patches]))
}

/// Patch vectors plus position vectors.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// Pixels of a patch to a vector.
    pub patch_embedding: PatchEmbedding,
    /// One vector a position of the trained square, row after row.
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

    /// # Shapes
    /// As [`VisionTransformer::forward`].
    pub fn forward(&self, pixel_values: Tensor<4>, layout: &PatchLayout) -> Tensor<3> {
        assert_shape!(pixel_values, [layout.n_images(), _, _, _]);
        let grid = layout.shared();
        let positions = TensorData::new(layout.position_ids(), [layout.n_images(), grid.patches()]);
        let position_ids = Tensor::<2, Int>::from_data(positions, (&pixel_values.device(), DType::I32));
        let patch_embeds = self.patch_embedding.forward(pixel_values, grid.rows, grid.cols); // [n_images, patches, d]
        patch_embeds + self.position_embedding.forward(position_ids)
    }
}

/// A convolution whose stride is its kernel: each patch is one row of a matrix product.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[d, channels, patch_size, patch_size]`.
    pub weight: Param<Tensor<4>>,
    /// `[d]`; SigLIP has one, CLIP has none.
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
        let patch_embeds = product(pixels, weight.reshape([d, n_pixels]), bias);
        patch_embeds.reshape([n_images, rows * cols, d])
    }
}
