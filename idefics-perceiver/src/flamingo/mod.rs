//! The Flamingo resampler of IDEFICS v1. It has layer norms and a plain feed-forward block, and takes no masks.
//!
//! Papers: Flamingo, <https://arxiv.org/abs/2204.14198>; IDEFICS, <https://arxiv.org/abs/2306.16527>. Reference:
//! `IdeficsPerceiverResampler` in `perceiver.py`, Transformers 5.23.0.
//!
//! Axes: `n_images`, `patches`, `n_latents`, and `d` = the width of the vision tower. There are `heads` heads of width
//! `head_dim`.
//!
//! Numerics: layer norms accumulate in f32.

mod config;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use idefics_nn::{Activation, LayerNorm, Linear, attention, normal};

pub use config::{PerceiverConfig, ResamplerConfig};

/// Epsilon of the layer norms: the default of `torch.nn.LayerNorm`. It is not configurable.
const LAYER_NORM_EPS: f64 = 1e-5;

/// A resampler that compresses the patches of each image to `n_latents` vectors. Learned latents attend to the patches
/// and to each other.
#[derive(Module, Debug)]
pub struct PerceiverResampler {
    /// Learned initial latents, `[n_latents, d]`.
    pub latents: Param<Tensor<2>>,
    /// Blocks in the order of execution. In the checkpoint, the attention of a block is named `0`, and its feed-forward
    /// block `1`.
    pub blocks: Vec<(PerceiverAttention, PerceiverMlp)>,
    /// Final norm.
    pub layer_norm: LayerNorm,
}

impl PerceiverResampler {
    fn new(config: &ResamplerConfig, device: &Device) -> Self {
        let (d, perceiver) = (config.vision_embed_dim, &config.perceiver);
        let block = |_| (PerceiverAttention::new(config, device), PerceiverMlp::new(d, device));
        Self {
            latents: normal([perceiver.resampler_n_latents, d], 0.0, 1.0, device),
            blocks: (0..perceiver.resampler_depth).map(block).collect(),
            layer_norm: LayerNorm::new(d, LAYER_NORM_EPS, device),
        }
    }

    /// Computes the latents of a batch of images.
    ///
    /// # Shapes
    /// - `context`: `[n_images, patches, d]`, the vision tower's output
    /// - returns `[n_images, n_latents, d]`
    pub fn forward(&self, context: Tensor<3>) -> Tensor<3> {
        let [n_images, _, d] = context.dims();
        let latents = self.latents.val();
        let [n_latents, _] = latents.dims();
        let mut latents = latents.unsqueeze::<3>().expand([n_images, n_latents, d]);
        for (attention, mlp) in &self.blocks {
            latents = latents.clone() + attention.forward(context.clone(), latents);
            latents = latents.clone() + mlp.forward(latents);
        }
        self.layer_norm.forward(latents)
    }
}

/// Attention with queries from the latents, and keys and values from patches and latents together. Patches and latents
/// are normalised first.
#[derive(Module, Debug)]
pub struct PerceiverAttention {
    /// Layer norm of the patches.
    pub context_layer_norm: LayerNorm,
    /// Layer norm of the latents.
    pub latents_layer_norm: LayerNorm,
    /// Layer norm of each head's queries; `None` unless `qk_layer_norms_perceiver` is set.
    pub q_layer_norm: Option<LayerNorm>,
    /// Layer norm of each head's keys; `None` unless `qk_layer_norms_perceiver` is set.
    pub k_layer_norm: Option<LayerNorm>,
    /// Query projection, to `heads · head_dim`.
    pub q_proj: Linear,
    /// Key projection, to `heads · head_dim`.
    pub k_proj: Linear,
    /// Value projection, to `heads · head_dim`.
    pub v_proj: Linear,
    /// Output projection of the concatenated heads.
    pub output_proj: Linear,
    head_dim: usize,
}

impl PerceiverAttention {
    fn new(config: &ResamplerConfig, device: &Device) -> Self {
        let PerceiverConfig { resampler_n_heads, resampler_head_dim: head_dim, qk_layer_norms_perceiver, .. } =
            config.perceiver;
        let (d, width) = (config.vision_embed_dim, resampler_n_heads * head_dim);
        let norm = |width: usize| LayerNorm::new(width, LAYER_NORM_EPS, device);
        let head_norm = || qk_layer_norms_perceiver.then(|| norm(head_dim));
        Self {
            context_layer_norm: norm(d),
            latents_layer_norm: norm(d),
            q_layer_norm: head_norm(),
            k_layer_norm: head_norm(),
            q_proj: Linear::new_without_bias(d, width, device),
            k_proj: Linear::new_without_bias(d, width, device),
            v_proj: Linear::new_without_bias(d, width, device),
            output_proj: Linear::new_without_bias(width, d, device),
            head_dim,
        }
    }

    /// Computes attention from the latents to patches and latents.
    ///
    /// # Shapes
    /// - `context`: `[n_images, patches, d]`
    /// - `latents`: `[n_images, n_latents, d]`
    /// - returns `[n_images, n_latents, d]`
    pub fn forward(&self, context: Tensor<3>, latents: Tensor<3>) -> Tensor<3> {
        let [n_images, n_latents, _] = latents.dims();
        let split_heads = |states: Tensor<3>| {
            let [_, seq, width] = states.dims();
            states.reshape([n_images, seq, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
        };
        let normed = |norm: &Option<LayerNorm>, states: Tensor<4>| match norm {
            Some(norm) => norm.forward(states),
            None => states,
        };
        let latents = self.latents_layer_norm.forward(latents);
        let key_value_states = Tensor::cat(vec![self.context_layer_norm.forward(context), latents.clone()], 1);
        let query = split_heads(self.q_proj.forward(latents)); // [n_images, heads, n_latents, head_dim]
        let key = split_heads(self.k_proj.forward(key_value_states.clone())); // [.., patches + n_latents, head_dim]
        let value = split_heads(self.v_proj.forward(key_value_states));
        let (query, key) = (normed(&self.q_layer_norm, query), normed(&self.k_layer_norm, key));
        let context = attention(query, key, value, None, self.q_proj.activations());
        let [_, heads, _, head_dim] = context.dims();
        self.output_proj.forward(context.swap_dims(1, 2).reshape([n_images, n_latents, heads * head_dim]))
    }
}

/// A feed-forward block: a norm, and two linear layers with a ReLU between them. The inner width is fixed to `4 · d`.
#[derive(Module, Debug)]
pub struct PerceiverMlp {
    /// Norm of the input.
    pub ln: LayerNorm,
    /// Projection to `4 · d`.
    pub fc: Linear,
    /// Projection back to `d`.
    pub c_proj: Linear,
}

impl PerceiverMlp {
    fn new(d: usize, device: &Device) -> Self {
        Self {
            ln: LayerNorm::new(d, LAYER_NORM_EPS, device),
            fc: Linear::new_without_bias(d, 4 * d, device),
            c_proj: Linear::new_without_bias(4 * d, d, device),
        }
    }

    /// Applies the block to each latent.
    ///
    /// # Shapes
    /// - `latents`: `[n_images, n_latents, d]`
    /// - returns `[n_images, n_latents, d]`
    pub fn forward(&self, latents: Tensor<3>) -> Tensor<3> {
        self.c_proj.forward(Activation::Relu.forward(self.fc.forward(self.ln.forward(latents))))
    }
}
