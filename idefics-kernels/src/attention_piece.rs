//! Decode attention over one piece of the cache, for the query heads that share a key/value head.

#![allow(unsafe_code)] // SIMD

use std::ops::Range;

use crate::attention_inputs::DecodeAttention;
use crate::exp::exp;
use crate::vector::{Vector, Work};

/// One task: a range of slots of one key/value head.
pub(crate) struct Piece<'a> {
    pub(crate) attention: &'a DecodeAttention<'a>,
    /// `[batch row, key/value head]`.
    pub(crate) heads: [usize; 2],
    pub(crate) slots: Range<usize>,
    /// Scratch for scores and weights: `[group, slots.len()]`.
    pub(crate) scores: &'a mut [f32],
    /// Output: weighted sums of the values, `[group, head_dim]`.
    pub(crate) sums: &'a mut [f32],
    /// Output: the largest score of each head, `[group]`; −∞ if no slot is visible.
    pub(crate) largest: &'a mut [f32],
    /// Output: the total of the weights of each head, `[group]`.
    pub(crate) total: &'a mut [f32],
}

impl Piece<'_> {
    fn group(&self) -> usize {
        self.largest.len()
    }

    /// Queries of `n` heads of the group, from head `index`: `[n, head_dim]`.
    fn queries(&self, index: usize, n: usize) -> &[f32] {
        let DecodeAttention { query, heads, head_dim, .. } = *self.attention;
        let [row, head] = self.heads;
        &query[(row * heads + head * self.group() + index) * head_dim..][..n * head_dim]
    }

    /// Sets the scores of masked slots to −∞.
    fn mask_scores(&mut self) {
        if let Some(mask) = self.attention.attention_mask {
            let mask = &mask[self.heads[0] * self.attention.len..][self.slots.clone()];
            for scores in self.scores.chunks_exact_mut(mask.len().max(1)) {
                for (score, is_seen) in scores.iter_mut().zip(mask) {
                    if !is_seen {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Computes the piece in plain loops.
pub(crate) fn plain(mut piece: Piece<'_>) {
    let DecodeAttention { keys, values, head_dim, scale, .. } = *piece.attention;
    let [row, head] = piece.heads;
    let (first, len) = (piece.slots.start, piece.slots.len());
    for index in 0..piece.group() {
        for slot in 0..len {
            let key = &keys.values[keys.start([row, head, first + slot])..][..head_dim];
            let product: f32 = piece.queries(index, 1).iter().zip(key).map(|(query, key)| query * key).sum();
            piece.scores[index * len + slot] = product * scale;
        }
    }
    piece.mask_scores();
    piece.sums.fill(0.0);
    for index in 0..piece.group() {
        let scores = &mut piece.scores[index * len..(index + 1) * len];
        let larger = |largest: f32, score: &f32| if *score > largest || score.is_nan() { *score } else { largest };
        let largest = scores.iter().fold(f32::NEG_INFINITY, larger);
        let sums = &mut piece.sums[index * head_dim..(index + 1) * head_dim];
        (piece.largest[index], piece.total[index]) = (largest, 0.0);
        if largest == f32::NEG_INFINITY {
            continue;
        }
        for (slot, score) in scores.iter().enumerate() {
            let weight = (score - largest).exp();
            piece.total[index] += weight;
            let value = &values.values[values.start([row, head, first + slot])..][..head_dim];
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum += weight * value;
            }
        }
    }
}

impl Work for Piece<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let (group, len) = (self.group(), self.slots.len());
        // Four heads at a time, then two, then one: four fit the registers.
        // SAFETY: guaranteed by the caller; `DecodeAttention::check` has bounds-checked the cache and the query.
        unsafe {
            let mut index = 0;
            while index < group {
                match group - index {
                    4.. => index += score::<V, 4>(&mut self, index),
                    2.. => index += score::<V, 2>(&mut self, index),
                    _ => index += score::<V, 1>(&mut self, index),
                }
            }
            self.mask_scores();
            for index in 0..group {
                let scores = &mut self.scores[index * len..(index + 1) * len];
                (self.largest[index], self.total[index]) = exponentials::<V>(scores);
            }
            let mut index = 0;
            while index < group {
                match group - index {
                    4.. => index += sum_values::<V, 4>(&mut self, index),
                    2.. => index += sum_values::<V, 2>(&mut self, index),
                    _ => index += sum_values::<V, 1>(&mut self, index),
                }
            }
        }
    }
}

/// Computes the scores of `G` query heads from head `index`. Returns `G`.
#[inline(always)]
unsafe fn score<V: Vector, const G: usize>(piece: &mut Piece<'_>, index: usize) -> usize {
    let DecodeAttention { keys, head_dim, scale, .. } = *piece.attention;
    let [row, head] = piece.heads;
    let (first, len) = (piece.slots.start, piece.slots.len());
    let query = piece.queries(index, G).as_ptr();
    let key = keys.values.as_ptr().wrapping_add(keys.start([row, head, first]));
    let stride = keys.strides[2];
    debug_assert!(len == 0 || keys.start([row, head, first + len - 1]) + head_dim <= keys.values.len());
    // SAFETY: the caller guarantees `len` keys and `G` queries of `head_dim` values.
    unsafe {
        for slot in 0..len {
            let key = key.add(slot * stride);
            V::prefetch(key.wrapping_add(8 * stride).cast());
            let mut sums = [V::splat(0.0); G];
            let mut start = 0;
            while start < head_dim {
                let n = V::LANES.min(head_dim - start);
                let key = V::load_head(key.add(start), n, 0.0);
                for (g, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load_head(query.add(g * head_dim + start), n, 0.0).mul_add(key, *sum);
                }
                start += V::LANES;
            }
            for (g, sum) in sums.iter().enumerate() {
                piece.scores[(index + g) * len + slot] = sum.sum() * scale;
            }
        }
    }
    G
}

/// Turns scores into weights. Returns the largest score and the total of the weights.
#[inline(always)]
unsafe fn exponentials<V: Vector>(scores: &mut [f32]) -> (f32, f32) {
    let (len, scores) = (scores.len(), scores.as_mut_ptr());
    // SAFETY: the caller guarantees CPU support; loads and stores stay within `len`.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        for start in (0..len).step_by(V::LANES) {
            largest = largest.max(V::load_head(scores.add(start), V::LANES.min(len - start), f32::NEG_INFINITY));
        }
        let largest = largest.largest();
        if largest == f32::NEG_INFINITY {
            // The vector maximum ignores NaN, but the output must be NaN.
            let is_nan = (0..len).any(|slot| (*scores.add(slot)).is_nan());
            scores.write_bytes(0, len);
            return (if is_nan { f32::NAN } else { largest }, 0.0);
        }
        let mut total = V::splat(0.0);
        for start in (0..len).step_by(V::LANES) {
            let n = V::LANES.min(len - start);
            let weights = exp(V::load_head(scores.add(start), n, f32::NEG_INFINITY).sub(V::splat(largest)));
            total = total.add(weights);
            weights.store_head(scores.add(start), n);
        }
        (largest, total.sum())
    }
}

