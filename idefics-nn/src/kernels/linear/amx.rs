//! Many rows of activations on tiles of bf16.
//!
//! Activations are split into three bf16 once. Weights are expanded block by block into as many bf16 as they need (one
//! for bf16 and int8, two for f16 and q4, three for the rest), in the order of the tiles, and each block is used for all
//! rows while it is in the cache.

#![allow(unsafe_code)] // instructions and pointers

use std::arch::x86_64::*;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::amx::{PARTS, ROWS, STEP, TILE, Tiles, load, mask, pack_tile, pair_parts, parts, transposed};
use super::super::shared::with_scratch;
use super::{Product, spans_rows};
use crate::formats::{BLOCK, Dense, FourBit, Int8, Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Q4_TILE, Weight};

/// Rows of activations that go together: their share of [`CHUNK`] stays in the second cache.
const MOST_ROWS: usize = 512;

/// Steps of columns after which sums are put down: what a block of weights and the rows need stays in the caches.
const CHUNK: usize = 16;

/// Output features of a task, about: the activations are read once for so many.
const TASK: usize = 256;

/// Output features of a block of weights: two tiles.
const BLOCK_FEATURES: usize = 2 * ROWS;

/// Whether the weight can be multiplied so.
pub(super) fn takes(weight: &Weight<'_>) -> bool {
    !spans_rows(weight)
}

pub(super) fn product(product: &Product<'_>, weight: &Weight<'_>) {
    match weight {
        Weight::F32(weight) => multiply::<3>(product, weight, None),
        Weight::Bf16(weight) => multiply::<1>(product, weight, None),
        Weight::F16(weight) => multiply::<2>(product, weight, None),
        Weight::Int8(weight) => multiply::<1>(product, weight, Some(weight.scales())),
        Weight::FourBit(weight) => multiply::<3>(product, weight, None),
        Weight::Q4(weight) => multiply::<2>(product, weight, None),
    }
}

/// A weight that becomes tiles, each the sum of `N` tiles of bf16.
trait Source<const N: usize>: Sync {
    /// Tiles of features `16 tile ..` and columns `32 step ..`: `N` times 16 pairs of columns of 16 features. What is
    /// not there is zero.
    ///
    /// # Safety
    /// The machine has the instructions; `out` is valid for writing `N` tiles.
    unsafe fn write(&self, tile: usize, step: usize, out: *mut u8);
}

fn multiply<const N: usize>(product: &Product<'_>, weight: &impl Source<N>, scales: Option<&[f32]>) {
    let steps = product.d_in.div_ceil(STEP);
    let n_groups = product.n_rows.div_ceil(MOST_ROWS);
    let group = product.n_rows.div_ceil(n_groups).next_multiple_of(ROWS);
    let threads = rayon::current_num_threads();
    let n_tasks = product.d_out.div_ceil(threads * TASK) * threads;
    let task = product.d_out.div_ceil(n_tasks).next_multiple_of(BLOCK_FEATURES);
    for first in (0..product.n_rows).step_by(group) {
        let rows = first..product.n_rows.min(first + group);
        let row_tiles = rows.len().div_ceil(ROWS);
        with_scratch(row_tiles * steps * PARTS * TILE / size_of::<f32>(), |scratch| {
            pack(product, rows.clone(), steps, scratch);
            let packed: &[u8] = bytemuck::cast_slice(scratch);
            product.split_evenly(task, |features| {
                let block = Block { product, rows: rows.clone(), steps, packed };
                block.multiply(weight, features.clone());
                block.finish(features, scales);
            });
        });
    }
}

/// Rows `rows` of the activations as tiles, `[row tiles, steps, PARTS]`.
fn pack(product: &Product<'_>, rows: Range<usize>, steps: usize, out: &mut [f32]) {
    let row_values = steps * PARTS * TILE / size_of::<f32>();
    out.par_chunks_mut(row_values).enumerate().for_each(|(tile, out)| {
        let first = rows.start + tile * ROWS;
        let x = &product.x[first * product.d_in..rows.end.min(first + ROWS) * product.d_in];
        // SAFETY: the caller has made sure of the instructions.
        unsafe { pack_tile(x, product.d_in, out) };
    });
}

/// What a task works on beside its weights.
struct Block<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    steps: usize,
    /// `[row tiles, steps, PARTS]` tiles.
    packed: &'a [u8],
}

