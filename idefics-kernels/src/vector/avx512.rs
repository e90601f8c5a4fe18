//! AVX-512: sixteen lanes.

use std::arch::x86_64::*;

use super::{Vector, Work};

/// Whether the CPU supports every feature in the `#[target_feature]` below.
pub(crate) fn is_available() -> bool {
    super::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Runs `work` in a function compiled for AVX-512.
///
/// # Safety
/// [`is_available`] is true.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn run<W: Work>(work: W) -> W::Output {
    // SAFETY: this function is compiled for AVX-512, and the caller guarantees CPU support.
    unsafe { work.run::<F32x16>() }
}

/// Sixteen f32.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(pub(crate) __m512);

macro_rules! each {
    ($($name:ident($self:ident $(, $other:ident)*) => $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name($self $(, $other: Self)*) -> Self {
            // SAFETY: the caller guarantees CPU support.
            unsafe { Self($body) }
        })*
    };
}

impl Vector for F32x16 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller guarantees CPU support and sixteen values.
        unsafe { Self(_mm512_loadu_ps(at)) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller guarantees CPU support and sixteen values.
        unsafe { _mm512_storeu_ps(at, self.0) }
    }
    each! {
        mul_add(self, factor, addend) => _mm512_fmadd_ps(self.0, factor.0, addend.0);
        neg_mul_add(self, factor, addend) => _mm512_fnmadd_ps(self.0, factor.0, addend.0);
        add(self, other) => _mm512_add_ps(self.0, other.0);
        sub(self, other) => _mm512_sub_ps(self.0, other.0);
        mul(self, other) => _mm512_mul_ps(self.0, other.0);
        div(self, other) => _mm512_div_ps(self.0, other.0);
        min(self, other) => _mm512_min_ps(self.0, other.0);
        max(self, other) => _mm512_max_ps(self.0, other.0);
        round(self) => _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
        pow2(self) => _mm512_castsi512_ps(_mm512_slli_epi32::<23>(
            _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127)),
        ));
    }
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe { Self(_mm512_scalef_ps(self.0, n.0)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller guarantees CPU support.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller guarantees CPU support.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch does not access memory; any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
