//! Products of many rows of activations on AMX tiles.
//!
//! Each activation is split once into three bf16 parts. The parts are packed as tiles, in which sixteen rows lie side
//! by side, in pairs of columns. Weights are expanded block by block into bf16 parts: one part for bf16 and int8, two
//! for f16 and q4, three for f32, nf4 and fp4. An expanded block is used for all rows while it is in the cache.

#![allow(unsafe_code)] // intrinsics and raw pointers

use std::arch::x86_64::*;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Isa, Product, is_uneven};
use crate::amx::{
    PARTS, ROWS, STEP, TILE, Tiles, load, mask, pack_columns, pair_parts, parts, store_transposed, transposed,
};
use crate::formats::{BLOCK, Dense, FourBit, Int8, Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Q4_TILE, Weight};
use crate::shared::with_scratch;

/// Limits how many activation rows are processed together: their tiles for one chunk of columns and their sums for one
/// task must fit in this many bytes. Chosen for the L2 cache.
const ROWS_BYTES: usize = 5 << 18;

/// Number of steps in a chunk of columns. Sums are stored after each chunk, so that the weights and activations of a
/// chunk stay in the caches.
const CHUNK: usize = 16;

/// Approximate number of output features per task. Each task reads the activations once.
const TASK: usize = 256;

/// Number of rows or output features in a pair of tiles.
const PAIR: usize = 2 * ROWS;

/// Number of f32 sums in the product of a pair of feature tiles and a pair of row tiles: four tiles of sums.
const SUMS: usize = PAIR * PAIR;

/// Whether the weight can be multiplied on tiles. Int4 weights and GGUF blocks cannot be expanded to bf16 yet.
pub(super) fn supports(weight: &Weight<'_>) -> bool {
    !is_uneven(weight) && !matches!(weight, Weight::Int4(_) | Weight::Blocks(_))
}

/// Number of bf16 tile products that replace one product of an f32 tile of activations and an f32 tile of weights.
pub(super) fn products(weight: &Weight<'_>) -> f64 {
    match weight {
        Weight::Bf16(_) | Weight::Int8(_) => 3.0,
        Weight::F16(_) | Weight::Q4(_) => 5.0,
        Weight::F32(_) | Weight::FourBit(_) | Weight::Blocks(_) => 6.0,
        Weight::Int4(_) => unreachable!("int4 is not multiplied on tiles"),
    }
}

pub(super) fn product(product: &Product<'_>, weight: &Weight<'_>) {
    assert!(product.isa == Isa::Amx, "CPU support was not checked");
    match weight {
        Weight::F32(weight) => multiply::<3>(product, weight, None),
        Weight::Bf16(weight) => multiply::<1>(product, weight, None),
        Weight::F16(weight) => multiply::<2>(product, weight, None),
        Weight::Int8(weight) => multiply::<1>(product, weight, Some(weight.scales())),
        Weight::FourBit(weight) => multiply::<3>(product, weight, None),
        Weight::Q4(weight) => multiply::<2>(product, weight, None),
        Weight::Int4(_) => unreachable!("int4 is not multiplied on tiles"),
        Weight::Blocks(_) => unreachable!("GGUF blocks are not multiplied on tiles"),
    }
}

/// A weight that can be expanded into tiles of `N` bf16 parts.
trait Source<const N: usize>: Sync {
    /// Writes `N` tiles, one for each bf16 part of the weights. They cover the sixteen features from `16 tile` and the
    /// 32 columns from `32 step`; each tile has sixteen rows of 32 values. Missing rows and columns are zero.
    ///
    /// # Safety
    /// The CPU supports the enabled target features; `out` is valid for writing `N` tiles.
    unsafe fn write(&self, tile: usize, step: usize, out: *mut u8);
}

