//! How the integer products read the blocks of each GGUF type.

use std::arch::x86_64::*;

use super::super::Format;
use super::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K};

/// A type with blocks of 32 unsigned codes.
///
/// # Safety of its method
/// The caller is compiled for AVX2, and both blocks are valid.
pub(super) trait Pair: Format {
    /// The codes of two blocks: the first 16 of each, then the last 16 of each.
    unsafe fn pair(first: *const u8, second: *const u8) -> [__m256i; 2];
}

/// Reads four-bit codes of two blocks from 16 bytes of each block.
#[inline(always)]
unsafe fn nibbles(first: *const u8, second: *const u8) -> [__m256i; 2] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let first = _mm256_castsi128_si256(_mm_loadu_si128(first.cast()));
        let bytes = _mm256_inserti128_si256::<1>(first, _mm_loadu_si128(second.cast()));
        let low = _mm256_set1_epi8(15);
        [_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low)]
    }
}

/// Returns the fifth bits of the codes of two blocks, from four bytes of each block: 16 if the bit is set.
#[inline(always)]
unsafe fn fifth_bits(first: *const u8, second: *const u8) -> [__m256i; 2] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let first = _mm_set1_epi32(first.cast::<i32>().read_unaligned());
        let second = _mm_set1_epi32(second.cast::<i32>().read_unaligned());
        let bits = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second);
        // Each byte receives the byte that contains its bit. Then all other bits of that byte are cleared.
        let only = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let set = |places: __m256i| {
            let bit = _mm256_and_si256(_mm256_shuffle_epi8(bits, places), only);
            _mm256_and_si256(_mm256_cmpeq_epi8(bit, only), _mm256_set1_epi8(16))
        };
        let places = |low: i64, high: i64| _mm256_setr_epi64x(low, high, low, high);
        [set(places(0, 0x0101_0101_0101_0101)), set(places(0x0202_0202_0202_0202, 0x0303_0303_0303_0303))]
    }
}

macro_rules! four_bits {
    ($format:ident, $at:literal) => {
        impl Pair for $format {
            #[inline(always)]
            unsafe fn pair(first: *const u8, second: *const u8) -> [__m256i; 2] {
                // SAFETY: guaranteed by the caller.
                unsafe { nibbles(first.add($at), second.add($at)) }
            }
        }
    };
}

macro_rules! five_bits {
    ($format:ident, $at:literal) => {
        impl Pair for $format {
            #[inline(always)]
            unsafe fn pair(first: *const u8, second: *const u8) -> [__m256i; 2] {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let low = nibbles(first.add($at + 4), second.add($at + 4));
                    let high = fifth_bits(first.add($at), second.add($at));
                    [_mm256_or_si256(low[0], high[0]), _mm256_or_si256(low[1], high[1])]
                }
            }
        }
    };
}

four_bits!(Q4_0, 2);
four_bits!(Q4_1, 4);
five_bits!(Q5_0, 2);
five_bits!(Q5_1, 4);

/// A type with blocks of 256 codes.
///
/// # Safety of its methods
/// The caller is compiled for AVX2 and F16C, and `block` is a whole block.
pub(super) trait Super: Format {
    /// The integer scales of a block.
    type Scales: Copy;

    /// Reads the integer scales of a block.
    unsafe fn scales(block: *const u8) -> Self::Scales;

    /// The unsigned codes of part `P` in column order.
    unsafe fn unsigned<const P: usize>(block: *const u8) -> __m256i;

    /// The scales of part `P` as 16-bit integers: the lower half of the vector for its first 16 columns, the upper half
    /// for the others.
    unsafe fn scales_of<const P: usize>(scales: &Self::Scales) -> __m256i;

    /// The factor by which the integer scales of a block are multiplied.
    unsafe fn block_scale(block: *const u8) -> f32;

    /// The minima of the eight parts, which are added to the values.
    #[inline(always)]
    unsafe fn minima(_block: *const u8) -> __m256 {
        unreachable!("a type without minima")
    }

    /// The products of the code of zero with the scales and the sums of 16 digits.
    #[inline(always)]
    unsafe fn offsets(_scales: &Self::Scales, _sums: __m256i) -> __m256i {
        unreachable!("a type with minima")
    }
}

/// Returns six-bit scales and minima of a Q4_K or Q5_K block, a byte each.
#[inline(always)]
unsafe fn six_bits(block: *const u8) -> [[u32; 2]; 2] {
    // SAFETY: guaranteed by the caller.
    let [first, second, third] = unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() };
    [
        [first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | (first >> 6 & 0x0303_0303) << 4],
        [second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | (second >> 6 & 0x0303_0303) << 4],
    ]
}

/// Eight bytes in the lower half of a vector.
#[inline(always)]
unsafe fn eight([low, high]: [u32; 2]) -> __m128i {
    // SAFETY: the caller guarantees CPU support.
    unsafe { _mm_cvtsi64_si128((u64::from(low) | u64::from(high) << 32).cast_signed()) }
}

macro_rules! with_minima {
    ($format:ident) => {
        impl Super for $format {
            /// Eight 16-bit scales, in both halves.
            type Scales = __m256i;

            #[inline(always)]
            unsafe fn scales(block: *const u8) -> __m256i {
                // SAFETY: guaranteed by the caller.
                unsafe { _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(eight(six_bits(block)[0]))) }
            }
            #[inline(always)]
            unsafe fn unsigned<const P: usize>(block: *const u8) -> __m256i {
                // SAFETY: guaranteed by the caller.
                unsafe { <Self as Format>::codes::<P>(block) }
            }
            #[inline(always)]
            unsafe fn scales_of<const P: usize>(scales: &__m256i) -> __m256i {
                // SAFETY: guaranteed by the caller.
                unsafe { _mm256_shuffle_epi8(*scales, _mm256_set1_epi16((2 * P + 256 * (2 * P + 1)) as i16)) }
            }
            #[inline(always)]
            unsafe fn block_scale(block: *const u8) -> f32 {
                // SAFETY: guaranteed by the caller.
                unsafe { super::super::formats::half(block) }
            }
            #[inline(always)]
            unsafe fn minima(block: *const u8) -> __m256 {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let minima = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(six_bits(block)[1])));
                    _mm256_mul_ps(minima, _mm256_set1_ps(-super::super::formats::half(block.add(2))))
                }
            }
        }
    };
}

with_minima!(Q4K);
with_minima!(Q5K);

impl Super for Q6K {
    /// Sixteen signed bytes.
    type Scales = __m128i;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> __m128i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm_loadu_si128(block.add(192).cast()) }
    }
    #[inline(always)]
    unsafe fn unsigned<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { super::super::formats::six_bit_codes::<P>(block) }
    }
    #[inline(always)]
    unsafe fn scales_of<const P: usize>(scales: &__m128i) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (first, second) = (2 * P as i64, 2 * P as i64 + 1);
            let each = 0x0101_0101_0101_0101;
            _mm256_cvtepi8_epi16(_mm_shuffle_epi8(*scales, _mm_set_epi64x(second * each, first * each)))
        }
    }
    #[inline(always)]
    unsafe fn block_scale(block: *const u8) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { super::super::formats::half(block.add(208)) }
    }
    #[inline(always)]
    unsafe fn offsets(scales: &__m128i, sums: __m256i) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_slli_epi32::<5>(_mm256_madd_epi16(_mm256_cvtepi8_epi16(*scales), sums)) }
    }
}
