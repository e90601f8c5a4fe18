//! Attention of many queries on tiles of bf16.
//!
//! Numbers are sums of bf16: three where results are to be as good as those of f32; where activations are rounded, two
//! for queries and keys, and one for weights and values, which then differ by 2⁻⁸ at most each. Both
//! products are made transposed, scores as `keys queryᵀ` and sums as `valuesᵀ weightsᵀ`: lanes are queries throughout, so
//! that maxima, totals and scales are vectors, and pairs of rows of weights are rows of a tile as they stand.

#![allow(unsafe_code)] // instructions, pointers, and tasks that write disjoint parts of one slice
#![allow(clippy::needless_range_loop)] // several arrays advance together

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::amx::{ROWS, STEP, TILE, Tiles, load, mask, pair_parts, parts, store_transposed, transposed};
use super::attend::Attention;
use super::shared::{SharedOut, with_scratch};
use crate::Activations;

/// Queries of two tiles, which go together.
const PAIR: usize = 2 * ROWS;

/// Most pairs of tiles of queries in a task: keys and values are read once for so many, and the second cache holds what
/// they need.
const MOST_PAIRS: usize = 16;

/// Tasks of a thread, about: from so many heads on a task is all of one, whose keys and values stay in its second cache as
/// far as that holds them.
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
pub(super) fn pays(attention: &Attention<'_>) -> bool {
    let n_queries = attention.queries * (attention.heads / attention.kv_heads);
    match attention.activations {
        Activations::F32 => n_queries >= QUERIES || n_queries * KEYS >= attention.len,
        Activations::Int8 => true,
    }
}

/// [`super::attend()`].
pub(super) fn attend(attention: &Attention<'_>, out: SharedOut<'_>) {
    match attention.activations {
        Activations::F32 => attend_in::<{ EXACT[0] }, { EXACT[1] }>(attention, out),
        Activations::Int8 => attend_in::<{ ROUNDED[0] }, { ROUNDED[1] }>(attention, out),
    }
}

/// Products of bf16 that one of the whole takes, on average of scores and sums.
pub(super) fn products(activations: Activations) -> f64 {
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
        // SAFETY: the instructions are there.
        unsafe { shape.pack::<K, V>(attention, [head / kv_heads, head % kv_heads], step, out) }
    };
    let run = |head: usize, index: usize, packed: &[f32], scratch: &mut [f32]| {
        let [first, end] = [0, 1].map(|next| queries.min((index % n_blocks + next) * block_pairs * PAIR));
        let (row, head) = (head / kv_heads, head % kv_heads * group + index / n_blocks);
        let task = Task { attention, shape: &shape, packed, row, head, queries: first..end, out };
        // SAFETY: the instructions are there, and no other task has these queries of this head.
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

/// How many that is of numbers that are sums of so many.
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

    /// Values of the memory of one task for so many pairs of tiles of queries: of all pairs their queries, their sums, and
    /// their largest scores and totals; of one pair scores, where queries are made before, and weights.
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
                // SAFETY: as the caller vouches.
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
                // SAFETY: as the caller vouches.
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
            // SAFETY: as the caller vouches; masks keep to the values, and to each part's place.
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

/// Some queries of one head.
struct Task<'a> {
    attention: &'a Attention<'a>,
    shape: &'a Shape,
    /// Keys and values of the head.
    packed: &'a [f32],
    row: usize,
    head: usize,
    queries: Range<usize>,
    out: SharedOut<'a>,
}

/// Memory of a pair of tiles of queries.
struct Pair<'a> {
    queries: Range<usize>,
    /// `[2, steps]` tiles.
    query: &'a [f32],
    /// `[tiles · 16, 32]`.
    sums: &'a mut [f32],
    /// The largest scores, then the totals of the weights.
    state: &'a mut [f32],
    /// Keys up to the last that any of the queries sees.
    seen: usize,
}

