//! Attention of many queries on AMX tiles.
//!
//! All inputs are split into bf16 parts. With f32 activations, each has three parts, and results are as accurate as
//! with f32. With rounded activations, queries and keys have two parts. Attention weights and values then have one
//! part, so each has a relative error of at most 2⁻⁸.
//!
//! Both products are computed transposed: scores as `keys queryᵀ`, outputs as `valuesᵀ weightsᵀ`. Each SIMD lane then
//! belongs to one query in all steps: maxima, totals and scales are vectors, and two neighbouring rows of weights form
//! a tile row without rearrangement.

#![allow(unsafe_code)] // intrinsics and raw pointers; tasks write disjoint parts of one slice
#![allow(clippy::needless_range_loop)] // several arrays share the index

use std::arch::x86_64::*;

use rayon::prelude::*;

use crate::Activations;
use crate::Isa;
use crate::amx::{ROWS, STEP, TILE, load, mask, pair_parts, parts, store_transposed};
use crate::attention_inputs::Attention;
use crate::shared::{SharedOut, with_scratch};

mod task;

use task::Task;

/// Number of queries in a pair of tiles. The two tiles of a pair are processed together.
const PAIR: usize = 2 * ROWS;

/// Maximum number of pairs of query tiles in a task. A task reads the keys and values once, and its working set fits
/// the L2 cache.
const MAX_PAIRS: usize = 16;

/// Approximate number of tasks per thread. With at least this many heads per thread, a task is a whole head, whose
/// keys and values stay in the thread's L2 cache as far as they fit.
const TASKS: usize = 4;

/// Number of steps (of [`STEP`] keys) in a block. The scores and weights of a block stay in the L1 cache.
const BLOCK: usize = 8;

/// Size of a tile in memory, in f32 values.
const TILE_VALUES: usize = TILE / size_of::<f32>();

/// Number of bf16 parts of `[queries and keys, weights and values]` for results as accurate as with f32.
const EXACT: [usize; 2] = [3, 3];

/// Number of bf16 parts with rounded activations, in the order of [`EXACT`].
const ROUNDED: [usize; 2] = [2, 1];

/// With at least this many queries per key/value head, tiles are faster for any number of keys.
const QUERIES: usize = 128;

/// With fewer than [`QUERIES`] queries, tiles are faster for up to this many keys per query.
const KEYS: usize = 8;

/// Whether tiles are faster than vectors. Packing keys and values takes longer for tiles, and few queries do not fill a
/// tile. With rounded activations, tiles need only a third of the products and are always faster.
pub(crate) fn is_faster(attention: &Attention<'_>) -> bool {
    let n_queries = attention.queries * (attention.heads / attention.kv_heads);
    match attention.activations {
        Activations::F32 => n_queries >= QUERIES || n_queries * KEYS >= attention.len,
        Activations::Int8 => true,
    }
}

/// Computes [`crate::attend()`] on tiles.
pub(crate) fn attend(attention: &Attention<'_>, out: SharedOut<'_>) {
    Isa::Amx.assert_available();
    match attention.activations {
        Activations::F32 => attend_with_parts::<{ EXACT[0] }, { EXACT[1] }>(attention, out),
        Activations::Int8 => attend_with_parts::<{ ROUNDED[0] }, { ROUNDED[1] }>(attention, out),
    }
}

/// Number of bf16 products per f32 product, averaged over scores and outputs.
pub(crate) fn products(activations: Activations) -> f64 {
    let parts = match activations {
        Activations::F32 => EXACT,
        Activations::Int8 => ROUNDED,
    };
    parts.into_iter().map(|parts| n_tile_products(parts) as f64).sum::<f64>() / 2.0
}

