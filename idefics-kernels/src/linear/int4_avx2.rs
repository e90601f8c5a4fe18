//! Int4 on AVX2: eight lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Product;
use super::super::rows::{Order, Packed};
use super::{Int4, Nibbles, entry_points};
use crate::vector::avx2::F32x8;

entry_points!(F32x8, "avx2,fma,f16c");

/// Both halves of a register hold the sixteen bytes of a block. The upper half is shifted down by four codes. Lane `l`,
/// from 0 to 3, starts with code `8 l` in the lower half and with code `8 l + 4` in the upper half.
impl Nibbles for F32x8 {
    type Codes = __m256i;

    fn column(at: usize) -> usize {
        let (index, lane) = (at / 8, at % 8);
        lane % 4 * 8 + lane / 4 * 4 + index
    }
    #[inline(always)]
    unsafe fn block(bytes: *const u8) -> __m256i {
        // SAFETY: the caller guarantees CPU support and sixteen bytes.
        unsafe {
            let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.cast()));
            _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 16, 16, 16, 16))
        }
    }
    #[inline(always)]
    unsafe fn vector(codes: __m256i, index: usize) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let lowest = match index {
                0 => codes,
                1 => _mm256_srli_epi32::<4>(codes),
                2 => _mm256_srli_epi32::<8>(codes),
                _ => _mm256_srli_epi32::<12>(codes),
            };
            Self(_mm256_cvtepi32_ps(_mm256_and_si256(lowest, _mm256_set1_epi32(15))))
        }
    }
    #[inline(always)]
    unsafe fn in_order(bytes: *const u8) -> Self {
        // SAFETY: the caller guarantees CPU support and four bytes.
        unsafe {
            let eight = _mm256_set1_epi32(bytes.cast::<i32>().read_unaligned());
            let lowest = _mm256_srlv_epi32(eight, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            Self(_mm256_cvtepi32_ps(_mm256_and_si256(lowest, _mm256_set1_epi32(15))))
        }
    }
}
