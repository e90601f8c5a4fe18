//! Idefics2's perceiver resampler.
//!
//! Papers: Perceiver, <https://arxiv.org/abs/2103.03206>; Idefics2, <https://arxiv.org/abs/2405.02246>. Reference:
//! `Idefics2PerceiverResampler`, `Idefics2PerceiverLayer` and `Idefics2PerceiverAttention`, Transformers 5.23.0.
//!
//! Axes: `n_images`, `patches`, `n_latents`, and `d` = `hidden_size`. There are `heads` query heads and `kv_heads`
//! key/value heads, each of width `head_dim`.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor};
use idefics_nn::{GatedMlp, Linear, RmsNorm, attention, normal};

use crate::PerceiverConfig;

/// A resampler that compresses the patches of each image to `n_latents` vectors. Learned latents attend to the patches
/// and to each other.
#[derive(Module, Debug)]
pub struct PerceiverResampler {
    /// Learned initial latents, `[n_latents, d]`.
    pub latents: Param<Tensor<2>>,
    /// Layers in the order of execution.
    pub layers: Vec<PerceiverLayer>,
    /// Final norm.
    pub norm: RmsNorm,
}

impl PerceiverResampler {
    pub(crate) fn new(config: &PerceiverConfig, device: &Device) -> Self {
        let PerceiverConfig { resampler_n_latents, resampler_depth, hidden_size, rms_norm_eps, .. } = *config;
        Self {
            latents: normal([resampler_n_latents, hidden_size], 1.0, 0.02, device),
            layers: (0..resampler_depth).map(|_| PerceiverLayer::new(config, device)).collect(),
            norm: RmsNorm::new(hidden_size, rms_norm_eps, device),
        }
    }

    /// Computes the latents of a batch of images.
    ///
    /// # Shapes
    /// - `context`: `[n_images, patches, d]`
    /// - `attention_mask`: `[n_images, patches]`, true for real patches, false for padding; `None` if all are real
    /// - returns `[n_images, n_latents, d]`
    pub fn forward(&self, context: Tensor<3>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let [n_images, patches, d] = context.dims();
        let latents = self.latents.val();
        let [n_latents, _] = latents.dims();

        // The keys of the patches come first, then those of the latents. Latents are never masked.
        let mask = attention_mask.map(|real| {
            let seen = Tensor::<2, Bool>::full([n_images, n_latents], false, &context.device());
            let mask = Tensor::cat(vec![real.bool_not(), seen], 1); // [n_images, patches + n_latents]
            mask.reshape([n_images, 1, 1, patches + n_latents]).expand([n_images, 1, n_latents, patches + n_latents])
        });
        let mut latents = latents.unsqueeze::<3>().expand([n_images, n_latents, d]);
        for layer in &self.layers {
            latents = layer.forward(latents, context.clone(), mask.clone());
        }
        self.norm.forward(latents)
    }
}

/// A layer: attention from the latents to patches and latents, then a gated feed-forward block.
#[derive(Module, Debug)]
pub struct PerceiverLayer {
    /// Norm of the latents before attention.
    pub input_latents_norm: RmsNorm,
    /// Norm of the patches before attention.
    pub input_context_norm: RmsNorm,
    /// Attention from the latents to patches and latents.
    pub self_attn: PerceiverAttention,
    /// Norm before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward block with the inner width `4 · d`, which is fixed in `Idefics2PerceiverLayer`.
    pub mlp: GatedMlp,
}

impl PerceiverLayer {
    fn new(config: &PerceiverConfig, device: &Device) -> Self {
        let d = config.hidden_size;
        let norm = || RmsNorm::new(d, config.rms_norm_eps, device);
        Self {
            input_latents_norm: norm(),
            input_context_norm: norm(),
            self_attn: PerceiverAttention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: GatedMlp::new(d, 4 * d, d, config.hidden_act, device),
        }
    }

    /// Applies the layer to the latents of a batch of images.
    ///
    /// # Shapes
    /// - `latents`: `[n_images, n_latents, d]`
    /// - `context`: `[n_images, patches, d]`
    /// - `mask`: `[n_images, 1, n_latents, patches + n_latents]`; true hides the key
    /// - returns `[n_images, n_latents, d]`
    pub fn forward(&self, latents: Tensor<3>, context: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let attended = self.self_attn.forward(
            self.input_latents_norm.forward(latents.clone()),
            self.input_context_norm.forward(context),
            mask,
        );
        let latents = latents + attended;
        latents.clone() + self.mlp.forward(self.post_attention_layernorm.forward(latents))
    }
}

/// Attention with queries from the latents, and keys and values from patches and latents together.
#[derive(Module, Debug)]
pub struct PerceiverAttention {
    /// Query projection, to `heads · head_dim`.
    pub q_proj: Linear,
    /// Key projection, to `kv_heads · head_dim`.
    pub k_proj: Linear,
    /// Value projection, to `kv_heads · head_dim`.
    pub v_proj: Linear,
    /// Output projection of the concatenated heads.
    pub o_proj: Linear,
    head_dim: usize,
}

impl PerceiverAttention {
    fn new(config: &PerceiverConfig, device: &Device) -> Self {
        let PerceiverConfig { hidden_size: d, resampler_head_dim: head_dim, .. } = *config;
        let (query_width, kv_width) = (config.resampler_n_heads * head_dim, config.num_key_value_heads * head_dim);
        Self {
            q_proj: Linear::new_without_bias(d, query_width, device),
            k_proj: Linear::new_without_bias(d, kv_width, device),
            v_proj: Linear::new_without_bias(d, kv_width, device),
            o_proj: Linear::new_without_bias(query_width, d, device),
            head_dim,
        }
    }

    /// Computes attention from the latents to patches and latents.
    ///
    /// # Shapes
    /// The same as for [`PerceiverLayer::forward`].
    pub fn forward(&self, latents: Tensor<3>, context: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let [n_images, n_latents, _] = latents.dims();
        let split_heads = |states: Tensor<3>| {
            let [_, seq, width] = states.dims();
            states.reshape([n_images, seq, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
        };
        let key_value_states = Tensor::cat(vec![context, latents.clone()], 1); // [n_images, patches + n_latents, d]
        let query = split_heads(self.q_proj.forward(latents)); // [n_images, heads, n_latents, head_dim]
        let key = split_heads(self.k_proj.forward(key_value_states.clone())); // [n_images, kv_heads, .., head_dim]
        let value = split_heads(self.v_proj.forward(key_value_states));
        let context = attention(query, key, value, mask, self.q_proj.activations());
        let [_, heads, _, head_dim] = context.dims();
        self.o_proj.forward(context.swap_dims(1, 2).reshape([n_images, n_latents, heads * head_dim]))
    }
}
