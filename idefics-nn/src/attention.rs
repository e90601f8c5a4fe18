//! Scaled dot-product attention with grouped key/value heads and boolean masks.
//!
//! Axes: `heads` is the number of query heads, and `kv_heads` the number of key/value heads, a divisor of `heads`.
//! `queries` and `keys` are numbers of positions. Query head `h` reads key/value head `h / (heads / kv_heads)`.
//!
//! Masks are boolean: true *hides* the key from the query. A query whose keys are all hidden gives exactly 0. (For such
//! a query, Transformers averages all values in eager attention, and gives 0 in SDPA. Only padding rows are affected.)

use burn::tensor::activation::softmax;
use burn::tensor::module::attention as scaled_dot_product_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Tensor};

use crate::{Activations, ops};

/// Computes `softmax(query keyᵀ / √head_dim) value` over the keys that are not hidden.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, head_dim]`
/// - `key`, `value`: `[batch, kv_heads, keys, head_dim]`
/// - `mask`: `[batch, 1, queries, keys]`; true hides the key from the query
/// - `activations`: element type in which products are computed; see [`Activations`]
/// - returns `[batch, heads, queries, head_dim]`
///
/// # Panics
/// If `heads` is not a multiple of `kv_heads`.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
    activations: Activations,
) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = query.dims();
    assert!(heads.is_multiple_of(key.dims()[1]), "{heads} query heads cannot share {} key/value heads", key.dims()[1]);
    let [key, value] = [key, value].map(|states| states.cast(query.dtype()));
    if let Some(context) = ops::attend(&query, &key, &value, mask.as_ref(), activations) {
        return context;
    }
    let (query, mask) = fold_groups(query, key.dims()[1], mask);
    let context = if query.device().is_autodiff() {
        // Burn's attention is not used for training: its gradient passes through the row maximum and −∞, so it is NaN
        // for fully masked rows.
        weights_of_folded(query, key, mask).matmul(value)
    } else {
        let mask = mask.map(|mask| {
            let [_, _, rows, keys] = mask.dims();
            mask.expand([batch, key.dims()[1], rows, keys])
        });
        scaled_dot_product_attention(query, key, value, mask, None, AttentionModuleOptions::default())
    };
    context.reshape([batch, heads, queries, head_dim])
}

/// Computes the attention weights of [`attention`]. Transformers returns them as `attentions`.
///
/// # Shapes
/// The inputs have the same shapes as for [`attention`]. Returns `[batch, heads, queries, keys]`. Each row sums to 1,
/// or to 0 if every key is hidden.
pub fn attention_weights(query: Tensor<4>, key: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let [batch, heads, queries, _] = query.dims();
    let keys = key.dims()[2];
    let (query, mask) = fold_groups(query, key.dims()[1], mask);
    weights_of_folded(query, key, mask).reshape([batch, heads, queries, keys])
}

/// Computes the attention weights of queries that were folded by [`fold_groups`]:
/// `[batch, kv_heads, group · queries, keys]`.
fn weights_of_folded(query: Tensor<4>, key: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let head_dim = query.dims()[3];
    let scores = query.matmul(key.swap_dims(2, 3)) / (head_dim as f64).sqrt();
    match mask {
        None => softmax(scores, 3),
        Some(mask) => {
            let mask = mask.expand(scores.dims());
            let lowest = scores.dtype().finfo().map_or(f64::from(f32::MIN), |info| info.min);
            softmax(scores.mask_fill(mask.clone(), lowest), 3).mask_fill(mask, 0.0)
        }
    }
}

/// Turns the query heads that share a key/value head into additional queries of that head, so that keys and values
/// are never repeated: `[batch, heads, queries, d]` becomes `[batch, kv_heads, group · queries, d]`.
fn fold_groups(
    query: Tensor<4>,
    kv_heads: usize,
    mask: Option<Tensor<4, Bool>>,
) -> (Tensor<4>, Option<Tensor<4, Bool>>) {
    let [batch, heads, queries, head_dim] = query.dims();
    assert!(heads.is_multiple_of(kv_heads), "{heads} query heads cannot share {kv_heads} key/value heads");
    let group = heads / kv_heads;
    if group == 1 {
        return (query, mask);
    }
    let query = query.reshape([batch, kv_heads, group * queries, head_dim]);
    let mask = mask.map(|mask| mask.repeat_dim(2, group)); // [batch, 1, group · queries, keys]
    (query, mask)
}
