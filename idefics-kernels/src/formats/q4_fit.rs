//! Finds the best scale for a block, for [`super::Q4::quantize`].

#![allow(unsafe_code)] // runs code compiled for an instruction set

use half::bf16;

use super::q4_table::{BLOCK, TABLE};
use crate::isa::Isa;
use crate::vector::{Vector, Work};

/// Candidate scales, as fractions of the scale that maps the largest weight to an end of the table. A fraction below 1
/// clips the largest weight, and the other weights gain resolution. The fraction 1 leaves weights that are already
/// quantised unchanged. Twice as many candidates would lower the error of random weights by less than 0.05 %.
const FRACTIONS: [f32; 8] = [1.0, 0.82, 0.86, 0.90, 0.94, 0.98, 1.04, 1.10];

/// The largest magnitude that can be quantised: squared errors of larger weights overflow f32.
pub(super) const LARGEST: f32 = (1u64 << 60) as f32;

/// Number of partial sums. Fixed, so that every instruction set adds in the same order.
const LANES: usize = 8;

/// A block of weights.
pub(super) type Block = [f32; BLOCK];

/// The result of quantising one block: its scale and the codes of its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    pub(super) scale: bf16,
    pub(super) codes: [u8; BLOCK],
}

/// Finds, for each block, the codes and the scale with the smallest squared error among the candidates.
///
/// Each candidate is also improved by one least-squares step: the best scale for its codes, then the best codes for
/// that scale.
pub(super) fn fit<const N: usize>(blocks: &[Block; N]) -> [Fit; N] {
    fit_on(Isa::best(), blocks)
}

fn fit_on<const N: usize>(isa: Isa, blocks: &[Block; N]) -> [Fit; N] {
    isa.run(Search(blocks), |Search(blocks)| blocks.map(|block| best(&block)))
}

struct Search<'a, const N: usize>(&'a [Block; N]);

impl<const N: usize> Work for Search<'_, N> {
    type Output = [Fit; N];

    /// Runs plain loops, which the compiler vectorises for the instruction set of the caller.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> [Fit; N] {
        let mut fits = [Fit { scale: bf16::ZERO, codes: [ZERO_CODE; BLOCK] }; N];
        for (fit, block) in fits.iter_mut().zip(self.0) {
            *fit = best(block);
        }
        fits
    }
}

#[inline(always)]
fn best(weights: &Block) -> Fit {
    let mut extreme = 0f32;
    for weight in weights {
        extreme = if weight.abs() > extreme.abs() { *weight } else { extreme };
    }
    if extreme == 0.0 {
        return Fit { scale: bf16::ZERO, codes: [ZERO_CODE; BLOCK] };
    }
    let mut best = (f32::INFINITY, bf16::ZERO);
    // The table is asymmetric, so both signs of the scale are tried.
    for end in [TABLE[0], TABLE[15]] {
        for fraction in FRACTIONS {
            let start = bf16::from_f32(extreme / f32::from(end) * fraction);
            let (error, improved) = evaluate(weights, start);
            if error < best.0 {
                best = (error, start);
            }
            let (error, _) = evaluate(weights, improved);
            if error < best.0 {
                best = (error, improved);
            }
        }
    }
    Fit { scale: best.1, codes: codes(weights, best.1) }
}

/// The code of 0.
const ZERO_CODE: u8 = 8;

/// Midpoints between neighbouring table entries. They are multiples of one half.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (TABLE[i] as f32 + TABLE[i + 1] as f32) / 2.0;
        i += 1;
    }
    midpoints
};

/// `1 / scale`, or 0 if the scale is 0. A scale rounds to 0 where the weights are close to the smallest f32.
#[inline(always)]
fn reciprocal(scale: bf16) -> f32 {
    if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() }
}

/// Quantises the weights with `scale`. Returns the squared error, and the scale with the smallest squared error for the
/// resulting codes.
#[inline(always)]
fn evaluate(weights: &Block, scale: bf16) -> (f32, bf16) {
    let (step, reciprocal) = (scale.to_f32(), reciprocal(scale));
    let (mut errors, mut products, mut squares) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for start in (0..BLOCK).step_by(LANES) {
        for lane in 0..LANES {
            let weight = weights[start + lane];
            let mut value = f32::from(TABLE[0]);
            for (index, midpoint) in MIDPOINTS.iter().enumerate() {
                let entry = f32::from(TABLE[index + 1]);
                value = if weight * reciprocal > *midpoint { entry } else { value };
            }
            let difference = value * step - weight;
            errors[lane] += difference * difference;
            products[lane] += value * weight;
            squares[lane] += value * value;
        }
    }
    let (error, product, square) = (sum(&errors), sum(&products), sum(&squares));
    (error, if square == 0.0 { scale } else { bf16::from_f32(product / square) })
}

#[inline(always)]
fn sum(lanes: &[f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// Returns the code of each weight: the index of the table entry that is nearest to the weight divided by `scale`.
#[inline(always)]
fn codes(weights: &Block, scale: bf16) -> [u8; BLOCK] {
    let reciprocal = reciprocal(scale);
    let mut codes = [0u8; BLOCK];
    for midpoint in MIDPOINTS {
        for (code, weight) in codes.iter_mut().zip(weights) {
            *code += u8::from(weight * reciprocal > midpoint);
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_finds_the_same_fit() {
        let blocks: [Block; 64] = std::array::from_fn(|block| {
            std::array::from_fn(|i| {
                let x = ((block * BLOCK + i) as f32 * 12.9898).sin() * 43.758;
                x * x * x * 10f32.powi(block as i32 - 32)
            })
        });
        let plain = fit_on(Isa::Plain, &blocks);
        for isa in Isa::available() {
            assert_eq!(fit_on(isa, &blocks), plain, "{isa:?}");
        }
        assert!(plain.iter().any(|fit| fit.scale > bf16::ZERO) && plain.iter().any(|fit| fit.scale < bf16::ZERO));
    }
}
