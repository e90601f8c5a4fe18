//! Int4 on NEON: four lanes.

use std::arch::aarch64::*;
use std::ops::Range;

use super::super::Product;
use super::super::rows::{Order, Packed};
use super::{Int4, Nibbles, entry_points};
use crate::vector::neon::F32x4;

entry_points!(F32x4, "neon");

/// Lane `l` holds the codes `8 l` to `8 l + 7` of a block.
impl Nibbles for F32x4 {
    type Codes = uint32x4_t;

    fn column(at: usize) -> usize {
        let (index, lane) = (at / 4, at % 4);
        lane * 8 + index
    }
    #[inline(always)]
    unsafe fn block(bytes: *const u8) -> uint32x4_t {
        // SAFETY: the caller guarantees sixteen bytes.
        unsafe { vreinterpretq_u32_u8(vld1q_u8(bytes)) }
    }
    #[inline(always)]
    unsafe fn vector(codes: uint32x4_t, index: usize) -> Self {
        // SAFETY: every 64-bit Arm CPU has NEON.
        unsafe {
            let lowest = vshlq_u32(codes, vdupq_n_s32(-4 * index as i32));
            Self(vcvtq_f32_u32(vandq_u32(lowest, vdupq_n_u32(15))))
        }
    }
    #[inline(always)]
    unsafe fn in_order(bytes: *const u8) -> Self {
        const SHIFTS: [i32; 4] = [0, -4, -8, -12];
        // SAFETY: the caller guarantees two bytes.
        unsafe {
            let four = vdupq_n_u32(u32::from(bytes.cast::<u16>().read_unaligned()));
            let lowest = vshlq_u32(four, vld1q_s32(SHIFTS.as_ptr()));
            Self(vcvtq_f32_u32(vandq_u32(lowest, vdupq_n_u32(15))))
        }
    }
}
