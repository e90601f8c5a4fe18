//! Products of GGUF blocks with activations that are packed as integers ([`super::packed`]).
//!
//! Codes and digits are multiplied and summed as integers, eight sums per row, exactly. Each group of columns then adds
//! its eight sums, times the scales of weight and activations, to eight f32 sums. Codes are unpacked once for `N` rows
//! of activations.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::super::super::{MAX_GEMV_ROWS, Product};
use super::super::Precision;
use super::packed::{DIGITS, Layout, PAIR_DIGITS, SUPER_DIGITS, WORD_DIGIT, pack};
use super::{Format, PREFETCH_DISTANCE, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, sum};
use crate::formats::{Blocks, GgufType};
use crate::shared::with_scratch;

#[path = "blocks_integers_formats.rs"]
mod formats;
use formats::{Pair, Super};

/// Weight rows that are processed together with one row of activations.
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
    let layout = Layout::of(weight.kind()).expect("the caller has checked the type");
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
                match precision {
                    Precision::Exact => of_kind::<true>(weight, range, packed, product),
                    Precision::Rounded => of_kind::<false>(weight, range, packed, product),
                }
            }
        });
    });
}

/// Computes the output features `range`.
///
/// # Safety
/// The CPU supports the enabled target features, the activations are packed for the type and precision, and no other
/// task writes these features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn of_kind<const EXACT: bool>(
    weight: &Blocks<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match weight.kind() {
            GgufType::Q4_0 => all_rows::<Pairs<Q4_0>, EXACT>(weight, range, packed, product),
            GgufType::Q4_1 => all_rows::<Pairs<Q4_1>, EXACT>(weight, range, packed, product),
            GgufType::Q5_0 => all_rows::<Pairs<Q5_0>, EXACT>(weight, range, packed, product),
            GgufType::Q5_1 => all_rows::<Pairs<Q5_1>, EXACT>(weight, range, packed, product),
            GgufType::Q8_0 => all_rows::<Words, EXACT>(weight, range, packed, product),
            GgufType::Q4_K => all_rows::<Supers<Q4K>, EXACT>(weight, range, packed, product),
            GgufType::Q5_K => all_rows::<Supers<Q5K>, EXACT>(weight, range, packed, product),
            GgufType::Q6_K => all_rows::<Supers<Q6K>, EXACT>(weight, range, packed, product),
            other => unreachable!("{} has no integer products", other.name()),
        }
    }
}

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
        // Many exact rows are multiplied as f32.
        while !EXACT && first + MAX_ROWS <= product.n_rows {
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
            let mut sums = [[Sums { main: _mm256_setzero_ps(), other: _mm256_setzero_ps() }; N]; R];
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
                    let Sums { main, other } = sums[r][n];
                    let value = sum(G::finish::<EXACT>(main, other)) + product.bias_at(features[r]);
                    product.out.write((first + n) * product.d_out + features[r], value);
                }
            }
        }
    }
}

/// Sums of a weight row and a row of activations.
#[derive(Clone, Copy)]
struct Sums {
    main: __m256,
    /// Products of minima and sums of activations, or of the lower digits, or nothing.
    other: __m256,
}

/// The groups of columns of a layout.
///
/// # Safety of its methods
/// The caller is compiled for AVX2, FMA and F16C.
trait Groups {
    /// Size of a whole group in bytes.
    const BYTES: usize;

    /// Adds the products of a group of a weight row. With `WHOLE`, `group` has [`Self::BYTES`] bytes. Otherwise, it has
    /// the first of two blocks only.
    ///
    /// # Safety
    /// `group` is valid, and each of `x` is a packed group of activations of the layout and precision.
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        group: *const u8,
        x: &[*const f32; N],
        sums: &mut [Sums; N],
    );

    /// Adds both sums.
    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(main: __m256, other: __m256) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_add_ps(main, other) }
    }
}

/// Prefetches the lines that a group of `bytes` bytes will be read from soon.
#[inline(always)]
unsafe fn prefetch(at: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: prefetching any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_DISTANCE + 64 * line).cast()) };
    }
}

/// Loads vector `index` of a group of activations.
#[inline(always)]
unsafe fn vector(x: *const f32, index: usize) -> __m256i {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_loadu_si256(x.cast::<__m256i>().add(index)) }
}

/// The layout [`Layout::Pairs`].
struct Pairs<F>(F);

impl<F: Pair> Groups for Pairs<F> {
    const BYTES: usize = 2 * F::BYTES;

