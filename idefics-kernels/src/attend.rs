//! Attention of many queries: prompts and image patches.
//!
//! Each task takes a block of queries of one head and processes the keys in blocks whose scores and values fit the L1
//! cache. Weights are relative to the largest score so far; when a larger one appears, earlier sums are scaled down
//! (FlashAttention, <https://arxiv.org/abs/2205.14135>). `attend_amx` does the same on AMX tiles, where that is
//! faster.

#![allow(unsafe_code)] // SIMD; tasks write disjoint parts of one slice
#![allow(clippy::needless_range_loop)] // several arrays share the index, and closures would lose the target features

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::attend_amx;
use crate::attention_inputs::Attention;
use crate::exp::exp;
use crate::shared::{SharedOut, with_scratch};
use crate::vector::{Vector, Work};
use crate::{ComputeUnit, Isa};

/// Number of queries per task.
const BLOCK: usize = 48;

/// Maximum number of queries that are processed together.
const MAX_ROWS: usize = 8;

/// Number of vectors of keys that are processed together: the width of a panel.
const PANEL: usize = 3;

/// Approximate size in bytes of the values that belong to a block of keys. Chosen to fit the L1 cache.
const VALUES_BYTES: usize = 32 << 10;

/// Maximum number of keys in a block.
const MAX_KEYS: usize = 384;

/// Computes attention of many queries: `softmax(query keysᵀ scale) values`. The output is 0 for a query that sees no
/// key.
///
/// Computes in f32. With [`Activations::Int8`](crate::Activations::Int8), inputs are rounded on machines with AMX.
///
/// # Shapes
/// - `out`: `[batch, queries, heads, head_dim]`, overwritten. This is the input layout of the output projection.
///
/// # Panics
/// If a slice is too short for the dimensions, or `heads` is not a multiple of `kv_heads`.
pub fn attend(attention: &Attention<'_>, out: &mut [f32]) {
    attend_on(Isa::best(), attention, out);
}

/// [`attend`] on a given instruction set.
///
/// # Panics
/// As [`attend`], and if the CPU does not support `isa`.
pub fn attend_on(isa: Isa, attention: &Attention<'_>, out: &mut [f32]) {
    attention.check(out);
    isa.assert_available();
    if out.is_empty() || attention.len == 0 {
        return out.fill(0.0);
    }
    let out = SharedOut::new(out);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && attend_amx::is_faster(attention) {
        return attend_amx::attend(attention, out);
    }
    let Attention { batch, heads, kv_heads, queries, .. } = *attention;
    let (group, n_blocks) = (heads / kv_heads, queries.div_ceil(BLOCK));
    let sizes = Sizes::new(isa, attention.head_dim);
    let seen = |row| (0..n_blocks).map(move |block| attention.seen(row, attention.block_queries(block)));
    let seen: Vec<usize> = (0..batch).flat_map(seen).collect(); // [batch, n_blocks]
    for [row, kv_head] in (0..batch).flat_map(|row| (0..kv_heads).map(move |kv_head| [row, kv_head])) {
        let blocks = |packed: Packed<'_>| {
            (0..group * n_blocks).into_par_iter().for_each(|task| {
                let (head, block) = (kv_head * group + task / n_blocks, task % n_blocks);
                let (queries, seen) = (attention.block_queries(block), seen[row * n_blocks + block]);
                with_scratch(sizes.scratch(queries.len()), |scratch| {
                    isa.run(Block { attention, packed, row, head, queries, seen, out, sizes, scratch }, Block::plain);
                });
            });
        };
        match isa {
            Isa::Plain => blocks(Packed { keys: &[], values: &[] }),
            _ => attention.pack(&sizes, [row, kv_head], &blocks),
        }
    }
}

