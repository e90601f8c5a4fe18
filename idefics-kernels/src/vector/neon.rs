//! NEON: four lanes.

use std::arch::aarch64::*;

use super::{Vector, Work};

/// Runs `work` in a function compiled for NEON.
///
/// # Safety
/// None: every 64-bit Arm CPU has NEON. Unsafe only to match the other instruction sets.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<W: Work>(work: W) -> W::Output {
    // SAFETY: this function is compiled for NEON, which every 64-bit Arm CPU has.
    unsafe { work.run::<F32x4>() }
}

/// Four f32.
#[derive(Clone, Copy)]
pub(crate) struct F32x4(pub(crate) float32x4_t);

macro_rules! each {
    ($($name:ident($self:ident $(, $other:ident)*) => $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name($self $(, $other: Self)*) -> Self {
            // SAFETY: every 64-bit Arm CPU has NEON.
            unsafe { Self($body) }
        })*
    };
}

impl Vector for F32x4 {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: every 64-bit Arm CPU has NEON.
        unsafe { Self(vdupq_n_f32(value)) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller guarantees four values.
        unsafe { Self(vld1q_f32(at)) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller guarantees four values.
        unsafe { vst1q_f32(at, self.0) }
    }
    each! {
        mul_add(self, factor, addend) => vfmaq_f32(addend.0, self.0, factor.0);
        neg_mul_add(self, factor, addend) => vfmsq_f32(addend.0, self.0, factor.0);
        add(self, other) => vaddq_f32(self.0, other.0);
        sub(self, other) => vsubq_f32(self.0, other.0);
        mul(self, other) => vmulq_f32(self.0, other.0);
        div(self, other) => vdivq_f32(self.0, other.0);
        // A comparison with NaN is false, which selects `other`.
        min(self, other) => vbslq_f32(vcltq_f32(self.0, other.0), self.0, other.0);
        max(self, other) => vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0);
        round(self) => vrndnq_f32(self.0);
        pow2(self) => vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(self.0), vdupq_n_s32(127))));
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: every 64-bit Arm CPU has NEON.
        unsafe { vaddvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: every 64-bit Arm CPU has NEON.
        unsafe { vmaxvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch does not access memory; any address is allowed.
        unsafe { std::arch::asm!("prfm pldl1strm, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
}
