//! Integer products of GGUF blocks on AVX-512 with VNNI: vectors of 64 codes, and sixteen sums.

use std::arch::x86_64::*;

use super::super::packed::{DIGITS, SUPER_DIGITS};
use super::super::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, sum};
use super::formats::Super;
use super::{Groups, prefetch};

/// Loads vector `index` of a group of activations.
#[inline(always)]
unsafe fn vector(x: *const f32, index: usize) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm512_loadu_si512(x.cast::<__m512i>().add(index)) }
}

/// A type with blocks of 32 codes, which are read as unsigned bytes.
///
/// # Safety of its method
/// The caller is compiled for AVX-512, and both blocks are valid.
pub(super) trait WidePair: Format {
    /// The codes of two blocks in column order.
    unsafe fn wide(first: *const u8, second: *const u8) -> __m512i;
}

/// Reads four-bit codes of two blocks from 16 bytes of each block.
#[inline(always)]
unsafe fn nibbles(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let first = _mm512_broadcast_i32x4(_mm_loadu_si128(first.cast()));
        let bytes = _mm512_mask_broadcast_i32x4(first, 0xff00, _mm_loadu_si128(second.cast()));
        let shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi32(bytes, shifts), _mm512_set1_epi8(15))
    }
}

/// Adds 16 to the codes whose bit is set in the four bytes of each block.
#[inline(always)]
unsafe fn with_fifth_bits(codes: __m512i, first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (first, second) = (first.cast::<u32>().read_unaligned(), second.cast::<u32>().read_unaligned());
        _mm512_mask_add_epi8(codes, u64::from(first) | u64::from(second) << 32, codes, _mm512_set1_epi8(16))
    }
}

macro_rules! wide_pair {
    ($($format:ident, ($first:ident, $second:ident) => $codes:expr;)*) => {
        $(impl WidePair for $format {
            #[inline(always)]
            unsafe fn wide($first: *const u8, $second: *const u8) -> __m512i {
                // SAFETY: guaranteed by the caller.
                unsafe { $codes }
            }
        })*
    };
}

wide_pair! {
    Q4_0, (first, second) => nibbles(first.add(2), second.add(2));
    Q4_1, (first, second) => nibbles(first.add(4), second.add(4));
    Q5_0, (first, second) => with_fifth_bits(nibbles(first.add(6), second.add(6)), first.add(2), second.add(2));
    Q5_1, (first, second) => with_fifth_bits(nibbles(first.add(8), second.add(8)), first.add(4), second.add(4));
    Q8_0, (first, second) => {
        let low = _mm512_castsi256_si512(_mm256_loadu_si256(first.add(2).cast()));
        let codes = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(second.add(2).cast()));
        _mm512_xor_si512(codes, _mm512_set1_epi8(-128))
    };
}

/// Returns two f16 as f32, in eight lanes each.
#[inline(always)]
unsafe fn halves(first: *const u8, second: *const u8) -> __m512 {
    // SAFETY: the caller guarantees CPU support and two bytes each.
    unsafe {
        let (first, second) = (first.cast::<u16>().read_unaligned(), second.cast::<u16>().read_unaligned());
        let both = _mm_cvtsi32_si128((u32::from(first) | u32::from(second) << 16).cast_signed());
        let lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_cvtph_ps(both)))
    }
}

/// Sums of a weight row and a row of activations in [`Pairs`].
#[derive(Clone, Copy)]
pub(super) struct PairSums {
    main: __m512,
    /// Products of the minima with sums of activations; zero for types without minima.
    other: __m512,
}

/// The layout [`super::super::packed::Layout::Wide`].
pub(super) struct Pairs<F>(F);

impl<F: WidePair> Groups for Pairs<F> {
    type Sums = PairSums;
    const BYTES: usize = 2 * F::BYTES;
    const EXACT_ROWS: bool = true;

