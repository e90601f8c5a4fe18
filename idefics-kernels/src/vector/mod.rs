//! Vectors of f32, one type an instruction set: what elementwise kernels are written in, once for all of them.
//!
//! A kernel is an `#[inline(always)]` function that is generic over [`Vector`]; it becomes machine code when a
//! function that enables the instructions calls it ([`Work`], `run` of each instruction set). Such kernels use plain
//! loops: a closure that is not inlined would be compiled without the instructions.

#![allow(unsafe_code)] // instructions that not every machine has, loads and stores through pointers

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

/// The widest vector, in lanes.
pub(super) const MOST_LANES: usize = 16;

/// A register of f32.
///
/// # Safety of its methods
/// The machine has the instructions of the type; pointers are valid for [`Vector::LANES`] values.
pub(crate) trait Vector: Copy {
    /// Values in a register.
    const LANES: usize;
    /// Registers there are.
    const REGISTERS: usize;

    /// The same value in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Reads without asking for alignment.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes without asking for alignment.
    unsafe fn store(self, at: *mut f32);
    /// `self · factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `addend − self · factor`, rounded once.
    unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    /// Sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Difference.
    unsafe fn sub(self, other: Self) -> Self;
    /// Product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// The smaller; where one is NaN, `other`.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger; where one is NaN, `other`.
    unsafe fn max(self, other: Self) -> Self;
    /// The nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of an integer from −126 to 127.
    unsafe fn pow2(self) -> Self;
    /// The value times 2 to the power of an integer from −252 to 254, which need not be an f32 itself.
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: the caller guarantees CPU support. Either half is an f32.
        unsafe {
            let half = n.mul(Self::splat(0.5)).round();
            self.mul(half.pow2()).mul(n.sub(half).pow2())
        }
    }
    /// Sum of the lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Asks for a cache line that will be read soon; any address is fine.
    unsafe fn prefetch(at: *const u8);

    /// Reads `n` values, at most [`Vector::LANES`], and fills up with `fill`.
    #[inline(always)]
    unsafe fn load_head(at: *const f32, n: usize, fill: f32) -> Self {
        debug_assert!(n <= Self::LANES, "{n} values do not fit {} lanes", Self::LANES);
        let mut lanes = [fill; MOST_LANES];
        // SAFETY: the caller guarantees `n` values, and no vector has more lanes than the buffer.
        unsafe {
            if n == Self::LANES {
                return Self::load(at);
            }
            at.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Writes the first `n` lanes.
    #[inline(always)]
    unsafe fn store_head(self, at: *mut f32, n: usize) {
        debug_assert!(n <= Self::LANES, "{n} values do not fit {} lanes", Self::LANES);
        let mut lanes = [0f32; MOST_LANES];
        // SAFETY: the caller guarantees `n` values, and no vector has more lanes than the buffer.
        unsafe {
            if n == Self::LANES {
                return self.store(at);
            }
            self.store(lanes.as_mut_ptr());
            at.copy_from_nonoverlapping(lanes.as_ptr(), n);
        }
    }
}

/// Elementwise work that any instruction set can do.
pub(crate) trait Work {
    /// What it returns.
    type Output;
    /// Does it. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU supports the instruction set of `V`, and the caller is compiled for it.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}
