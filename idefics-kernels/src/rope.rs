//! Rotary position embedding in the half-split form of the Llama and Mistral checkpoints.
//!
//! Source: `apply_rotary_pos_emb` and `rotate_half` of Transformers. The pairs that rotate together are
//! `(j, j + head_dim / 2)`.

#![allow(unsafe_code)] // SIMD

use rayon::prelude::*;

use crate::Isa;
use crate::shared::count;
use crate::vector::{Vector, Work};

/// Approximate number of values per task.
const TASK: usize = 1 << 14;

/// Applies the rotary embedding to queries or keys, in place: `x cos + rotate_half(x) sin`.
///
/// # Shapes
/// - `states`: `[tokens, heads, head_dim]`, the layout that a projection produces
/// - `cos`, `sin`: `[tokens, head_dim]`; the two halves of the last dimension are equal
///
/// # Panics
/// If `head_dim` is odd, or a slice has the wrong length.
pub fn rope(states: &mut [f32], [tokens, heads, head_dim]: [usize; 3], cos: &[f32], sin: &[f32]) {
    rope_on(Isa::best(), states, [tokens, heads, head_dim], cos, sin);
}

/// [`rope`] on a given instruction set.
///
/// # Panics
/// As [`rope`], and if the CPU does not support `isa`.
pub fn rope_on(isa: Isa, states: &mut [f32], [tokens, heads, head_dim]: [usize; 3], cos: &[f32], sin: &[f32]) {
    assert!(head_dim.is_multiple_of(2), "head_dim is {head_dim}; expected an even number");
    let (all, angles) = (count(&[tokens, heads, head_dim]), count(&[tokens, head_dim]));
    assert_eq!(Some(states.len()), all, "states must be [{tokens}, {heads}, {head_dim}]");
    assert_eq!(Some(cos.len()), angles, "cos must be [{tokens}, {head_dim}]");
    assert_eq!(Some(sin.len()), angles, "sin must be [{tokens}, {head_dim}]");
    if states.is_empty() {
        return;
    }
    let token = heads * head_dim;
    let tokens_per_task = TASK.div_ceil(token);
    let rotate = |(task, states): (usize, &mut [f32])| {
        let angles = task * tokens_per_task * head_dim..;
        isa.run(Tokens { states, cos: &cos[angles.clone()], sin: &sin[angles], heads, head_dim }, plain);
    };
    let tasks = tokens_per_task * token;
    if states.len() <= tasks {
        return rotate((0, states));
    }
    states.par_chunks_mut(tasks).enumerate().for_each(rotate);
}

/// Successive tokens.
struct Tokens<'a> {
    /// `[tokens, heads, head_dim]`.
    states: &'a mut [f32],
    /// Cosines of these tokens, and of others after them, `[tokens, head_dim]`.
    cos: &'a [f32],
    /// Sines, like `cos`.
    sin: &'a [f32],
    heads: usize,
    head_dim: usize,
}

fn plain(Tokens { states, cos, sin, heads, head_dim }: Tokens<'_>) {
    let half = head_dim / 2;
    let angles = cos.chunks_exact(head_dim).zip(sin.chunks_exact(head_dim));
    for (token, (cos, sin)) in states.chunks_exact_mut(heads * head_dim).zip(angles) {
        for head in token.chunks_exact_mut(head_dim) {
            for j in 0..half {
                let (first, second) = (head[j], head[j + half]);
                head[j] = first * cos[j] - second * sin[j];
                head[j + half] = second * cos[j + half] + first * sin[j + half];
            }
        }
    }
}

impl Work for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { states, cos, sin, heads, head_dim } = self;
        let half = head_dim / 2;
        let angles = cos.chunks_exact(head_dim).zip(sin.chunks_exact(head_dim));
        for (token, (cos, sin)) in states.chunks_exact_mut(heads * head_dim).zip(angles) {
            for j in (0..half).step_by(V::LANES) {
                let n = V::LANES.min(half - j);
                let (cos, sin) = (cos[j..].as_ptr(), sin[j..].as_ptr());
                // SAFETY: both halves have `n` values from `j`.
                unsafe {
                    let (cos_low, sin_low) = (V::load_head(cos, n, 0.0), V::load_head(sin, n, 0.0));
                    let (cos_high, sin_high) =
                        (V::load_head(cos.add(half), n, 0.0), V::load_head(sin.add(half), n, 0.0));
                    for head in token.chunks_exact_mut(head_dim) {
                        let low = head.as_mut_ptr().add(j);
                        let high = low.add(half);
                        let (first, second) = (V::load_head(low, n, 0.0), V::load_head(high, n, 0.0));
                        second.neg_mul_add(sin_low, first.mul(cos_low)).store_head(low, n);
                        first.mul_add(sin_high, second.mul(cos_high)).store_head(high, n);
                    }
                }
            }
        }
    }
}
