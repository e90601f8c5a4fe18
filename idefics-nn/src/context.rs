//! Keys and values of a cross-attention context. They are computed once and used by every decode step.
//!
//! A context consists of *parts*, for example images. All vectors of a part are visible or hidden together. Every row
//! of a batch has the same number of parts: shorter rows are padded with parts that are always hidden.

use std::ops::Range;

use burn::tensor::{Bool, Device, Tensor, TensorData};

/// The parts of the context that each new token may attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextView {
    batch: usize,
    n_new: usize,
    n_parts: usize,
    /// `[batch, n_new, n_parts]` in row-major order; true where the token may attend to the part.
    seen: Vec<bool>,
}

impl ContextView {
    /// Creates a view for `batch` rows of `n_new` tokens. `seen` is `[batch, n_new, n_parts]` in row-major order,
    /// true where a token may attend to a part.
    ///
    /// # Panics
    /// If the length of `seen` is not `batch · n_new · n_parts`.
    pub fn new(batch: usize, n_new: usize, n_parts: usize, seen: Vec<bool>) -> Self {
        assert_eq!(seen.len(), batch * n_new * n_parts, "`seen` must have one value for each row, token and part");
        Self { batch, n_new, n_parts, seen }
    }

    /// Returns the number of rows in the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the number of tokens in each row.
    pub fn n_new(&self) -> usize {
        self.n_new
    }

    /// Returns the number of parts of each row.
    pub fn n_parts(&self) -> usize {
        self.n_parts
    }

    /// Returns whether each token may attend to each part: `[batch, n_new, n_parts]` in row-major order.
    pub fn seen(&self) -> &[bool] {
        &self.seen
    }

    /// Returns whether every part is hidden from every token.
    pub fn sees_nothing(&self) -> bool {
        !self.seen.contains(&true)
    }

    /// Returns a view with `n_new` tokens in each row. All of them see the same parts as the last token of the row in
    /// this view.
    #[must_use]
    pub fn repeat_last(&self, n_new: usize) -> Self {
        let row_len = self.n_new * self.n_parts;
        let lasts = self.seen.chunks(row_len.max(1)).map(|row| &row[row.len() - self.n_parts.min(row.len())..]);
        let seen = lasts.flat_map(|last| last.repeat(n_new)).collect();
        Self { n_new, seen, ..*self }
    }

    /// Returns the view of the tokens from index `start` on, in every row.
    ///
    /// # Panics
    /// If `start` is greater than the number of tokens.
    #[must_use]
    pub fn skip(&self, start: usize) -> Self {
        self.narrow(start..self.n_new)
    }

    /// Returns the view of a range of tokens, in every row.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[must_use]
    pub fn narrow(&self, tokens: Range<usize>) -> Self {
        let rows = self.seen.chunks((self.n_new * self.n_parts).max(1));
        let seen = rows.flat_map(|row| &row[tokens.start * self.n_parts..tokens.end * self.n_parts]).copied().collect();
        Self { n_new: tokens.len(), seen, ..*self }
    }

    /// Concatenates the tokens of two views, row by row. Both views must have the same number of parts.
    fn then(&self, next: &Self) -> Self {
        let rows = |view: &Self| view.seen.chunks((view.n_new * view.n_parts).max(1)).map(<[bool]>::to_vec).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = (rows(self), rows(next));
        let seen = ours.into_iter().zip(theirs).flat_map(|(row, next)| [row, next].concat()).collect();
        Self { n_new: self.n_new + next.n_new, seen, ..*self }
    }

    /// Returns the attention mask, `[batch, 1, n_new, n_parts · part_len]`; true hides the key from the token.
    /// `part_len` is the number of vectors in a part. Returns `None` if every token sees everything.
    pub fn mask(&self, part_len: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        if !self.seen.contains(&false) {
            return None;
        }
        let Self { batch, n_new, n_parts, .. } = *self;
        let hidden: Vec<bool> = self.seen.iter().map(|seen| !seen).collect();
        let hidden = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [batch, n_new, n_parts, 1]), device);
        Some(hidden.expand([batch, n_new, n_parts, part_len]).reshape([batch, 1, n_new, n_parts * part_len]))
    }
}

/// The cross-attention context of a KV cache: keys and values of each layer, and the parts that each token sees.
#[derive(Debug, Clone)]
pub struct ContextCache {
    /// Keys and values of each layer with cross-attention, each `[batch, n_heads, n_parts · part_len, head_dim]`.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    part_len: usize,
    /// The parts that each token sees, beginning with the token in slot `first_slot`. Tokens after the end of the view
    /// see the same parts as its last token.
    view: ContextView,
    first_slot: usize,
}

