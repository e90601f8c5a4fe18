//! The CLIP vision transformer of IDEFICS v1, for square images of one size. It has a class token, and a norm before
//! the layers.
//!
//! Paper: <https://arxiv.org/abs/2103.00020>. Reference: `IdeficsVisionTransformer`, `vision.py`, Transformers 5.23.0.
//!
//! Axes: `n_images`, `patches`, and `d` = `embed_dim`. Vector 0 of an image belongs to the class token.
//!
//! Numerics: layer norms accumulate in f32; GELU is exact, not the tanh approximation.

mod config;
mod positions;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{Embedding, LayerNorm, normal};

use crate::siglip::PatchEmbedding;
use crate::{Encoder, VisionConfig as EncoderConfig};

pub use config::VisionConfig;
use positions::interpolation;

/// A vision tower that encodes an image to one vector for the class token and one vector per patch.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Class, patch and position embeddings.
    pub embeddings: VisionEmbeddings,
    /// Norm before the layers. The name is misspelt in the checkpoint.
    pub pre_layrnorm: LayerNorm,
    /// The transformer layers.
    pub encoder: Encoder,
    /// Norm of the class token's output. The checkpoint contains it, but it is not used.
    pub post_layernorm: LayerNorm,
}

impl VisionTransformer {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let encoder: EncoderConfig = config.encoder();
        let norm = || LayerNorm::new(config.embed_dim, config.layer_norm_eps, device);
        Self {
            embeddings: VisionEmbeddings::new(config, device),
            pre_layrnorm: norm(),
            encoder: Encoder::new(&encoder, device),
            post_layernorm: norm(),
        }
    }

    /// Encodes a batch of images.
    ///
    /// # Shapes
    /// - `pixel_values`: `[n_images, 3, height, width]`, normalised. Pixels beyond the last whole patch are ignored. If
    ///   the patch grid differs from the trained one, position embeddings are interpolated
    /// - returns `[n_images, 1 + patches, d]`, without a final norm
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        self.forward_observed(pixel_values, |_, _| ())
    }

    /// Encodes a batch of images like [`Self::forward`]. Also calls `observe` with the index of each encoder layer and
    /// its output, `[n_images, 1 + patches, d]`.
    pub fn forward_observed(&self, pixel_values: Tensor<4>, mut observe: impl FnMut(usize, &Tensor<3>)) -> Tensor<3> {
        let mut hidden_states = self.pre_layrnorm.forward(self.embeddings.forward(pixel_values));
        for (layer_idx, layer) in self.encoder.layers.iter().enumerate() {
            hidden_states = layer.forward(hidden_states, None);
            observe(layer_idx, &hidden_states);
        }
        hidden_states
    }
}

/// Embeddings of the class token and the patches, with position embeddings added.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// Embedding of the class token, `[d]`.
    pub class_embedding: Param<Tensor<1>>,
    /// Projects the pixels of each patch to a vector.
    pub patch_embedding: PatchEmbedding,
    /// Position embeddings: the class token first, then the trained square grid in row-major order.
    pub position_embedding: Embedding,
    positions_per_side: usize,
}

impl VisionEmbeddings {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let VisionConfig { embed_dim, num_channels, patch_size, .. } = *config;
        let positions_per_side = config.positions_per_side();
        Self {
            class_embedding: normal([embed_dim], 0.0, 0.02, device),
            patch_embedding: PatchEmbedding::new_without_bias(embed_dim, num_channels, patch_size, device),
            position_embedding: Embedding::new(positions_per_side.pow(2) + 1, embed_dim, device),
            positions_per_side,
        }
    }

    /// Embeds the class token and the patches of a batch of images.
    ///
    /// # Shapes
    /// The same as for [`VisionTransformer::forward`].
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let [n_images, _, height, width] = pixel_values.dims();
        let [_, _, patch, _] = self.patch_embedding.weight.lazy_shape().dims();
        let (rows, cols) = (height / patch, width / patch);
        let patch_embeds = self.patch_embedding.forward(pixel_values, rows, cols); // [n_images, patches, d]
        let [_, _, d] = patch_embeds.dims();
        let class_embeds = self.class_embedding.val().reshape([1, 1, d]).expand([n_images, 1, d]);
        let embeddings = Tensor::cat(vec![class_embeds, patch_embeds], 1); // [n_images, 1 + patches, d]
        let positions = self.positions(rows, cols, embeddings.dtype()).unsqueeze();
        embeddings + positions
    }

    /// Computes position embeddings for a grid of `rows` × `cols` patches, `[1 + rows · cols, d]`.
    fn positions(&self, rows: usize, cols: usize, dtype: DType) -> Tensor<2> {
        let table = self.position_embedding.table().cast(dtype);
        let side = self.positions_per_side;
        if (rows, cols) == (side, side) {
            return table;
        }
        let [_, d] = table.dims();
        let class_position = table.clone().narrow(0, 0, 1); // [1, d]
        let patch_positions = table.narrow(0, 1, side * side).reshape([side, side * d]);
        let device = patch_positions.device();
        let options = (&device, dtype);
        // Bicubic interpolation is separable: it is applied along the vertical axis, then along the horizontal axis.
        let down = Tensor::<2>::from_data(interpolation(side, rows), options).matmul(patch_positions); // [rows, side·d]
        let down = down.reshape([rows, side, d]).swap_dims(0, 1).reshape([side, rows * d]);
        let across = Tensor::<2>::from_data(interpolation(side, cols), options).matmul(down); // [cols, rows · d]
        let patch_positions = across.reshape([cols, rows, d]).swap_dims(0, 1).reshape([rows * cols, d]);
        Tensor::cat(vec![class_position, patch_positions], 0)
    }
}
