//! Attention of many queries on tiles of bf16: both products are of f32 that are split.

#![allow(unsafe_code)] // instructions, and tasks that write disjoint parts of one slice
#![allow(clippy::needless_range_loop)] // several arrays advance together

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::super::amx::{PARTS, ROWS, STEP, TILE, Tiles, load, pack_columns, pack_rows, pair_parts};
use super::super::shared::{SharedOut, with_scratch};
use super::super::{Cached, Isa};
use super::{Attention, BLOCK, divide, softmax};

/// f32 values that the parts of one step of sixteen rows take.
const STEP_VALUES: usize = PARTS * TILE / size_of::<f32>();

pub(super) fn attend(attention: &Attention<'_>, out: SharedOut<'_>) {
    let Attention { batch, heads, kv_heads, queries, len, head_dim, .. } = *attention;
    let (group, n_blocks) = (heads / kv_heads, queries.div_ceil(BLOCK));
    let shape = Shape::new(len, head_dim);
    with_scratch(shape.keys() + shape.values(), |scratch| {
        let (keys, values) = scratch.split_at_mut(shape.keys());
        for (row, kv_head) in (0..batch).flat_map(|row| (0..kv_heads).map(move |kv_head| (row, kv_head))) {
            let head = [row, kv_head];
            keys.par_chunks_mut(shape.head_steps * STEP_VALUES).enumerate().for_each(|(tile, out)| {
                // SAFETY: the instructions are there, and `check` found every key inside its slice.
                unsafe { pack_keys(attention, head, tile, out) };
            });
            values.par_chunks_mut(shape.key_steps * STEP_VALUES).enumerate().for_each(|(tile, out)| {
                // SAFETY: as above, for values.
                unsafe { pack_values(attention, head, tile, out) };
            });
            let (keys, values) = (&*keys, &*values);
            (0..group * n_blocks).into_par_iter().for_each(|task| {
                let head = [row, kv_head * group + task / n_blocks];
                block(attention, &shape, head, task % n_blocks, [keys, values], out);
            });
        }
    });
}

/// Sizes of one head, filled up to whole tiles and pairs of them.
struct Shape {
    /// Steps over the values of a head.
    head_steps: usize,
    /// Steps over the keys; two tiles of keys each.
    key_steps: usize,
    /// Tiles of the values of a head, even.
    head_tiles: usize,
}

impl Shape {
    fn new(len: usize, head_dim: usize) -> Self {
        Self {
            head_steps: head_dim.div_ceil(STEP),
            key_steps: len.div_ceil(STEP),
            head_tiles: head_dim.div_ceil(2 * ROWS) * 2,
        }
    }

    /// f32 values that the tiles of all keys take.
    fn keys(&self) -> usize {
        2 * self.key_steps * self.head_steps * STEP_VALUES
    }

    /// Likewise of all values.
    fn values(&self) -> usize {
        self.head_tiles * self.key_steps * STEP_VALUES
    }
}

