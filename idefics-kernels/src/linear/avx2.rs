//! Row-major formats on AVX2: eight lanes.

#![allow(unsafe_code)] // intrinsics and raw pointers

use std::arch::x86_64::*;
use std::ops::Range;

use super::Product;
use super::decode::{self, Decode, Rows, format};
use super::rows::{self, Order, Packed};
use crate::vector::avx2::F32x8;

/// The column order of a format's vectors.
pub(super) fn order<D: Decode<F32x8>>(_d_in: usize) -> Order {
    Order::of::<F32x8, D>()
}

/// [`rows::thin`] compiled for AVX2.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes the features `range`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn thin<D: Decode<F32x8>>(
    rows: &Rows<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe { rows::thin::<F32x8, D>(rows, range, packed, product) }
}

/// [`decode::expand`] compiled for AVX2.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn expand<D: Decode<F32x8>>(rows: &Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { decode::expand::<F32x8, D>(rows, range, out) }
}

impl Decode<F32x8> for format::F32 {
    const STEP: usize = 16;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x8 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { F32x8(_mm256_loadu_ps(step.add(32 * index).cast())) }
    }
}

/// In each 32-bit lane, the low half is an even column and the high half an odd column.
impl Decode<F32x8> for format::Bf16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    fn order(at: usize) -> usize {
        at / 16 * 16 + at % 8 * 2 + at / 8 % 2
    }
    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x8 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe {
            let pairs = _mm256_loadu_si256(step.add(index / 2 * 32).cast());
            F32x8(_mm256_castsi256_ps(match index % 2 {
                0 => _mm256_slli_epi32::<16>(pairs),
                _ => _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
            }))
        }
    }
    #[inline(always)]
    unsafe fn store(step: *const u8, out: *mut f32) {
        // SAFETY: the caller guarantees CPU support, 64 bytes and 32 values.
        unsafe {
            for index in 0..4 {
                let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(step.add(16 * index).cast()));
                _mm256_storeu_ps(out.add(8 * index), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half)));
            }
        }
    }
}

impl Decode<F32x8> for format::F16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x8 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { F32x8(_mm256_cvtph_ps(_mm_loadu_si128(step.add(16 * index).cast()))) }
    }
}

impl Decode<F32x8> for format::Int8 {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 64;
    const SCALED_ROWS: bool = true;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x8 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { F32x8(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(step.add(8 * index).cast())))) }
    }
}

/// Broadcasts four bytes to all lanes. Each lane shifts its own code down and looks it up in both halves of the table,
/// which was multiplied by the block's scale. Bit 3 of the code selects the half.
impl Decode<F32x8> for format::FourBit {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 32;
    const STEP_SCALES: usize = 1;
    /// The bytes, and the lower and upper half of the scaled table.
    type Step = (*const u8, __m256, __m256);

    #[inline(always)]
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step {
        let table = table.as_ptr();
        // SAFETY: the caller guarantees CPU support and the scale, and the table has two halves of eight values.
        unsafe {
            let absmax = _mm256_set1_ps(*scales);
            let lower = _mm256_mul_ps(_mm256_loadu_ps(table), absmax);
            let upper = _mm256_mul_ps(_mm256_loadu_ps(table.add(8)), absmax);
            (bytes, lower, upper)
        }
    }
    #[inline(always)]
    unsafe fn vector((bytes, lower, upper): Self::Step, index: usize) -> F32x8 {
        // SAFETY: the caller guarantees CPU support and 32 bytes.
        unsafe {
            // The first code of a byte is in its high half.
            let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
            let pairs = _mm256_set1_epi32(bytes.add(4 * index).cast::<i32>().read_unaligned());
            let codes = _mm256_srlv_epi32(pairs, shifts);
            let lower = _mm256_permutevar8x32_ps(lower, codes); // the index is the lowest three bits
            let upper = _mm256_permutevar8x32_ps(upper, codes);
            F32x8(_mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes))))
        }
    }
}
