//! Attention of many queries on tiles of bf16.
//!
//! Numbers are sums of bf16: three where results are to be as good as those of f32; where activations are rounded, two
//! for queries and keys, and one for weights and values, which then differ by 2⁻⁸ at most each. Both
//! products are made transposed, scores as `keys queryᵀ` and sums as `valuesᵀ weightsᵀ`: lanes are queries throughout, so
//! that maxima, totals and scales are vectors, and pairs of rows of weights are rows of a tile as they stand.

#![allow(unsafe_code)] // instructions, pointers, and tasks that write disjoint parts of one slice
#![allow(clippy::needless_range_loop)] // several arrays advance together

use std::arch::x86_64::*;

use rayon::prelude::*;

use crate::Activations;
use crate::Isa;
use crate::amx::{ROWS, STEP, TILE, load, mask, pair_parts, parts, store_transposed};
use crate::attention_inputs::Attention;
use crate::shared::{SharedOut, with_scratch};

mod task;

use task::Task;

/// Queries of two tiles, which go together.
const PAIR: usize = 2 * ROWS;

/// Maximum number of pairs of query tiles in a task. Keys and values are read once per task, and its working set fits the
/// L2 cache.
const MOST_PAIRS: usize = 16;

/// Approximate number of tasks per thread. With at least this many heads per thread, a task is a whole head, whose keys and
/// values stay in the thread's L2 cache as far as they fit.
const TASKS: usize = 4;

/// Steps of keys of a block: its scores and weights stay in the first cache.
const BLOCK: usize = 8;

/// f32 of a tile.
const TILE_VALUES: usize = TILE / size_of::<f32>();

/// bf16 that queries and keys, and that weights and values are sums of, for results as good as those of f32.
const EXACT: [usize; 2] = [3, 3];

/// The same where activations are rounded.
const ROUNDED: [usize; 2] = [2, 1];

/// Queries of all heads that share a key, from which on tiles are worth filling however many keys there are.
const QUERIES: usize = 128;

/// The keys for each query that fewer queries may have.
const KEYS: usize = 8;

/// Whether tiles are faster than vectors: keys and values take longer to pack, and few queries do not fill a tile. Rounded,
/// with a third of the products, they are.
pub(crate) fn pays(attention: &Attention<'_>) -> bool {
    let n_queries = attention.queries * (attention.heads / attention.kv_heads);
    match attention.activations {
        Activations::F32 => n_queries >= QUERIES || n_queries * KEYS >= attention.len,
        Activations::Int8 => true,
    }
}

/// [`crate::attend()`].
pub(crate) fn attend(attention: &Attention<'_>, out: SharedOut<'_>) {
    Isa::Amx.assert_available();
    match attention.activations {
        Activations::F32 => attend_in::<{ EXACT[0] }, { EXACT[1] }>(attention, out),
        Activations::Int8 => attend_in::<{ ROUNDED[0] }, { ROUNDED[1] }>(attention, out),
    }
}

/// Products of bf16 that one of the whole takes, on average of scores and sums.
pub(crate) fn products(activations: Activations) -> f64 {
    let parts = match activations {
        Activations::F32 => EXACT,
        Activations::Int8 => ROUNDED,
    };
    parts.into_iter().map(|parts| products_of(parts) as f64).sum::<f64>() / 2.0
}

