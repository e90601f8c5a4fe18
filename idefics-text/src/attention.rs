//! Causal self-attention with grouped key/value heads, rotary position embeddings and a KV cache.
//!
//! Reference: `MistralAttention`, `LlamaAttention`, Transformers 5.23.0.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use idefics_nn::{KeyValues, Linear, QueryKeyValue};

use crate::{DecoderObserver, Positions, TextConfig};

/// Self-attention of one decoder layer. Its projections have no biases.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query projection, from `d` to `heads · head_dim`.
    pub q_proj: Linear,
    /// Key projection, from `d` to `kv_heads · head_dim`.
    pub k_proj: Linear,
    /// Value projection, from `d` to `kv_heads · head_dim`.
    pub v_proj: Linear,
    /// Output projection, from `heads · head_dim` to `d`.
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

    /// Attends from `n_new` new tokens to the cached tokens and to each other.
    ///
    /// # Shapes
    /// - `hidden_states`: `[batch, n_new, d]`
    /// - `positions`: positions and masks of the new tokens
    /// - `key_values`: keys and values of the `len` tokens cached so far; those of the new tokens are appended to layer
    ///   `layer_idx`
    /// - returns `[batch, n_new, d]`
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        layer_idx: usize,
        Positions { rotary, mask, .. }: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
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
        let states = QueryKeyValue { query: query.clone(), key: rotary.rotate(key_states), value: value_states };
        // [batch, heads, n_new, head_dim]
        let attended = key_values.attend(layer_idx, states, mask.clone(), self.q_proj.activations());
        observer.attentions(layer_idx, &|| {
            key_values.attention_weights(layer_idx, query.clone(), mask.clone()) // [batch, heads, n_new, len + n_new]
        });
        let [_, heads, _, head_dim] = attended.dims();
        self.o_proj.forward(attended.swap_dims(1, 2).reshape([batch, n_new, heads * head_dim]))
    }
}