    #[inline(always)]
    unsafe fn zero() -> PairSums {
        // SAFETY: guaranteed by the caller.
        unsafe { PairSums { main: _mm512_setzero_ps(), other: _mm512_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        block: *const u8,
        x: &[*const f32; N],
        sums: &mut [PairSums; N],
    ) {
        // SAFETY: guaranteed by the caller. A missing second block is replaced by the first: its activations are zero.
        unsafe {
            let first = block;
            let second = first.add(if WHOLE { F::BYTES } else { 0 });
            prefetch(first, 2 * F::BYTES);
            let codes = F::wide(first, second);
            let scales = halves(first, second);
            let minima = if F::HAS_MINIMA { halves(first.add(2), second.add(2)) } else { scales };
            for n in 0..N {
                let digits = if EXACT { DIGITS } else { 1 };
                let rest = x[n].add(digits * 16);
                let mut products = _mm512_setzero_si512();
                if EXACT {
                    products = _mm512_dpbusd_epi32(products, codes, vector(x[n], 2));
                    products = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(products), codes, vector(x[n], 1));
                    products = _mm512_slli_epi32::<8>(products);
                }
                if !F::HAS_MINIMA {
                    products = _mm512_add_epi32(products, vector(rest, 1));
                }
                products = _mm512_dpbusd_epi32(products, codes, vector(x[n], 0));
                let scales = _mm512_mul_ps(scales, _mm512_loadu_ps(rest));
                sums[n].main = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, sums[n].main);
                if F::HAS_MINIMA {
                    sums[n].other = _mm512_fmadd_ps(minima, _mm512_loadu_ps(rest.add(16)), sums[n].other);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(sums: PairSums) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_reduce_add_ps(_mm512_add_ps(sums.main, sums.other)) }
    }
}

/// A type with blocks of 256 codes, of which two parts are read together.
///
/// # Safety of its methods
/// The caller is compiled for AVX-512, and `block` is a whole block.
pub(super) trait WideSuper: Super {
    /// The unsigned codes of parts `2 I` and `2 I + 1` in column order.
    unsafe fn wide<const I: usize>(block: *const u8) -> __m512i;

    /// The scales of parts `2 I` and `2 I + 1` as 16-bit integers: one per 16 columns in each quarter of the vector.
    unsafe fn wide_scales<const I: usize>(scales: &Self::Scales) -> __m512i;
}

/// Returns a vector with `low` in the 32-bit lanes of its lower half and `high` in the others.
#[inline(always)]
unsafe fn two(low: i32, high: i32) -> __m512i {
    // SAFETY: the caller guarantees CPU support.
    unsafe { _mm512_inserti64x4::<1>(_mm512_set1_epi32(low), _mm256_set1_epi32(high)) }
}

/// Reads 32 bytes into both halves of a vector.
#[inline(always)]
unsafe fn twice(at: *const u8) -> __m512i {
    // SAFETY: the caller guarantees CPU support and 32 bytes.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast())) }
}

/// Reads the four-bit codes of two parts from 32 bytes: the low halves, then the high halves.
#[inline(always)]
unsafe fn two_parts(at: *const u8) -> __m512i {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm512_and_si512(_mm512_srlv_epi32(twice(at), two(0, 4)), _mm512_set1_epi8(15)) }
}

/// Picks scales `2 I` and `2 I + 1` of eight 16-bit scales, one for each half of the vector.
#[inline(always)]
unsafe fn picked<const I: usize>(scales: __m256i) -> __m512i {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        let scales = _mm512_broadcast_i32x4(_mm256_castsi256_si128(scales));
        // Bytes 4 I and 4 I + 1, or 4 I + 2 and 4 I + 3.
        let bytes = (4 * I as i32) * 0x0101_0101 + 0x0100_0100;
        _mm512_shuffle_epi8(scales, two(bytes, bytes + 0x0202_0202))
    }
}

impl WideSuper for Q4K {
    #[inline(always)]
    unsafe fn wide<const I: usize>(block: *const u8) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe { two_parts(block.add(16 + 32 * I)) }
    }
    #[inline(always)]
    unsafe fn wide_scales<const I: usize>(scales: &__m256i) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe { picked::<I>(*scales) }
    }
}

impl WideSuper for Q5K {
    #[inline(always)]
    unsafe fn wide<const I: usize>(block: *const u8) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            // A rotation moves bit 2 I or 2 I + 1 of each byte to bit 4. The other bits of the result have no meaning.
            let left = 4 - 2 * I as i32;
            let high = _mm512_rolv_epi32(twice(block.add(16)), two(left & 31, (left - 1) & 31));
            let high = _mm512_and_si512(high, _mm512_set1_epi8(16));
            _mm512_or_si512(two_parts(block.add(48 + 32 * I)), high)
        }
    }
    #[inline(always)]
    unsafe fn wide_scales<const I: usize>(scales: &__m256i) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe { picked::<I>(*scales) }
    }
}

