//! Row-major formats on NEON: four lanes.

#![allow(unsafe_code)] // intrinsics and raw pointers

use std::arch::aarch64::*;
use std::ops::Range;

use super::Product;
use super::decode::{self, Decode, Rows, format};
use super::rows::{self, Order, Packed};
use crate::vector::neon::F32x4;

/// The column order of a format's vectors.
pub(super) fn order<D: Decode<F32x4>>(_d_in: usize) -> Order {
    Order::of::<F32x4, D>()
}

/// [`rows::thin`] compiled for NEON.
///
/// # Safety
/// No other task writes the features `range`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn thin<D: Decode<F32x4>>(
    rows: &Rows<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe { rows::thin::<F32x4, D>(rows, range, packed, product) }
}

/// [`decode::expand`] compiled for NEON.
///
/// # Safety
/// None: every 64-bit Arm CPU has NEON. Unsafe only to match the other instruction sets.
#[target_feature(enable = "neon")]
pub(super) unsafe fn expand<D: Decode<F32x4>>(rows: &Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { decode::expand::<F32x4, D>(rows, range, out) }
}

impl Decode<F32x4> for format::F32 {
    const STEP: usize = 16;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x4 {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { F32x4(vreinterpretq_f32_u8(vld1q_u8(step.add(16 * index)))) }
    }
}

impl Decode<F32x4> for format::Bf16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x4 {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe {
            let bits = vreinterpret_u16_u8(vld1_u8(step.add(8 * index)));
            F32x4(vreinterpretq_f32_u32(vshll_n_u16::<16>(bits)))
        }
    }
}

/// Converts the exponent with a multiplication by 2¹¹². This is exact, also for subnormal numbers.
impl Decode<F32x4> for format::F16 {
    const STEP: usize = 32;
    const STEP_BYTES: usize = 64;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x4 {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe {
            let bits = vmovl_u16(vreinterpret_u16_u8(vld1_u8(step.add(8 * index))));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
            let scaled = vmulq_n_f32(vreinterpretq_f32_u32(magnitude), f32::from_bits((127 + 112) << 23));
            // Infinities and NaN have the largest exponent in both formats.
            let is_special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13));
            let special = vorrq_u32(magnitude, vdupq_n_u32(0x7f80_0000));
            let value = vbslq_u32(is_special, special, vreinterpretq_u32_f32(scaled));
            let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
            F32x4(vreinterpretq_f32_u32(vorrq_u32(value, sign)))
        }
    }
}

impl Decode<F32x4> for format::Int8 {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 64;
    const SCALED_ROWS: bool = true;
    type Step = *const u8;

    #[inline(always)]
    unsafe fn step(bytes: *const u8, _scales: *const f32, _table: &[f32; 16]) -> *const u8 {
        bytes
    }
    #[inline(always)]
    unsafe fn vector(step: *const u8, index: usize) -> F32x4 {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe {
            let eight = vmovl_s8(vreinterpret_s8_u8(vld1_u8(step.add(index / 2 * 8))));
            let four = if index % 2 == 0 { vget_low_s16(eight) } else { vget_high_s16(eight) };
            F32x4(vcvtq_f32_s32(vmovl_s16(four)))
        }
    }
}

/// Broadcasts four bytes to all lanes. Each lane shifts its own code down and looks up four bytes in the table, which
/// was multiplied by the block's scale.
impl Decode<F32x4> for format::FourBit {
    const STEP: usize = 64;
    const STEP_BYTES: usize = 32;
    const STEP_SCALES: usize = 1;
    /// The bytes and the scaled table.
    type Step = (*const u8, uint8x16x4_t);

    #[inline(always)]
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step {
        let table = table.as_ptr();
        // SAFETY: the caller guarantees the scale, and the table has four quarters of four values.
        unsafe {
            let q0 = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(table), *scales));
            let q1 = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(table.add(4)), *scales));
            let q2 = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(table.add(8)), *scales));
            let q3 = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(table.add(12)), *scales));
            (bytes, uint8x16x4_t(q0, q1, q2, q3))
        }
    }
    #[inline(always)]
    unsafe fn vector((bytes, table): Self::Step, index: usize) -> F32x4 {
        // The first code of a byte is in its high half.
        const SHIFTS: [[i32; 4]; 2] = [[-4, 0, -12, -8], [-20, -16, -28, -24]];
        // SAFETY: the caller guarantees 32 bytes.
        unsafe {
            let pairs = vdupq_n_u32(bytes.add(index / 2 * 4).cast::<u32>().read_unaligned());
            let codes = vandq_u32(vshlq_u32(pairs, vld1q_s32(SHIFTS[index % 2].as_ptr())), vdupq_n_u32(15));
            // Code `c` selects the bytes `4 c` to `4 c + 3` of the table.
            let places = vmlaq_n_u32(vdupq_n_u32(0x0302_0100), codes, 0x0404_0404);
            F32x4(vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(places))))
        }
    }
}