impl Task<'_> {
    /// Writes the output of the queries.
    ///
    /// # Safety
    /// The machine has the instructions, and the outputs of these queries are the caller's.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run<const K: usize, const V: usize>(self, scratch: &mut [f32]) {
        let n_pairs = self.queries.len().div_ceil(PAIR);
        if n_pairs == 0 {
            return;
        }
        let sizes = self.shape.scratch(n_pairs);
        let (query, scratch) = scratch.split_at_mut(sizes[0]);
        let (sums, scratch) = scratch.split_at_mut(sizes[1]);
        let (state, scratch) = scratch.split_at_mut(sizes[2]);
        let (scores, weights) = scratch.split_at_mut(sizes[3]);
        // SAFETY: as the caller vouches.
        unsafe {
            self.pack_queries::<K>(query, scores);
            let memory = query.chunks_exact(sizes[0] / n_pairs).zip(sums.chunks_exact_mut(sizes[1] / n_pairs));
            let mut pairs: Vec<Pair<'_>> = Vec::with_capacity(n_pairs);
            for (index, ((query, sums), state)) in memory.zip(state.chunks_exact_mut(2 * PAIR)).enumerate() {
                let first = self.queries.start + index * PAIR;
                let queries = first..self.queries.end.min(first + PAIR);
                let seen = self.attention.seen(self.row, queries.clone());
                state[..PAIR].fill(f32::NEG_INFINITY);
                state[PAIR..].fill(0.0);
                if seen == 0 {
                    sums.fill(0.0);
                }
                pairs.push(Pair { queries, query, sums, state, seen });
            }
            let tiles = Tiles::new();
            let steps = pairs.iter().map(|pair| pair.seen.div_ceil(STEP)).max().unwrap_or(0);
            for first in (0..steps).step_by(BLOCK) {
                for pair in &mut pairs {
                    let steps = first..pair.seen.div_ceil(STEP).min(first + BLOCK);
                    if !steps.is_empty() {
                        self.score(&tiles, steps.clone(), pair, scores);
                        self.hide(steps.clone(), pair, scores);
                        weigh::<V>(&scores[..steps.len() * STEP * PAIR], first == 0, pair, weights);
                        self.add::<V>(&tiles, steps, pair, weights);
                    }
                }
            }
            drop(tiles);
            for pair in &pairs {
                self.put(pair);
            }
        }
    }

    /// Queries as tiles of pairs of their parts, `[tiles, steps]`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack_queries<const K: usize>(&self, out: &mut [f32], scratch: &mut [f32]) {
        let Self { attention, shape, .. } = self;
        let scale = attention.scale * std::f32::consts::LOG2_E; // weights are powers of two
        let width = shape.row_bytes() / size_of::<f32>();
        for (tile, out) in out.chunks_exact_mut(shape.steps * TILE_VALUES).enumerate() {
            let rows = &mut scratch[..ROWS * width];
            for (lane, out) in rows.chunks_exact_mut(width).enumerate() {
                let query = self.queries.start + tile * ROWS + lane;
                let is_there = query < self.queries.end;
                let query = is_there.then(|| attention.query.slot([self.row, self.head, query], shape.head_dim));
                // SAFETY: as the caller vouches.
                unsafe { shape.write_row::<K>(query, scale, &shape.query_parts, out) };
            }
            for (step, out) in out.chunks_exact_mut(TILE_VALUES).enumerate() {
                let mut columns = [_mm512_setzero_si512(); ROWS];
                for lane in 0..ROWS {
                    // SAFETY: a row has `steps` times 64 bytes.
                    columns[lane] = unsafe { _mm512_loadu_si512(rows[lane * width + step * ROWS..].as_ptr().cast()) };
                }
                // SAFETY: there is room for a tile.
                unsafe { store_transposed(columns, out.as_mut_ptr().cast()) };
            }
        }
    }

    /// Keys and values of a step of keys.
    fn packed(&self, step: usize) -> [*const u8; 2] {
        let packed = self.packed[step * self.shape.step_values()..][..self.shape.step_values()].as_ptr().cast::<u8>();
        [packed, packed.wrapping_add(self.shape.keys_bytes())]
    }

    /// Scores: `[steps · 32, 32]`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn score(&self, tiles: &Tiles, steps: Range<usize>, pair: &Pair<'_>, scores: &mut [f32]) {
        let query = pair.query.as_ptr().cast::<u8>();
        let query = [query, query.wrapping_add(self.shape.steps * TILE)];
        for (step, out) in steps.zip(scores.chunks_exact_mut(STEP * PAIR)) {
            let [keys, _] = self.packed(step);
            // SAFETY: rows of keys and tiles of queries have these steps, and the scores 32 rows.
            unsafe {
                tiles.clear();
                for [key, at] in &self.shape.walk {
                    let keys = [0, 1].map(|tile| keys.wrapping_add((2 * key + tile) * TILE));
                    tiles.step(keys, query.map(|query| query.wrapping_add(at * TILE)));
                }
                tiles.store(four(out.as_mut_ptr()), PAIR * size_of::<f32>());
            }
        }
    }

    /// Scores of hidden keys, and of those behind the last, become −∞.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn hide(&self, steps: Range<usize>, pair: &Pair<'_>, scores: &mut [f32]) {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        for (step, scores) in steps.zip(scores.chunks_exact_mut(STEP * PAIR)) {
            let first = step * STEP;
            let n_keys = STEP.min(self.attention.len - first);
            scores[n_keys * PAIR..].fill(f32::NEG_INFINITY);
            if self.attention.masked_out.is_none() {
                continue;
            }
            // A bit for each key.
            let (mut hidden, mut any) = ([0u32; PAIR], 0);
            for (hidden, query) in hidden.iter_mut().zip(pair.queries.clone()) {
                let Some(masked_out) = self.attention.masked_out(self.row, query) else { continue };
                let masked_out = &masked_out[first..first + n_keys];
                // SAFETY: a bool is a byte, and the mask hides what is behind the last.
                *hidden = unsafe {
                    let there = ((1u64 << n_keys) - 1) as u32;
                    let bytes = _mm256_maskz_loadu_epi8(there, masked_out.as_ptr().cast());
                    _mm256_test_epi8_mask(bytes, bytes)
                };
                any |= *hidden;
            }
            if any == 0 {
                continue;
            }
            // SAFETY: 32 queries are two vectors.
            let hidden = [0, ROWS].map(|at| unsafe { _mm512_loadu_si512(hidden[at..].as_ptr().cast()) });
            for (key, scores) in scores.chunks_exact_mut(PAIR).enumerate() {
                let bit = _mm512_set1_epi32((1u32 << key).cast_signed());
                for (hidden, scores) in hidden.into_iter().zip(scores.chunks_exact_mut(ROWS)) {
                    let hidden = _mm512_test_epi32_mask(hidden, bit);
                    // SAFETY: sixteen scores.
                    unsafe { _mm512_mask_storeu_ps(scores.as_mut_ptr(), hidden, lowest) };
                }
            }
        }
    }

    /// Adds values times weights to the sums.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add<const V: usize>(&self, tiles: &Tiles, steps: Range<usize>, pair: &mut Pair<'_>, weights: &[f32]) {
        let stride = PAIR * size_of::<f32>();
        let weights = weights.as_ptr().cast::<u8>();
        for first in (0..self.shape.tiles).step_by(2) {
            let sums = &mut pair.sums[first * ROWS * PAIR..];
            let is_pair = first + 1 < self.shape.tiles;
            // SAFETY: sums have sixteen rows for each tile; values and weights have these steps and parts.
            unsafe {
                match (steps.start, is_pair) {
                    (0, _) => tiles.clear(),
                    (_, true) => tiles.load(four(sums.as_mut_ptr()), stride),
                    (_, false) => tiles.load_half(four(sums.as_mut_ptr()), stride),
                }
                for (index, step) in steps.clone().enumerate() {
                    let values = self.packed(step)[1].wrapping_add(first * V * TILE);
                    for value in 0..V {
                        for weight in 0..V - value {
                            let values = [0, V].map(|tile| values.wrapping_add((tile + value) * TILE));
                            let weights =
                                [0, BLOCK].map(|tile| weights.wrapping_add(((tile + index) * V + weight) * TILE));
                            if is_pair {
                                tiles.step(values, weights);
                            } else {
                                tiles.half_step(values[0], weights);
                            }
                        }
                    }
                }
                if is_pair {
                    tiles.store(four(sums.as_mut_ptr()), stride);
                } else {
                    tiles.store_half(four(sums.as_mut_ptr()), stride);
                }
            }
        }
    }

    /// Divides the sums by the totals of the weights, 0 where nothing was seen, and puts them where they belong.
    ///
    /// # Safety
    /// The machine has the instructions, and the outputs of these queries are the caller's.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn put(&self, pair: &Pair<'_>) {
        let Attention { queries, heads, head_dim, .. } = *self.attention;
        for side in 0..2 {
            // SAFETY: totals and sums have 32 lanes; masks keep to the head's values.
            unsafe {
                let total = _mm512_loadu_ps(pair.state[PAIR + side * ROWS..].as_ptr());
                let nothing = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(total, _mm512_setzero_ps());
                let inverse = _mm512_mask_div_ps(_mm512_setzero_ps(), !nothing, _mm512_set1_ps(1.0), total);
                for tile in 0..self.shape.tiles {
                    let mut rows = [_mm512_setzero_si512(); ROWS];
                    for row in 0..ROWS {
                        let sums = _mm512_loadu_ps(pair.sums[(tile * ROWS + row) * PAIR + side * ROWS..].as_ptr());
                        rows[row] = _mm512_castps_si512(_mm512_mul_ps(sums, inverse));
                    }
                    let columns = mask(tile * ROWS, head_dim);
                    let first = pair.queries.start + side * ROWS;
                    for (query, values) in (first..pair.queries.end).zip(transposed(rows)) {
                        let start = ((self.row * queries + query) * heads + self.head) * head_dim;
                        let out = self.out.slice(start, head_dim).as_mut_ptr().wrapping_add(tile * ROWS);
                        _mm512_mask_storeu_ps(out, columns, _mm512_castsi512_ps(values));
                    }
                }
            }
        }
    }
}