/// Adds up the weighted values for `G` query heads from head `index`. Returns `G`.
#[inline(always)]
unsafe fn sum_values<V: Vector, const G: usize>(piece: &mut Piece<'_>, index: usize) -> usize {
    let head_dim = piece.attention.head_dim;
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut start = 0;
        while start < head_dim {
            if head_dim - start >= 4 * V::LANES {
                sum_columns::<V, G, 4>(piece, index, start);
                start += 4 * V::LANES;
            } else {
                sum_columns::<V, G, 1>(piece, index, start);
                start += V::LANES;
            }
        }
    }
    G
}

/// Adds up `C` vectors of columns of the weighted values, from column `start`.
#[inline(always)]
unsafe fn sum_columns<V: Vector, const G: usize, const C: usize>(piece: &mut Piece<'_>, index: usize, start: usize) {
    let DecodeAttention { values, head_dim, .. } = *piece.attention;
    let [row, head] = piece.heads;
    let (first, len) = (piece.slots.start, piece.slots.len());
    let value = values.values.as_ptr().wrapping_add(values.start([row, head, first]) + start);
    let weights = piece.scores[index * len..].as_ptr();
    let stride = values.strides[2];
    let n = V::LANES.min(head_dim - start); // a partial vector only if C is 1
    debug_assert!(len == 0 || values.start([row, head, first + len - 1]) + head_dim <= values.values.len());
    debug_assert!(start + (C - 1) * V::LANES + n <= head_dim);
    // SAFETY: the caller guarantees `len` values of `head_dim`, and `G` rows of weights and of sums.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; G];
        for slot in 0..len {
            let value = value.add(slot * stride);
            let mut columns = [V::splat(0.0); C];
            for (c, column) in columns.iter_mut().enumerate() {
                V::prefetch(value.wrapping_add(8 * stride + c * V::LANES).cast());
                *column = V::load_head(value.add(c * V::LANES), n, 0.0);
            }
            for (g, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(*weights.add(g * len + slot));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = column.mul_add(weight, *sum);
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                let at = (index + g) * head_dim + start + c * V::LANES;
                sum.store_head(piece.sums[at..].as_mut_ptr(), n);
            }
        }
    }
}