/// Attention with queries and keys as sums of `K` bf16, weights and values as sums of `V`.
fn attend_in<const K: usize, const V: usize>(attention: &Attention<'_>, out: SharedOut<'_>) {
    let Attention { batch, heads, kv_heads, queries, len, .. } = *attention;
    let shape = Shape::new::<K, V>(attention.head_dim);
    let (n_heads, group) = (batch * kv_heads, heads / kv_heads);
    let (n_pairs, n_packed) = (queries.div_ceil(PAIR), len.div_ceil(STEP) * shape.step_values());
    let n_tasks = TASKS * rayon::current_num_threads();
    let has_whole_heads = n_heads >= n_tasks;
    let share = if has_whole_heads { MOST_PAIRS } else { (group * n_pairs / n_tasks).clamp(1, MOST_PAIRS) };
    let n_blocks = n_pairs.div_ceil(share);
    let block_pairs = n_pairs.div_ceil(n_blocks);
    let n_scratch: usize = shape.scratch(block_pairs).iter().sum();
    let pack = |head: usize, step: usize, out: &mut [f32]| {
        // SAFETY: `attend` has asserted the instructions.
        unsafe { shape.pack::<K, V>(attention, [head / kv_heads, head % kv_heads], step, out) }
    };
    let run = |head: usize, index: usize, packed: &[f32], scratch: &mut [f32]| {
        let [first, end] = [0, 1].map(|next| queries.min((index % n_blocks + next) * block_pairs * PAIR));
        let (row, head) = (head / kv_heads, head % kv_heads * group + index / n_blocks);
        let task = Task { attention, shape: &shape, packed, row, head, queries: first..end, out };
        // SAFETY: `attend` has asserted the instructions, and no other task has these queries of this head.
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

/// Number of tile products for two factors that are each split into `parts` terms; the smallest terms are left out.
const fn products_of(parts: usize) -> usize {
    parts * (parts + 1) / 2
}

/// Which parts are multiplied, of left and right: those whose indices add up to less than their number.
fn multiplied(parts: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..parts).flat_map(move |left| (0..parts - left).map(move |right| [left, right]))
}

/// How heads are cut up.
///
/// A query's parts lie side by side, as do a key's, so that one walk over them makes all products: each as often as it is
/// multiplied, without gaps, or where parts are whole steps each once.
struct Shape {
    head_dim: usize,
    /// Which part of a key, one after the other.
    key_parts: Vec<usize>,
    /// Which part of a query.
    query_parts: Vec<usize>,
    /// Steps of a row of parts.
    steps: usize,
    /// Where the steps of the products lie in a row of keys and in one of queries.
    walk: Vec<[usize; 2]>,
    /// Tiles of the values of a head.
    tiles: usize,
    /// Parts of a value.
    value_parts: usize,
}

impl Shape {
    fn new<const K: usize, const V: usize>(head_dim: usize) -> Self {
        let (tiles, value_parts) = (head_dim.div_ceil(ROWS), V);
        if head_dim.is_multiple_of(STEP) {
            let steps = head_dim / STEP;
            let of = |[key, query]: [usize; 2]| (0..steps).map(move |step| [key * steps + step, query * steps + step]);
            let (walk, all) = (multiplied(K).flat_map(of).collect(), Vec::from_iter(0..K));
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
        let (key_parts, query_parts) = multiplied(K).map(|[key, query]| (key, query)).unzip();
        let steps = (products_of(K) * head_dim).div_ceil(STEP);
        Self { head_dim, key_parts, query_parts, steps, walk: (0..steps).map(|s| [s, s]).collect(), tiles, value_parts }
    }

    /// Bytes of a row of parts.
    fn row_bytes(&self) -> usize {
        self.steps * STEP * 2
    }

    /// Bytes of the keys of one step of keys.
    fn keys_bytes(&self) -> usize {
        STEP * self.row_bytes()
    }

    /// f32 that keys and values of one step of keys take.
    fn step_values(&self) -> usize {
        self.keys_bytes() / size_of::<f32>() + self.tiles * self.value_parts * TILE_VALUES
    }

    /// Number of values of each scratch buffer of a task with `n_pairs` pairs of query tiles. For all pairs: queries, sums,
    /// and largest scores with totals. For one pair: scores (where queries are prepared first) and weights.
    fn scratch(&self, n_pairs: usize) -> [usize; 5] {
        [
            n_pairs * 2 * self.steps * TILE_VALUES,
            n_pairs * self.tiles * ROWS * PAIR,
            n_pairs * 2 * PAIR,
            (BLOCK * STEP * PAIR).max(self.steps * TILE_VALUES),
            BLOCK * 2 * self.value_parts * TILE_VALUES,
        ]
    }

    /// A step of keys, as rows of parts, and of values, as tiles of sixteen columns and the step's slots, part by part.
    /// What is not there is zero.
    ///
    /// # Safety
    /// The machine has the instructions.
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
                    // SAFETY: the mask hides what is behind the value's end.
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
                // SAFETY: there is room for `V` tiles.
                unsafe { store_transposed(pairs, out.as_mut_ptr().add(part * TILE_VALUES).cast()) };
            }
        }
    }

    /// A row of parts, each times `scale`; zero where there are no values.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write_row<const K: usize>(&self, values: Option<&[f32]>, scale: f32, which: &[usize], out: &mut [f32]) {
        let out: &mut [u16] = bytemuck::cast_slice_mut(out);
        let Some(values) = values else { return out.fill(0) };
        let width = self.head_dim;
        out[which.len() * width..].fill(0);
        let scale = _mm512_set1_ps(scale);
        for column in (0..width).step_by(STEP) {
            let here = ((1u64 << STEP.min(width - column)) - 1) as u32;
            // SAFETY: guaranteed by the caller; masks keep to the values, and to each part's place.
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
