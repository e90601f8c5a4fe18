//! The interleaved format: sixteen rows side by side, so that a lane is a row and nothing is summed across lanes.
//!
//! AVX-512 multiplies integers ([`avx512`]); the other instruction sets turn each column of a panel into f32.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use half::bf16;

use super::rows::{Order, Packed, with_packed};
use super::{Isa, Product};
use crate::formats::{Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Q4_TILE};
use crate::vector::{MOST_LANES, Vector};

#[cfg(target_arch = "x86_64")]
#[path = "q4_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "q4_avx512.rs"]
mod avx512;
#[cfg(target_arch = "aarch64")]
#[path = "q4_neon.rs"]
mod neon;

/// The product for at most [`super::THIN_ROWS`] rows of activations.
pub(super) fn product(product: &Product<'_>, weight: &Q4<'_>) {
    #[cfg(target_arch = "x86_64")]
    if matches!(product.isa, Isa::Avx512 | Isa::Amx) {
        return avx512::product(product, weight);
    }
    with_packed(product, &Order::natural(Q4_BLOCK), |packed| {
        product.split(weight.bytes(), Q4_PANEL, |range| {
            // SAFETY: `Product::checked` has checked CPU support, and tasks write disjoint ranges.
            unsafe {
                match product.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => avx2::thin(weight, range, packed, product),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => neon::thin(weight, range, packed, product),
                    isa => unreachable!("{isa:?} has its own code path, or belongs to another architecture"),
                }
            }
        });
    });
}

/// Rows `range` as f32, column after column: `[d_in, range.len()]`, both filled up to whole tiles.
pub(super) fn expand(product: &Product<'_>, weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: `Product::checked` has checked CPU support.
    unsafe {
        match product.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::expand(weight, range, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => avx512::expand(weight, range, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::expand(weight, range, out),
            isa => unreachable!("{isa:?} has its own code path, or belongs to another architecture"),
        }
    }
}

/// How the tiles of the format become vectors of one instruction set.
///
/// # Safety of its methods
/// The CPU supports the enabled target features.
trait Tiles: Vector {
    /// Table entries: a row a lane, four columns of eight bits each.
    type Columns: Copy;

    /// Looks up the codes of `LANES` rows and twice four columns: those in the low halves, then those in the high.
    ///
    /// # Safety
    /// `codes` is valid for `4 · LANES` bytes.
    unsafe fn look_up(codes: *const u8, table: &[i8; 16]) -> [Self::Columns; 2];

    /// One of the four columns.
    unsafe fn column(columns: Self::Columns, index: usize) -> Self;

    /// Scales of `LANES` rows.
    ///
    /// # Safety
    /// `scales` is valid for `LANES` values.
    unsafe fn scales(scales: *const bf16) -> Self;
}

/// Most vectors that the rows of a panel take.
const MOST_PARTS: usize = Q4_PANEL / 4;

/// The output features `range`, which begins with a panel.
///
/// # Safety
/// The CPU supports the instruction set of `V`, the caller is compiled for it, and no other task writes these
/// features.
#[inline(always)]
unsafe fn thin<V: Tiles>(weight: &Q4<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match packed.n_rows {
            1 => panels::<V, 1>(weight, range, packed, product),
            2 => panels::<V, 2>(weight, range, packed, product),
            4 => panels::<V, 4>(weight, range, packed, product),
            8 => panels::<V, 8>(weight, range, packed, product),
            n_rows => unreachable!("{n_rows} rows should have been padded to 1, 2, 4 or 8"),
        }
    }
}

