//! Writes keys and values into a cache that consists of pages.

use crate::attention_inputs::StridedView;
use crate::shared::count;

/// Writes the keys or the values of new tokens into their slots.
///
/// # Shapes
/// - `new`: `[rows, kv_heads, tokens, head_dim]`, `rows · tokens` = `slots.len()`
/// - `slots`: `[rows, tokens]`; slot `s` is slot `s % page_len` of page `s / page_len`
/// - `states`: `[n_pages, kv_heads, page_len, head_dim]`; only the given slots change
///
/// # Panics
/// If a slice is too short for the dimensions, or a slot is outside `states`.
pub fn write_slots(
    new: StridedView<'_>,
    [tokens, kv_heads, head_dim]: [usize; 3],
    slots: &[u32],
    page_len: usize,
    states: &mut [f32],
) {
    let page = count(&[kv_heads, page_len, head_dim]).expect("the page dimensions overflow");
    if page == 0 || slots.is_empty() {
        return;
    }
    assert!(slots.len().is_multiple_of(tokens), "the slots must be [rows, {tokens}]");
    new.check([slots.len() / tokens, kv_heads, tokens], head_dim);
    for (index, slot) in slots.iter().enumerate() {
        let (page_idx, offset) = (*slot as usize / page_len, *slot as usize % page_len);
        let page = states.get_mut(page_idx * page..(page_idx + 1) * page);
        let page = page.unwrap_or_else(|| panic!("slot {slot} is in page {page_idx}, which does not exist"));
        for kv_head in 0..kv_heads {
            let values = new.slot([index / tokens, kv_head, index % tokens], head_dim);
            page[(kv_head * page_len + offset) * head_dim..][..head_dim].copy_from_slice(values);
        }
    }
}