impl Attention<'_> {
    /// Returns the arithmetic unit that [`attend`] uses on the best instruction set, and the number of operations of
    /// this unit that replace one f32 operation, averaged over the products for scores and outputs.
    pub fn compute_unit(&self) -> (ComputeUnit, f64) {
        match Isa::best() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if attend_amx::is_faster(self) => (ComputeUnit::Tiles, attend_amx::products(self.activations)),
            _ => (ComputeUnit::Vectors, 1.0),
        }
    }

    /// The range of queries in a block.
    fn block_queries(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.queries.min((block + 1) * BLOCK)
    }

    /// The mask of one query, `[len]`; true hides the key.
    pub(crate) fn mask(&self, row: usize, query: usize) -> Option<&[bool]> {
        self.mask.map(|mask| &mask[(row * self.queries + query) * self.len..][..self.len])
    }

    /// Returns the number of keys up to the last key that any of the queries sees. In a causal prompt, this is half of
    /// all keys on average.
    pub(crate) fn seen(&self, row: usize, queries: Range<usize>) -> usize {
        let last = |query| match self.mask(row, query) {
            None => self.len,
            Some(mask) => mask.iter().rposition(|hidden| !hidden).map_or(0, |last| last + 1),
        };
        queries.map(last).max().unwrap_or(0)
    }

    /// Packs the keys and values of a head in the order in which [`Block`] reads them. Calls `work` with the packed
    /// copies.
    fn pack(&self, sizes: &Sizes, [row, head]: [usize; 2], work: &dyn Fn(Packed<'_>)) {
        let Sizes { head_dim, panel, width, .. } = *sizes;
        let n_keys = self.len.next_multiple_of(panel) * head_dim;
        with_scratch(n_keys + self.len * width, |scratch| {
            let (keys, values) = scratch.split_at_mut(n_keys);
            keys.par_chunks_exact_mut(panel * head_dim).enumerate().for_each(|(index, out)| {
                for lane in 0..panel {
                    let slot = index * panel + lane;
                    let key = (slot < self.len).then(|| self.keys.slot([row, head, slot], head_dim));
                    for column in 0..head_dim {
                        out[column * panel + lane] = key.map_or(0.0, |key| key[column]);
                    }
                }
            });
            values.par_chunks_exact_mut(width).enumerate().for_each(|(slot, out)| {
                out[..head_dim].copy_from_slice(self.values.slot([row, head, slot], head_dim));
                out[head_dim..].fill(0.0);
            });
            work(Packed { keys, values });
        });
    }
}

/// Block sizes for an instruction set.
#[derive(Clone, Copy)]
struct Sizes {
    head_dim: usize,
    /// Number of keys in a panel.
    panel: usize,
    /// `head_dim`, rounded up to whole vectors.
    width: usize,
    /// Number of keys in a block, a multiple of `panel`.
    n_keys: usize,
}

impl Sizes {
    fn new(isa: Isa, head_dim: usize) -> Self {
        let lanes = isa.run(Lanes, |Lanes| 1);
        let (panel, width) = (PANEL * lanes, head_dim.next_multiple_of(lanes));
        let n_keys = (VALUES_BYTES / size_of::<f32>() / width.max(1)).clamp(panel, MAX_KEYS) / panel * panel;
        Self { head_dim, panel, width, n_keys }
    }

    /// Numbers of scratch values for the queries, the scores and the sums of a block of `n_queries` queries.
    fn scratch_sizes(&self, n_queries: usize) -> [usize; 3] {
        [self.head_dim, self.n_keys, self.width].map(|values| n_queries.next_multiple_of(MAX_ROWS) * values)
    }

    /// Total number of scratch values for a block of `n_queries` queries.
    fn scratch(&self, n_queries: usize) -> usize {
        self.scratch_sizes(n_queries).iter().sum()
    }
}

/// Work that returns the number of lanes of a vector.
struct Lanes;

impl Work for Lanes {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> usize {
        V::LANES
    }
}

/// Packed keys and values of one head.
#[derive(Clone, Copy)]
struct Packed<'a> {
    /// `[panels, head_dim, PANEL · LANES]`, padded with zeros after the last key.
    keys: &'a [f32],
    /// `[len, width]`: rows are padded with zeros from `head_dim` to whole vectors.
    values: &'a [f32],
}

/// A block of queries of one head.
struct Block<'a> {
    attention: &'a Attention<'a>,
    packed: Packed<'a>,
    row: usize,
    head: usize,
    queries: Range<usize>,
    /// Number of keys up to the last key that any of the queries sees.
    seen: usize,
    out: SharedOut<'a>,
    sizes: Sizes,
    scratch: &'a mut [f32],
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: guaranteed by the caller. The number of rows is chosen so that sums and operands fit the registers.
        unsafe {
            match V::REGISTERS {
                32 => self.vectors::<V, MAX_ROWS>(),
                _ => self.vectors::<V, 4>(),
            }
        }
    }
}