impl Block<'_> {
    /// The sums of the output features `features`.
    fn multiply<const N: usize>(&self, weight: &impl Source<N>, features: Range<usize>) {
        let tiles = Tiles::new();
        with_scratch(2 * CHUNK * N * TILE / size_of::<f32>(), |scratch| {
            let weights = scratch.as_mut_ptr().cast::<u8>();
            for first_step in (0..self.steps).step_by(CHUNK) {
                let steps = first_step..self.steps.min(first_step + CHUNK);
                for first in features.clone().step_by(BLOCK_FEATURES) {
                    for tile in 0..2 {
                        for step in steps.clone() {
                            let at = (tile * CHUNK + step - first_step) * N * TILE;
                            // SAFETY: the scratch holds two tiles of features of `CHUNK` steps.
                            unsafe { weight.write(first / ROWS + tile, step, weights.add(at)) };
                        }
                    }
                    let features = first..features.end.min(first + BLOCK_FEATURES);
                    self.rows::<N>(&tiles, weights, features, steps.clone());
                }
            }
        });
    }

    /// One block of weights with every row.
    fn rows<const N: usize>(&self, tiles: &Tiles, weights: *const u8, features: Range<usize>, steps: Range<usize>) {
        let d_out = self.product.d_out;
        let out = self.product.out;
        let row_tile = |tile: usize| self.packed[(tile * self.steps + steps.start) * PARTS * TILE..].as_ptr();
        let weights = [weights, weights.wrapping_add(CHUNK * N * TILE)];
        for tile in (0..self.rows.len().div_ceil(ROWS)).step_by(2) {
            let first = self.rows.start + tile * ROWS;
            let n_rows = (self.rows.end - first).min(2 * ROWS);
            // A second tile of rows that is not there is the first once more.
            let activations = [row_tile(tile), row_tile(if n_rows > ROWS { tile + 1 } else { tile })];
            let clear = steps.start == 0;
            // SAFETY: tiles of activations and weights are there for these steps. The sums of whole tiles are this
            // task's part of the output; others go over a copy.
            unsafe {
                if n_rows == 2 * ROWS && features.len() == BLOCK_FEATURES {
                    let sums = [[0, 0], [0, ROWS], [ROWS, 0], [ROWS, ROWS]]
                        .map(|[row, feature]| out.pointer((first + row) * d_out + features.start + feature));
                    tiles.multiply::<N>(activations, weights, steps.len(), sums, d_out * size_of::<f32>(), clear);
                } else {
                    let mut copy = [0f32; 4 * ROWS * ROWS];
                    let row_of = |row: usize| out.slice((first + row) * d_out + features.start, features.len());
                    if !clear {
                        for row in 0..n_rows {
                            copy[row * BLOCK_FEATURES..][..features.len()].copy_from_slice(row_of(row));
                        }
                    }
                    let sums = [0, ROWS, ROWS * BLOCK_FEATURES, ROWS * BLOCK_FEATURES + ROWS]
                        .map(|at| copy.as_mut_ptr().add(at));
                    tiles.multiply::<N>(
                        activations,
                        weights,
                        steps.len(),
                        sums,
                        size_of::<[f32; BLOCK_FEATURES]>(),
                        clear,
                    );
                    for row in 0..n_rows {
                        row_of(row).copy_from_slice(&copy[row * BLOCK_FEATURES..][..features.len()]);
                    }
                }
            }
        }
    }

    /// Multiplies with the features' scales and adds the bias.
    fn finish(&self, features: Range<usize>, scales: Option<&[f32]>) {
        let Product { bias, d_out, .. } = *self.product;
        if scales.is_none() && bias.is_none() {
            return;
        }
        for row in self.rows.clone() {
            // SAFETY: tasks have disjoint features.
            let out = unsafe { self.product.out.slice(row * d_out + features.start, features.len()) };
            if let Some(scales) = scales {
                out.iter_mut().zip(&scales[features.clone()]).for_each(|(out, scale)| *out *= scale);
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(&bias[features.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Implements [`Source`] for a weight that is stored row after row, by a function of a row and a step that gives its
/// columns in order.
macro_rules! by_rows {
    ($format:ty, $parts:literal, $columns:ident) => {
        impl Source<$parts> for $format {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")]
            unsafe fn write(&self, tile: usize, step: usize, out: *mut u8) {
                let mut rows = [[_mm512_setzero_si512(); ROWS]; $parts];
                let n_rows = ROWS.min(self.dims()[0].saturating_sub(tile * ROWS));
                for lane in 0..n_rows {
                    // SAFETY: the row is there, and the caller vouches for the instructions.
                    let columns: [__m512i; $parts] = unsafe { $columns(self, tile * ROWS + lane, step) };
                    for part in 0..$parts {
                        rows[part][lane] = columns[part];
                    }
                }
                // SAFETY: a tile has 16 rows of 64 bytes.
                unsafe {
                    for part in 0..$parts {
                        for (pair, values) in transposed(rows[part]).into_iter().enumerate() {
                            _mm512_storeu_si512(out.add(part * TILE + pair * 64).cast(), values);
                        }
                    }
                }
            }
        }
    };
}
by_rows!(Dense<'_, f32>, 3, f32_columns);
by_rows!(Dense<'_, bf16>, 1, bf16_columns);
by_rows!(Dense<'_, f16>, 2, f16_columns);
by_rows!(Int8<'_>, 1, int8_columns);
by_rows!(FourBit<'_>, 3, four_bit_columns);

/// # Safety
/// The machine has the instructions, and the row is there; likewise below.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn f32_columns(weight: &Dense<'_, f32>, row: usize, step: usize) -> [__m512i; 3] {
    let d_in = weight.dims()[1];
    // SAFETY: as the caller vouches.
    unsafe {
        let [first, second] = load(weight.values()[row * d_in..(row + 1) * d_in].as_ptr(), step * STEP, d_in);
        parts(first, second)
    }
}

/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn bf16_columns(weight: &Dense<'_, bf16>, row: usize, step: usize) -> [__m512i; 1] {
    let d_in = weight.dims()[1];
    let (row, at) = (&weight.values()[row * d_in..(row + 1) * d_in], step * STEP);
    let mask = u32::from(mask(at, d_in)) | u32::from(mask(at + 16, d_in)) << 16;
    // SAFETY: the mask hides what is behind the row's end.
    [unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().wrapping_add(at).cast()) }]
}

/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")]
unsafe fn f16_columns(weight: &Dense<'_, f16>, row: usize, step: usize) -> [__m512i; 2] {
    let d_in = weight.dims()[1];
    let row = weight.values()[row * d_in..(row + 1) * d_in].as_ptr();
    // SAFETY: masks hide what is behind the row's end.
    unsafe {
        let half = |at: usize| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(at, d_in), row.wrapping_add(at).cast()));
        parts(half(step * STEP), half(step * STEP + 16))
    }
}

/// Codes are exact in bf16; their row's scale comes last.
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn int8_columns(weight: &Int8<'_>, row: usize, step: usize) -> [__m512i; 1] {
    let d_in = weight.dims()[1];
    let row = weight.codes()[row * d_in..(row + 1) * d_in].as_ptr();
    // SAFETY: masks hide what is behind the row's end.
    unsafe {
        let half = |at: usize| {
            let codes = _mm_maskz_loadu_epi8(mask(at, d_in), row.wrapping_add(at));
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
        };
        parts(half(step * STEP), half(step * STEP + 16))
    }
}

/// Rows are whole blocks ([`takes`]).
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn four_bit_columns(weight: &FourBit<'_>, row: usize, step: usize) -> [__m512i; 3] {
    let at = row * weight.dims()[1] + step * STEP;
    let codes = &weight.codes()[at / 2..(at + STEP) / 2];
    let absmax = weight.absmax()[at / BLOCK];
    // SAFETY: sixteen bytes and sixteen entries are there.
    unsafe {
        let table = _mm512_mul_ps(_mm512_loadu_ps(weight.kind().table().as_ptr()), _mm512_set1_ps(absmax));
        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
        // The first of two codes in a byte is the upper one.
        let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table);
        let odd = _mm512_permutexvar_ps(codes, table); // reads the lowest four bits
        pair_parts(even, odd)
    }
}

/// Sixteen rows lie side by side already. A code's entry times its scale has fifteen bits: two bf16 are exact.
impl Source<2> for Q4<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write(&self, tile: usize, step: usize, out: *mut u8) {
        const { assert!(Q4_PANEL == ROWS && Q4_BLOCK == STEP && Q4_TILE == 256) };
        let [d_out, d_in] = self.dims();
        if tile * ROWS >= d_out {
            // SAFETY: the caller vouches for two tiles.
            return unsafe { out.write_bytes(0, 2 * TILE) };
        }
        let at = tile * d_in.div_ceil(Q4_BLOCK) + step;
        let codes = &self.codes()[at * Q4_TILE..(at + 1) * Q4_TILE];
        let scales = &self.scales()[at * Q4_PANEL..(at + 1) * Q4_PANEL];
        // SAFETY: the slices have 256 bytes and sixteen scales; the caller vouches for two tiles.
        unsafe {
            let table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(Q4_TABLE.as_ptr().cast())));
            let scales = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.as_ptr().cast()));
            let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(scales));
            let look_up = |codes: __m512i| _mm512_mul_ps(_mm512_permutexvar_ps(codes, table), scales);
            for group in 0..4 {
                // Bytes 0 to 3 of a lane: columns 4 group .. in their low halves, those 16 further on in the high ones.
                let codes = _mm512_loadu_si512(codes.as_ptr().add(group * 64).cast());
                let shifted = [
                    (2 * group, codes, _mm512_srli_epi32::<8>(codes)),
                    (2 * group + 1, _mm512_srli_epi32::<16>(codes), _mm512_srli_epi32::<24>(codes)),
                    (2 * group + 8, _mm512_srli_epi32::<4>(codes), _mm512_srli_epi32::<12>(codes)),
                    (2 * group + 9, _mm512_srli_epi32::<20>(codes), _mm512_srli_epi32::<28>(codes)),
                ];
                for (pair, even, odd) in shifted {
                    let values: [__m512i; 2] = pair_parts(look_up(even), look_up(odd));
                    for (part, values) in values.into_iter().enumerate() {
                        _mm512_storeu_si512(out.add(part * TILE + pair * 64).cast(), values);
                    }
                }
            }
        }
    }
}
