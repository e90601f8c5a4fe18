//! f32 vectors, one type per instruction set. Elementwise kernels are written once, generic over [`Vector`].
//!
//! A kernel is an `#[inline(always)]` function. It is compiled for an instruction set when it is inlined into a
//! function that enables that set: the `run` function of each module, through [`Work`]. Kernels use loops instead of
//! iterator chains, because a closure that is not inlined would be compiled without the target features.

#![allow(unsafe_code)] // intrinsics that need CPU support, loads and stores through raw pointers

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

/// Maximum number of lanes of any vector type.
pub(super) const MAX_LANES: usize = 16;

/// A SIMD register of f32.
///
/// # Safety of its methods
/// The CPU supports the instruction set of the type, and pointers are valid for [`Vector::LANES`] values.
pub(crate) trait Vector: Copy {
    /// Number of f32 values in a register.
    const LANES: usize;
    /// Number of vector registers of the instruction set.
    const REGISTERS: usize;

    /// Sets every lane to `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Loads a vector; `at` need not be aligned.
    unsafe fn load(at: *const f32) -> Self;
    /// Stores a vector; `at` need not be aligned.
    unsafe fn store(self, at: *mut f32);
    /// `self · factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `addend − self · factor`, rounded once.
    unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self + other` per lane.
    unsafe fn add(self, other: Self) -> Self;
    /// `self − other` per lane.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self · other` per lane.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other` per lane.
    unsafe fn div(self, other: Self) -> Self;
    /// Minimum per lane; `other` if either operand is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Maximum per lane; `other` if either operand is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Rounds to the nearest integer, with ties to the even integer.
    unsafe fn round(self) -> Self;
    /// `2ⁿ` per lane, where n is the lane of `self`: an integer from −126 to 127.
    unsafe fn pow2(self) -> Self;
    /// `self · 2ⁿ` per lane, for integers n from −252 to 254. The result is correct even if `2ⁿ` itself is out of the
    /// range of f32.
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: the caller guarantees CPU support. The two powers of two that are multiplied are in the range of f32.
        unsafe {
            let half = n.mul(Self::splat(0.5)).round();
            self.mul(half.pow2()).mul(n.sub(half).pow2())
        }
    }
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// Maximum of all lanes.
    unsafe fn largest(self) -> f32;
    /// Prefetches a cache line. Any address is allowed.
    unsafe fn prefetch(at: *const u8);

    /// Loads `n` values, at most [`Vector::LANES`], and sets the other lanes to `fill`.
    #[inline(always)]
    unsafe fn load_head(at: *const f32, n: usize, fill: f32) -> Self {
        debug_assert!(n <= Self::LANES, "{n} values do not fit in {} lanes", Self::LANES);
        let mut lanes = [fill; MAX_LANES];
        // SAFETY: the caller guarantees `n` values, and the buffer has room for the widest vector.
        unsafe {
            if n == Self::LANES {
                return Self::load(at);
            }
            at.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n` lanes, at most [`Vector::LANES`].
    #[inline(always)]
    unsafe fn store_head(self, at: *mut f32, n: usize) {
        debug_assert!(n <= Self::LANES, "{n} values do not fit in {} lanes", Self::LANES);
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: the caller guarantees room for `n` values, and the buffer has room for the widest vector.
        unsafe {
            if n == Self::LANES {
                return self.store(at);
            }
            self.store(lanes.as_mut_ptr());
            at.copy_from_nonoverlapping(lanes.as_ptr(), n);
        }
    }
}

/// Elementwise work that runs on any instruction set.
pub(crate) trait Work {
    /// Result of the work.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU supports the instruction set of `V`, and the caller is compiled for it.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}
