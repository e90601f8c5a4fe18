//! Few rows of activations times a weight in int4, and the expansion of such a weight to f32.
//!
//! A step is a block of 32 columns of one row. Codes are converted to f32, and then the zero point is subtracted. The
//! difference is exact. With one row of activations, the scale is applied once to the sums of a group.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use super::rows::{Order, Packed, with_packed};
use super::{Isa, Product};
use crate::formats::Int4;
use crate::vector::Vector;

#[cfg(target_arch = "x86_64")]
#[path = "int4_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "int4_avx512.rs"]
mod avx512;
#[cfg(target_arch = "aarch64")]
#[path = "int4_neon.rs"]
mod neon;

/// Columns per step.
const BLOCK: usize = 32;

/// Bytes of codes per step.
const BLOCK_BYTES: usize = BLOCK / 2;

/// The number of weight rows per task is a multiple of this constant. Kernels process sets of several rows; the
/// constant is a multiple of every set size.
const UNIT: usize = 4;

/// Maximum number of sets of weight rows that process a chunk of columns before they all go on to the next chunk.
const SETS: usize = 8;

/// Activation values per chunk: half of a 32 KiB L1 cache.
const CHUNK_VALUES: usize = 4096;

/// Prefetch distance in each row, in bytes.
const PREFETCH_DISTANCE: usize = 1024;

/// Whether rows and groups consist of whole blocks of 32 columns.
pub(super) fn fits(weight: &Int4<'_>) -> bool {
    let group = weight.group().get();
    let is_one_group = group >= weight.dims()[1];
    weight.dims()[1].is_multiple_of(BLOCK) && (is_one_group || group.is_multiple_of(BLOCK))
}

/// Evaluates an expression with `$module` as the module of an instruction set.
macro_rules! on_isa {
    ($isa:expr, $module:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                use avx2 as $module;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                use avx512 as $module;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                use neon as $module;
                $body
            }
            isa => unreachable!("{isa:?} has its own code path, or belongs to another architecture"),
        }
    };
}

/// Computes the product for at most [`super::MAX_GEMV_ROWS`] rows of activations, with a weight that [`fits`].
pub(super) fn product(product: &Product<'_>, weight: &Int4<'_>) {
    let order = on_isa!(product.isa, isa => isa::order());
    with_packed(product, &order, |packed| {
        product.split(weight.bytes(), UNIT, |range| {
            // SAFETY: `Product::checked` has checked CPU support, and tasks write disjoint ranges.
            on_isa!(product.isa, isa => unsafe { isa::thin(weight, range, packed, product) });
        });
    });
}

/// Expands rows `range` of a weight that [`fits`] to f32, `[range.len(), d_in]`. The caller has checked CPU support for
/// `isa`.
pub(super) fn expand(isa: Isa, weight: &Int4<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: the callers have checked CPU support.
    on_isa!(isa, isa => unsafe { isa::expand(weight, range, out) });
}

/// Decodes codes into vectors of an instruction set.
///
/// # Safety of its methods
/// The CPU supports the instruction set of the type.
trait Nibbles: Vector {
    /// The 32 codes of a block.
    type Codes: Copy;

    /// Returns the column, within a block, whose value is in lane `at`. Lanes are counted over all vectors of the
    /// block.
    fn column(at: usize) -> usize;

    /// Loads a block.
    ///
    /// # Safety
    /// `bytes` is valid for [`BLOCK_BYTES`] bytes.
    unsafe fn block(bytes: *const u8) -> Self::Codes;

    /// Returns vector `index` of the codes of a block, as numbers from 0 to 15.
    unsafe fn vector(codes: Self::Codes, index: usize) -> Self;

    /// Loads `LANES` codes in column order, as numbers from 0 to 15.
    ///
    /// # Safety
    /// `bytes` is valid for `LANES / 2` bytes.
    unsafe fn in_order(bytes: *const u8) -> Self;
}

/// The order in which the vectors of a block hold its columns.
fn order_of<V: Nibbles>() -> Order {
    let mut order = Order::natural(BLOCK);
    for (at, column) in order.columns[..BLOCK].iter_mut().enumerate() {
        *column = V::column(at) as u8;
    }
    order
}

