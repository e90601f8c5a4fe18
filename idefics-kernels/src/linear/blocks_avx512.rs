//! GGUF blocks on AVX-512: products of several rows of activations, and the expansion of weights.
//!
//! A panel of the weight is expanded to f32 in column order. Four of its rows are then multiplied with up to six rows of
//! activations at a time, which stay in registers as 24 vectors of sums. Neither side is packed in another order.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Product;
use super::avx2::formats::{Format, PART, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::avx2::{by_kind, supports};
use crate::Isa;
use crate::formats::{Blocks, GgufType};
use crate::shared::with_scratch;

/// Number of weight rows that are multiplied together.
const ROWS: usize = 4;

/// Number of activation rows that are multiplied together.
const TOGETHER: usize = 6;

/// Number of columns that are multiplied before the sums leave the registers. It is a multiple of every block length.
/// The activations of this many columns stay in the first-level cache.
const CHUNK: usize = 1024;

/// Number of values in a panel. A panel stays in the second-level cache.
const PANEL: usize = 64 << 10;

/// Panics unless the instruction set includes AVX-512. [`Product::checked`] has checked that the CPU supports it.
fn assert_checked(isa: Isa) {
    assert!(matches!(isa, Isa::Avx512 | Isa::Amx), "CPU support was not checked");
}

/// Computes the product.
pub(super) fn product(product: &Product<'_>, weight: &Blocks<'_>) {
    assert_checked(product.isa);
    // Chunks of equal length, in whole blocks.
    let n_chunks = product.d_in.div_ceil(CHUNK);
    let chunk = product.d_in.div_ceil(n_chunks).next_multiple_of(weight.kind().block_len());
    let panel_rows = (PANEL / chunk / ROWS).max(1) * ROWS;
    product.split_weights(weight.dims(), ROWS, |range| {
        let scratch_rows = range.len().min(panel_rows).next_multiple_of(ROWS);
        with_scratch(scratch_rows * chunk, |scratch| {
            for start in range.clone().step_by(panel_rows) {
                let features = start..range.end.min(start + panel_rows);
                for first in (0..product.d_in).step_by(chunk) {
                    let columns = first..product.d_in.min(first + chunk);
                    let panel = &mut scratch[..features.len().next_multiple_of(ROWS) * columns.len()];
                    expand_columns(weight, features.clone(), columns.clone(), panel);
                    // SAFETY: the assertion checked CPU support, and tasks write disjoint features.
                    unsafe { multiply(product, features.clone(), columns, panel) };
                }
            }
        });
    });
}

/// Expands some columns of the rows `features`, `[features.len(), columns.len()]`, which are whole blocks. Further rows
/// of `out` become zero.
fn expand_columns(weight: &Blocks<'_>, features: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
    let kind = weight.kind();
    let (block_len, block_bytes) = (kind.block_len(), kind.block_bytes());
    let bytes = columns.start / block_len * block_bytes..columns.end / block_len * block_bytes;
    let n_features = features.len();
    for (feature, out) in features.zip(out.chunks_exact_mut(columns.len())) {
        let row = &weight.as_bytes()[feature * weight.row_bytes()..(feature + 1) * weight.row_bytes()];
        let blocks = &row[bytes.clone()];
        if supports(kind) {
            // SAFETY: the callers have checked CPU support.
            unsafe { by_kind!(kind, F => expand_blocks::<F>(blocks, out)) };
        } else {
            kind.dequantize(blocks, out);
        }
    }
    out[n_features * columns.len()..].fill(0.0);
}

/// Expands rows `range` to f32, `[range.len(), d_in]`.
pub(super) fn expand(isa: Isa, weight: &Blocks<'_>, range: Range<usize>, out: &mut [f32]) {
    assert_checked(isa);
    assert_eq!(out.len(), range.len() * weight.dims()[1], "`out` must hold one value per weight");
    let row_bytes = weight.row_bytes();
    let blocks = &weight.as_bytes()[range.start * row_bytes..range.end * row_bytes];
    // SAFETY: the caller has checked CPU support.
    unsafe { by_kind!(weight.kind(), F => expand_blocks::<F>(blocks, out)) };
}

/// Expands whole blocks to f32.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn expand_blocks<F: Format>(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::PARTS * PART)) {
        let (block, out) = (block.as_ptr(), out.as_mut_ptr());
        // SAFETY: the block has all its bytes, and the output has room for its values.
        unsafe {
            let opened = F::open(block);
            expand_part::<F, 0>(block, &opened, out);
            if F::PARTS == 8 {
                expand_part::<F, 1>(block, &opened, out);
                expand_part::<F, 2>(block, &opened, out);
                expand_part::<F, 3>(block, &opened, out);
                expand_part::<F, 4>(block, &opened, out);
                expand_part::<F, 5>(block, &opened, out);
                expand_part::<F, 6>(block, &opened, out);
                expand_part::<F, 7>(block, &opened, out);
            }
        }
    }
}

