//! Attention of many queries: prompts, and the patches of pictures.
//!
//! Each task takes a block of queries of one head: their scores with all keys, the softmax, and the weighted sum of the
//! values. Scores of a block are all that is ever there, and they stay in the cache.

#![allow(unsafe_code)] // vectors, and tasks that write disjoint parts of one slice

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::exp::exp;
use super::shared::{SharedOut, with_scratch};
use super::vector::{Vector, Work};
use super::{Cached, Isa};

#[cfg(target_arch = "x86_64")]
#[path = "attend_amx.rs"]
mod amx;

/// Queries of one task.
const BLOCK: usize = 32;

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
}

/// `softmax(query keysᵀ scale) values`, in f32. A query that sees no key gives 0.
///
/// # Shapes
/// - `out`: `[batch, queries, heads, head_dim]`, overwritten: as the layer reads it that puts heads together
///
/// # Panics
/// If a slice is too short for the dimensions, or `heads` is not a multiple of `kv_heads`.
pub fn attend(attention: &Attention<'_>, out: &mut [f32]) {
    attend_on(Isa::best(), attention, out);
}

/// [`attend`] on a given instruction set.
///
/// # Panics
/// As [`attend`], and if the machine does not have `isa`.
pub fn attend_on(isa: Isa, attention: &Attention<'_>, out: &mut [f32]) {
    attention.check(out);
    isa.assert_available();
    if out.is_empty() || attention.len == 0 {
        return out.fill(0.0);
    }
    let out = SharedOut::new(out);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => amx::attend(attention, out),
        _ => {
            let n_blocks = attention.queries.div_ceil(BLOCK);
            (0..attention.batch * attention.heads * n_blocks).into_par_iter().for_each(|task| {
                let (head, block) = (task / n_blocks, task % n_blocks);
                attention.block(isa, head / attention.heads, head % attention.heads, block, out);
            });
        }
    }
}

impl Attention<'_> {
    fn check(&self, out: &[f32]) {
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

    /// The queries of a block.
    fn queries_of(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.queries.min((block + 1) * BLOCK)
    }

    /// What is hidden from a query.
    fn masked_out(&self, row: usize, query: usize) -> Option<&[bool]> {
        self.masked_out.map(|masked_out| &masked_out[(row * self.queries + query) * self.len..][..self.len])
    }

    /// Keys up to the last that any of the queries sees: in a prompt, half of them on average.
    fn seen(&self, row: usize, queries: Range<usize>) -> usize {
        let last = |query| match self.masked_out(row, query) {
            None => self.len,
            Some(masked_out) => masked_out.iter().rposition(|hidden| !hidden).map_or(0, |last| last + 1),
        };
        queries.map(last).max().unwrap_or(0)
    }

    /// One block of queries of one head, by the `gemm` crate.
    fn block(&self, isa: Isa, row: usize, head: usize, block: usize, out: SharedOut<'_>) {
        let (queries, kv_head) = (self.queries_of(block), head / (self.heads / self.kv_heads));
        let seen = self.seen(row, queries.clone());
        with_scratch(queries.len() * seen, |scores| {
            let strided =
                |of: &Cached<'_>, at: [usize; 3]| (of.values[of.start(at)..].as_ptr(), of.strides[2] as isize);
            if seen > 0 {
                let (query, query_stride) = strided(&self.query, [row, head, queries.start]);
                let (key, key_stride) = strided(&self.keys, [row, kv_head, 0]);
                // SAFETY: `check` found every query and key inside its slice; the scratch holds all scores.
                unsafe {
                    let (m, n, k) = (queries.len(), seen, self.head_dim);
                    let scores = (scores.as_mut_ptr(), seen as isize);
                    multiply([m, n, k], scores, (query, query_stride, 1), (key, 1, key_stride), self.scale);
                }
            }
            let stride = self.heads * self.head_dim;
            let first = (row * self.queries + queries.start) * stride + head * self.head_dim;
            let mut totals = [0f32; BLOCK];
            for (index, query) in queries.clone().enumerate() {
                let scores = &mut scores[index * seen..(index + 1) * seen];
                totals[index] = softmax(isa, scores, self.masked_out(row, query));
            }
            if seen > 0 {
                let (value, value_stride) = strided(&self.values, [row, kv_head, 0]);
                // SAFETY: as above; the outputs of this head and these queries are this task's.
                unsafe {
                    let (m, n, k) = (queries.len(), self.head_dim, seen);
                    let weights = (scores.as_ptr(), seen as isize, 1);
                    let out = (out.pointer(first), stride as isize);
                    multiply([m, n, k], out, weights, (value, value_stride, 1), 1.0);
                }
            }
            for (index, total) in totals[..queries.len()].iter().enumerate() {
                // SAFETY: as above.
                divide(unsafe { out.slice(first + index * stride, self.head_dim) }, *total);
            }
        });
    }
}

/// `out = scale · left right`, `[m, k]` and `[k, n]` by their strides of row and column.
///
/// # Safety
/// Everything lies where the strides say.
unsafe fn multiply(
    [m, n, k]: [usize; 3],
    (out, out_stride): (*mut f32, isize),
    (left, left_row, left_column): (*const f32, isize, isize),
    (right, right_row, right_column): (*const f32, isize, isize),
    scale: f32,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_stride,
            false,
            left,
            left_column,
            left_row,
            right,
            right_column,
            right_row,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Divides by the sum of the weights; 0 where nothing was seen.
fn divide(out: &mut [f32], total: f32) {
    if total == 0.0 {
        return out.fill(0.0);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|value| *value *= inverse);
}

/// Turns scores into weights that are not divided by their sum yet, and returns that. What is hidden gets 0.
fn softmax(isa: Isa, scores: &mut [f32], masked_out: Option<&[bool]>) -> f32 {
    if let Some(masked_out) = masked_out {
        for (score, hidden) in scores.iter_mut().zip(masked_out) {
            *score = if *hidden { f32::NEG_INFINITY } else { *score };
        }
    }
    isa.run(Exponentials(scores), |Exponentials(scores)| {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for score in scores {
            // A row that sees nothing has no largest score.
            *score = if largest == f32::NEG_INFINITY { 0.0 } else { (*score - largest).exp() };
            total += *score;
        }
        total
    })
}

struct Exponentials<'a>(&'a mut [f32]);

impl Work for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let scores = SharedOut::new(self.0);
        let len = scores.len();
        // SAFETY: `n` values are there from `start` on.
        unsafe {
            let mut largest = V::splat(f32::NEG_INFINITY);
            for start in (0..len).step_by(V::LANES) {
                let n = V::LANES.min(len - start);
                largest = largest.max(V::load_head(scores.pointer(start), n, f32::NEG_INFINITY));
            }
            let largest = largest.largest();
            // A row that sees nothing has no largest score; all of its weights are 0.
            let largest = V::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest });
            let mut total = V::splat(0.0);
            for start in (0..len).step_by(V::LANES) {
                let n = V::LANES.min(len - start);
                let weights = exp(V::load_head(scores.pointer(start), n, f32::NEG_INFINITY).sub(largest));
                weights.store_head(scores.pointer(start), n);
                total = total.add(weights);
            }
            total.sum()
        }
    }
}