/// [`thin`] with `N` rows of activations.
#[inline(always)]
unsafe fn panels<V: Tiles, const N: usize>(
    weight: &Q4<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    const { assert!(V::LANES <= Q4_PANEL && Q4_PANEL / V::LANES <= MOST_PARTS) };
    let blocks = product.d_in.div_ceil(Q4_BLOCK);
    assert!(packed.values.len() >= N * packed.stride && range.start.is_multiple_of(Q4_PANEL));
    assert!(packed.stride >= blocks * Q4_BLOCK, "activations are padded to whole blocks");
    for first in range.clone().step_by(Q4_PANEL) {
        let tiles = first / Q4_PANEL * blocks..(first / Q4_PANEL + 1) * blocks;
        let codes = &weight.codes()[tiles.start * Q4_TILE..tiles.end * Q4_TILE];
        let scales = &weight.scales()[tiles.start * Q4_PANEL..tiles.end * Q4_PANEL];
        // SAFETY: blocks lie inside the panel, whose slices are checked above, and inside the activations.
        unsafe {
            let mut sums = [[V::splat(0.0); N]; MOST_PARTS];
            for block in 0..blocks {
                let codes = codes.as_ptr().add(block * Q4_TILE);
                for line in 0..Q4_TILE / 64 {
                    V::prefetch(codes.wrapping_add(64 * line + AHEAD));
                }
                for part in 0..Q4_PANEL / V::LANES {
                    let rows = part * V::LANES;
                    let sum = block_sum::<V, N>(codes.add(4 * rows), packed, block * Q4_BLOCK);
                    let scales = V::scales(scales.as_ptr().add(block * Q4_PANEL + rows));
                    for n in 0..N {
                        sums[part][n] = sum[n].mul_add(scales, sums[part][n]);
                    }
                }
            }
            for part in 0..Q4_PANEL / V::LANES {
                for n in 0..product.n_rows {
                    write(product, range.end, first + part * V::LANES, n, sums[part][n]);
                }
            }
        }
    }
}

/// Bytes between what is read and what is asked for.
const AHEAD: usize = 4096;

/// Products of one block of columns with `LANES` rows, without the scales.
#[inline(always)]
unsafe fn block_sum<V: Tiles, const N: usize>(codes: *const u8, packed: Packed<'_>, first_column: usize) -> [V; N] {
    debug_assert!((N - 1) * packed.stride + first_column + Q4_BLOCK <= packed.values.len(), "the block is not there");
    // SAFETY: as `panels` has checked.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for group in 0..4 {
            let columns = V::look_up(codes.add(group * 4 * Q4_PANEL), &Q4_TABLE);
            for half in 0..2 {
                let x = packed.values.as_ptr().add(first_column + 16 * half + 4 * group);
                for index in 0..4 {
                    let weights = V::column(columns[half], index);
                    for n in 0..N {
                        sums[n] = weights.mul_add(V::splat(*x.add(n * packed.stride + index)), sums[n]);
                    }
                }
            }
        }
        sums
    }
}

/// Writes the sums of `LANES` output features from `first` on for activation row `n`.
///
/// # Safety
/// As [`thin`].
#[inline(always)]
unsafe fn write<V: Vector>(product: &Product<'_>, end: usize, first: usize, n: usize, sums: V) {
    let mut lanes = [0f32; MOST_LANES];
    // SAFETY: no vector has more lanes than the buffer, and the features are the caller's.
    unsafe {
        sums.store(lanes.as_mut_ptr());
        for (feature, sum) in (first..end).zip(&lanes[..V::LANES]) {
            product.out.write(n * product.d_out + feature, sum + product.bias_at(feature));
        }
    }
}

/// [`expand`] in the vectors of one instruction set.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
unsafe fn expand_in<V: Tiles>(weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
    let blocks = weight.dims()[1].div_ceil(Q4_BLOCK);
    let width = range.len().next_multiple_of(Q4_PANEL);
    assert!(range.start.is_multiple_of(Q4_PANEL) && out.len() == blocks * Q4_BLOCK * width);
    for (panel, first) in range.step_by(Q4_PANEL).enumerate() {
        let tiles = first / Q4_PANEL * blocks..(first / Q4_PANEL + 1) * blocks;
        let codes = &weight.codes()[tiles.start * Q4_TILE..tiles.end * Q4_TILE];
        let scales = &weight.scales()[tiles.start * Q4_PANEL..tiles.end * Q4_PANEL];
        for block in 0..blocks {
            for part in 0..Q4_PANEL / V::LANES {
                let rows = part * V::LANES;
                // SAFETY: the block lies inside the panel, and the output was checked to hold every column.
                unsafe {
                    let scales = V::scales(scales.as_ptr().add(block * Q4_PANEL + rows));
                    for group in 0..4 {
                        let codes = codes.as_ptr().add(block * Q4_TILE + group * 4 * Q4_PANEL + 4 * rows);
                        let columns = V::look_up(codes, &Q4_TABLE);
                        for half in 0..2 {
                            for index in 0..4 {
                                let column = block * Q4_BLOCK + 16 * half + 4 * group + index;
                                let values = V::column(columns[half], index).mul(scales);
                                values.store(out.as_mut_ptr().add(column * width + panel * Q4_PANEL + rows));
                            }
                        }
                    }
                }
            }
        }
    }
}
