//! Rotary position embedding in the half-split form of the Llama and Mistral checkpoints.
//!
//! Source: `apply_rotary_pos_emb` and `rotate_half` of Transformers. The pairs that rotate together are
//! `(j, j + head_dim / 2)`.

#![allow(unsafe_code)] // SIMD

use rayon::prelude::*;

use crate::Isa;
use crate::shared::count;
use crate::vector::{Vector, Work};

/// Minimum number of values per task.
const TASK: usize = 1 << 14;

/// Applies the rotary embedding to queries or keys, in place: `x cos + rotate_half(x) sin`.
///
/// # Shapes
/// - `states`: `[batch, heads, seq, head_dim]`
/// - `cos`, `sin`: `[batch, seq, head_dim]`; the two halves of the last dimension are equal
///
/// # Panics
/// If `head_dim` is odd, or a slice has the wrong length.
pub fn rope(states: &mut [f32], [batch, heads, seq, head_dim]: [usize; 4], cos: &[f32], sin: &[f32]) {
    rope_on(Isa::best(), states, [batch, heads, seq, head_dim], cos, sin);
}

/// [`rope`] on a given instruction set.
///
/// # Panics
/// As [`rope`], and if the CPU does not support `isa`.
pub fn rope_on(isa: Isa, states: &mut [f32], [batch, heads, seq, head_dim]: [usize; 4], cos: &[f32], sin: &[f32]) {
    assert!(head_dim.is_multiple_of(2), "head_dim is {head_dim}; expected an even number");
    let (all, angles) = (count(&[batch, heads, seq, head_dim]), count(&[batch, seq, head_dim]));
    assert_eq!(Some(states.len()), all, "states must be [{batch}, {heads}, {seq}, {head_dim}]");
    assert_eq!(Some(cos.len()), angles, "cos must be [{batch}, {seq}, {head_dim}]");
    assert_eq!(Some(sin.len()), angles, "sin must be [{batch}, {seq}, {head_dim}]");
    if states.is_empty() {
        return;
    }
    let head = seq * head_dim;
    let rotate = |(index, states): (usize, &mut [f32])| {
        let row = index / heads * head;
        isa.run(Head { states, cos: &cos[row..row + head], sin: &sin[row..row + head], head_dim }, plain);
    };
    if states.len() <= TASK {
        return states.chunks_exact_mut(head).enumerate().for_each(rotate);
    }
    states.par_chunks_exact_mut(head).with_min_len(TASK.div_ceil(head)).enumerate().for_each(rotate);
}

/// One head of one batch row: three slices of shape `[seq, head_dim]`.
struct Head<'a> {
    states: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

fn plain(head: Head<'_>) {
    let half = head.head_dim / 2;
    let angles = head.cos.chunks_exact(2 * half).zip(head.sin.chunks_exact(2 * half));
    for (states, (cos, sin)) in head.states.chunks_exact_mut(2 * half).zip(angles) {
        for j in 0..half {
            let (first, second) = (states[j], states[j + half]);
            states[j] = first * cos[j] - second * sin[j];
            states[j + half] = second * cos[j + half] + first * sin[j + half];
        }
    }
}

impl Work for Head<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let half = self.head_dim / 2;
        for start in (0..self.states.len()).step_by(self.head_dim) {
            for j in (0..half).step_by(V::LANES) {
                let (low, n) = (start + j, V::LANES.min(half - j));
                let high = low + half;
                let states = self.states.as_mut_ptr();
                let (cos, sin) = (self.cos.as_ptr(), self.sin.as_ptr());
                // SAFETY: both halves have `n` values from `j`.
                unsafe {
                    let first = V::load_head(states.add(low), n, 0.0);
                    let second = V::load_head(states.add(high), n, 0.0);
                    let (cos_low, sin_low) = (V::load_head(cos.add(low), n, 0.0), V::load_head(sin.add(low), n, 0.0));
                    let (cos_high, sin_high) =
                        (V::load_head(cos.add(high), n, 0.0), V::load_head(sin.add(high), n, 0.0));
                    second.neg_mul_add(sin_low, first.mul(cos_low)).store_head(states.add(low), n);
                    first.mul_add(sin_high, second.mul(cos_high)).store_head(states.add(high), n);
                }
            }
        }
    }
}