/// Attention with `K` bf16 parts for queries and keys, and `V` for weights and values.
fn attend_with_parts<const K: usize, const V: usize>(attention: &Attention<'_>, out: SharedOut<'_>) {
    let Attention { batch, heads, kv_heads, queries, len, .. } = *attention;
    let shape = Shape::new::<K, V>(attention.head_dim);
    let (n_heads, group) = (batch * kv_heads, heads / kv_heads);
    let (n_pairs, n_packed) = (queries.div_ceil(PAIR), len.div_ceil(STEP) * shape.step_values());
    let n_tasks = TASKS * rayon::current_num_threads();
    let has_whole_heads = n_heads >= n_tasks;
    let share = if has_whole_heads { MAX_PAIRS } else { (group * n_pairs / n_tasks).clamp(1, MAX_PAIRS) };
    let n_blocks = n_pairs.div_ceil(share);
    let block_pairs = n_pairs.div_ceil(n_blocks);
    let n_scratch: usize = shape.scratch(block_pairs).iter().sum();
    let pack = |head: usize, step: usize, out: &mut [f32]| {
        // SAFETY: `attend` has checked CPU support.
        unsafe { shape.pack::<K, V>(attention, [head / kv_heads, head % kv_heads], step, out) }
    };
    let run = |head: usize, index: usize, packed: &[f32], scratch: &mut [f32]| {
        let [first, end] = [0, 1].map(|next| queries.min((index % n_blocks + next) * block_pairs * PAIR));
        let (row, head) = (head / kv_heads, head % kv_heads * group + index / n_blocks);
        let task = Task { attention, shape: &shape, packed, row, head, queries: first..end, out };
        // SAFETY: `attend` has checked CPU support, and no other task has these queries of this head.
        unsafe { task.run::<K, V>(scratch) }
    };
    if has_whole_heads {
        (0..n_heads).into_par_iter().for_each(|head| {
            with_scratch(n_packed + n_scratch, |scratch| {
                let (packed, scratch) = scratch.split_at_mut(n_packed);
                packed.chunks_exact_mut(shape.step_values()).enumerate().for_each(|(step, out)| pack(head, step, out));
                (0..group * n_blocks).for_each(|index| run(head, index, packed, scratch));
            });
        });
        return;
    }
    with_scratch(n_packed, |packed| {
        for head in 0..n_heads {
            packed.par_chunks_exact_mut(shape.step_values()).enumerate().for_each(|(step, out)| pack(head, step, out));
            (0..group * n_blocks).into_par_iter().for_each(|index| {
                with_scratch(n_scratch, |scratch| run(head, index, packed, scratch));
            });
        }
    });
}

/// Number of tile products for two factors that are each split into `parts` parts. The smallest products are left
/// out.
const fn n_tile_products(parts: usize) -> usize {
    parts * (parts + 1) / 2
}

/// The index pairs `[left, right]` of the bf16 parts that are multiplied: all pairs with `left + right < parts`.
fn part_pairs(parts: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..parts).flat_map(move |left| (0..parts - left).map(move |right| [left, right]))
}

/// Layout of the heads in tiles.
///
/// A row holds the bf16 parts of one query or key side by side. If `head_dim` is a multiple of [`STEP`], a row holds
/// each part once, and `walk` lists which steps of keys and queries are multiplied. Otherwise, a row repeats a part for
/// each product in which it occurs, without gaps, and step `i` of a key row is multiplied with step `i` of a query row.
struct Shape {
    head_dim: usize,
    /// Part index of each section of a key row.
    key_parts: Vec<usize>,
    /// Part index of each section of a query row.
    query_parts: Vec<usize>,
    /// Number of steps in a row.
    steps: usize,
    /// Pairs `[key step, query step]` of steps that are multiplied with each other.
    walk: Vec<[usize; 2]>,
    /// Number of tiles that cover the `head_dim` columns of a value.
    tiles: usize,
    /// Number of parts of a value.
    value_parts: usize,
}

impl Shape {
    fn new<const K: usize, const V: usize>(head_dim: usize) -> Self {
        let (tiles, value_parts) = (head_dim.div_ceil(ROWS), V);
        if head_dim.is_multiple_of(STEP) {
            let steps = head_dim / STEP;
            let step_pairs =
                |[key, query]: [usize; 2]| (0..steps).map(move |step| [key * steps + step, query * steps + step]);
            let (walk, all) = (part_pairs(K).flat_map(step_pairs).collect(), Vec::from_iter(0..K));
            return Self {
                head_dim,
                key_parts: all.clone(),
                query_parts: all,
                steps: K * steps,
                walk,
                tiles,
                value_parts,
            };
        }
        let (key_parts, query_parts) = part_pairs(K).map(|[key, query]| (key, query)).unzip();
        let steps = (n_tile_products(K) * head_dim).div_ceil(STEP);
        Self { head_dim, key_parts, query_parts, steps, walk: (0..steps).map(|s| [s, s]).collect(), tiles, value_parts }
    }

    /// Number of bytes in a row.
    fn row_bytes(&self) -> usize {
        self.steps * STEP * 2
    }

    /// Number of bytes of the packed keys in one step.
    fn keys_bytes(&self) -> usize {
        STEP * self.row_bytes()
    }

