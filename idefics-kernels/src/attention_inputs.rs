//! Inputs of the attention kernels.

use std::ops::Range;

use crate::Activations;
use crate::attention::PIECE;
use crate::shared::count;

/// Keys or values, `[batch, kv_heads, slots, head_dim]`, as a strided view of a larger buffer.
#[derive(Debug, Clone, Copy)]
pub struct StridedView<'a> {
    /// The buffer, starting at the first value of the view.
    pub values: &'a [f32],
    /// Distances, in values, from one batch row to the next, from one head to the next, and from one slot to the next.
    pub strides: [usize; 3],
}

impl<'a> StridedView<'a> {
    /// Creates a view of a contiguous cache, `[batch, kv_heads, capacity, head_dim]`.
    pub fn contiguous(values: &'a [f32], kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        Self { values, strides: [kv_heads * capacity * head_dim, capacity * head_dim, head_dim] }
    }

    /// Panics unless a view of `sizes` (batch, heads, slots) is inside the buffer.
    pub(crate) fn check(&self, sizes: [usize; 3], head_dim: usize) {
        if !sizes.contains(&0) {
            let (end, held) = (self.end(sizes.map(|size| size - 1), head_dim), self.values.len());
            assert!(end.is_some_and(|end| end <= held), "the buffer of {held} values is too short for its strides");
        }
    }

    /// Index of the first value at `[row, head, slot]`.
    pub(crate) fn start(&self, [row, head, slot]: [usize; 3]) -> usize {
        row * self.strides[0] + head * self.strides[1] + slot * self.strides[2]
    }

    /// The `head_dim` values at `[row, head, slot]`.
    pub(crate) fn slot(&self, at: [usize; 3], head_dim: usize) -> &'a [f32] {
        &self.values[self.start(at)..][..head_dim]
    }

    /// Index after the last of the `head_dim` values at `[row, head, slot]`; `None` on overflow.
    fn end(&self, at: [usize; 3], head_dim: usize) -> Option<usize> {
        at.iter().zip(self.strides).try_fold(head_dim, |end, (at, stride)| end.checked_add(at.checked_mul(stride)?))
    }
}