/// Pointers to the codes and to the scales and zero points of one row.
#[derive(Clone, Copy)]
struct Row {
    codes: *const u8,
    scales: *const [f32; 2],
}

/// Computes the output features `range`.
///
/// # Safety
/// The CPU supports the instruction set of `V`, the caller is compiled for it, and no other task writes these features.
#[inline(always)]
unsafe fn thin<V: Nibbles>(weight: &Int4<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // The number of weight rows is chosen so that sums and operands fit the registers.
    // SAFETY: guaranteed by the caller.
    unsafe {
        match packed.n_rows {
            1 => sets::<V, 4, 1>(weight, range, packed, product),
            2 => sets::<V, 4, 2>(weight, range, packed, product),
            4 => sets::<V, 1, 4>(weight, range, packed, product),
            8 => sets::<V, 1, 8>(weight, range, packed, product),
            n_rows => unreachable!("{n_rows} rows should have been padded to 1, 2, 4 or 8"),
        }
    }
}

/// Computes [`thin`] with `R` weight rows and `N` activation rows at a time. Set `s` has every `n_sets`-th row of the
/// range, starting at row `s`. In the next set, each of the `R` streams therefore continues with the adjacent row.
///
/// If several rows of activations do not fit the L1 cache together, [`SETS`] sets are processed together, one chunk of
/// columns after another.
#[inline(always)]
unsafe fn sets<V: Nibbles, const R: usize, const N: usize>(
    weight: &Int4<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    let blocks = product.d_in / BLOCK;
    assert!(fits(weight) && weight.dims()[1] == product.d_in);
    assert!(packed.n_rows == N && packed.values.len() >= N * packed.stride && packed.stride >= product.d_in);
    let n_chunks = if N == 1 { 1 } else { (N * product.d_in).div_ceil(CHUNK_VALUES) };
    let (chunk, at_once) = (blocks.div_ceil(n_chunks).max(1), if n_chunks == 1 { 1 } else { SETS });
    let (n_sets, group) = (range.len().div_ceil(R), weight.group().get().min(product.d_in));
    for first in (0..n_sets).step_by(at_once) {
        let sets = first..n_sets.min(first + at_once);
        // SAFETY: the blocks are inside their rows and inside the activations, which are checked above.
        unsafe {
            let mut sums = [[[V::splat(0.0); N]; R]; SETS];
            for from in (0..blocks).step_by(chunk) {
                for (set, sums) in sets.clone().zip(&mut sums) {
                    let mut rows = [row(weight, range.start + set); R];
                    for r in 1..R {
                        // Rows past the end of the range are replaced by its last row.
                        rows[r] = row(weight, (range.start + set + r * n_sets).min(range.end - 1));
                    }
                    add::<V, R, N>(rows, group, from..blocks.min(from + chunk), packed, sums);
                }
            }
            for (set, sums) in sets.zip(&sums) {
                for r in 0..R {
                    let feature = range.start + set + r * n_sets;
                    if feature >= range.end {
                        continue;
                    }
                    for n in 0..product.n_rows {
                        let value = sums[r][n].sum() + product.bias_at(feature);
                        product.out.write(n * product.d_out + feature, value);
                    }
                }
            }
        }
    }
}

/// Returns row `row` of the weight. The bounds are checked.
fn row(weight: &Int4<'_>, row: usize) -> Row {
    let (codes, scales) = weight.row(row);
    Row { codes: codes.as_ptr(), scales: scales.as_ptr() }
}

