//! Few rows of activations times a weight in q4. The format interleaves sixteen rows: each lane of a vector belongs to
//! one row, and no sum crosses lanes.
//!
//! AVX-512 multiplies integers ([`avx512`]). The other instruction sets convert each column of a panel to f32.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use half::bf16;

use super::rows::{Order, Packed, with_packed};
use super::{Isa, Product};
use crate::formats::{Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Q4_TILE};
use crate::vector::{MAX_LANES, Vector};

#[cfg(target_arch = "x86_64")]
#[path = "q4_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "q4_avx512.rs"]
mod avx512;
#[cfg(target_arch = "aarch64")]
#[path = "q4_neon.rs"]
mod neon;

/// Computes the product for at most [`super::MAX_GEMV_ROWS`] rows of activations.
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

/// Expands rows `range` to f32, column-major: `[d_in, range.len()]`, with both dimensions padded to whole tiles.
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

/// Decodes tiles of the format into vectors of an instruction set.
///
/// # Safety of its methods
/// The CPU supports the instruction set of the type.
trait Tiles: Vector {
    /// Table entries of `LANES` rows, one row per lane, with four columns of eight bits each.
    type Columns: Copy;

    /// Looks up the table entries of `LANES` rows: four columns from the low halves of the bytes, then four from the
    /// high halves.
    ///
    /// # Safety
    /// `codes` is valid for `4 · LANES` bytes.
    unsafe fn look_up(codes: *const u8, table: &[i8; 16]) -> [Self::Columns; 2];

    /// Converts one of the four columns to f32.
    unsafe fn column(columns: Self::Columns, index: usize) -> Self;

    /// Loads the scales of `LANES` rows.
    ///
    /// # Safety
    /// `scales` is valid for `LANES` values.
    unsafe fn scales(scales: *const bf16) -> Self;
}

/// Maximum number of vectors that hold one value for each row of a panel.
const MAX_PARTS: usize = Q4_PANEL / 4;

/// Computes the output features `range`, which starts at a panel boundary.
///
/// # Safety
/// The CPU supports the instruction set of `V`, the caller is compiled for it, and no other task writes these features.
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

/// Computes [`thin`] with `N` rows of activations.
#[inline(always)]
unsafe fn panels<V: Tiles, const N: usize>(
    weight: &Q4<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    const { assert!(V::LANES <= Q4_PANEL && Q4_PANEL / V::LANES <= MAX_PARTS) };
    let blocks = product.d_in.div_ceil(Q4_BLOCK);
    assert!(packed.values.len() >= N * packed.stride && range.start.is_multiple_of(Q4_PANEL));
    assert!(packed.stride >= blocks * Q4_BLOCK, "activations must be padded to whole blocks");
    for first in range.clone().step_by(Q4_PANEL) {
        let tiles = first / Q4_PANEL * blocks..(first / Q4_PANEL + 1) * blocks;
        let codes = &weight.codes()[tiles.start * Q4_TILE..tiles.end * Q4_TILE];
        let scales = &weight.scales()[tiles.start * Q4_PANEL..tiles.end * Q4_PANEL];
        // SAFETY: blocks are inside the panel and inside the activations, which are checked above.
        unsafe {
            let mut sums = [[V::splat(0.0); N]; MAX_PARTS];
            for block in 0..blocks {
                let codes = codes.as_ptr().add(block * Q4_TILE);
                for line in 0..Q4_TILE / 64 {
                    V::prefetch(codes.wrapping_add(64 * line + PREFETCH_DISTANCE));
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

/// Prefetch distance, in bytes.
const PREFETCH_DISTANCE: usize = 4096;

/// Computes the sums of one block of columns for `LANES` rows, before scaling.
#[inline(always)]
unsafe fn block_sum<V: Tiles, const N: usize>(codes: *const u8, packed: Packed<'_>, first_column: usize) -> [V; N] {
    debug_assert!(
        (N - 1) * packed.stride + first_column + Q4_BLOCK <= packed.values.len(),
        "the block must be inside the activations"
    );
    // SAFETY: `panels` has checked the bounds.
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

/// Writes `LANES` output features from `first`, or fewer if `end` comes first, for activation row `n`.
///
/// # Safety
/// As [`thin`].
#[inline(always)]
unsafe fn write<V: Vector>(product: &Product<'_>, end: usize, first: usize, n: usize, sums: V) {
    let mut lanes = [0f32; MAX_LANES];
    // SAFETY: the buffer has room for the widest vector, and the features belong to the caller.
    unsafe {
        sums.store(lanes.as_mut_ptr());
        for (feature, sum) in (first..end).zip(&lanes[..V::LANES]) {
            product.out.write(n * product.d_out + feature, sum + product.bias_at(feature));
        }
    }
}

/// Implements [`expand`] with the vectors of one instruction set.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
unsafe fn expand_with<V: Tiles>(weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
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
                // SAFETY: the block is inside the panel, and the output was checked to hold all columns.
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