/// Writes part `P` of a block in column order. Products and sums are rounded as in [`GgufType::dequantize`].
///
/// # Safety
/// The caller is compiled for AVX-512; `block` is a whole block, and `out` has room for it.
#[inline(always)]
unsafe fn expand_part<F: Format, const P: usize>(block: *const u8, opened: &F::Open, out: *mut f32) {
    // SAFETY: guaranteed by the caller; lanes 0 to 3 of the scale belong to the first 16 columns.
    unsafe {
        let codes = F::codes::<P>(block);
        let scale = F::scale::<P>(opened);
        let halves = [
            (_mm256_castsi256_si128(codes), _mm256_castps256_ps128(scale)),
            (_mm256_extracti128_si256::<1>(codes), _mm256_extractf128_ps::<1>(scale)),
        ];
        for (half, (codes, scale)) in halves.into_iter().enumerate() {
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
            let mut values = _mm512_mul_ps(codes, _mm512_broadcastss_ps(scale));
            if F::HAS_MINIMA {
                values = _mm512_add_ps(values, _mm512_set1_ps(F::minimum::<P>(opened)));
            }
            _mm512_storeu_ps(out.add(P * PART + 16 * half), values);
        }
    }
}

/// Multiplies some columns of the weight rows `features` with all rows of activations, and writes the products or, from
/// the second chunk of columns on, adds them to the output.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes these features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply(product: &Product<'_>, features: Range<usize>, columns: Range<usize>, panel: &[f32]) {
    let n_columns = columns.len();
    assert!(columns.end <= product.d_in && n_columns.is_multiple_of(PART));
    assert_eq!(panel.len(), features.len().next_multiple_of(ROWS) * n_columns, "the panel must have whole groups");
    assert!(product.x.len() == product.n_rows * product.d_in && features.end <= product.d_out);
    // All passes have almost the same number of rows.
    let n_passes = product.n_rows.div_ceil(TOGETHER);
    for pass in 0..n_passes {
        let rows = product.n_rows * pass / n_passes..product.n_rows * (pass + 1) / n_passes;
        for (group, panel) in panel.chunks_exact(ROWS * n_columns).enumerate() {
            let start = features.start + group * ROWS;
            let group = start..features.end.min(start + ROWS);
            let columns = columns.clone();
            // SAFETY: the assertions above check the operands; the caller guarantees the rest.
            unsafe {
                match rows.len() {
                    1 => together::<1>(product, group, columns, panel, rows.start),
                    2 => together::<2>(product, group, columns, panel, rows.start),
                    3 => together::<3>(product, group, columns, panel, rows.start),
                    4 => together::<4>(product, group, columns, panel, rows.start),
                    5 => together::<5>(product, group, columns, panel, rows.start),
                    TOGETHER => together::<TOGETHER>(product, group, columns, panel, rows.start),
                    n => unreachable!("{n} rows should have been split into passes"),
                }
            }
        }
    }
}

/// [`multiply`] for up to [`ROWS`] weight rows and `N` rows of activations, from row `first` on.
#[inline(always)]
unsafe fn together<const N: usize>(
    product: &Product<'_>,
    features: Range<usize>,
    columns: Range<usize>,
    panel: &[f32],
    first: usize,
) {
    // SAFETY: guaranteed by the caller, which has checked the lengths.
    unsafe {
        let (n_columns, weights) = (columns.len(), panel.as_ptr());
        let x = product.x.as_ptr().add(first * product.d_in + columns.start);
        let mut sums = [[_mm512_setzero_ps(); ROWS]; N];
        for column in (0..n_columns).step_by(16) {
            let mut group = [_mm512_setzero_ps(); ROWS];
            for r in 0..ROWS {
                group[r] = _mm512_loadu_ps(weights.add(r * n_columns + column));
            }
            for n in 0..N {
                let x = _mm512_loadu_ps(x.add(n * product.d_in + column));
                for r in 0..ROWS {
                    sums[n][r] = _mm512_fmadd_ps(group[r], x, sums[n][r]);
                }
            }
        }
        for n in 0..N {
            let values: [f32; ROWS] = totals(sums[n]);
            let out = product.out.slice((first + n) * product.d_out + features.start, features.len());
            for (r, out) in out.iter_mut().enumerate() {
                let before = if columns.start == 0 { product.bias_at(features.start + r) } else { *out };
                *out = values[r] + before;
            }
        }
    }
}

/// The sums of all lanes of four vectors, in a fixed order.
///
/// # Safety
/// The caller is compiled for AVX-512.
#[inline(always)]
unsafe fn totals([a, b, c, d]: [__m512; ROWS]) -> [f32; ROWS] {
    let mut totals = [0f32; ROWS];
    // SAFETY: guaranteed by the caller; the array has room for four values.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let all = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        _mm_storeu_ps(totals.as_mut_ptr(), four);
    }
    totals
}