/// The four tiles of 32 rows of 32.
fn four(start: *mut f32) -> [*mut f32; 4] {
    [0, ROWS, ROWS * PAIR, ROWS * PAIR + ROWS].map(|at| start.wrapping_add(at))
}

/// Turns the next scores of 32 queries, `[keys, 32]`, into weights relative to the largest scores so far, as tiles of
/// pairs of keys, `[2, BLOCK, V]`; scales what was summed with earlier ones, if this is not the `first` block. Of nothing
/// but hidden keys the weights are 0.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn weigh<const V: usize>(scores: &[f32], first: bool, pair: &mut Pair<'_>, weights: &mut [f32]) {
    /// Rows that are compared in turn.
    const TURNS: usize = 4;
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let weights = weights.as_mut_ptr().cast::<u8>();
    // SAFETY: rows of scores, sums and state are two vectors, and each pair of rows is one of a tile of weights.
    unsafe {
        let mut found = [[lowest; 2]; TURNS];
        for rows in scores.chunks_exact(TURNS * PAIR) {
            for turn in 0..TURNS {
                for side in 0..2 {
                    let scores = _mm512_loadu_ps(rows.as_ptr().add(turn * PAIR + side * ROWS));
                    found[turn][side] = _mm512_max_ps(found[turn][side], scores);
                }
            }
        }
        for side in 0..2 {
            let state = pair.state.as_mut_ptr().add(side * ROWS);
            let [a, b, c, d] = found.map(|found| found[side]);
            let earlier = _mm512_loadu_ps(state);
            let largest = _mm512_max_ps(earlier, _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
            let is_lowest = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(largest, lowest);
            let base = _mm512_mask_mov_ps(largest, is_lowest, _mm512_setzero_ps());
            let mut totals = [_mm512_setzero_ps(); 2];
            for (row, rows) in scores.chunks_exact(2 * PAIR).enumerate() {
                let [even, odd] = [0, PAIR]
                    .map(|at| exp2::<V>(_mm512_sub_ps(_mm512_loadu_ps(rows.as_ptr().add(at + side * ROWS)), base)));
                totals[0] = _mm512_add_ps(totals[0], even);
                totals[1] = _mm512_add_ps(totals[1], odd);
                let parts: [__m512i; V] = pair_parts(even, odd);
                let (step, row) = (row / ROWS, row % ROWS);
                for part in 0..V {
                    let tile = (side * BLOCK + step) * V + part;
                    _mm512_storeu_si512(weights.add(tile * TILE + row * 64).cast(), parts[part]);
                }
            }
            let mut total = _mm512_add_ps(totals[0], totals[1]);
            if !first {
                let factor = exp2::<3>(_mm512_sub_ps(earlier, base));
                total = _mm512_fmadd_ps(_mm512_loadu_ps(state.add(PAIR)), factor, total);
                if _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(factor, _mm512_set1_ps(1.0)) != 0 {
                    for sums in pair.sums.chunks_exact_mut(PAIR) {
                        let sums = sums.as_mut_ptr().add(side * ROWS);
                        _mm512_storeu_ps(sums, _mm512_mul_ps(_mm512_loadu_ps(sums), factor));
                    }
                }
            }
            _mm512_storeu_ps(state, largest);
            _mm512_storeu_ps(state.add(PAIR), total);
        }
    }
}

/// `2ˣ`, which is then the sum of `PARTS` bf16: to 10⁻⁴ for one, to f32's rounding for more. 0 for −∞; NaN stays.
///
/// Polynomials are those through `2ˣ` at the Chebyshev nodes of 0 to 1.
///
/// # Safety
/// The machine has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2<const PARTS: usize>(x: __m512) -> __m512 {
    const ROUNDED: [f32; 4] = [0.078_967_26, 0.224_693_15, 0.696_324_8, 0.999_900_3];
    const EXACT: [f32; 7] =
        [2.186_578_5e-4, 1.239_133_2e-3, 9.684_186e-3, 5.548_063e-2, 0.240_230_46, 0.693_146_94, 1.0];
    let fraction = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x); // x − ⌊x⌋
    let coefficients: &[f32] = if PARTS == 1 { &ROUNDED } else { &EXACT };
    let mut power = _mm512_set1_ps(coefficients[0]);
    for coefficient in &coefficients[1..] {
        power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(*coefficient));
    }
    _mm512_scalef_ps(power, x) // times 2 to the power of ⌊x⌋
}
