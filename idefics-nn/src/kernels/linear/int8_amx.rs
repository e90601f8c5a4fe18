//! Products of integers on tiles: 16 rows of 64 activations with 64 codes of 16 output features in one instruction.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::super::amx::{ROWS, TILE, Tiles, transposed};
use super::super::super::shared::with_scratch;
use super::super::Product;
use super::{Codes, Rounded, STEP};
use crate::formats::Int8;

/// Output features of a block: two tiles.
const FEATURES: usize = 2 * ROWS;

pub(super) fn product(product: &Product<'_>, rounded: &Rounded<'_>, weight: Codes<'_>) {
    let Codes::Int8(weight) = weight else { unreachable!("q4 sums are cut up too finely for tiles") };
    let steps = product.d_in.div_ceil(STEP);
    product.split_evenly(FEATURES, |features| {
        with_scratch(2 * steps * TILE / size_of::<f32>(), |scratch| {
            let codes = scratch.as_mut_ptr().cast::<u8>();
            let tiles = Tiles::new();
            // SAFETY: the instructions are there; the scratch holds two tiles of features of all steps.
            unsafe {
                for tile in 0..2 {
                    let out = codes.add(tile * steps * TILE);
                    expand(weight, features.start + tile * ROWS, steps, out);
                }
                for first in (0..product.n_rows).step_by(2 * ROWS) {
                    let mut sums = [0i32; FEATURES * FEATURES];
                    let x = [first, first + ROWS].map(|row| rounded.codes[row * rounded.stride..].as_ptr().cast());
                    let weights = [codes.cast_const(), codes.add(steps * TILE).cast_const()];
                    tiles.multiply_codes(x, rounded.stride, weights, steps, &mut sums);
                    finish(product, rounded, weight, features.clone(), first, &sums);
                }
            }
        });
    });
}

/// Sixteen rows of codes as `[steps]` tiles of four neighbouring columns of sixteen features.
///
/// # Safety
/// The machine has the instructions; `out` is valid for the tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn expand(weight: &Int8<'_>, first: usize, steps: usize, out: *mut u8) {
    let [d_out, d_in] = weight.dims();
    for step in 0..steps {
        let at = step * STEP;
        let n = (d_in - at).min(STEP);
        let mask = if n == STEP { u64::MAX } else { (1 << n) - 1 };
        let mut rows = [_mm512_setzero_si512(); ROWS];
        for (lane, row) in rows.iter_mut().enumerate().take(d_out.saturating_sub(first)) {
            let codes = weight.codes()[(first + lane) * d_in..(first + lane + 1) * d_in].as_ptr();
            // SAFETY: the mask hides what is behind the row's end.
            *row = unsafe { _mm512_maskz_loadu_epi8(mask, codes.wrapping_add(at)) };
        }
        // SAFETY: a tile has 16 rows of 64 bytes.
        unsafe {
            for (group, codes) in transposed(rows).into_iter().enumerate() {
                _mm512_storeu_si512(out.add(step * TILE + group * 64).cast(), codes);
            }
        }
    }
}

/// Scales the sums of 32 rows and features, of which some may not be there, and writes them.
///
/// # Safety
/// The machine has the instructions, and no other task writes these features.
#[target_feature(enable = "avx512f")]
unsafe fn finish(
    product: &Product<'_>,
    rounded: &Rounded<'_>,
    weight: &Int8<'_>,
    features: Range<usize>,
    first: usize,
    sums: &[i32; FEATURES * FEATURES],
) {
    let scales = &weight.scales()[features.clone()];
    for (row, sums) in (first..product.n_rows).zip(sums.chunks_exact(FEATURES)) {
        let at = row * product.d_out + features.start;
        // SAFETY: tasks have disjoint features.
        let out = unsafe { product.out.slice(at, features.len()) };
        let row_scale = rounded.scales[row];
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = *sum as f32 * (row_scale * scale);
        }
        if let Some(bias) = product.bias {
            out.iter_mut().zip(&bias[features.clone()]).for_each(|(out, bias)| *out += bias);
        }
    }
}
