//! AVX2 with FMA: eight lanes.

use std::arch::x86_64::*;

use super::{Vector, Work};

/// Whether the CPU supports every feature in the `#[target_feature]` below.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs `work` in a function compiled for AVX2.
///
/// # Safety
/// [`is_available`] is true.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<W: Work>(work: W) -> W::Output {
    // SAFETY: this function is compiled for AVX2, and the caller guarantees CPU support.
    unsafe { work.run::<F32x8>() }
}

/// Eight f32.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(pub(crate) __m256);

macro_rules! each {
    ($($name:ident($self:ident $(, $other:ident)*) => $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name($self $(, $other: Self)*) -> Self {
            // SAFETY: the caller guarantees CPU support.
            unsafe { Self($body) }
        })*
    };
}

impl Vector for F32x8 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller guarantees CPU support and eight values.
        unsafe { Self(_mm256_loadu_ps(at)) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller guarantees CPU support and eight values.
        unsafe { _mm256_storeu_ps(at, self.0) }
    }
    each! {
        mul_add(self, factor, addend) => _mm256_fmadd_ps(self.0, factor.0, addend.0);
        neg_mul_add(self, factor, addend) => _mm256_fnmadd_ps(self.0, factor.0, addend.0);
        add(self, other) => _mm256_add_ps(self.0, other.0);
        sub(self, other) => _mm256_sub_ps(self.0, other.0);
        mul(self, other) => _mm256_mul_ps(self.0, other.0);
        div(self, other) => _mm256_div_ps(self.0, other.0);
        min(self, other) => _mm256_min_ps(self.0, other.0);
        max(self, other) => _mm256_max_ps(self.0, other.0);
        round(self) => _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
        pow2(self) => _mm256_castsi256_ps(_mm256_slli_epi32::<23>(
            _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127)),
        ));
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let sum = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let most = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let most = _mm_max_ps(most, _mm_movehl_ps(most, most));
            _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch does not access memory; any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
