//! Q4 tiles on NEON: four lanes.

use std::arch::aarch64::*;
use std::ops::Range;

use half::bf16;

use super::super::Product;
use super::super::rows::Packed;
use super::{Q4, Tiles, expand_with};
use crate::vector::neon::F32x4;

/// [`super::thin`] compiled for NEON.
///
/// # Safety
/// No other task writes the features `range`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn thin(weight: &Q4<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { super::thin::<F32x4>(weight, range, packed, product) }
}

/// [`super::expand`] compiled for NEON.
///
/// # Safety
/// None: every 64-bit Arm CPU has NEON. Unsafe only to match the other instruction sets.
#[target_feature(enable = "neon")]
pub(super) unsafe fn expand(weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { expand_with::<F32x4>(weight, range, out) }
}

impl Tiles for F32x4 {
    type Columns = int32x4_t;

    #[inline(always)]
    unsafe fn look_up(codes: *const u8, table: &[i8; 16]) -> [int32x4_t; 2] {
        // SAFETY: the caller guarantees sixteen bytes.
        unsafe {
            let table = vld1q_s8(table.as_ptr());
            let codes = vld1q_u8(codes);
            let low = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
            let high = vqtbl1q_s8(table, vshrq_n_u8::<4>(codes));
            [vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(high)]
        }
    }
    #[inline(always)]
    unsafe fn column(columns: int32x4_t, index: usize) -> Self {
        // SAFETY: every 64-bit Arm CPU has NEON.
        unsafe {
            let highest = match index {
                0 => vshlq_n_s32::<24>(columns),
                1 => vshlq_n_s32::<16>(columns),
                2 => vshlq_n_s32::<8>(columns),
                _ => columns,
            };
            Self(vcvtq_f32_s32(vshrq_n_s32::<24>(highest)))
        }
    }
    #[inline(always)]
    unsafe fn scales(scales: *const bf16) -> Self {
        // SAFETY: the caller guarantees four values.
        unsafe { Self(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(scales.cast())))) }
    }
}
