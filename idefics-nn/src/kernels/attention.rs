//! Attention of one new token to all that are in the cache.
//!
//! Query heads that share a key/value head are computed together, so that keys and values are read once. The slots are
//! cut into pieces of a fixed length, each a task with a softmax of its own, and the pieces are put together at the end
//! (as in <https://arxiv.org/abs/2205.14135>): results do not depend on the number of threads.

#![allow(unsafe_code)] // vectors

use std::ops::Range;

use rayon::prelude::*;

use super::Isa;
use super::attention_piece::{Piece, plain};
use super::shared::{count, with_scratch};

/// Slots of one task.
const PIECE: usize = 512;

/// Cached values below which one thread does everything.
const ALONE: usize = 1 << 15;

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
    pub(super) fn check(&self, sizes: [usize; 3], head_dim: usize) {
        if !sizes.contains(&0) {
            let (end, held) = (self.end(sizes.map(|size| size - 1), head_dim), self.values.len());
            assert!(end.is_some_and(|end| end <= held), "the cache ends at {held}, before its last head");
        }
    }

    /// Slot `slot` of head `head` in row `row`.
    pub(super) fn start(&self, [row, head, slot]: [usize; 3]) -> usize {
        row * self.strides[0] + head * self.strides[1] + slot * self.strides[2]
    }

    /// The values of that slot.
    pub(super) fn slot(&self, at: [usize; 3], head_dim: usize) -> &'a [f32] {
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

/// `softmax(query keysᵀ scale) values`, with f32 sums. A row that may attend to nothing gives 0.
///
/// # Shapes
/// - `out`: `[batch, heads, head_dim]`, overwritten
///
/// # Panics
/// If a slice is too short for the dimensions, or `heads` is not a multiple of `kv_heads`.
pub fn decode_attention(attention: &DecodeAttention<'_>, out: &mut [f32]) {
    decode_attention_on(Isa::best(), attention, out);
}

/// [`decode_attention`] on a given instruction set.
///
/// # Panics
/// As [`decode_attention`], and if the machine does not have `isa`.
pub fn decode_attention_on(isa: Isa, attention: &DecodeAttention<'_>, out: &mut [f32]) {
    attention.check(out);
    isa.assert_available();
    if out.is_empty() || attention.len == 0 {
        return out.fill(0.0);
    }
    let group = attention.heads / attention.kv_heads;
    let n_pieces = attention.len.div_ceil(PIECE).max(1);
    let partial = group * (attention.head_dim + 2); // sums of values, largest score, sum of weights
    let partials =
        count(&[attention.batch, attention.kv_heads, n_pieces, partial]).expect("no cache has as many slots");
    let n_tasks = partials / partial;
    let cached = count(&[attention.batch, attention.kv_heads, attention.len, attention.head_dim]);
    with_scratch(partials, |partials| {
        let task = |(index, partial): (usize, &mut [f32])| {
            let (heads, slots) = attention.task(index, n_pieces);
            let (sums, softmax) = partial.split_at_mut(group * attention.head_dim);
            let (largest, total) = softmax.split_at_mut(group);
            with_scratch(group * slots.len(), |scores| {
                isa.run(Piece { attention, heads, slots, scores, sums, largest, total }, plain);
            });
        };
        if cached.is_some_and(|cached| cached < ALONE) || n_tasks == 1 {
            partials.chunks_exact_mut(partial).enumerate().for_each(task);
        } else {
            partials.par_chunks_exact_mut(partial).enumerate().for_each(task);
        }
        let heads = out.chunks_exact_mut(attention.head_dim).enumerate();
        for (index, out) in heads {
            let pieces = partials.chunks_exact(partial).skip(index / group * n_pieces).take(n_pieces);
            put_together(pieces, group, index % group, out);
        }
    });
}

impl DecodeAttention<'_> {
    fn check(&self, out: &[f32]) {
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

    /// Row and head of task `index`, and its slots without those hidden at the start of the row.
    fn task(&self, index: usize, n_pieces: usize) -> ([usize; 2], Range<usize>) {
        let (head, piece) = (index / n_pieces, index % n_pieces);
        let row = head / self.kv_heads;
        let slots = piece * PIECE..self.len.min((piece + 1) * PIECE);
        let hidden = match self.attention_mask {
            None => 0,
            Some(mask) => {
                mask[row * self.len..][slots.clone()].iter().position(|is_seen| *is_seen).unwrap_or(slots.len())
            }
        };
        ([row, head % self.kv_heads], slots.start + hidden..slots.end)
    }
}

/// One head from its pieces, `[group · head_dim]` sums, `[group]` largest scores, `[group]` sums of weights each.
fn put_together<'a>(pieces: impl Iterator<Item = &'a [f32]> + Clone, group: usize, head: usize, out: &mut [f32]) {
    let head_dim = out.len();
    let softmax = |piece: &[f32]| (piece[group * head_dim + head], piece[group * (head_dim + 1) + head]);
    let largest = pieces.clone().map(|piece| softmax(piece).0).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    out.fill(0.0);
    for piece in pieces {
        let (piece_largest, piece_total) = softmax(piece);
        if piece_largest == f32::NEG_INFINITY {
            continue; // nothing was seen
        }
        let weight = (piece_largest - largest).exp();
        total += weight * piece_total;
        for (out, sum) in out.iter_mut().zip(&piece[head * head_dim..]) {
            *out += weight * sum;
        }
    }
    if total != 0.0 {
        out.iter_mut().for_each(|out| *out /= total);
    }
}
