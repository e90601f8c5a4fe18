//! Decode attention over one piece of the cache, for the query heads that share a key/value head.

#![allow(unsafe_code)] // SIMD

use crate::exp::exp;
use crate::vector::{Vector, Work};

/// A run of slots that are adjacent in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first element of the first key.
    pub(crate) key: usize,
    /// Index of the first element of the first value vector.
    pub(crate) value: usize,
    /// Number of slots.
    pub(crate) len: usize,
}

/// Keys or values of one key/value head, one vector per slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots<'a> {
    pub(crate) values: &'a [f32],
    /// Distance from one slot of a run to the next, in elements.
    pub(crate) stride: usize,
}

/// One task: some slots of one key/value head, for the query heads that share it.
pub(crate) struct Piece<'a> {
    /// Queries, `[group, head_dim]`.
    pub(crate) query: &'a [f32],
    pub(crate) keys: Slots<'a>,
    pub(crate) values: Slots<'a>,
    /// The slots of the piece, in order.
    pub(crate) runs: &'a [Run],
    /// `[n_slots]`, true for visible slots; `None` if all are visible.
    pub(crate) attention_mask: Option<&'a [bool]>,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    /// Scratch for scores and weights: `[group, n_slots]`.
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

    /// Number of slots.
    fn len(&self) -> usize {
        self.scores.len() / self.group().max(1)
    }

    /// Checks the slices against the dimensions, so that the vector loops stay within bounds.
    ///
    /// # Panics
    /// If a slice is too short.
    pub(crate) fn check(&self) {
        let (group, head_dim, len) = (self.group(), self.head_dim, self.len());
        assert_eq!(self.query.len(), group * head_dim, "the query must be [{group}, {head_dim}]");
        assert_eq!(self.sums.len(), group * head_dim, "the sums must be [{group}, {head_dim}]");
        assert_eq!(self.total.len(), group, "the totals must be [{group}]");
        assert_eq!(self.scores.len(), group * len, "the scores must be [{group}, {len}]");
        assert_eq!(self.runs.iter().map(|run| run.len).sum::<usize>(), len, "the runs must hold all {len} slots");
        let fits = |slots: &Slots<'_>, first: usize, len: usize| {
            let end =
                (len - 1).checked_mul(slots.stride).and_then(|last| last.checked_add(first)?.checked_add(head_dim));
            end.is_some_and(|end| end <= slots.values.len())
        };
        for run in self.runs.iter().filter(|run| run.len > 0) {
            assert!(fits(&self.keys, run.key, run.len), "a run of keys is outside the cache");
            assert!(fits(&self.values, run.value, run.len), "a run of values is outside the cache");
        }
        assert!(self.attention_mask.is_none_or(|mask| mask.len() == len), "the mask must be [{len}]");
    }

    /// Sets the scores of masked slots to −∞.
    fn mask_scores(&mut self) {
        if let Some(mask) = self.attention_mask {
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
    let Piece { query, keys, values, runs, head_dim, scale, .. } = piece;
    let len = piece.len();
    for index in 0..piece.group() {
        let query = &query[index * head_dim..][..head_dim];
        let mut scores = piece.scores[index * len..].iter_mut();
        for run in runs {
            for (slot, out) in (0..run.len).zip(&mut scores) {
                let key = &keys.values[run.key + slot * keys.stride..][..head_dim];
                let product: f32 = query.iter().zip(key).map(|(query, key)| query * key).sum();
                *out = product * scale;
            }
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
        let mut scores = scores.iter();
        for run in runs {
            for (slot, score) in (0..run.len).zip(&mut scores) {
                let weight = (score - largest).exp();
                piece.total[index] += weight;
                let value = &values.values[run.value + slot * values.stride..][..head_dim];
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum += weight * value;
                }
            }
        }
    }
}

impl Work for Piece<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let (group, len) = (self.group(), self.len());
        // Heads are processed four at a time, then two, then one. The sums of four heads fit the registers.
        // SAFETY: guaranteed by the caller; `Piece::check` has checked the bounds of the cache and the query.
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

/// Computes the scores of `G` query heads, starting with head `index`. Returns `G`.
#[inline(always)]
unsafe fn score<V: Vector, const G: usize>(piece: &mut Piece<'_>, index: usize) -> usize {
    let Piece { keys: Slots { values: keys, stride }, runs, head_dim, scale, .. } = *piece;
    let len = piece.len();
    let query = piece.query[index * head_dim..][..G * head_dim].as_ptr();
    let mut scores = piece.scores[index * len..].as_mut_ptr();
    // SAFETY: `Piece::check` guarantees that the runs lie in the cache, and that there are `len` scores for each of the
    // `G` queries of `head_dim` values.
    unsafe {
        for run in runs {
            let key = keys.as_ptr().wrapping_add(run.key);
            for slot in 0..run.len {
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
                    *scores.add(g * len + slot) = sum.sum() * scale;
                }
            }
            scores = scores.add(run.len);
        }
    }
    G
}

/// Turns scores into weights in place. Returns the largest score and the total of the weights.
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
            // The vector maximum ignores NaN, but the output must be NaN if a score is.
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

/// Adds up the weighted values for `G` query heads, starting with head `index`. Returns `G`.
#[inline(always)]
unsafe fn sum_values<V: Vector, const G: usize>(piece: &mut Piece<'_>, index: usize) -> usize {
    let head_dim = piece.head_dim;
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

/// Adds up the weighted values of `C` vectors of columns, starting with column `start`, for `G` query heads, starting
/// with head `index`.
#[inline(always)]
unsafe fn sum_columns<V: Vector, const G: usize, const C: usize>(piece: &mut Piece<'_>, index: usize, start: usize) {
    let Piece { values: Slots { values, stride }, runs, head_dim, .. } = *piece;
    let len = piece.len();
    let mut weights = piece.scores[index * len..].as_ptr();
    let n = V::LANES.min(head_dim - start); // less than a vector only if C is 1
    debug_assert!(start + (C - 1) * V::LANES + n <= head_dim);
    // SAFETY: `Piece::check` guarantees that the runs lie in the cache, and that there are `G` rows of weights and of
    // sums.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; G];
        for run in runs {
            let value = values.as_ptr().wrapping_add(run.value + start);
            for slot in 0..run.len {
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
            weights = weights.add(run.len);
        }
        for (g, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                let at = (index + g) * head_dim + start + c * V::LANES;
                sum.store_head(piece.sums[at..].as_mut_ptr(), n);
            }
        }
    }
}
