//! Causal self-attention with grouped key/value heads, rotary positions and a cache.
//!
//! Reference: `MistralAttention`, `LlamaAttention`, Transformers 5.23.0.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use idefics_nn::{LayerCache, Linear, attention, attention_weights};

use crate::{Positions, TextConfig};

/// Self-attention of one decoder layer, without biases.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, `heads · head_dim`.
    pub q_proj: Linear,
    /// Keys, `kv_heads · head_dim`.
    pub k_proj: Linear,
    /// Values, `kv_heads · head_dim`.
    pub v_proj: Linear,
    /// Heads back to one vector.
    pub o_proj: Linear,
    head_dim: usize,
}

impl SelfAttention {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        let (d, head_dim) = (config.hidden_size, config.head_dim());
        let (query_width, kv_width) = (config.num_attention_heads * head_dim, config.n_kv_heads() * head_dim);
        Self {
            q_proj: Linear::new_without_bias(d, query_width, device),
            k_proj: Linear::new_without_bias(d, kv_width, device),
            v_proj: Linear::new_without_bias(d, kv_width, device),
            o_proj: Linear::new_without_bias(query_width, d, device),
            head_dim,
        }
    }

    /// # Shapes
    /// - `hidden_states`: `[batch, n_new, d]`
    /// - `positions`: where the new tokens stand and what they see
    /// - `cache`: this layer's `len` tokens so far; gets the new ones
    /// - `observe`: gets a function that computes the attention weights, `[batch, heads, n_new, len + n_new]`
    /// - returns `[batch, n_new, d]`
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        Positions { rotary, masked_out }: &Positions,
        cache: &mut LayerCache,
        observe: impl FnOnce(&dyn Fn() -> Tensor<4>),
    ) -> Tensor<3> {
        let [batch, n_new, _] = hidden_states.dims();
        let split_heads = |states: Tensor<3>| {
            let width = states.dims()[2];
            states.reshape([batch, n_new, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
        };
        let query_states = split_heads(self.q_proj.forward(hidden_states.clone())); // [batch, heads, n_new, head_dim]
        let key_states = split_heads(self.k_proj.forward(hidden_states.clone())); // [batch, kv_heads, n_new, head_dim]
        let value_states = split_heads(self.v_proj.forward(hidden_states));

        let query = rotary.rotate(query_states);
        let (key, value) = cache.append(rotary.rotate(key_states), value_states); // [batch, kv_heads, len + n_new, ..]
        observe(&|| attention_weights(query.clone(), key.clone(), masked_out.clone()));

        let context = attention(query, key, value, masked_out.clone(), self.q_proj.activations());
        let [_, heads, _, head_dim] = context.dims();
        self.o_proj.forward(context.swap_dims(1, 2).reshape([batch, n_new, heads * head_dim]))
    }
}