impl WideSuper for Q6K {
    #[inline(always)]
    unsafe fn wide<const I: usize>(block: *const u8) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let low = _mm512_loadu_si512(block.add(I / 2 * 64).cast());
            let low = if I.is_multiple_of(2) { low } else { _mm512_srli_epi16::<4>(low) };
            // A rotation moves the two bits of each part to bits 4 and 5. The other bits of the result have no meaning.
            let left = if I.is_multiple_of(2) { two(4, 2) } else { two(0, 30) };
            let high = _mm512_rolv_epi32(twice(block.add(128 + I / 2 * 32)), left);
            let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
            _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(0x30)))
        }
    }
    #[inline(always)]
    unsafe fn wide_scales<const I: usize>(scales: &__m128i) -> __m512i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            // Each scale goes to the upper byte, and the shift extends its sign.
            let bytes = _mm512_broadcast_i32x4(*scales);
            let first = 4 * I as i32;
            let each = |quarter: i32| (first + quarter) * 0x0100_0100 + 0x0080_0080;
            let [a, b, c, d] = [each(0), each(1), each(2), each(3)];
            let places = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
            _mm512_srai_epi16::<8>(_mm512_shuffle_epi8(bytes, places))
        }
    }
}

/// Sums of a weight row and a row of activations in [`Supers`].
#[derive(Clone, Copy)]
pub(super) struct SuperSums {
    main: __m512,
    /// Products of the minima with sums of activations; zero for types without minima.
    other: __m256,
}

/// The layout [`super::super::packed::Layout::Supers`].
pub(super) struct Supers<F>(F);

impl<F: WideSuper> Groups for Supers<F> {
    type Sums = SuperSums;
    const BYTES: usize = F::BYTES;
    const EXACT_ROWS: bool = true;

    #[inline(always)]
    unsafe fn zero() -> SuperSums {
        // SAFETY: guaranteed by the caller.
        unsafe { SuperSums { main: _mm512_setzero_ps(), other: _mm256_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn add<const EXACT: bool, const N: usize, const WHOLE: bool>(
        block: *const u8,
        x: &[*const f32; N],
        sums: &mut [SuperSums; N],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            prefetch(block, F::BYTES);
            let digits = if EXACT { DIGITS } else { 1 };
            let scales = F::scales(block);
            let mut products = [[_mm512_setzero_si512(); DIGITS]; N];
            macro_rules! parts {
                ($index:literal) => {
                    let codes = F::wide::<$index>(block);
                    let scales = F::wide_scales::<$index>(&scales);
                    for n in 0..N {
                        for digit in 0..digits {
                            let pairs = _mm512_maddubs_epi16(codes, vector(x[n], 4 * digit + $index));
                            products[n][digit] = _mm512_dpwssd_epi32(products[n][digit], pairs, scales);
                        }
                    }
                };
            }
            parts!(0);
            parts!(1);
            parts!(2);
            parts!(3);
            for n in 0..N {
                let rest = x[n].add(digits * 64);
                if !F::HAS_MINIMA {
                    for digit in 0..digits {
                        let sums = _mm256_loadu_si256(rest.cast::<__m256i>().add(digit));
                        let offsets = _mm512_zextsi256_si512(F::offsets(&scales, sums));
                        products[n][digit] = _mm512_sub_epi32(products[n][digit], offsets);
                    }
                }
                let mut value = _mm512_cvtepi32_ps(products[n][0]);
                for digit in 1..digits {
                    let weight = _mm512_set1_ps(SUPER_DIGITS[digit]);
                    value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[n][digit]), weight, value);
                }
                let size = *rest.add(if F::HAS_MINIMA { 8 } else { 8 * digits });
                let scale = _mm512_set1_ps(F::block_scale(block) * size);
                sums[n].main = _mm512_fmadd_ps(value, scale, sums[n].main);
                if F::HAS_MINIMA {
                    sums[n].other = _mm256_fmadd_ps(F::minima(block), _mm256_loadu_ps(rest), sums[n].other);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(sums: SuperSums) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_reduce_add_ps(sums.main) + sum(sums.other) }
    }
}