/// One block of queries of one head.
fn block(
    attention: &Attention<'_>,
    shape: &Shape,
    [row, head]: [usize; 2],
    block: usize,
    [keys, values]: [&[f32]; 2],
    out: SharedOut<'_>,
) {
    let Attention { heads, head_dim, .. } = *attention;
    let queries = attention.queries_of(block);
    let seen = attention.seen(row, queries.clone());
    let steps = seen.div_ceil(STEP);
    let (width, sums_width) = (steps * STEP, shape.head_tiles * ROWS);
    let sizes = [BLOCK * head_dim, 2 * shape.head_steps * STEP_VALUES, BLOCK * width, 2 * steps * STEP_VALUES];
    let bytes = |values: &[f32], at: usize| values[at..].as_ptr().cast::<u8>();
    with_scratch(sizes.iter().sum::<usize>() + BLOCK * sums_width, |scratch| {
        let (query, scratch) = scratch.split_at_mut(sizes[0]);
        let (query_tiles, scratch) = scratch.split_at_mut(sizes[1]);
        let (scores, scratch) = scratch.split_at_mut(sizes[2]);
        let (weight_tiles, sums) = scratch.split_at_mut(sizes[3]);
        let tiles = Tiles::new();

        // Scores: [BLOCK, width].
        for (index, out) in query.chunks_exact_mut(head_dim).enumerate() {
            if let Some(query) = queries.clone().nth(index) {
                let query = &attention.query.values[attention.query.start([row, head, query])..][..head_dim];
                out.iter_mut().zip(query).for_each(|(out, value)| *out = value * attention.scale);
            } else {
                out.fill(0.0);
            }
        }
        for (query, out) in query.chunks(ROWS * head_dim).zip(query_tiles.chunks_mut(shape.head_steps * STEP_VALUES)) {
            // SAFETY: the instructions are there.
            unsafe { pack_rows::<PARTS>(query, head_dim, out) };
        }
        let pair = |values: &[f32], tile: usize| {
            [tile, tile + 1].map(|tile| bytes(values, tile * shape.head_steps * STEP_VALUES))
        };
        for step in 0..steps {
            // SAFETY: all tiles of these queries and keys are there, and 32 rows of scores.
            unsafe {
                let sums = {
                    let start = scores.as_mut_ptr().add(step * STEP);
                    [0, ROWS, ROWS * width, ROWS * width + ROWS].map(|at| start.add(at))
                };
                tiles.multiply::<PARTS, PARTS>(
                    pair(query_tiles, 0),
                    pair(keys, 2 * step),
                    shape.head_steps,
                    sums,
                    width * size_of::<f32>(),
                    true,
                );
            }
        }

        // Weights, which take the scores' place.
        let mut totals = [0f32; BLOCK];
        for (index, query) in queries.clone().enumerate() {
            let scores = &mut scores[index * width..(index + 1) * width];
            scores[seen..].fill(0.0);
            totals[index] = softmax(Isa::Amx, &mut scores[..seen], attention.masked_out(row, query));
        }

        // Sums: [BLOCK, sums_width].
        if steps > 0 {
            for (weights, out) in scores.chunks(ROWS * width).zip(weight_tiles.chunks_mut(steps * STEP_VALUES)) {
                // SAFETY: the instructions are there.
                unsafe { pack_rows::<PARTS>(weights, width, out) };
            }
            for tile in (0..shape.head_tiles).step_by(2) {
                let activations = [0, 1].map(|tile| bytes(weight_tiles, tile * steps * STEP_VALUES));
                let values = [tile, tile + 1].map(|tile| bytes(values, tile * shape.key_steps * STEP_VALUES));
                // SAFETY: all tiles are there for these steps, and 32 rows of sums.
                unsafe {
                    let start = sums.as_mut_ptr().add(tile * ROWS);
                    let sums = [0, ROWS, ROWS * sums_width, ROWS * sums_width + ROWS].map(|at| start.add(at));
                    tiles.multiply::<PARTS, PARTS>(
                        activations,
                        values,
                        steps,
                        sums,
                        sums_width * size_of::<f32>(),
                        true,
                    );
                }
            }
        }
        for (index, query) in queries.clone().enumerate() {
            let first = ((row * attention.queries + query) * heads + head) * head_dim;
            // SAFETY: the outputs of this head and these queries are this task's.
            let out = unsafe { out.slice(first, head_dim) };
            out.copy_from_slice(&sums[index * sums_width..][..head_dim]);
            divide(out, totals[index]);
        }
    });
}

/// Sixteen keys as `[head_steps, PARTS]` tiles of pairs of their values; zero behind the last key.
///
/// # Safety
/// The machine has the instructions, and every key is inside its slice.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_keys(attention: &Attention<'_>, [row, head]: [usize; 2], tile: usize, out: &mut [f32]) {
    let key = |lane| attention.keys.values[attention.keys.start([row, head, tile * ROWS + lane])..].as_ptr();
    let n_keys = attention.len.saturating_sub(tile * ROWS);
    // SAFETY: as the caller vouches.
    unsafe { pack_columns::<PARTS>(n_keys, key, attention.head_dim, out) };
}

/// Sixteen of a head's values of all slots as `[key_steps, PARTS]` tiles of pairs of slots.
///
/// # Safety
/// The machine has the instructions, and every value is inside its slice.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_values(attention: &Attention<'_>, [row, head]: [usize; 2], tile: usize, out: &mut [f32]) {
    // SAFETY: masks hide what is behind the head's values; slots behind the last are not read.
    let slot = |slot: usize| unsafe {
        if slot >= attention.len || tile * ROWS >= attention.head_dim {
            return _mm512_setzero_ps();
        }
        let Cached { values, .. } = attention.values;
        let [values, _] =
            load(values[attention.values.start([row, head, slot])..].as_ptr(), tile * ROWS, attention.head_dim);
        values
    };
    for (step, out) in out.chunks_exact_mut(STEP_VALUES).enumerate() {
        for pair in 0..STEP / 2 {
            let first = step * STEP + 2 * pair;
            // SAFETY: a step has three tiles of 16 rows of 64 bytes.
            unsafe {
                let values: [__m512i; PARTS] = pair_parts(slot(first), slot(first + 1));
                for (part, values) in values.into_iter().enumerate() {
                    _mm512_storeu_si512(out.as_mut_ptr().cast::<u8>().add(part * TILE + pair * 64).cast(), values);
                }
            }
        }
    }
}