/// Inputs of decode attention: one new token per batch row.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// Queries, `[batch, heads, head_dim]`.
    pub query: &'a [f32],
    /// Keys, `[batch, kv_heads, len, head_dim]`.
    pub keys: StridedView<'a>,
    /// Values, `[batch, kv_heads, len, head_dim]`.
    pub values: StridedView<'a>,
    /// Number of rows in the batch.
    pub batch: usize,
    /// Number of query heads, a multiple of `kv_heads`. Query head `h` uses key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Number of filled cache slots.
    pub len: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[batch, len]`, true for visible slots. Masked slots at the start of a row are not read; keys and values in
    /// other masked slots must be finite.
    pub attention_mask: Option<&'a [bool]>,
    /// Factor of the scores: `1 / √head_dim` in Llama and Mistral.
    pub scale: f32,
}

impl DecodeAttention<'_> {
    /// Checks the slices against the dimensions.
    ///
    /// # Panics
    /// If a slice is too short, or `heads` is not a multiple of `kv_heads`.
    pub(crate) fn check(&self, out: &[f32]) {
        let Self { batch, heads, kv_heads, len, head_dim, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads cannot share {kv_heads} key/value heads"
        );
        let query = count(&[batch, heads, head_dim]);
        assert_eq!(Some(self.query.len()), query, "the query must be [{batch}, {heads}, {head_dim}]");
        assert_eq!(Some(out.len()), query, "the output must be [{batch}, {heads}, {head_dim}]");
        if let Some(mask) = self.attention_mask {
            assert_eq!(Some(mask.len()), count(&[batch, len]), "the mask must be [{batch}, {len}]");
        }
        self.keys.check([batch, kv_heads, len], head_dim);
        self.values.check([batch, kv_heads, len], head_dim);
    }
}

/// Inputs of decode attention over a cache in pages: one new token per row, each row with its own pages and length.
#[derive(Debug, Clone, Copy)]
pub struct PagedAttention<'a> {
    /// Queries, `[rows, heads, head_dim]`.
    pub query: &'a [f32],
    /// Keys, `[n_pages, kv_heads, page_len, head_dim]`.
    pub keys: &'a [f32],
    /// Values, `[n_pages, kv_heads, page_len, head_dim]`.
    pub values: &'a [f32],
    /// The cached tokens of each row.
    pub rows: &'a [PagedRow<'a>],
    /// Number of query heads, a multiple of `kv_heads`. Query head `h` uses key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Number of slots in a page: a divisor of 512, at least [`Self::MIN_PAGE_LEN`].
    pub page_len: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores: `1 / √head_dim` in Llama and Mistral.
    pub scale: f32,
}

/// The cached tokens of one row, and which of them the new token of this row sees.
#[derive(Debug, Clone)]
pub struct PagedRow<'a> {
    /// Pages of the row: slot `i` is in page `pages[i / page_len]`. Rows may share pages.
    pub pages: &'a [u32],
    /// The slots that the new token may see, including its own slot. No other slot is read.
    pub seen: Range<usize>,
    /// `[seen.len()]`, true for visible slots; `None` if all slots are visible. Masked slots at the start are not read;
    /// keys and values in other masked slots must be finite.
    pub attention_mask: Option<&'a [bool]>,
}

impl PagedAttention<'_> {
    /// Minimum number of slots in a page.
    pub const MIN_PAGE_LEN: usize = 8;

    /// Checks the slices against the dimensions.
    ///
    /// # Panics
    /// As [`paged_attention`](crate::paged_attention).
    pub(crate) fn check(&self, out: &[f32]) {
        let Self { rows, heads, kv_heads, page_len, head_dim, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads cannot share {kv_heads} key/value heads"
        );
        assert!(
            page_len >= Self::MIN_PAGE_LEN && PIECE.is_multiple_of(page_len),
            "a page has {page_len} slots; expected a divisor of {PIECE} that is at least {}",
            Self::MIN_PAGE_LEN
        );
        let query = count(&[rows.len(), heads, head_dim]);
        assert_eq!(Some(self.query.len()), query, "the query must be [{}, {heads}, {head_dim}]", rows.len());
        assert_eq!(Some(out.len()), query, "the output must be [{}, {heads}, {head_dim}]", rows.len());
        let page = count(&[kv_heads, page_len, head_dim]).expect("the page dimensions overflow");
        let n_pages = self.keys.len().min(self.values.len()).checked_div(page).unwrap_or(usize::MAX);
        for (row, PagedRow { pages, seen, attention_mask }) in rows.iter().enumerate() {
            assert!(
                seen.end.div_ceil(page_len) <= pages.len(),
                "row {row} sees slots up to {}, but has only {} pages",
                seen.end,
                pages.len()
            );
            assert!(
                pages.iter().all(|page| (*page as usize) < n_pages),
                "row {row} has a page that does not exist; the cache has {n_pages} pages"
            );
            assert!(
                attention_mask.is_none_or(|mask| mask.len() == seen.len()),
                "the mask of row {row} must be [{}]",
                seen.len()
            );
        }
    }
}

/// Inputs of attention with many queries per batch row.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, `[batch, heads, queries, head_dim]`.
    pub query: StridedView<'a>,
    /// Keys, `[batch, kv_heads, len, head_dim]`.
    pub keys: StridedView<'a>,
    /// Values, `[batch, kv_heads, len, head_dim]`.
    pub values: StridedView<'a>,
    /// Number of rows in the batch.
    pub batch: usize,
    /// Number of query heads, a multiple of `kv_heads`. Query head `h` uses key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Number of queries per row.
    pub queries: usize,
    /// Number of keys per row.
    pub len: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[batch, queries, len]`, true hides the key. Hidden keys and values must be finite.
    pub mask: Option<&'a [bool]>,
    /// Factor of the scores: `1 / √head_dim`.
    pub scale: f32,
    /// Number format of the inputs in products, see [`Activations`].
    pub activations: Activations,
}

impl Attention<'_> {
    /// Checks the slices against the dimensions.
    ///
    /// # Panics
    /// If a slice is too short, or `heads` is not a multiple of `kv_heads`.
    pub(crate) fn check(&self, out: &[f32]) {
        let Self { batch, heads, kv_heads, queries, len, head_dim, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads cannot share {kv_heads} key/value heads"
        );
        assert_eq!(
            Some(out.len()),
            count(&[batch, queries, heads, head_dim]),
            "the output must be [batch, queries, heads, head_dim]"
        );
        self.query.check([batch, heads, queries], head_dim);
        self.keys.check([batch, kv_heads, len], head_dim);
        self.values.check([batch, kv_heads, len], head_dim);
        let mask = self.mask.map(<[bool]>::len);
        assert!(
            mask.is_none_or(|n| Some(n) == count(&[batch, queries, len])),
            "the mask must be [batch, queries, len]"
        );
    }
}