    #[inline(always)]
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        block: *const u8,
        x: &[*const f32; N],
        sums: &mut [Sums; N],
    ) {
        // SAFETY: guaranteed by the caller. A missing second block is replaced by the first: its activations are zero.
        unsafe {
            let first = block;
            let second = first.add(if WHOLE { F::BYTES } else { 0 });
            prefetch(first, 2 * F::BYTES);
            let codes = F::pair(first, second);
            let scales = halves(first, second);
            let minima = if F::HAS_MINIMA { halves(first.add(2), second.add(2)) } else { scales };
            for n in 0..N {
                let digits = if EXACT { DIGITS } else { 1 };
                let digit = |digit: usize| {
                    let left = _mm256_maddubs_epi16(codes[0], vector(x[n], 2 * digit));
                    let right = _mm256_maddubs_epi16(codes[1], vector(x[n], 2 * digit + 1));
                    _mm256_madd_epi16(_mm256_add_epi16(left, right), _mm256_set1_epi16(PAIR_DIGITS[digit]))
                };
                let mut products = digit(0);
                if EXACT {
                    products = _mm256_add_epi32(products, _mm256_add_epi32(digit(1), digit(2)));
                }
                let rest = x[n].add(digits * 16);
                if !F::HAS_MINIMA {
                    products = _mm256_add_epi32(products, _mm256_loadu_si256(rest.add(8).cast()));
                }
                let scales = _mm256_mul_ps(scales, _mm256_loadu_ps(rest));
                sums[n].main = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scales, sums[n].main);
                if F::HAS_MINIMA {
                    sums[n].other = _mm256_fmadd_ps(minima, _mm256_loadu_ps(rest.add(8)), sums[n].other);
                }
            }
        }
    }
}

/// Returns two f16 as f32, in four lanes each.
#[inline(always)]
unsafe fn halves(first: *const u8, second: *const u8) -> __m256 {
    // SAFETY: the caller guarantees CPU support and two bytes each.
    unsafe {
        let first = _mm_set1_epi16(first.cast::<i16>().read_unaligned());
        let second = _mm_set1_epi16(second.cast::<i16>().read_unaligned());
        _mm256_cvtph_ps(_mm_unpacklo_epi64(first, second))
    }
}

/// The layout [`Layout::Words`], which only `Q8_0` has.
struct Words;

impl Groups for Words {
    const BYTES: usize = Q8_0::BYTES;

    #[inline(always)]
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        block: *const u8,
        x: &[*const f32; N],
        sums: &mut [Sums; N],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            prefetch(block, Q8_0::BYTES);
            let left = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(2).cast()));
            let right = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(18).cast()));
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(block.cast::<i16>().read_unaligned()));
            for n in 0..N {
                let digit = |digit: usize| {
                    let left = _mm256_madd_epi16(left, vector(x[n], 2 * digit));
                    let right = _mm256_madd_epi16(right, vector(x[n], 2 * digit + 1));
                    _mm256_cvtepi32_ps(_mm256_add_epi32(left, right))
                };
                let size = _mm256_broadcast_ss(&*x[n].add(if EXACT { 32 } else { 16 }));
                let scale = _mm256_mul_ps(scale, size);
                sums[n].main = _mm256_fmadd_ps(digit(0), scale, sums[n].main);
                if EXACT {
                    sums[n].other = _mm256_fmadd_ps(digit(1), scale, sums[n].other);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(main: __m256, other: __m256) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { if EXACT { _mm256_fmadd_ps(main, _mm256_set1_ps(WORD_DIGIT), other) } else { main } }
    }
}

/// The layout [`Layout::Supers`].
struct Supers<F>(F);

impl<F: Super> Groups for Supers<F> {
    const BYTES: usize = F::BYTES;

    #[inline(always)]
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        block: *const u8,
        x: &[*const f32; N],
        sums: &mut [Sums; N],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            prefetch(block, F::BYTES);
            let digits = if EXACT { DIGITS } else { 1 };
            let scales = F::scales(block);
            let mut products = [[_mm256_setzero_si256(); DIGITS]; N];
            macro_rules! part {
                ($part:literal) => {
                    let codes = F::unsigned::<$part>(block);
                    let scales = F::scales_of::<$part>(&scales);
                    for n in 0..N {
                        for digit in 0..digits {
                            let pairs = _mm256_maddubs_epi16(codes, vector(x[n], 8 * digit + $part));
                            let scaled = _mm256_madd_epi16(pairs, scales);
                            products[n][digit] = _mm256_add_epi32(products[n][digit], scaled);
                        }
                    }
                };
            }
            part!(0);
            part!(1);
            part!(2);
            part!(3);
            part!(4);
            part!(5);
            part!(6);
            part!(7);
            for n in 0..N {
                let rest = x[n].add(digits * 64);
                if !F::HAS_MINIMA {
                    for digit in 0..digits {
                        let offsets = F::offsets(&scales, vector(rest, digit));
                        products[n][digit] = _mm256_sub_epi32(products[n][digit], offsets);
                    }
                }
                let mut value = _mm256_cvtepi32_ps(products[n][0]);
                for digit in 1..digits {
                    let weight = _mm256_set1_ps(SUPER_DIGITS[digit]);
                    value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[n][digit]), weight, value);
                }
                let size = *rest.add(if F::HAS_MINIMA { 8 } else { 8 * digits });
                let scale = _mm256_set1_ps(F::block_scale(block) * size);
                sums[n].main = _mm256_fmadd_ps(value, scale, sums[n].main);
                if F::HAS_MINIMA {
                    sums[n].other = _mm256_fmadd_ps(F::minima(block), _mm256_loadu_ps(rest), sums[n].other);
                }
            }
        }
    }
}
