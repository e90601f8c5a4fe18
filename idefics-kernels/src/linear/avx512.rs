//! Row-major formats on AVX-512: sixteen lanes.

#![allow(unsafe_code)] // intrinsics and raw pointers

use std::arch::x86_64::*;
use std::ops::Range;

use super::Product;
use super::decode::{self, Decode, Rows, format};
use super::rows::{self, Order, Packed};
use crate::vector::avx512::F32x16;

/// A format, and the decoder that it uses for few rows of activations.
pub(super) trait Thin: Decode<F32x16> {
    /// The decoder for few rows of activations. It only handles rows that consist of whole steps.
    type Wide: Decode<F32x16>;
}

impl Thin for format::F32 {
    type Wide = Self;
}
impl Thin for format::Bf16 {
    type Wide = Self;
}
impl Thin for format::F16 {
    type Wide = Self;
}
impl Thin for format::Int8 {
    type Wide = Self;
}
impl Thin for format::FourBit {
    type Wide = FourBitPair;
}

/// Whether rows of `d_in` columns can use [`Thin::Wide`].
fn is_wide<F: Thin>(d_in: usize) -> bool {
    d_in.is_multiple_of(F::Wide::STEP)
}

/// The column order of a format's vectors.
pub(super) fn order<F: Thin>(d_in: usize) -> Order {
    if is_wide::<F>(d_in) { Order::of::<F32x16, F::Wide>() } else { Order::of::<F32x16, F>() }
}

/// [`rows::thin`] compiled for AVX-512.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes the features `range`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn thin<F: Thin>(rows: &Rows<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match is_wide::<F>(rows.d_in) {
            true => rows::thin::<F32x16, F::Wide>(rows, range, packed, product),
            false => rows::thin::<F32x16, F>(rows, range, packed, product),
        }
    }
}

/// [`decode::expand`] compiled for AVX-512.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn expand<D: Decode<F32x16>>(rows: &Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { decode::expand::<F32x16, D>(rows, range, out) }
}

impl Decode<F32x16> for format::F32 {
    const STEP: usize = 16;
    const STEP_BYTES: usize = 64;
    type Step = __m512;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> __m512 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { _mm512_loadu_ps(bytes.cast()) }
    }
    #[inline(always)]
    unsafe fn vector(step: __m512, _index: usize) -> F32x16 {
        F32x16(step)
    }
}

/// In each 32-bit lane, the low half is an even column and the high half an odd column.
impl Decode<F32x16> for format::Bf16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = __m512i;

    fn order(at: usize) -> usize {
        at % 16 * 2 + at / 16
    }
    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> __m512i {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { _mm512_loadu_si512(bytes.cast()) }
    }
    #[inline(always)]
    unsafe fn vector(step: __m512i, index: usize) -> F32x16 {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            F32x16(_mm512_castsi512_ps(match index {
                0 => _mm512_slli_epi32::<16>(step),
                _ => _mm512_and_si512(step, _mm512_set1_epi32(0xffff_0000_u32 as i32)),
            }))
        }
    }
    #[inline(always)]
    unsafe fn store(step: __m512i, out: *mut f32) {
        // SAFETY: the caller guarantees CPU support and 32 values.
        unsafe {
            for (index, half) in
                [_mm512_castsi512_si256(step), _mm512_extracti64x4_epi64::<1>(step)].into_iter().enumerate()
            {
                let widened = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                _mm512_storeu_ps(out.add(16 * index), _mm512_castsi512_ps(widened));
            }
        }
    }
}

impl Decode<F32x16> for format::F16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x16 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { F32x16(_mm512_cvtph_ps(_mm256_loadu_si256(step.add(32 * index).cast()))) }
    }
}

impl Decode<F32x16> for format::Int8 {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 64;
    const SCALED_ROWS: bool = true;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x16 {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe { F32x16(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(step.add(16 * index).cast())))) }
    }
}

