//! Gated cross-attention: lets the tokens of a decoder attend to a separate context.
//!
//! Papers: <https://arxiv.org/abs/2204.14198>, <https://arxiv.org/abs/2306.16527>. Reference:
//! `IdeficsGatedCrossAttentionLayer`, `IdeficsAttention`, Transformers 5.23.0.
//!
//! Axes: `batch` rows, `n_new` tokens of this call, `d` = `hidden_size`, `heads` heads of width `head_dim`, `n_keys`
//! context vectors of width `d_context`.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor};
use idefics_nn::{GatedMlp, Linear, RmsNorm, attention, normal};

use crate::{AlphaType, CrossAttentionConfig};

/// A layer of cross-attention and a feed-forward block. Each has a pre-norm and a gated residual connection:
/// `x += tanh(alpha) · block(norm(x))`.
#[derive(Module, Debug)]
pub struct GatedCrossAttentionLayer {
    /// Norm before cross-attention.
    pub input_layernorm: RmsNorm,
    /// Cross-attention to the context.
    pub cross_attn: CrossAttention,
    /// Gate of the cross-attention output.
    pub alpha_cross_attn: Gate,
    /// Norm before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward block.
    pub mlp: GatedMlp,
    /// Gate of the feed-forward output.
    pub alpha_dense: Gate,
}

/// The keys, values and mask through which one gated layer sees the context.
#[derive(Debug, Clone)]
pub struct Context {
    /// Keys, `[batch, heads, n_keys, head_dim]`.
    pub key: Tensor<4>,
    /// Values, `[batch, heads, n_keys, head_dim]`.
    pub value: Tensor<4>,
    /// Attention mask, `[batch, 1, n_new, n_keys]`, true hides the key; `None` if nothing is hidden.
    pub mask: Option<Tensor<4, Bool>>,
}

impl GatedCrossAttentionLayer {
    pub(crate) fn new(config: &CrossAttentionConfig, device: &Device) -> Self {
        let (text, d) = (&config.text, config.text.hidden_size);
        let norm = || RmsNorm::new(d, text.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            cross_attn: CrossAttention::new(config, device),
            alpha_cross_attn: Gate::new(config.alpha_type, d, device),
            post_attention_layernorm: norm(),
            mlp: GatedMlp::new(d, text.intermediate_size, d, text.hidden_act, device),
            alpha_dense: Gate::new(config.alpha_type, d, device),
        }
    }

    /// Adds the outputs of cross-attention and of the feed-forward block to the hidden states. `context` is `None` if
    /// every context vector is hidden from every token. Cross-attention is then skipped.
    ///
    /// # Shapes
    /// Takes and returns `[batch, n_new, d]`.
    pub fn forward(&self, mut hidden_states: Tensor<3>, context: Option<Context>) -> Tensor<3> {
        if let Some(context) = context {
            let normed = self.input_layernorm.forward(hidden_states.clone());
            let attended = self.cross_attn.forward(normed, context);
            hidden_states = hidden_states + self.alpha_cross_attn.scale(attended);
        }
        let normed = self.post_attention_layernorm.forward(hidden_states.clone());
        hidden_states + self.alpha_dense.scale(self.mlp.forward(normed))
    }
}

/// Cross-attention: queries from the tokens, keys and values from the context. There are no position embeddings and no
/// biases.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Query projection, from `d` to `heads · head_dim`.
    pub q_proj: Linear,
    /// Key projection, from `d_context` to `heads · head_dim`.
    pub k_proj: Linear,
    /// Value projection, from `d_context` to `heads · head_dim`.
    pub v_proj: Linear,
    /// Output projection, from `heads · head_dim` to `d`.
    pub o_proj: Linear,
    /// Norm of the queries of each head, if `qk_layer_norms` is set.
    pub q_layer_norm: Option<RmsNorm>,
    /// Norm of the keys of each head, if `qk_layer_norms` is set.
    pub k_layer_norm: Option<RmsNorm>,
    head_dim: usize,
}

impl CrossAttention {
    fn new(config: &CrossAttentionConfig, device: &Device) -> Self {
        let (d, head_dim) = (config.text.hidden_size, config.text.head_dim());
        let width = config.text.num_attention_heads * head_dim;
        let head_norm = || config.qk_layer_norms.then(|| RmsNorm::new(head_dim, config.text.rms_norm_eps, device));
        Self {
            q_proj: Linear::new_without_bias(d, width, device),
            k_proj: Linear::new_without_bias(config.context_size, width, device),
            v_proj: Linear::new_without_bias(config.context_size, width, device),
            o_proj: Linear::new_without_bias(width, d, device),
            q_layer_norm: head_norm(),
            k_layer_norm: head_norm(),
            head_dim,
        }
    }

    /// Computes the keys and values of a context. They are the same for all tokens.
    ///
    /// # Shapes
    /// - `context_states`: `[batch, n_keys, d_context]`
    /// - returns `[batch, heads, n_keys, head_dim]` each
    pub fn key_values(&self, context_states: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        let key = self.split_heads(self.k_proj.forward(context_states.clone()));
        let key = match &self.k_layer_norm {
            Some(norm) => norm.forward(key),
            None => key,
        };
        (key, self.split_heads(self.v_proj.forward(context_states)))
    }

    /// Attends from the tokens to the context. The output is exactly 0 for a token from which all keys are hidden:
    /// [`attention`] returns 0 for it, and the output projection has no bias.
    ///
    /// # Shapes
    /// Takes and returns `[batch, n_new, d]`.
    pub fn forward(&self, hidden_states: Tensor<3>, context: Context) -> Tensor<3> {
        let [batch, n_new, _] = hidden_states.dims();
        let query = self.split_heads(self.q_proj.forward(hidden_states)); // [batch, heads, n_new, head_dim]
        let query = match &self.q_layer_norm {
            Some(norm) => norm.forward(query),
            None => query,
        };
        let Context { key, value, mask, .. } = context;
        let attended = attention(query, key, value, mask, self.q_proj.activations());
        let [_, heads, _, head_dim] = attended.dims();
        self.o_proj.forward(attended.swap_dims(1, 2).reshape([batch, n_new, heads * head_dim]))
    }

    fn split_heads(&self, states: Tensor<3>) -> Tensor<4> {
        let [batch, len, width] = states.dims();
        states.reshape([batch, len, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
    }
}

/// A gate. The output of a block is multiplied by `tanh(alpha)`, so an `alpha` of 0 disables the block.
#[derive(Module, Debug)]
pub enum Gate {
    /// One number for all elements, `[1]`.
    Float(Param<Tensor<1>>),
    /// One number per element, `[1, 1, d]`.
    Vector(Param<Tensor<3>>),
}

impl Gate {
    /// Creates a gate with random values around 0.5. A closed gate would hide the effect of its block in tests with
    /// random weights.
    fn new(alpha_type: AlphaType, hidden_size: usize, device: &Device) -> Self {
        match alpha_type {
            AlphaType::Float => Self::Float(normal([1], 0.5, 0.02, device)),
            AlphaType::Vector => Self::Vector(normal([1, 1, hidden_size], 0.5, 0.02, device)),
        }
    }

    /// Multiplies the output of a block by its gate. Takes and returns `[batch, n_new, d]`.
    fn scale(&self, states: Tensor<3>) -> Tensor<3> {
        let alpha = match self {
            Self::Float(alpha) => alpha.val().reshape([1, 1, 1]),
            Self::Vector(alpha) => alpha.val(),
        };
        states * alpha.tanh()
    }
}
