//! GELU: the activation of the vision towers' feed-forward blocks.

#![allow(unsafe_code)] // SIMD

use std::f32::consts::FRAC_1_SQRT_2;

use rayon::prelude::*;

use crate::Isa;
use crate::exp::exp;
use crate::shared::SharedOut;
use crate::vector::{Vector, Work};

/// Number of values per task.
const TASK: usize = 1 << 14;

/// Applies GELU in place, with the tanh approximation: `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub fn gelu_tanh(values: &mut [f32]) {
    gelu_tanh_on(Isa::best(), values);
}

/// [`gelu_tanh`] on a given instruction set.
///
/// # Panics
/// If the CPU does not support `isa`.
pub fn gelu_tanh_on(isa: Isa, values: &mut [f32]) {
    in_parallel(values, |values| {
        isa.run(Tanh(values), |Tanh(values)| {
            for value in values {
                *value /= 1.0 + (-2.0 * argument(*value)).exp();
            }
        });
    });
}

/// Applies exact GELU in place: `x Φ(x)`, where Φ is the standard normal CDF. The error function has an error of at
/// most 1.5e-7.
pub fn gelu(values: &mut [f32]) {
    gelu_on(Isa::best(), values);
}

/// [`gelu`] on a given instruction set.
///
/// # Panics
/// If the CPU does not support `isa`.
pub fn gelu_on(isa: Isa, values: &mut [f32]) {
    in_parallel(values, |values| {
        isa.run(Erf(values), |Erf(values)| {
            for value in values {
                let x = *value;
                let z = x.abs() * FRAC_1_SQRT_2;
                let t = 1.0 / (1.0 + ERFC[0] * z);
                let polynomial = ERFC[1..].iter().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
                *value = x.max(0.0) - 0.5 * x.abs() * polynomial * (-z * z).exp();
            }
        });
    });
}

fn in_parallel(values: &mut [f32], task: impl Fn(&mut [f32]) + Send + Sync) {
    if values.len() <= TASK {
        return task(values);
    }
    values.par_chunks_mut(TASK).for_each(task);
}

/// Factors of `x` and `x³` in the argument of tanh: `√(2/π)` and `√(2/π) · 0.044715`.
const TANH: [f32; 2] = [0.797_884_6, 0.035_677_407];

fn argument(x: f32) -> f32 {
    x * (TANH[1] * (x * x) + TANH[0])
}

/// `erfc(z) ≈ (a₁ t + … + a₅ t⁵) e^(−z²)` with `t = 1 / (1 + p z)`. The array holds p, then a₅ to a₁.
///
/// Source: Abramowitz and Stegun, 7.1.26.
const ERFC: [f32; 6] = [0.327_591_1, 1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_72, 0.254_829_6];

struct Tanh<'a>(&'a mut [f32]);

impl Work for Tanh<'_> {
    type Output = ();

    /// Uses `½ (1 + tanh u) = 1 / (1 + e^(−2u))`.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let out = SharedOut::new(self.0);
        for start in (0..out.len()).step_by(V::LANES) {
            let n = V::LANES.min(out.len() - start);
            // SAFETY: the slice has `n` values from `start`.
            unsafe {
                let x = V::load_head(out.pointer(start), n, 0.0);
                let argument = x.mul(x).mul_add(V::splat(-2.0 * TANH[1]), V::splat(-2.0 * TANH[0])).mul(x);
                x.div(exp(argument).add(V::splat(1.0))).store_head(out.pointer(start), n);
            }
        }
    }
}

struct Erf<'a>(&'a mut [f32]);

impl Work for Erf<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let out = SharedOut::new(self.0);
        for start in (0..out.len()).step_by(V::LANES) {
            let n = V::LANES.min(out.len() - start);
            // SAFETY: the slice has `n` values from `start`.
            unsafe {
                let x = V::load_head(out.pointer(start), n, 0.0);
                let zero = V::splat(0.0);
                let magnitude = zero.sub(x).max(x);
                let z = magnitude.mul(V::splat(FRAC_1_SQRT_2));
                let t = V::splat(1.0).div(z.mul_add(V::splat(ERFC[0]), V::splat(1.0)));
                let mut polynomial = V::splat(ERFC[1]);
                for coefficient in &ERFC[2..] {
                    polynomial = polynomial.mul_add(t, V::splat(*coefficient));
                }
                let tail = polynomial.mul(t).mul(exp(zero.sub(z.mul(z)))).mul(V::splat(0.5));
                magnitude.neg_mul_add(tail, zero.max(x)).store_head(out.pointer(start), n);
            }
        }
    }
}
