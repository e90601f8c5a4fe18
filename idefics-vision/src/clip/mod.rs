//! CLIP vision transformer as the first Idefics uses it: a class token, a norm before the layers, squares of one size.
//!
//! Paper: <https://arxiv.org/abs/2103.00020>. Reference: `IdeficsVisionTransformer`, `vision.py`, Transformers 5.23.0.
//!
//! Axes: `n_images`, `patches`, `d` = `embed_dim`. Vector 0 of an image is the class token's.
//!
//! Numerics: layer norms accumulate in f32; GELU is the exact one.

mod config;
mod positions;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{Embedding, LayerNorm, normal};

use crate::siglip::PatchEmbedding;
use crate::{Encoder, VisionConfig as EncoderConfig};

pub use config::VisionConfig;
use positions::interpolation;

/// Turns pixels into one vector a patch, behind one for the whole image.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Class token, patches and their positions.
    pub embeddings: VisionEmbeddings,
    /// Norm before the layers; the checkpoint spells it so.
    pub pre_layrnorm: LayerNorm,
    /// The transformer.
    pub encoder: Encoder,
    /// Norm of the class token's result, which the checkpoint has and nothing reads.
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
    /// - `pixel_values`: `[n_images, 3, height, width]`, normalised; pixels beyond the last whole patch are ignored.
    ///   For another grid than the table of positions has, positions are interpolated
    /// - returns `[n_images, 1 + patches, d]`, without a norm at the end
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        self.forward_observed(pixel_values, |_, _| ())
    }

    /// As [`Self::forward`], also showing `observe` the output of each encoder layer, `[n_images, 1 + patches, d]`.
    pub fn forward_observed(&self, pixel_values: Tensor<4>, mut observe: impl FnMut(usize, &Tensor<3>)) -> Tensor<3> {
        let mut hidden_states = self.pre_layrnorm.forward(self.embeddings.forward(pixel_values));
        for (layer_idx, layer) in self.encoder.layers.iter().enumerate() {
            hidden_states = layer.forward(hidden_states, None);
            observe(layer_idx, &hidden_states);
        }
        hidden_states
    }
}

/// The class token and the patches, with their positions.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// `[d]`.
    pub class_embedding: Param<Tensor<1>>,
    /// Pixels of a patch to a vector.
    pub patch_embedding: PatchEmbedding,
    /// One vector for the class token, then one a position of the trained square, row after row.
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

    /// # Shapes
    /// As [`VisionTransformer::forward`].
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

    /// `[1 + rows · cols, d]`.
    fn positions(&self, rows: usize, cols: usize, dtype: DType) -> Tensor<2> {
        let table = self.position_embedding.weight.val().cast(dtype);
        let side = self.positions_per_side;
        if (rows, cols) == (side, side) {
            return table;
        }
        let [_, d] = table.dims();
        let of_class = table.clone().narrow(0, 0, 1); // [1, d]
        let of_patches = table.narrow(0, 1, side * side).reshape([side, side * d]);
        let device = of_patches.device();
        let options = (&device, dtype);
        // A row of the grid and then a column: the weights of a place are a product.
        let down = Tensor::<2>::from_data(interpolation(side, rows), options).matmul(of_patches); // [rows, side · d]
        let down = down.reshape([rows, side, d]).swap_dims(0, 1).reshape([side, rows * d]);
        let across = Tensor::<2>::from_data(interpolation(side, cols), options).matmul(down); // [cols, rows · d]
        let of_patches = across.reshape([cols, rows, d]).swap_dims(0, 1).reshape([rows * cols, d]);
        Tensor::cat(vec![of_class, of_patches], 0)
    }
}
