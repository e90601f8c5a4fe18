//! Pre-norm transformer encoder with biases and bidirectional attention over the patches of each image.
//!
//! Reference: `Idefics2Encoder`, `Idefics2EncoderLayer`, `Idefics2VisionAttention` and `Idefics2VisionMLP`,
//! Transformers 5.23.0.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use idefics_nn::{Activation, LayerNorm, Linear, attention};

use crate::VisionConfig;

/// A stack of [`EncoderLayer`]s.
#[derive(Module, Debug)]
pub struct Encoder {
    /// Layers in the order of execution.
    pub layers: Vec<EncoderLayer>,
}

impl Encoder {
    pub(crate) fn new(config: &VisionConfig, device: &Device) -> Self {
        Self { layers: (0..config.num_hidden_layers).map(|_| EncoderLayer::new(config, device)).collect() }
    }
}

/// An encoder layer: attention and a feed-forward block, each with a layer norm before it and a residual connection.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// Layer norm before attention.
    pub layer_norm1: LayerNorm,
    /// Self-attention over the patches.
    pub self_attn: Attention,
    /// Layer norm before the feed-forward block.
    pub layer_norm2: LayerNorm,
    /// Feed-forward block.
    pub mlp: Mlp,
}

impl EncoderLayer {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_eps, device);
        Self {
            layer_norm1: norm(),
            self_attn: Attention::new(config, device),
            layer_norm2: norm(),
            mlp: Mlp::new(config, device),
        }
    }

    /// Applies the layer to the patches of a batch of images.
    ///
    /// # Shapes
    /// - `hidden_states`: `[n_images, patches, d]`
    /// - `mask`: `[n_images, 1, patches, patches]`; true hides the key
    /// - returns `[n_images, patches, d]`
    pub fn forward(&self, hidden_states: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let attended = self.self_attn.forward(self.layer_norm1.forward(hidden_states.clone()), mask);
        let hidden_states = hidden_states + attended;
        hidden_states.clone() + self.mlp.forward(self.layer_norm2.forward(hidden_states))
    }
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection.
    pub q_proj: Linear,
    /// Key projection.
    pub k_proj: Linear,
    /// Value projection.
    pub v_proj: Linear,
    /// Output projection of the concatenated heads.
    pub out_proj: Linear,
    n_heads: usize,
}

impl Attention {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let d = config.hidden_size;
        Self {
            q_proj: Linear::new(d, d, device),
            k_proj: Linear::new(d, d, device),
            v_proj: Linear::new(d, d, device),
            out_proj: Linear::new(d, d, device),
            n_heads: config.num_attention_heads,
        }
    }

    /// Computes attention of every patch to the patches of its image.
    ///
    /// # Shapes
    /// The same as for [`EncoderLayer::forward`].
    pub fn forward(&self, hidden_states: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let [n_images, patches, d] = hidden_states.dims();
        let split_heads =
            |states: Tensor<3>| states.reshape([n_images, patches, self.n_heads, d / self.n_heads]).swap_dims(1, 2);
        let query = split_heads(self.q_proj.forward(hidden_states.clone())); // [n_images, heads, patches, head_dim]
        let key = split_heads(self.k_proj.forward(hidden_states.clone()));
        let value = split_heads(self.v_proj.forward(hidden_states));
        let context = attention(query, key, value, mask, self.q_proj.activations());
        self.out_proj.forward(context.swap_dims(1, 2).reshape([n_images, patches, d]))
    }
}

/// Feed-forward block: two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Projection to `intermediate_size`.
    pub fc1: Linear,
    /// Projection back to `hidden_size`.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        Self {
            fc1: Linear::new(config.hidden_size, config.intermediate_size, device),
            fc2: Linear::new(config.intermediate_size, config.hidden_size, device),
            activation: config.hidden_act,
        }
    }

    /// Applies the block to each patch.
    ///
    /// # Shapes
    /// - `hidden_states`: `[n_images, patches, d]`
    /// - returns `[n_images, patches, d]`
    pub fn forward(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(self.activation.forward(self.fc1.forward(hidden_states)))
    }
}
