//! What the attention kernels read.

use crate::Activations;
use crate::shared::count;

/// Keys or values of the tokens so far: `[batch, kv_heads, slots, head_dim]` in a larger memory.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a> {
    /// The memory from the first value on.
    pub values: &'a [f32],
    /// Values from one row of the batch, one head and one slot to the next.
    pub strides: [usize; 3],
}

impl<'a> Cached<'a> {
    /// A cache of `[batch, kv_heads, capacity, head_dim]`.
    pub fn contiguous(values: &'a [f32], kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        Self { values, strides: [kv_heads * capacity * head_dim, capacity * head_dim, head_dim] }
    }

    /// Makes sure that every head of every slot lies inside.
    pub(crate) fn check(&self, sizes: [usize; 3], head_dim: usize) {
        if !sizes.contains(&0) {
            let (end, held) = (self.end(sizes.map(|size| size - 1), head_dim), self.values.len());
            assert!(end.is_some_and(|end| end <= held), "the cache ends at {held}, before its last head");
        }
    }

    /// Slot `slot` of head `head` in row `row`.
    pub(crate) fn start(&self, [row, head, slot]: [usize; 3]) -> usize {
        row * self.strides[0] + head * self.strides[1] + slot * self.strides[2]
    }

    /// The values of that slot.
    pub(crate) fn slot(&self, at: [usize; 3], head_dim: usize) -> &'a [f32] {
        &self.values[self.start(at)..][..head_dim]
    }

    /// The end of the `head_dim` values there; `None` beyond what can be counted.
    fn end(&self, at: [usize; 3], head_dim: usize) -> Option<usize> {
        at.iter().zip(self.strides).try_fold(head_dim, |end, (at, stride)| end.checked_add(at.checked_mul(stride)?))
    }
}

/// What one new token of each row attends to.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// `[batch, heads, head_dim]`.
    pub query: &'a [f32],
    /// Keys.
    pub keys: Cached<'a>,
    /// Values.
    pub values: Cached<'a>,
    /// Rows.
    pub batch: usize,
    /// Query heads, a multiple of `kv_heads`; query head `h` reads head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Live slots of the cache.
    pub len: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// `[batch, len]`, true may be attended. Slots hidden at the start of a row are not read; others must be finite.
    pub attention_mask: Option<&'a [bool]>,
    /// What scores are multiplied with: `1 / √head_dim` in Llama and Mistral.
    pub scale: f32,
}

impl DecodeAttention<'_> {
    /// # Panics
    /// If a slice is too short for the dimensions.
    pub(crate) fn check(&self, out: &[f32]) {
        let Self { batch, heads, kv_heads, len, head_dim, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} query heads cannot share {kv_heads} heads");
        let query = count(&[batch, heads, head_dim]);
        assert_eq!(Some(self.query.len()), query, "the query is [{batch}, {heads}, {head_dim}]");
        assert_eq!(Some(out.len()), query, "the output is [{batch}, {heads}, {head_dim}]");
        if let Some(mask) = self.attention_mask {
            assert_eq!(Some(mask.len()), count(&[batch, len]), "the mask is [{batch}, {len}]");
        }
        self.keys.check([batch, kv_heads, len], head_dim);
        self.values.check([batch, kv_heads, len], head_dim);
    }
}

/// What each query attends to.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, `[batch, heads, queries, head_dim]`.
    pub query: Cached<'a>,
    /// Keys, `[batch, kv_heads, len, head_dim]`.
    pub keys: Cached<'a>,
    /// Values, `[batch, kv_heads, len, head_dim]`.
    pub values: Cached<'a>,
    /// Rows.
    pub batch: usize,
    /// Query heads, a multiple of `kv_heads`; query head `h` reads head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Queries of a row.
    pub queries: usize,
    /// Keys of a row.
    pub len: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// `[batch, queries, len]`, true hides the key. Keys and values that are hidden must be finite.
    pub masked_out: Option<&'a [bool]>,
    /// What scores are multiplied with: `1 / √head_dim`.
    pub scale: f32,
    /// What products are of, see [`Activations`].
    pub activations: Activations,
}

impl Attention<'_> {
    /// # Panics
    /// If a slice is too short for the dimensions.
    pub(crate) fn check(&self, out: &[f32]) {
        let Self { batch, heads, kv_heads, queries, len, head_dim, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} query heads cannot share {kv_heads} heads");
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        assert_eq!(Some(out.len()), product(&[batch, queries, heads, head_dim]), "one output for each query's value");
        self.query.check([batch, heads, queries], head_dim);
        self.keys.check([batch, kv_heads, len], head_dim);
        self.values.check([batch, kv_heads, len], head_dim);
        let masked_out = self.masked_out.map(<[bool]>::len);
        assert!(
            masked_out.is_none_or(|n| Some(n) == product(&[batch, queries, len])),
            "a mask of [batch, queries, len]"
        );
    }
}
