//! The interface between attention and the cache of its keys and values.

use burn::tensor::{Bool, Tensor};

use crate::Activations;

/// Queries, keys and values of new tokens, with rotary embeddings applied.
#[derive(Debug)]
pub struct QueryKeyValue {
    /// `[batch, heads, n_new, head_dim]`.
    pub query: Tensor<4>,
    /// `[batch, kv_heads, n_new, head_dim]`.
    pub key: Tensor<4>,
    /// `[batch, kv_heads, n_new, head_dim]`.
    pub value: Tensor<4>,
}

/// A cache that stores the keys and values of new tokens and attends to all stored ones. Decoder layers access their
/// cache only through this trait.
///
/// [`KvCache`](crate::KvCache) implements it in contiguous memory, and [`PagedKeyValues`](crate::PagedKeyValues) in
/// pages.
pub trait KeyValues {
    /// Appends the keys and values of new tokens to layer `layer_idx`, and attends from the queries to all stored
    /// keys.
    ///
    /// # Shapes
    /// - `mask`: `[batch, 1, n_new, len + n_new]`, where `len` is the number of tokens stored before; true hides the
    ///   key; `None` if nothing is hidden
    /// - returns `[batch, heads, n_new, head_dim]`
    ///
    /// # Panics
    /// If there is no such layer, or the tokens do not fit.
    fn attend(
        &mut self,
        layer_idx: usize,
        states: QueryKeyValue,
        mask: Option<Tensor<4, Bool>>,
        activations: Activations,
    ) -> Tensor<4>;

    /// Computes the attention weights of queries over the keys of layer `layer_idx`, including those of the newest
    /// tokens. Transformers returns them as `attentions`.
    ///
    /// # Shapes
    /// The inputs have the same shapes as for [`Self::attend`]. Returns `[batch, heads, n_new, len + n_new]`.
    ///
    /// # Panics
    /// If nothing has been appended to the layer yet.
    fn attention_weights(&self, layer_idx: usize, query: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4>;

    /// Returns the keys and values of the context in gated cross-attention layer `layer_idx`, each
    /// `[batch, heads, n_keys, head_dim]`. Returns `None` if there is no context.
    ///
    /// # Panics
    /// If there is no such layer.
    fn context(&self, layer_idx: usize) -> Option<(Tensor<4>, Tensor<4>)>;
}