    /// Size of the packed keys and values of one step, in f32 values.
    fn step_values(&self) -> usize {
        self.keys_bytes() / size_of::<f32>() + self.tiles * self.value_parts * TILE_VALUES
    }

    /// Returns the number of f32 values in each scratch buffer that a task with `n_pairs` pairs of query tiles needs.
    /// The first three buffers are for all pairs: queries, sums, and largest scores with totals. The last two are for
    /// one pair: scores (also used to pack queries) and weights.
    fn scratch(&self, n_pairs: usize) -> [usize; 5] {
        [
            n_pairs * 2 * self.steps * TILE_VALUES,
            n_pairs * self.tiles * ROWS * PAIR,
            n_pairs * 2 * PAIR,
            (BLOCK * STEP * PAIR).max(self.steps * TILE_VALUES),
            BLOCK * 2 * self.value_parts * TILE_VALUES,
        ]
    }

    /// Packs one step of keys and values. Keys become rows of parts, which are stored as `[steps, 32]` pieces of 64
    /// bytes. Values become `[tiles, V]` tiles, each of which holds one part of sixteen columns, for all slots of the
    /// step. Missing slots and columns are zero.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack<const K: usize, const V: usize>(
        &self,
        attention: &Attention<'_>,
        [row, head]: [usize; 2],
        step: usize,
        out: &mut [f32],
    ) {
        let slots = step * STEP..attention.len.min((step + 1) * STEP);
        let (keys, values) = out.split_at_mut(self.keys_bytes() / size_of::<f32>());
        with_scratch(self.steps * ROWS, |row_of_parts| {
            for index in 0..STEP {
                let slot = slots.start + index;
                let key = (slot < slots.end).then(|| attention.keys.slot([row, head, slot], self.head_dim));
                // SAFETY: guaranteed by the caller.
                unsafe { self.write_row::<K>(key, 1.0, &self.key_parts, row_of_parts) };
                for (tiles, values) in keys.chunks_exact_mut(2 * TILE_VALUES).zip(row_of_parts.chunks_exact(ROWS)) {
                    tiles[index * ROWS..][..ROWS].copy_from_slice(values);
                }
            }
        });
        for (tile, out) in values.chunks_exact_mut(V * TILE_VALUES).enumerate() {
            let mut pairs = [[_mm512_setzero_si512(); ROWS]; V];
            for pair in 0..ROWS {
                let [even, odd] = [0, 1].map(|side| {
                    let slot = slots.start + 2 * pair + side;
                    if slot >= slots.end {
                        return _mm512_setzero_ps();
                    }
                    let value = attention.values.slot([row, head, slot], self.head_dim);
                    // SAFETY: the masked load does not read past the end of the value.
                    unsafe {
                        let columns = mask(tile * ROWS, self.head_dim);
                        _mm512_maskz_loadu_ps(columns, value.as_ptr().wrapping_add(tile * ROWS))
                    }
                });
                // SAFETY: guaranteed by the caller.
                let values: [__m512i; V] = unsafe { pair_parts(even, odd) };
                for part in 0..V {
                    pairs[part][pair] = values[part];
                }
            }
            for (part, pairs) in pairs.into_iter().enumerate() {
                // SAFETY: `out` has room for `V` tiles.
                unsafe { store_transposed(pairs, out.as_mut_ptr().add(part * TILE_VALUES).cast()) };
            }
        }
    }

    /// Writes one row of parts: `values` times `scale`, split into parts. The part indices `which` give the order of
    /// the parts. Writes zeros if `values` is `None`.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write_row<const K: usize>(&self, values: Option<&[f32]>, scale: f32, which: &[usize], out: &mut [f32]) {
        let out: &mut [u16] = bytemuck::cast_slice_mut(out);
        let Some(values) = values else { return out.fill(0) };
        let width = self.head_dim;
        out[which.len() * width..].fill(0);
        let scale = _mm512_set1_ps(scale);
        for column in (0..width).step_by(STEP) {
            let here = ((1u64 << STEP.min(width - column)) - 1) as u32;
            // SAFETY: guaranteed by the caller; masks limit loads to `values` and stores to each part's section.
            unsafe {
                let [first, second] = load(values.as_ptr(), column, width);
                let parts: [__m512i; K] = parts(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
                for (place, part) in which.iter().enumerate() {
                    let out = &mut out[place * width + column..(place + 1) * width];
                    _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), here, parts[*part]);
                }
            }
        }
    }
}
