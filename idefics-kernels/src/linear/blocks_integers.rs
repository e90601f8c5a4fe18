//! Products of GGUF blocks with activations that are packed as integers ([`super::packed`]).
//!
//! Codes and digits are multiplied and summed as integers, one sum per lane, exactly. Each group of columns then adds
//! its sums, times the scales of weight and activations, to the f32 sums of the lanes. Codes are unpacked once for `N`
//! rows of activations. The loops over rows and groups are the same on all instruction sets; only the implementations
//! of [`Groups`] differ.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::super::super::{MAX_GEMV_ROWS, Product};
use super::super::Precision;
use super::packed::{Layout, pack};
use super::{PREFETCH_DISTANCE, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::Isa;
use crate::formats::{Blocks, GgufType};
use crate::shared::with_scratch;

#[path = "blocks_integers_avx2.rs"]
mod avx2;
#[path = "blocks_integers_avx512.rs"]
mod avx512;
#[path = "blocks_integers_formats.rs"]
mod formats;

/// Number of weight rows that are processed together if there is one row of activations.
const ROWS: usize = 4;

/// Maximum number of rows of activations that are multiplied with unpacked codes at once.
const MAX_ROWS: usize = 4;

/// Packed rows of activations.
#[derive(Clone, Copy)]
struct Packed<'a> {
    /// `[n_rows, stride]`.
    values: &'a [f32],
    stride: usize,
    layout: Layout,
}

/// Computes the product with activations of a given precision.
///
/// # Panics
/// If the type is not supported, or the CPU support was not checked.
pub(in super::super) fn product(product: &Product<'_>, weight: &Blocks<'_>, precision: Precision) {
    super::assert_checked(product.isa);
    let is_wide = matches!(product.isa, Isa::Avx512 | Isa::Amx);
    let layout = Layout::of(weight.kind(), is_wide).expect("the caller has checked the type");
    let stride = product.d_in.div_ceil(layout.columns()) * layout.group_len(precision);
    with_scratch(product.n_rows * stride, |values| {
        // SAFETY: the assertion above and `Product::checked` guarantee CPU support.
        let pack_row = |(x, values): (&[f32], &mut [f32])| unsafe { pack(layout, precision, x, values) };
        match product.n_rows {
            ..=MAX_GEMV_ROWS => {
                product.x.chunks_exact(product.d_in).zip(values.chunks_exact_mut(stride)).for_each(pack_row);
            }
            _ => product.x.par_chunks_exact(product.d_in).zip(values.par_chunks_exact_mut(stride)).for_each(pack_row),
        }
        let packed = Packed { values, stride, layout };
        product.split_weights(weight.dims(), ROWS, |range| {
            // SAFETY: as above; tasks write disjoint ranges.
            unsafe {
                match (is_wide, precision) {
                    (false, Precision::Exact) => of_kind_avx2::<true>(weight, range, packed, product),
                    (false, Precision::Rounded) => of_kind_avx2::<false>(weight, range, packed, product),
                    (true, Precision::Exact) => of_kind_avx512::<true>(weight, range, packed, product),
                    (true, Precision::Rounded) => of_kind_avx512::<false>(weight, range, packed, product),
                }
            }
        });
    });
}

/// Defines a function that computes the output features `range` on an instruction set, with the given groups of each
/// type.
macro_rules! of_kind {
    ($name:ident, $features:literal, $($kind:ident => $groups:ty),*) => {
        /// Computes the output features `range`.
        ///
        /// # Safety
        /// The CPU supports the enabled target features, the activations are packed for the type, the precision and
        /// the instruction set, and no other task writes these features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const EXACT: bool>(
            weight: &Blocks<'_>,
            range: Range<usize>,
            packed: Packed<'_>,
            product: &Product<'_>,
        ) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                match weight.kind() {
                    $(GgufType::$kind => all_rows::<$groups, EXACT>(weight, range, packed, product),)*
                    other => unreachable!("{} has no integer products", other.name()),
                }
            }
        }
    };
}

of_kind!(
    of_kind_avx2, "avx2,fma,f16c",
    Q4_0 => avx2::Pairs<Q4_0>, Q4_1 => avx2::Pairs<Q4_1>, Q5_0 => avx2::Pairs<Q5_0>, Q5_1 => avx2::Pairs<Q5_1>,
    Q8_0 => avx2::Words,
    Q4_K => avx2::Supers<Q4K>, Q5_K => avx2::Supers<Q5K>, Q6_K => avx2::Supers<Q6K>
);

of_kind!(
    of_kind_avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    Q4_0 => avx512::Pairs<Q4_0>, Q4_1 => avx512::Pairs<Q4_1>, Q5_0 => avx512::Pairs<Q5_0>,
    Q5_1 => avx512::Pairs<Q5_1>, Q8_0 => avx512::Pairs<Q8_0>,
    Q4_K => avx512::Supers<Q4K>, Q5_K => avx512::Supers<Q5K>, Q6_K => avx512::Supers<Q6K>
);

