//! SwiGLU: the activation of Llama's feed-forward block.

#![allow(unsafe_code)] // SIMD

use rayon::prelude::*;

use crate::Isa;
use crate::exp::exp;
use crate::vector::{Vector, Work};

/// Number of values per task.
const TASK: usize = 1 << 14;

/// Writes `silu(gate) · up` to `gate`, with `silu(g) = g / (1 + e⁻ᵍ)`.
///
/// # Shapes
/// - `gate`, `up`: any shape, the same for both
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    swiglu_on(Isa::best(), gate, up);
}

/// [`swiglu`] on a given instruction set.
///
/// # Panics
/// As [`swiglu`], and if the CPU does not support `isa`.
pub fn swiglu_on(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "`gate` and `up` must have the same length");
    let task = |(gate, up): (&mut [f32], &[f32])| isa.run(Swiglu { gate, up }, plain);
    if gate.len() <= TASK {
        return task((gate, up));
    }
    gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK)).for_each(task);
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

fn plain(work: Swiglu<'_>) {
    for (gate, up) in work.gate.iter_mut().zip(work.up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

impl Work for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let len = self.gate.len();
        let (gate, up) = (self.gate.as_mut_ptr(), self.up.as_ptr());
        // SAFETY: whole vectors first, then the remaining `rest` values; both slices have length `len`.
        unsafe {
            let rest = len % V::LANES;
            for start in (0..len - rest).step_by(V::LANES) {
                gated(V::load(gate.add(start)), V::load(up.add(start))).store(gate.add(start));
            }
            if rest > 0 {
                let start = len - rest;
                let value = gated(V::load_head(gate.add(start), rest, 0.0), V::load_head(up.add(start), rest, 0.0));
                value.store_head(gate.add(start), rest);
            }
        }
    }
}

#[inline(always)]
unsafe fn gated<V: Vector>(gate: V, up: V) -> V {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        let one = V::splat(1.0);
        gate.div(one.add(exp(V::splat(0.0).sub(gate)))).mul(up)
    }
}
