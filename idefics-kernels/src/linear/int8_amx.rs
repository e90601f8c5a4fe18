//! Integer products on AMX tiles: one instruction multiplies 16 rows of 64 activations by 64 codes of 16 features.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::{Isa, Product};
use super::{Codes, Rounded, STEP};
use crate::amx::{ROWS, TILE, Tiles, transposed};
use crate::formats::Int8;
use crate::shared::with_scratch;

/// Output features per block: two tiles.
const FEATURES: usize = 2 * ROWS;

/// Approximate number of blocks per task. Each task reads the activations once.
const BLOCKS: usize = 3;

pub(super) fn product(product: &Product<'_>, rounded: &Rounded<'_>, weight: Codes<'_>) {
    assert!(product.isa == Isa::Amx, "CPU support was not checked");
    let Codes::Int8(weight) = weight else { unreachable!("q4 has blocks of 32 columns, too short for tiles") };
    let steps = product.d_in.div_ceil(STEP);
    let threads = rayon::current_num_threads();
    let n_tasks = product.d_out.div_ceil(threads * BLOCKS * FEATURES) * threads;
    let task = product.d_out.div_ceil(n_tasks).next_multiple_of(FEATURES);
    let block = 2 * steps * TILE;
    product.split_evenly(task, |features| {
        let n_blocks = features.len().div_ceil(FEATURES);
        with_scratch(n_blocks * block / size_of::<f32>(), |scratch| {
            let codes = scratch.as_mut_ptr().cast::<u8>();
            let tiles = Tiles::new();
            // SAFETY: the assertion checked CPU support; the scratch holds the tiles of all features and steps, and the
            // activation rows are padded to a multiple of two tiles.
            unsafe {
                for tile in 0..2 * n_blocks {
                    expand(weight, features.start + tile * ROWS, steps, codes.add(tile * steps * TILE));
                }
                for first in (0..product.n_rows).step_by(2 * ROWS) {
                    let tile = |index: usize| rounded.codes[(first / ROWS + index) * steps * TILE..].as_ptr().cast();
                    for index in 0..n_blocks {
                        let start = features.start + index * FEATURES;
                        let block = codes.add(index * block).cast_const();
                        let mut sums = [0i32; FEATURES * FEATURES];
                        tiles.multiply_codes([tile(0), tile(1)], [block, block.add(steps * TILE)], steps, &mut sums);
                        finish(product, rounded, weight, start..features.end.min(start + FEATURES), first, &sums);
                    }
                }
            }
        });
    });
}

/// Packs the codes of sixteen weight rows as `[steps]` tiles. Each row of a tile has four neighbouring columns of all
/// sixteen features.
///
/// # Safety
/// The CPU supports the enabled target features; `out` is valid for the tiles.
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
            // SAFETY: masked loads do not read past the end of the row.
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

/// Scales 32 × 32 sums and writes the outputs. Ignores rows and features past the end.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes these features.
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
        // SAFETY: tasks write disjoint features.
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