impl<'a> Block<'a> {
    /// Computes the block in plain loops.
    fn plain(self) {
        let Attention { keys, values, heads, kv_heads, head_dim, scale, .. } = *self.attention;
        let kv_head = self.head / (heads / kv_heads);
        for query in self.queries.clone() {
            let mask = self.attention.mask(self.row, query);
            let is_seen = |slot: &usize| mask.is_none_or(|mask| !mask[*slot]);
            let seen: Vec<usize> = (0..self.attention.len).filter(is_seen).collect();
            let query_values = self.attention.query.slot([self.row, self.head, query], head_dim);
            let score = |slot: &usize| {
                let key = keys.slot([self.row, kv_head, *slot], head_dim);
                query_values.iter().zip(key).map(|(query, key)| query * scale * key).sum::<f32>()
            };
            let scores: Vec<f32> = seen.iter().map(score).collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let out = self.output(query);
            out.fill(0.0);
            let mut total = 0.0;
            for (slot, score) in seen.into_iter().zip(scores) {
                let weight = (score - largest).exp();
                total += weight;
                let values = values.slot([self.row, kv_head, slot], head_dim);
                out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
            }
            normalize(out, total);
        }
    }

    /// Computes the block, `M` queries at a time.
    ///
    /// # Safety
    /// The CPU supports the instruction set of `V`, and the caller is compiled for it.
    #[inline(always)]
    unsafe fn vectors<V: Vector, const M: usize>(mut self) {
        let Sizes { head_dim, panel, width, n_keys } = self.sizes;
        let scale = self.attention.scale;
        let seen = self.seen;
        let rows = self.queries.len().next_multiple_of(M);
        let sizes = self.sizes.scratch_sizes(self.queries.len());
        let (query, scratch) = std::mem::take(&mut self.scratch).split_at_mut(sizes[0]);
        let (scores, sums) = scratch.split_at_mut(sizes[1]);
        query.fill(0.0);
        sums.fill(0.0);
        for (out, query) in query.chunks_exact_mut(head_dim).zip(self.queries.clone()) {
            let query = self.attention.query.slot([self.row, self.head, query], head_dim);
            out.iter_mut().zip(query).for_each(|(out, value)| *out = value * scale);
        }
        let (mut largest, mut totals) = ([f32::NEG_INFINITY; BLOCK], [0f32; BLOCK]);
        for first in (0..seen).step_by(n_keys) {
            let keys = first..seen.min(first + n_keys);
            // Scores: [rows, n_keys].
            for (index, keys) in (first..keys.end).step_by(panel).enumerate() {
                let keys = &self.packed.keys[keys / panel * panel * head_dim..][..panel * head_dim];
                for row in (0..rows).step_by(M) {
                    let query = &query[row * head_dim..][..M * head_dim];
                    let out = &mut scores[row * n_keys + index * panel..][..(M - 1) * n_keys + panel];
                    // SAFETY: the slices cover all rows of the tile.
                    unsafe {
                        let (left, right) = ((query.as_ptr(), head_dim), (keys.as_ptr(), panel));
                        tile::<V, M, PANEL>(head_dim, left, right, (out.as_mut_ptr(), n_keys), false);
                    }
                }
            }
            // Weights: they overwrite the scores.
            for (index, query) in self.queries.clone().enumerate() {
                let scores = &mut scores[index * n_keys..][..keys.len()];
                if let Some(mask) = self.attention.mask(self.row, query) {
                    for (score, hidden) in scores.iter_mut().zip(&mask[keys.clone()]) {
                        *score = if *hidden { f32::NEG_INFINITY } else { *score };
                    }
                }
                let sums = &mut sums[index * width..][..width];
                // SAFETY: guaranteed by the caller.
                unsafe { weigh::<V>(scores, &mut largest[index], &mut totals[index], sums) };
            }
            // Sums: [rows, width].
            let values = &self.packed.values[first * width..keys.end * width];
            for row in (0..rows).step_by(M) {
                let weights = &scores[row * n_keys..][..(M - 1) * n_keys + keys.len()];
                let sums = &mut sums[row * width..][..M * width];
                for column in (0..width).step_by(panel) {
                    let (left, right) = ((weights.as_ptr(), n_keys), (values[column..].as_ptr(), width));
                    let out = (sums[column..].as_mut_ptr(), width);
                    // SAFETY: the rows of weights, values and sums extend past this column by the width of the tile.
                    unsafe {
                        match (width - column) / V::LANES {
                            1 => tile::<V, M, 1>(keys.len(), left, right, out, true),
                            2 => tile::<V, M, 2>(keys.len(), left, right, out, true),
                            _ => tile::<V, M, PANEL>(keys.len(), left, right, out, true),
                        }
                    }
                }
            }
        }
        for (index, query) in self.queries.clone().enumerate() {
            let out = self.output(query);
            out.copy_from_slice(&sums[index * width..][..head_dim]);
            normalize(out, totals[index]);
        }
    }