fn multiply<const N: usize>(product: &Product<'_>, weight: &impl Source<N>, scales: Option<&[f32]>) {
    let steps = product.d_in.div_ceil(STEP);
    let row_bytes = CHUNK * PARTS * TILE / ROWS + TASK * size_of::<f32>();
    let n_groups = (product.n_rows * row_bytes).div_ceil(ROWS_BYTES);
    let group = product.n_rows.div_ceil(n_groups).next_multiple_of(ROWS);
    let threads = rayon::current_num_threads();
    let n_tasks = product.d_out.div_ceil(threads * TASK) * threads;
    let task = product.d_out.div_ceil(n_tasks).next_multiple_of(PAIR);
    for first in (0..product.n_rows).step_by(group) {
        let rows = first..product.n_rows.min(first + group);
        let row_tiles = rows.len().div_ceil(ROWS);
        with_scratch(row_tiles * steps * PARTS * TILE / size_of::<f32>(), |scratch| {
            pack(product, rows.clone(), steps, scratch);
            let packed: &[u8] = bytemuck::cast_slice(scratch);
            product.split_evenly(task, |features| {
                let block = Block { product, rows: rows.clone(), steps, packed };
                block.multiply(weight, features, scales);
            });
        });
    }
}

/// Packs rows `rows` of the activations as tiles, `[row tiles, steps, PARTS]`.
fn pack(product: &Product<'_>, rows: Range<usize>, steps: usize, out: &mut [f32]) {
    let row_values = steps * PARTS * TILE / size_of::<f32>();
    out.par_chunks_mut(row_values).enumerate().for_each(|(tile, out)| {
        let first = rows.start + tile * ROWS;
        let n_rows = ROWS.min(rows.end - first);
        let x = &product.x[first * product.d_in..(first + n_rows) * product.d_in];
        // SAFETY: `product` has checked CPU support; `x` holds these rows.
        unsafe { pack_columns(n_rows, |row| x.as_ptr().add(row * product.d_in), product.d_in, out) };
    });
}

/// A group of packed activation rows, and the product they belong to.
struct Block<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    steps: usize,
    /// Packed activations: `[row tiles, steps, PARTS]` tiles.
    packed: &'a [u8],
}

impl Block<'_> {
    /// Computes the output features `features` for the rows of this block.
    fn multiply<const N: usize>(&self, weight: &impl Source<N>, features: Range<usize>, scales: Option<&[f32]>) {
        let tiles = Tiles::new();
        let n_pairs = [features.len().div_ceil(PAIR), self.rows.len().div_ceil(PAIR)];
        let weight_values = 2 * CHUNK * N * TILE / size_of::<f32>();
        with_scratch(weight_values + n_pairs[0] * n_pairs[1] * SUMS, |scratch| {
            let (weights, sums) = scratch.split_at_mut(weight_values);
            let weights = weights.as_mut_ptr().cast::<u8>();
            let weights = [weights, weights.wrapping_add(CHUNK * N * TILE)];
            for first_step in (0..self.steps).step_by(CHUNK) {
                let steps = first_step..self.steps.min(first_step + CHUNK);
                for (pair, sums) in sums.chunks_exact_mut(n_pairs[1] * SUMS).enumerate() {
                    for tile in 0..2 {
                        for step in steps.clone() {
                            let at = (step - first_step) * N * TILE;
                            // SAFETY: the scratch holds two feature tiles of `CHUNK` steps.
                            unsafe {
                                weight.write(features.start / ROWS + 2 * pair + tile, step, weights[tile].add(at));
                            }
                        }
                    }
                    self.rows::<N>(&tiles, weights.map(<*mut u8>::cast_const), steps.clone(), sums);
                }
            }
            // Rows are in the outer loop, because the features of a row are contiguous in the output.
            for row_pair in 0..n_pairs[1] {
                for pair in 0..n_pairs[0] {
                    let sums = &sums[(pair * n_pairs[1] + row_pair) * SUMS..][..SUMS];
                    for (tile, sums) in sums.chunks_exact(ROWS * ROWS).enumerate() {
                        // Tile `2 f + r` holds the sums for feature tile `f` and row tile `r` of the two pairs.
                        let row = self.rows.start + row_pair * PAIR + tile % 2 * ROWS;
                        let feature = features.start + pair * PAIR + tile / 2 * ROWS;
                        // SAFETY: `product` has checked CPU support, and tasks write disjoint features.
                        unsafe { self.finish(sums, row, feature..features.end, scales) };
                    }
                }
            }
        });
    }

    /// Multiplies one block of weights by all rows. `sums` has four tiles, of 16 features by 16 rows, for each pair of
    /// row tiles.
    fn rows<const N: usize>(&self, tiles: &Tiles, weights: [*const u8; 2], steps: Range<usize>, sums: &mut [f32]) {
        let n_tiles = self.rows.len().div_ceil(ROWS);
        let row_tile = |tile: usize| self.packed[(tile * self.steps + steps.start) * PARTS * TILE..].as_ptr();
        for (pair, sums) in sums.chunks_exact_mut(SUMS).enumerate() {
            // With an odd number of row tiles, the last tile also serves as the second tile of its pair. The sums of
            // that second tile are ignored.
            let activations = [2 * pair, n_tiles.min(2 * pair + 2) - 1].map(row_tile);
            let sums = [0, 1, 2, 3].map(|tile| sums[tile * ROWS * ROWS..].as_mut_ptr());
            // SAFETY: activations and weights have tiles for these steps, and `sums` has four tiles.
            unsafe { tiles.multiply::<N>(weights, activations, steps.len(), sums, 64, steps.start == 0) };
        }
    }

    /// Writes the outputs of one tile of sums, with scale and bias. Ignores rows and features past the end.
    ///
    /// # Safety
    /// The CPU supports the enabled target features, and no other task writes these features.
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&self, sums: &[f32], first_row: usize, features: Range<usize>, scales: Option<&[f32]>) {
        let Product { bias, d_out, out, .. } = *self.product;
        if features.is_empty() || first_row >= self.rows.end {
            return;
        }
        assert_eq!(sums.len(), ROWS * ROWS);
        let mask = mask(features.start, features.end);
        // SAFETY: masks exclude features past the end; the length of the tile was checked.
        unsafe {
            let load_features = |values: &[f32]| _mm512_maskz_loadu_ps(mask, values[features.start..].as_ptr());
            let scale = scales.map_or(_mm512_set1_ps(1.0), load_features);
            let bias = bias.map_or(_mm512_setzero_ps(), load_features);
            let mut rows = [_mm512_setzero_si512(); ROWS];
            for (row, values) in rows.iter_mut().enumerate() {
                *values = _mm512_loadu_si512(sums.as_ptr().add(row * ROWS).cast());
            }
            for (row, values) in (first_row..self.rows.end).zip(transposed(rows)) {
                let values = _mm512_fmadd_ps(_mm512_castsi512_ps(values), scale, bias);
                let out = out.slice(row * d_out + features.start, features.len().min(ROWS));
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, values);
            }
        }
    }
}

