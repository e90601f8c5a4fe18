//! Q4 tiles on AVX2: eight lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::super::Product;
use super::super::rows::Packed;
use super::{Q4, Tiles, expand_with};
use crate::vector::avx2::F32x8;

/// [`super::thin`] compiled for AVX2.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes the features `range`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn thin(weight: &Q4<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { super::thin::<F32x8>(weight, range, packed, product) }
}

/// [`super::expand`] compiled for AVX2.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn expand(weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { expand_with::<F32x8>(weight, range, out) }
}

impl Tiles for F32x8 {
    type Columns = __m256i;

    #[inline(always)]
    unsafe fn look_up(codes: *const u8, table: &[i8; 16]) -> [__m256i; 2] {
        // SAFETY: the caller guarantees CPU support and 32 bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            let codes = _mm256_loadu_si256(codes.cast());
            let low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(15));
            [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
        }
    }
    #[inline(always)]
    unsafe fn column(columns: __m256i, index: usize) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let highest = match index {
                0 => _mm256_slli_epi32::<24>(columns),
                1 => _mm256_slli_epi32::<16>(columns),
                2 => _mm256_slli_epi32::<8>(columns),
                _ => columns,
            };
            Self(_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(highest)))
        }
    }
    #[inline(always)]
    unsafe fn scales(scales: *const bf16) -> Self {
        // SAFETY: the caller guarantees CPU support and eight values.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(scales.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }
}