impl ContextCache {
    /// Creates a context from the keys and values of each layer. `part_len` is the number of vectors in a part. `view`
    /// says which parts each token may see, beginning with the token in slot `first_slot` of the cache. Tokens after
    /// the end of the view see the same parts as its last token.
    pub fn new(layers: Vec<(Tensor<4>, Tensor<4>)>, part_len: usize, view: ContextView, first_slot: usize) -> Self {
        Self { layers, part_len, view, first_slot }
    }

    /// Returns the keys and values of a layer, each `[batch, n_heads, n_parts · part_len, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, layer_idx: usize) -> (Tensor<4>, Tensor<4>) {
        self.layers[layer_idx].clone()
    }

    /// Returns the keys and values of all layers, each `[batch, n_heads, n_parts · part_len, head_dim]`.
    pub fn layers(&self) -> &[(Tensor<4>, Tensor<4>)] {
        &self.layers
    }

    /// Returns the number of vectors in a part.
    pub fn part_len(&self) -> usize {
        self.part_len
    }

    /// Returns the number of parts of each row.
    pub fn n_parts(&self) -> usize {
        self.view.n_parts()
    }

    /// Returns the parts that the tokens in a range of slots may see.
    ///
    /// # Panics
    /// If the range starts before the first slot of the view.
    pub fn seen(&self, slots: Range<usize>) -> ContextView {
        let known = self.first_slot + self.view.n_new();
        assert!(
            self.first_slot <= slots.start,
            "slot {} lies before the view, which starts at slot {}",
            slots.start,
            self.first_slot
        );
        if slots.start >= known {
            return self.view.repeat_last(slots.len());
        }
        let end = slots.end.min(known);
        let seen = self.view.narrow(slots.start - self.first_slot..end - self.first_slot);
        if end == slots.end { seen } else { seen.then(&self.view.repeat_last(slots.end - end)) }
    }

    /// Keeps the first `n_parts` parts of each row, and appends the keys and values in `more`, if any: one pair for
    /// each layer. Replaces the view by `view`, which starts at slot `first_slot`.
    #[must_use]
    pub fn continued(
        self,
        n_parts: usize,
        more: Option<Vec<(Tensor<4>, Tensor<4>)>>,
        view: ContextView,
        first_slot: usize,
    ) -> Self {
        let kept = n_parts * self.part_len;
        let keep = |states: Tensor<4>| match states.dims()[2] == kept {
            true => states,
            false => states.narrow(2, 0, kept),
        };
        let mut more = more.map(Vec::into_iter);
        let layers = self.layers.into_iter().map(|(key, value)| {
            let (key, value) = (keep(key), keep(value));
            match more.as_mut().and_then(Iterator::next) {
                None => (key, value),
                Some((more_key, more_value)) => {
                    (Tensor::cat(vec![key, more_key], 2), Tensor::cat(vec![value, more_value], 2))
                }
            }
        });
        Self { layers: layers.collect(), part_len: self.part_len, view, first_slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_repeat_and_skip_row_by_row() {
        let view = ContextView::new(2, 2, 2, vec![true, false, false, true, false, false, true, false]);
        assert_eq!(view.repeat_last(2).seen(), [false, true, false, true, true, false, true, false]);
        assert_eq!(view.skip(1).seen(), [false, true, true, false]);
        assert!(!view.sees_nothing() && ContextView::new(1, 3, 0, Vec::new()).repeat_last(1).sees_nothing());
    }

    #[test]
    fn tokens_after_the_view_see_the_same_as_its_last_token() {
        let view = ContextView::new(2, 2, 2, vec![true, false, false, true, false, false, true, false]);
        let context = ContextCache::new(Vec::new(), 3, view.clone(), 5);
        assert_eq!(context.seen(5..7), view);
        assert_eq!(context.seen(6..7).seen(), [false, true, true, false]);
        assert_eq!(context.seen(9..10).seen(), [false, true, true, false]);
        assert_eq!(context.seen(6..8).seen(), [false, true, false, true, true, false, true, false]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads the result back to the host")]
    fn vectors_of_a_part_are_hidden_together() {
        let view = ContextView::new(1, 2, 2, vec![true, false, true, true]);
        let mask = view.mask(3, &Device::flex()).unwrap().into_data();
        let rows = [[false, false, false, true, true, true], [false; 6]];
        assert_eq!(mask.iter::<bool>().collect::<Vec<_>>(), rows.concat());
        assert!(view.skip(1).mask(3, &Device::flex()).is_none());
    }
}
