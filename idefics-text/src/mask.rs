//! Causal attention masks, computed on the host.

use std::ops::Range;

use burn::tensor::{Bool, Device, Tensor, TensorData};
use idefics_nn::KvCache;

/// Returns the attention mask of `n_new` new tokens after the `len` slots in the cache,
/// `[batch, 1, n_new, len + n_new]`, true where a key is hidden. `None` if nothing is hidden.
///
/// A token in slot `q` sees slot `k` if `k ≤ q`, `k > q − sliding_window`, and `k` is not padding. As in the reference,
/// the window counts slots, padding included. Source: `create_causal_mask`, `create_sliding_window_causal_mask`,
/// Transformers.
pub(crate) fn causal_mask(
    cache: &KvCache,
    n_new: usize,
    sliding_window: Option<usize>,
    device: &Device,
) -> Option<Tensor<4, Bool>> {
    let mask = causal_mask_host(cache.left_padding(), cache.len(), n_new, sliding_window)?;
    let shape = [cache.batch(), 1, n_new, cache.len() + n_new];
    Some(Tensor::from_data(TensorData::new(mask, shape), device))
}

/// Returns the attention mask of the tokens at `positions` of a single unpadded sequence, `[1, 1, n_new, end]`, true
/// where a key is hidden. `end` is the end of `positions`. `None` if nothing is hidden.
pub(crate) fn causal_mask_at(
    positions: Range<usize>,
    sliding_window: Option<usize>,
    device: &Device,
) -> Option<Tensor<4, Bool>> {
    let mask = causal_mask_host(&[0], positions.start, positions.len(), sliding_window)?;
    Some(Tensor::from_data(TensorData::new(mask, [1, 1, positions.len(), positions.end]), device))
}

fn causal_mask_host(
    left_padding: &[usize],
    past_len: usize,
    n_new: usize,
    sliding_window: Option<usize>,
) -> Option<Vec<bool>> {
    let n_keys = past_len + n_new;
    let in_window = sliding_window.is_none_or(|window| n_keys <= window);
    if n_new == 1 && in_window && left_padding.iter().all(|&padding| padding == 0) {
        return None; // a single new token in unpadded rows sees everything
    }
    let mut mask = Vec::with_capacity(left_padding.len() * n_new * n_keys);
    for &padding in left_padding {
        for query in past_len..n_keys {
            let first = sliding_window.map_or(0, |window| (query + 1).saturating_sub(window)).max(padding);
            mask.extend((0..n_keys).map(|key| key < first || key > query));
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_of_two_sees_itself_and_the_previous_token() {
        let mask = causal_mask_host(&[0], 0, 3, Some(2)).unwrap();
        assert_eq!(mask, [false, true, true, false, false, true, true, false, false]);
    }

    #[test]
    fn decode_steps_do_not_see_padding() {
        assert_eq!(
            causal_mask_host(&[2, 0], 3, 1, None).unwrap(),
            [true, true, false, false, false, false, false, false]
        );
        assert_eq!(causal_mask_host(&[0, 0], 3, 1, Some(4)), None);
    }
}