/// Implements [`Source`] for a row-major format. `$columns` is a function that returns the parts of one step of a row.
macro_rules! row_major_source {
    ($format:ty, $parts:literal, $columns:ident) => {
        impl Source<$parts> for $format {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")]
            unsafe fn write(&self, tile: usize, step: usize, out: *mut u8) {
                let mut rows = [[_mm512_setzero_si512(); ROWS]; $parts];
                let n_rows = ROWS.min(self.dims()[0].saturating_sub(tile * ROWS));
                for lane in 0..n_rows {
                    // SAFETY: the row exists, and the caller guarantees CPU support.
                    let columns: [__m512i; $parts] = unsafe { $columns(self, tile * ROWS + lane, step) };
                    for part in 0..$parts {
                        rows[part][lane] = columns[part];
                    }
                }
                // SAFETY: a tile has 16 rows of 64 bytes.
                unsafe {
                    for part in 0..$parts {
                        for (row, values) in rows[part].into_iter().enumerate() {
                            _mm512_storeu_si512(out.add(part * TILE + row * 64).cast(), values);
                        }
                    }
                }
            }
        }
    };
}
row_major_source!(Dense<'_, f32>, 3, f32_columns);
row_major_source!(Dense<'_, bf16>, 1, bf16_columns);
row_major_source!(Dense<'_, f16>, 2, f16_columns);
row_major_source!(Int8<'_>, 1, int8_columns);
row_major_source!(FourBit<'_>, 3, four_bit_columns);

/// Returns the bf16 parts of 32 columns of one row, from column `32 step`. Columns past the end of the row are zero.
///
/// # Safety
/// The CPU supports the enabled target features, and the row exists.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn f32_columns(weight: &Dense<'_, f32>, row: usize, step: usize) -> [__m512i; 3] {
    let d_in = weight.dims()[1];
    // SAFETY: guaranteed by the caller.
    unsafe {
        let [first, second] = load(weight.values()[row * d_in..(row + 1) * d_in].as_ptr(), step * STEP, d_in);
        parts(first, second)
    }
}

/// Like [`f32_columns`], for bf16 weights.
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn bf16_columns(weight: &Dense<'_, bf16>, row: usize, step: usize) -> [__m512i; 1] {
    let d_in = weight.dims()[1];
    let (row, at) = (&weight.values()[row * d_in..(row + 1) * d_in], step * STEP);
    let mask = u32::from(mask(at, d_in)) | u32::from(mask(at + 16, d_in)) << 16;
    // SAFETY: masked loads do not read past the end of the row.
    [unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().wrapping_add(at).cast()) }]
}

/// Like [`f32_columns`], for f16 weights.
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")]
unsafe fn f16_columns(weight: &Dense<'_, f16>, row: usize, step: usize) -> [__m512i; 2] {
    let d_in = weight.dims()[1];
    let row = weight.values()[row * d_in..(row + 1) * d_in].as_ptr();
    // SAFETY: masked loads do not read past the end of the row.
    unsafe {
        let half = |at: usize| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(at, d_in), row.wrapping_add(at).cast()));
        parts(half(step * STEP), half(step * STEP + 16))
    }
}