    /// The output of one query of this block.
    fn output(&self, query: usize) -> &'a mut [f32] {
        let Attention { queries, heads, head_dim, .. } = *self.attention;
        // SAFETY: only this task accesses the outputs of this head and these queries, and it holds one slice at a time.
        unsafe { self.out.slice(((self.row * queries + query) * heads + self.head) * head_dim, head_dim) }
    }
}

/// Computes `out = left right`, or `out += left right` if `add` is true. `left` has `M` rows of `k` values, and `right`
/// has `k` rows of `N` vectors. A matrix is given as a pointer to its first value and its row stride in values.
///
/// # Safety
/// The CPU supports the instruction set of `V`, the caller is compiled for it, and the pointers are valid for these
/// matrices.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const N: usize>(
    k: usize,
    (left, left_stride): (*const f32, usize),
    (right, right_stride): (*const f32, usize),
    (out, out_stride): (*mut f32, usize),
    add: bool,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        for step in 0..k {
            let mut columns = [V::splat(0.0); N];
            for n in 0..N {
                columns[n] = V::load(right.add(step * right_stride + n * V::LANES));
            }
            for m in 0..M {
                let row = V::splat(*left.add(m * left_stride + step));
                for n in 0..N {
                    sums[m][n] = row.mul_add(columns[n], sums[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                let out = out.add(m * out_stride + n * V::LANES);
                if add { V::load(out).add(sums[m][n]).store(out) } else { sums[m][n].store(out) }
            }
        }
    }
}

/// Turns the next scores of a query into weights relative to the largest score so far, and rescales the earlier sums.
/// If all keys are masked, the weights are 0.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
unsafe fn weigh<V: Vector>(scores: &mut [f32], largest: &mut f32, total: &mut f32, sums: &mut [f32]) {
    let whole = scores.len() / V::LANES * V::LANES;
    let (scores, rest) = (scores.as_mut_ptr(), scores.len() - whole);
    // SAFETY: whole vectors first, then the remaining `rest` values.
    unsafe {
        let mut found = V::splat(*largest);
        for start in (0..whole).step_by(V::LANES) {
            found = found.max(V::load(scores.add(start)));
        }
        if rest > 0 {
            found = found.max(V::load_head(scores.add(whole), rest, f32::NEG_INFINITY));
        }
        let found = found.largest();
        let base = V::splat(if found == f32::NEG_INFINITY { 0.0 } else { found });
        let mut added = V::splat(0.0);
        for start in (0..whole).step_by(V::LANES) {
            let weights = exp(V::load(scores.add(start)).sub(base));
            weights.store(scores.add(start));
            added = added.add(weights);
        }
        if rest > 0 {
            let weights = exp(V::load_head(scores.add(whole), rest, f32::NEG_INFINITY).sub(base));
            weights.store_head(scores.add(whole), rest);
            added = added.add(weights);
        }
        if found > *largest && *total > 0.0 {
            let factor = (*largest - found).exp();
            *total *= factor;
            sums.iter_mut().for_each(|sum| *sum *= factor);
        }
        *total += added.sum();
        *largest = found;
    }
}

/// Divides an output by the total of its weights. If no key was visible, the total is 0 and the output becomes 0.
fn normalize(out: &mut [f32], total: f32) {
    if total == 0.0 {
        return out.fill(0.0);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|value| *value *= inverse);
}