/// Multiplies all rows of activations, [`MAX_ROWS`] or one at a time. A task is small enough that its weights stay in the
/// cache from one pass to the next.
#[inline(always)]
unsafe fn all_rows<G: Groups, const EXACT: bool>(
    weight: &Blocks<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    let mut first = 0;
    // SAFETY: guaranteed by the caller.
    unsafe {
        while (!EXACT || G::EXACT_ROWS) && first + MAX_ROWS <= product.n_rows {
            rows::<G, EXACT, 1, MAX_ROWS>(weight, range.clone(), packed, first, product);
            first += MAX_ROWS;
        }
        while first < product.n_rows {
            rows::<G, EXACT, ROWS, 1>(weight, range.clone(), packed, first, product);
            first += 1;
        }
    }
}

/// Multiplies `R` weight rows at a time with `N` rows of activations, from row `first` on. The weight rows of a group are
/// far apart, because memory delivers several streams faster than one.
#[inline(always)]
unsafe fn rows<G: Groups, const EXACT: bool, const R: usize, const N: usize>(
    weight: &Blocks<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    first: usize,
    product: &Product<'_>,
) {
    let precision = if EXACT { Precision::Exact } else { Precision::Rounded };
    let (row_bytes, bytes) = (weight.row_bytes(), weight.as_bytes());
    let group_len = packed.layout.group_len(precision);
    let n_groups = product.d_in.div_ceil(packed.layout.columns());
    assert!(packed.stride == n_groups * group_len && packed.values.len() >= (first + N) * packed.stride);
    assert_eq!(row_bytes * packed.layout.columns(), product.d_in * G::BYTES, "a row must be whole blocks");
    let n_sets = range.len().div_ceil(R);
    for set in 0..n_sets {
        // Rows past the end of the range are replaced by its last row, and their sums are not written.
        let features: [usize; R] = std::array::from_fn(|r| range.start + set + r * n_sets);
        let starts: [*const u8; R] = features.map(|feature| {
            let row = feature.min(range.end - 1);
            bytes[row * row_bytes..(row + 1) * row_bytes].as_ptr()
        });
        // SAFETY: the groups are inside their rows and inside the activations, which are checked above.
        unsafe {
            let x = packed.values.as_ptr().add(first * packed.stride);
            let mut sums = [[G::zero(); N]; R];
            let x_of = |group: usize| -> [*const f32; N] {
                std::array::from_fn(|n| x.add(n * packed.stride + group * group_len))
            };
            let n_whole = row_bytes / G::BYTES;
            for group in 0..n_whole {
                let x = x_of(group);
                for r in 0..R {
                    G::add::<EXACT, N, true>(starts[r].add(group * G::BYTES), &x, &mut sums[r]);
                }
            }
            // The last group of a row may have one block instead of two.
            if n_whole < n_groups {
                let x = x_of(n_whole);
                for r in 0..R {
                    G::add::<EXACT, N, false>(starts[r].add(n_whole * G::BYTES), &x, &mut sums[r]);
                }
            }
            for r in 0..R {
                if features[r] >= range.end {
                    continue;
                }
                for n in 0..N {
                    let value = G::finish::<EXACT>(sums[r][n]) + product.bias_at(features[r]);
                    product.out.write((first + n) * product.d_out + features[r], value);
                }
            }
        }
    }
}

/// The groups of columns of a layout, on one instruction set.
///
/// # Safety of its methods
/// The caller is compiled for the instruction set.
trait Groups {
    /// Sums of a weight row and a row of activations.
    type Sums: Copy;

    /// Size of a whole group in bytes.
    const BYTES: usize;

    /// Whether several exact rows are multiplied together. Otherwise, such products are computed in f32.
    const EXACT_ROWS: bool;

    /// Returns sums that are zero.
    unsafe fn zero() -> Self::Sums;

    /// Adds the products of a group of a weight row. With `WHOLE`, `group` has [`Self::BYTES`] bytes. Otherwise, it has
    /// only the first of its two blocks.
    ///
    /// # Safety
    /// `group` is valid, and each of `x` is a packed group of activations of the layout and precision.
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        group: *const u8,
        x: &[*const f32; N],
        sums: &mut [Self::Sums; N],
    );

    /// Adds all sums, in a fixed order.
    unsafe fn finish<const EXACT: bool>(sums: Self::Sums) -> f32;
}

/// Prefetches the cache lines of a group of `bytes` bytes that will soon be read.
#[inline(always)]
unsafe fn prefetch(at: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: prefetching any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_DISTANCE + 64 * line).cast()) };
    }
}