/// Adds the products of the blocks `blocks` to `sums`. Each group of `group` columns has its own scale and zero point.
///
/// # Safety
/// As [`thin`]; the blocks are inside the rows and the activations.
#[inline(always)]
unsafe fn add<V: Nibbles, const R: usize, const N: usize>(
    rows: [Row; R],
    group: usize,
    blocks: Range<usize>,
    packed: Packed<'_>,
    sums: &mut [[V; N]; R],
) {
    let mut total = *sums;
    let mut from = blocks.start;
    while from < blocks.end {
        let index = from * BLOCK / group;
        let to = blocks.end.min(((index + 1) * group).div_ceil(BLOCK));
        // SAFETY: guaranteed by the caller; every block belongs to a group of its row.
        unsafe {
            let (mut scales, mut zeros) = ([V::splat(0.0); R], [V::splat(0.0); R]);
            for r in 0..R {
                let [scale, zero] = *rows[r].scales.add(index);
                (scales[r], zeros[r]) = (V::splat(scale), V::splat(zero));
            }
            // With one row of activations, it is cheaper to scale the sums than each vector.
            let mut partial = if N == 1 { [[V::splat(0.0); N]; R] } else { total };
            for block in from..to {
                let mut codes = [V::block(rows[0].codes.add(block * BLOCK_BYTES)); R];
                for r in 0..R {
                    codes[r] = V::block(rows[r].codes.add(block * BLOCK_BYTES));
                    // With more rows of activations, chunks of columns are shorter than the prefetch distance.
                    if N == 1 {
                        V::prefetch(rows[r].codes.wrapping_add(block * BLOCK_BYTES + PREFETCH_DISTANCE));
                    }
                }
                for index in 0..BLOCK / V::LANES {
                    let at = packed.values.as_ptr().add(block * BLOCK + index * V::LANES);
                    for r in 0..R {
                        let weights = V::vector(codes[r], index).sub(zeros[r]);
                        let weights = if N == 1 { weights } else { weights.mul(scales[r]) };
                        for n in 0..N {
                            partial[r][n] = weights.mul_add(V::load(at.add(n * packed.stride)), partial[r][n]);
                        }
                    }
                }
            }
            if N > 1 {
                total = partial;
            } else {
                for r in 0..R {
                    total[r][0] = partial[r][0].mul_add(scales[r], total[r][0]);
                }
            }
        }
        from = to;
    }
    *sums = total;
}

/// Implements [`expand`] with the vectors of one instruction set.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
unsafe fn expand_with<V: Nibbles>(weight: &Int4<'_>, range: Range<usize>, out: &mut [f32]) {
    let d_in = weight.dims()[1];
    assert!(fits(weight) && out.len() == range.len() * d_in, "`out` must hold one value per weight");
    for (out, row) in out.chunks_exact_mut(d_in).zip(range) {
        let (codes, scales) = weight.row(row);
        for (index, (out, [scale, zero])) in out.chunks_mut(weight.group().get()).zip(scales).enumerate() {
            let codes = &codes[index * weight.group().get() / 2..][..out.len() / 2];
            // SAFETY: groups consist of whole vectors, and there is one code for each value.
            unsafe {
                let (scale, zero) = (V::splat(*scale), V::splat(*zero));
                for column in (0..out.len()).step_by(V::LANES) {
                    let values = V::in_order(codes.as_ptr().add(column / 2)).sub(zero).mul(scale);
                    values.store(out.as_mut_ptr().add(column));
                }
            }
        }
    }
}

/// Defines `order`, `thin` and `expand` of an instruction set.
macro_rules! entry_points {
    ($vector:ty, $features:literal) => {
        /// Returns the order of the columns in the lanes of these vectors.
        pub(super) fn order() -> Order {
            super::order_of::<$vector>()
        }

        /// [`super::thin`] compiled for the instruction set.
        ///
        /// # Safety
        /// The CPU supports the enabled target features, and no other task writes the features `range`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn thin(weight: &Int4<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
            // SAFETY: guaranteed by the caller.
            unsafe { super::thin::<$vector>(weight, range, packed, product) }
        }

        /// [`super::expand`] compiled for the instruction set.
        ///
        /// # Safety
        /// The CPU supports the enabled target features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn expand(weight: &Int4<'_>, range: Range<usize>, out: &mut [f32]) {
            // SAFETY: guaranteed by the caller.
            unsafe { super::expand_with::<$vector>(weight, range, out) }
        }
    };
}
use entry_points;