/// Like [`f32_columns`], for int8 weights. Codes are exact in bf16; the scale of the row is applied to the sums.
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn int8_columns(weight: &Int8<'_>, row: usize, step: usize) -> [__m512i; 1] {
    let d_in = weight.dims()[1];
    let row = weight.codes()[row * d_in..(row + 1) * d_in].as_ptr();
    // SAFETY: masked loads do not read past the end of the row.
    unsafe {
        let half = |at: usize| {
            let codes = _mm_maskz_loadu_epi8(mask(at, d_in), row.wrapping_add(at));
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
        };
        parts(half(step * STEP), half(step * STEP + 16))
    }
}

/// Like [`f32_columns`], for four-bit weights. Rows consist of whole blocks (see [`supports`]).
///
/// # Safety
/// As [`f32_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn four_bit_columns(weight: &FourBit<'_>, row: usize, step: usize) -> [__m512i; 3] {
    let at = row * weight.dims()[1] + step * STEP;
    let codes = &weight.codes()[at / 2..(at + STEP) / 2];
    let absmax = weight.absmax()[at / BLOCK];
    // SAFETY: the slices have sixteen bytes of codes and sixteen table entries.
    unsafe {
        let table = _mm512_mul_ps(_mm512_loadu_ps(weight.kind().table().as_ptr()), _mm512_set1_ps(absmax));
        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
        // The first code of a byte is in its high half.
        let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table);
        let odd = _mm512_permutexvar_ps(codes, table); // the index is the lowest four bits
        pair_parts(even, odd)
    }
}

/// The q4 format already interleaves sixteen rows. The product of a table entry and a scale has at most fifteen
/// significant bits, so two bf16 parts are exact.
impl Source<2> for Q4<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write(&self, tile: usize, step: usize, out: *mut u8) {
        const { assert!(Q4_PANEL == ROWS && Q4_BLOCK == STEP && Q4_TILE == 256) };
        let [d_out, d_in] = self.dims();
        if tile * ROWS >= d_out {
            // SAFETY: the caller guarantees two tiles.
            return unsafe { out.write_bytes(0, 2 * TILE) };
        }
        let at = tile * d_in.div_ceil(Q4_BLOCK) + step;
        let codes = &self.codes()[at * Q4_TILE..(at + 1) * Q4_TILE];
        let scales = &self.scales()[at * Q4_PANEL..(at + 1) * Q4_PANEL];
        // SAFETY: the slices have 256 bytes and sixteen scales; the caller guarantees two tiles.
        unsafe {
            let table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(Q4_TABLE.as_ptr().cast())));
            let scales = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.as_ptr().cast()));
            let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(scales));
            let look_up = |codes: __m512i| _mm512_mul_ps(_mm512_permutexvar_ps(codes, table), scales);
            let mut pairs = [[_mm512_setzero_si512(); ROWS]; 2];
            for group in 0..4 {
                // In each 32-bit lane, byte `i` holds two columns: `4 group + i` in its low half, and
                // `16 + 4 group + i` in its high half.
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
                        pairs[part][pair] = values;
                    }
                }
            }
            for (part, pairs) in pairs.into_iter().enumerate() {
                store_transposed(pairs, out.add(part * TILE));
            }
        }
    }
}