/// Broadcasts eight bytes, which hold sixteen codes, to every pair of lanes. Each lane shifts its own code down and
/// looks it up in the table, which was multiplied by the block's scale. Even lanes hold the first eight columns, odd
/// lanes the last eight.
impl Decode<F32x16> for format::FourBit {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 32;
    const STEP_SCALES: usize = 1;
    /// The bytes and the scaled table.
    type Step = (*const u8, __m512);

    fn order(at: usize) -> usize {
        at / 16 * 16 + at % 16 / 2 + at % 2 * 8
    }
    #[inline(always)]
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step {
        // SAFETY: the caller guarantees CPU support and the scale.
        unsafe { (bytes, _mm512_mul_ps(_mm512_loadu_ps(table.as_ptr()), _mm512_set1_ps(*scales))) }
    }
    #[inline(always)]
    unsafe fn vector((bytes, table): Self::Step, index: usize) -> F32x16 {
        // SAFETY: the caller guarantees CPU support and 32 bytes.
        unsafe {
            // The first code of a byte is in its high half.
            let shifts = _mm512_setr_epi32(4, 4, 0, 0, 12, 12, 8, 8, 20, 20, 16, 16, 28, 28, 24, 24);
            let pairs = _mm512_set1_epi64(bytes.add(8 * index).cast::<i64>().read_unaligned());
            F32x16(_mm512_permutexvar_ps(_mm512_srlv_epi32(pairs, shifts), table)) // the index is the lowest four bits
        }
    }
    #[inline(always)]
    unsafe fn store(step: Self::Step, out: *mut f32) {
        // SAFETY: the caller guarantees CPU support and 64 values.
        unsafe {
            let lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            for index in 0..4 {
                let values = <Self as Decode<F32x16>>::vector(step, index).0;
                _mm512_storeu_ps(out.add(16 * index), _mm512_permutexvar_ps(lanes, values));
            }
        }
    }
}

/// Decodes two blocks of [`format::FourBit`] at once. A lane covers four bytes. Their eight codes go to the same lane
/// of eight vectors. A code in the high half of a byte is shifted down. To bring byte 1, 2 or 3 of a lane into the
/// position of byte 0, the lanes are loaded from an address that is 1, 2 or 3 bytes higher. The lower half of the lanes
/// belongs to the first block.
#[derive(Clone, Copy)]
pub(super) struct FourBitPair;

impl Decode<F32x16> for FourBitPair {
    const STEP: usize = 128;
    const STEP_BYTES: usize = 64;
    const STEP_SCALES: usize = 2;
    const SCALED_LANES: bool = true;
    const OVERREAD: usize = 3;
    /// The bytes, the scales, and the table without scales.
    type Step = (*const u8, *const f32, __m512);

    fn order(at: usize) -> usize {
        let (index, lane) = (at / 16, at % 16);
        // The first code of a byte is in its high half.
        8 * lane + 2 * (index / 2) + (index + 1) % 2
    }
    #[inline(always)]
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step {
        // SAFETY: the caller guarantees CPU support.
        unsafe { (bytes, scales, _mm512_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn vector((bytes, _, table): Self::Step, index: usize) -> F32x16 {
        // SAFETY: the caller guarantees CPU support and 67 bytes.
        unsafe {
            let codes = _mm512_loadu_si512(bytes.add(index / 2).cast());
            let codes = if index.is_multiple_of(2) { codes } else { _mm512_srli_epi32::<4>(codes) };
            F32x16(_mm512_permutexvar_ps(codes, table)) // the index is the lowest four bits
        }
    }
    #[inline(always)]
    unsafe fn lane_scales((_, scales, _): Self::Step) -> F32x16 {
        // SAFETY: the caller guarantees CPU support and two scales.
        unsafe { F32x16(_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(*scales), _mm512_set1_ps(*scales.add(1)))) }
    }
}
