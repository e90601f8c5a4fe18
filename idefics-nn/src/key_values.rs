//! The seam between attention and the memory of its keys and values.

use burn::tensor::{Bool, Tensor};

use crate::Activations;

/// Queries, keys and values of new tokens, turned to their positions.
#[derive(Debug)]
pub struct QueryKeyValue {
    /// `[batch, heads, n_new, head_dim]`.
    pub query: Tensor<4>,
    /// `[batch, kv_heads, n_new, head_dim]`.
    pub key: Tensor<4>,
    /// `[batch, kv_heads, n_new, head_dim]`.
    pub value: Tensor<4>,
}

/// Where new keys and values go, and what queries attend to. A decoder layer knows nothing else of its cache.
///
/// [`KvCache`](crate::KvCache) is the contiguous implementation.
pub trait KeyValues {
    /// Adds the keys and values of new tokens to layer `layer_idx`, and attends from the queries to all that is there.
    ///
    /// # Shapes
    /// - `masked_out`: `[batch, 1, n_new, len + n_new]`, true hides the key; `None` if nothing is hidden
    /// - returns `[batch, heads, n_new, head_dim]`
    ///
    /// # Panics
    /// If there is no such layer, or no room for the tokens.
    fn attend(
        &mut self,
        layer_idx: usize,
        states: QueryKeyValue,
        masked_out: Option<Tensor<4, Bool>>,
        activations: Activations,
    ) -> Tensor<4>;

    /// The attention weights of queries over the keys of layer `layer_idx`, those of the newest tokens included: what the
    /// reference returns as `attentions`.
    ///
    /// # Shapes
    /// As [`Self::attend`]; returns `[batch, heads, n_new, len + n_new]`.
    ///
    /// # Panics
    /// If nothing was added to the layer yet.
    fn attention_weights(&self, layer_idx: usize, query: Tensor<4>, masked_out: Option<Tensor<4, Bool>>) -> Tensor<4>;

    /// Keys and values of the context in gated cross-attention layer `layer_idx`, `[batch, heads, n_keys, head_dim]` each;
    /// `None` if there is no context.
    ///
    /// # Panics
    /// If there is no such layer.
    fn context(&self, layer_idx: usize) -> Option<(Tensor<4>, Tensor<4>)>;
}
