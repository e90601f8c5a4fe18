//! One task: some queries of one head attend to all blocks of the head's keys.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{BLOCK, PAIR, Shape, TILE_VALUES};
use crate::amx::{ROWS, STEP, TILE, Tiles, mask, pair_parts, store_transposed, transposed};
use crate::attention_inputs::Attention;
use crate::shared::SharedOut;

/// Some queries of one head.
pub(super) struct Task<'a> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) shape: &'a Shape,
    /// Packed keys and values of the head (see `Shape::pack`).
    pub(super) packed: &'a [f32],
    pub(super) row: usize,
    pub(super) head: usize,
    pub(super) queries: Range<usize>,
    pub(super) out: SharedOut<'a>,
}

/// A pair of query tiles and its scratch memory.
struct Pair<'a> {
    queries: Range<usize>,
    /// Packed queries: `[2, steps]` tiles.
    query: &'a [f32],
    /// Weighted sums of the values: `[tiles · 16, 32]`.
    sums: &'a mut [f32],
    /// `[2, 32]`: the largest scores so far, then the totals of the weights.
    state: &'a mut [f32],
    /// Number of keys up to the last key that any of the queries sees.
    seen: usize,
}

impl Task<'_> {
    /// Computes and writes the outputs of the queries.
    ///
    /// # Safety
    /// The CPU supports the enabled target features, and no other task accesses the outputs of these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn run<const K: usize, const V: usize>(self, scratch: &mut [f32]) {
        let n_pairs = self.queries.len().div_ceil(PAIR);
        if n_pairs == 0 {
            return;
        }
        let sizes = self.shape.scratch(n_pairs);
        let (query, scratch) = scratch.split_at_mut(sizes[0]);
        let (sums, scratch) = scratch.split_at_mut(sizes[1]);
        let (state, scratch) = scratch.split_at_mut(sizes[2]);
        let (scores, weights) = scratch.split_at_mut(sizes[3]);
        // SAFETY: guaranteed by the caller.
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
                        self.mask_scores(steps.clone(), pair, scores);
                        weigh::<V>(&scores[..steps.len() * STEP * PAIR], first == 0, pair, weights);
                        self.add::<V>(&tiles, steps, pair, weights);
                    }
                }
            }
            drop(tiles);
            for pair in &pairs {
                self.write_output(pair);
            }
        }
    }

    /// Packs the queries, times the scale, into `[tiles, steps]` tiles of bf16 pairs.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack_queries<const K: usize>(&self, out: &mut [f32], scratch: &mut [f32]) {
        let Self { attention, shape, .. } = self;
        let scale = attention.scale * std::f32::consts::LOG2_E; // weights are computed with 2ˣ, not eˣ
        let width = shape.row_bytes() / size_of::<f32>();
        for (tile, out) in out.chunks_exact_mut(shape.steps * TILE_VALUES).enumerate() {
            let rows = &mut scratch[..ROWS * width];
            for (lane, out) in rows.chunks_exact_mut(width).enumerate() {
                let query = self.queries.start + tile * ROWS + lane;
                let is_there = query < self.queries.end;
                let query = is_there.then(|| attention.query.slot([self.row, self.head, query], shape.head_dim));
                // SAFETY: guaranteed by the caller.
                unsafe { shape.write_row::<K>(query, scale, &shape.query_parts, out) };
            }
            for (step, out) in out.chunks_exact_mut(TILE_VALUES).enumerate() {
                let mut columns = [_mm512_setzero_si512(); ROWS];
                for lane in 0..ROWS {
                    // SAFETY: a row has `steps · 64` bytes.
                    columns[lane] = unsafe { _mm512_loadu_si512(rows[lane * width + step * ROWS..].as_ptr().cast()) };
                }
                // SAFETY: `out` has room for a tile.
                unsafe { store_transposed(columns, out.as_mut_ptr().cast()) };
            }
        }
    }

    /// Pointers to the packed keys and values of one step.
    fn packed(&self, step: usize) -> [*const u8; 2] {
        let packed = self.packed[step * self.shape.step_values()..][..self.shape.step_values()].as_ptr().cast::<u8>();
        [packed, packed.wrapping_add(self.shape.keys_bytes())]
    }

    /// Computes the scores of some steps: `[steps · 32 keys, 32 queries]`.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn score(&self, tiles: &Tiles, steps: Range<usize>, pair: &Pair<'_>, scores: &mut [f32]) {
        let query = pair.query.as_ptr().cast::<u8>();
        let query = [query, query.wrapping_add(self.shape.steps * TILE)];
        for (step, out) in steps.zip(scores.chunks_exact_mut(STEP * PAIR)) {
            let [keys, _] = self.packed(step);
            // SAFETY: packed keys and queries cover these steps, and the scores have 32 rows per step.
            unsafe {
                tiles.clear();
                for [key, at] in &self.shape.walk {
                    let keys = [0, 1].map(|tile| keys.wrapping_add((2 * key + tile) * TILE));
                    tiles.step(keys, query.map(|query| query.wrapping_add(at * TILE)));
                }
                tiles.store(quadrants(out.as_mut_ptr()), PAIR * size_of::<f32>());
            }
        }
    }

    /// Sets the scores of masked keys, and of rows past the last key, to −∞.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn mask_scores(&self, steps: Range<usize>, pair: &Pair<'_>, scores: &mut [f32]) {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        for (step, scores) in steps.zip(scores.chunks_exact_mut(STEP * PAIR)) {
            let first = step * STEP;
            let n_keys = STEP.min(self.attention.len - first);
            scores[n_keys * PAIR..].fill(f32::NEG_INFINITY);
            if self.attention.mask.is_none() {
                continue;
            }
            // One bit per key, for each query.
            let (mut hidden, mut any) = ([0u32; PAIR], 0);
            for (hidden, query) in hidden.iter_mut().zip(pair.queries.clone()) {
                let Some(mask) = self.attention.mask(self.row, query) else { continue };
                let mask = &mask[first..first + n_keys];
                // SAFETY: a bool is one byte, and the masked load does not read past the last key.
                *hidden = unsafe {
                    let there = ((1u64 << n_keys) - 1) as u32;
                    let bytes = _mm256_maskz_loadu_epi8(there, mask.as_ptr().cast());
                    _mm256_test_epi8_mask(bytes, bytes)
                };
                any |= *hidden;
            }
            if any == 0 {
                continue;
            }
            // SAFETY: `hidden` holds 32 values, which are two vectors.
            let hidden = [0, ROWS].map(|at| unsafe { _mm512_loadu_si512(hidden[at..].as_ptr().cast()) });
            for (key, scores) in scores.chunks_exact_mut(PAIR).enumerate() {
                let bit = _mm512_set1_epi32((1u32 << key).cast_signed());
                for (hidden, scores) in hidden.into_iter().zip(scores.chunks_exact_mut(ROWS)) {
                    let hidden = _mm512_test_epi32_mask(hidden, bit);
                    // SAFETY: the chunk has sixteen scores.
                    unsafe { _mm512_mask_storeu_ps(scores.as_mut_ptr(), hidden, lowest) };
                }
            }
        }
    }

    /// Adds values times weights to the sums.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add<const V: usize>(&self, tiles: &Tiles, steps: Range<usize>, pair: &mut Pair<'_>, weights: &[f32]) {
        let stride = PAIR * size_of::<f32>();
        let weights = weights.as_ptr().cast::<u8>();
        for first in (0..self.shape.tiles).step_by(2) {
            let sums = &mut pair.sums[first * ROWS * PAIR..];
            let is_pair = first + 1 < self.shape.tiles;
            // SAFETY: the sums have sixteen rows per tile; values and weights cover these steps and parts.
            unsafe {
                match (steps.start, is_pair) {
                    (0, _) => tiles.clear(),
                    (_, true) => tiles.load(quadrants(sums.as_mut_ptr()), stride),
                    (_, false) => tiles.load_half(quadrants(sums.as_mut_ptr()), stride),
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
                    tiles.store(quadrants(sums.as_mut_ptr()), stride);
                } else {
                    tiles.store_half(quadrants(sums.as_mut_ptr()), stride);
                }
            }
        }
    }

    /// Divides the sums by the totals of the weights and writes the outputs. Outputs are 0 for a query that sees no
    /// key.
    ///
    /// # Safety
    /// The CPU supports the enabled target features, and no other task accesses the outputs of these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write_output(&self, pair: &Pair<'_>) {
        let Attention { queries, heads, head_dim, .. } = *self.attention;
        for side in 0..2 {
            // SAFETY: totals and sums have 32 lanes; masks limit the stores to the columns of the head.
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

/// Returns pointers to the four tiles of a 32 × 32 matrix.
fn quadrants(start: *mut f32) -> [*mut f32; 4] {
    [0, ROWS, ROWS * PAIR, ROWS * PAIR + ROWS].map(|at| start.wrapping_add(at))
}

/// Turns the next scores of 32 queries, `[keys, 32]`, into weights relative to the largest score so far. Weights are
/// stored as `[2, BLOCK, V]` tiles of key pairs. Rescales the earlier sums, unless this is the `first` block. If all
/// keys are masked, the weights are 0.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn weigh<const V: usize>(scores: &[f32], first: bool, pair: &mut Pair<'_>, weights: &mut [f32]) {
    /// Number of independent maxima, to hide the latency of the comparison.
    const TURNS: usize = 4;
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let weights = weights.as_mut_ptr().cast::<u8>();
    // SAFETY: rows of scores, sums and state are two vectors wide; two rows of scores become one row of a weight
    // tile.
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

/// Computes `2ˣ` for a result that is split into `PARTS` bf16. It is accurate to 10⁻⁴ for one part, and to f32 rounding
/// for more parts. −∞ gives 0, and NaN gives NaN.
///
/// The polynomials interpolate `2ˣ` at the Chebyshev nodes between 0 and 1.
///
/// # Safety
/// The CPU supports the enabled target features.
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
    _mm512_scalef_ps(power, x) // times 2^⌊x⌋
}
