//! Integer products of GGUF blocks on AVX2: vectors of 32 codes, and eight sums.

use std::arch::x86_64::*;

use super::super::packed::{DIGITS, PAIR_DIGITS, SUPER_DIGITS, WORD_DIGIT};
use super::super::{Format, Q8_0, sum};
use super::formats::{Pair, Super};
use super::{Groups, prefetch};

/// Sums of a weight row and a row of activations.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    main: __m256,
    /// Products of the minima with sums of activations, or products of the lower digits; zero for other types.
    other: __m256,
}

impl Sums {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe { Self { main: _mm256_setzero_ps(), other: _mm256_setzero_ps() } }
    }

    /// Adds both sums.
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the caller guarantees CPU support.
        unsafe { sum(_mm256_add_ps(self.main, self.other)) }
    }
}

/// Loads vector `index` of a group of activations.
#[inline(always)]
unsafe fn vector(x: *const f32, index: usize) -> __m256i {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_loadu_si256(x.cast::<__m256i>().add(index)) }
}

/// The layout [`super::super::packed::Layout::Pairs`].
pub(super) struct Pairs<F>(F);

impl<F: Pair> Groups for Pairs<F> {
    type Sums = Sums;
    const BYTES: usize = 2 * F::BYTES;
    const EXACT_ROWS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Sums {
        // SAFETY: guaranteed by the caller.
        unsafe { Sums::zero() }
    }

    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(sums: Sums) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { sums.total() }
    }

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

/// The layout [`super::super::packed::Layout::Words`], which only `Q8_0` has.
pub(super) struct Words;

impl Groups for Words {
    type Sums = Sums;
    const BYTES: usize = Q8_0::BYTES;
    const EXACT_ROWS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Sums {
        // SAFETY: guaranteed by the caller.
        unsafe { Sums::zero() }
    }

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
    unsafe fn finish<const EXACT: bool>(Sums { main, other }: Sums) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { sum(if EXACT { _mm256_fmadd_ps(main, _mm256_set1_ps(WORD_DIGIT), other) } else { main }) }
    }
}

/// The layout [`super::super::packed::Layout::Supers`].
pub(super) struct Supers<F>(F);

impl<F: Super> Groups for Supers<F> {
    type Sums = Sums;
    const BYTES: usize = F::BYTES;
    const EXACT_ROWS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Sums {
        // SAFETY: guaranteed by the caller.
        unsafe { Sums::zero() }
    }

    #[inline(always)]
    unsafe fn finish<const EXACT: bool>(sums: Sums) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { sums.total() }
    }

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
