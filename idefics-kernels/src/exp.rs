//! Vectorised exponential function.

#![allow(unsafe_code)] // SIMD

use crate::Isa;
use crate::shared::SharedOut;
use crate::vector::{Vector, Work};

/// Computes `eˣ` to within 2 units in the last place, also for subnormal results. The results for ±∞ and NaN are exact.
///
/// Splits `x = n ln 2 + r` and evaluates `eʳ` as a polynomial. The coefficients are those of `expf` in the Cephes
/// library.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: guaranteed by the caller.
    unsafe {
        // Beyond these bounds the result is 0 or ∞. NaN passes through.
        let x = V::splat(89.0).min(V::splat(-104.0).max(x));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.neg_mul_add(V::splat(0.693_359_4), x); // ln 2 as the sum of two constants
        let r = n.neg_mul_add(V::splat(-2.121_944_4e-4), r);
        let mut polynomial = V::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            polynomial = polynomial.mul_add(r, V::splat(coefficient));
        }
        let power = polynomial.mul_add(r.mul(r), r).add(V::splat(1.0));
        power.times_pow2(n)
    }
}

/// Replaces each value `x` with `eˣ`, on one thread.
///
/// # Panics
/// If the CPU does not support `isa`.
pub fn exp_on(isa: Isa, values: &mut [f32]) {
    isa.run(Exp(values), |Exp(values)| values.iter_mut().for_each(|value| *value = value.exp()));
}

struct Exp<'a>(&'a mut [f32]);

impl Work for Exp<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let out = SharedOut::new(self.0);
        for start in (0..out.len()).step_by(V::LANES) {
            let n = V::LANES.min(out.len() - start);
            // SAFETY: the slice has `n` values from `start`.
            unsafe { exp(V::load_head(out.pointer(start), n, 0.0)).store_head(out.pointer(start), n) };
        }
    }
}
