//! Quantisers of GGUF blocks with sub-blocks, which search for the best scale and minimum of each sub-block.
//!
//! Source: `make_qkx2_quants`, `make_qx_quants` and `quantize_row_q{4,5,6}_K_ref` of ggml (`ggml-quants.c`). Sums are
//! added in another order than in ggml, so codes may differ where two candidates are equally good.

#![allow(unsafe_code)] // runs code compiled for an instruction set

use half::f16;

use crate::isa::Isa;
use crate::vector::{Vector, Work};

/// Number of values in a block.
const SUPER: usize = 256;
/// Number of values in a sub-block with a minimum.
const SUB: usize = 32;
/// Number of values in a sub-block without a minimum.
const SUB_6: usize = 16;
/// Number of partial sums. Fixed, so that every instruction set adds in the same order.
const LANES: usize = 8;
/// Sub-blocks become zero if the magnitudes of all their values are below this limit.
const SMALLEST: f32 = 1e-15;

/// Quantises a block to Q4_K.
pub(super) fn q4_k(values: &[f32; SUPER], out: &mut [u8; 144]) {
    let (header, codes) = asymmetric(values, 15, (-1.0, 20));
    out[..16].copy_from_slice(&header);
    for (i, out) in out[16..].iter_mut().enumerate() {
        let first = i / 32 * 64 + i % 32;
        *out = codes[first] | codes[first + 32] << 4;
    }
}

/// Quantises a block to Q5_K.
pub(super) fn q5_k(values: &[f32; SUPER], out: &mut [u8; 176]) {
    let (header, codes) = asymmetric(values, 31, (-0.5, 15));
    out[..16].copy_from_slice(&header);
    for (e, out) in out[16..48].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, part| bits | (codes[32 * part + e] >> 4) << part);
    }
    for (i, out) in out[48..].iter_mut().enumerate() {
        let first = i / 32 * 64 + i % 32;
        *out = codes[first] & 15 | (codes[first + 32] & 15) << 4;
    }
}

/// Quantises a block to Q6_K.
pub(super) fn q6_k(values: &[f32; SUPER], out: &mut [u8; 210]) {
    let mut scales = [0f32; SUPER / SUB_6];
    let (parts, _) = values.as_chunks::<SUB_6>();
    for (scale, part) in scales.iter_mut().zip(parts) {
        *scale = Isa::best().run(SearchScale(part), |SearchScale(part)| search_scale(part));
    }
    let largest = scales.iter().fold(0.0, |best: f32, scale| if scale.abs() > best.abs() { *scale } else { best });
    out.fill(0);
    if largest.abs() < SMALLEST {
        return;
    }
    let reciprocal = -128.0 / largest;
    let d = f16::from_f32(1.0 / reciprocal);
    let mut codes = [32u8; SUPER];
    for (j, scale) in scales.iter().enumerate() {
        let rounded = (reciprocal * scale).round_ties_even().clamp(-128.0, 127.0) as i8;
        out[192 + j] = rounded.cast_unsigned();
        let step = d.to_f32() * f32::from(rounded);
        if step != 0.0 {
            for (code, value) in codes[SUB_6 * j..][..SUB_6].iter_mut().zip(&parts[j]) {
                *code = ((value / step).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8;
            }
        }
    }
    out[208..].copy_from_slice(&d.to_le_bytes());
    for (i, code) in codes.iter().enumerate() {
        let (k, g, e) = (i / 128, i % 128 / 32, i % 32);
        out[64 * k + 32 * (g % 2) + e] |= (code & 15) << (4 * (g / 2));
        out[128 + 32 * k + e] |= (code >> 4) << (2 * g);
    }
}

/// Returns the first 16 bytes of a block with minima, and its codes from 0 to `largest`. [`SearchBoth`] explains
/// `candidates`.
fn asymmetric(values: &[f32; SUPER], largest: u8, candidates: (f32, u32)) -> ([u8; 16], [u8; SUPER]) {
    let (mut scales, mut minima) = ([0f32; SUPER / SUB], [0f32; SUPER / SUB]);
    let (parts, _) = values.as_chunks::<SUB>();
    for (j, values) in parts.iter().enumerate() {
        let work = SearchBoth { values, largest: f32::from(largest), candidates };
        (scales[j], minima[j]) = Isa::best().run(work, |work| work.search());
    }
    let reach = |values: &[f32]| values.iter().fold(0f32, |largest, value| largest.max(*value));
    let (max_scale, max_minimum) = (reach(&scales), reach(&minima));
    let rounded = |value: f32, max: f32| match max > 0.0 {
        true => (63.0 / max * value).round_ties_even().clamp(0.0, 63.0) as u8,
        false => 0,
    };
    let (d, m) = (f16::from_f32(max_scale / 63.0), f16::from_f32(max_minimum / 63.0));
    let mut header = [0u8; 16];
    header[..2].copy_from_slice(&d.to_le_bytes());
    header[2..4].copy_from_slice(&m.to_le_bytes());
    let mut codes = [0u8; SUPER];
    for (j, values) in parts.iter().enumerate() {
        let (scale, minimum) = (rounded(scales[j], max_scale), rounded(minima[j], max_minimum));
        let packed = &mut header[4..];
        match j {
            0..4 => (packed[j], packed[j + 4]) = (scale, minimum),
            _ => {
                packed[j + 4] = scale & 15 | (minimum & 15) << 4;
                packed[j - 4] |= scale >> 4 << 6;
                packed[j] |= minimum >> 4 << 6;
            }
        }
        let (step, minimum) = (d.to_f32() * f32::from(scale), m.to_f32() * f32::from(minimum));
        if step != 0.0 {
            for (code, value) in codes[SUB * j..][..SUB].iter_mut().zip(values) {
                *code = ((value + minimum) / step).round_ties_even().clamp(0.0, f32::from(largest)) as u8;
            }
        }
    }
    (header, codes)
}

#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    total
}

/// A search for the scale and the minimum of a sub-block: values become `scale · code − minimum`.
struct SearchBoth<'a> {
    values: &'a [f32; SUB],
    /// The largest code.
    largest: f32,
    /// The pair `(from, n)`: candidate `i`, from 0 to `n`, divides the range into `largest + from + i / 10` steps.
    candidates: (f32, u32),
}

impl SearchBoth<'_> {
    #[inline(always)]
    fn search(&self) -> (f32, f32) {
        let values = self.values;
        let mut squares = [0f32; LANES];
        let (mut min, mut max) = (0f32, values[0]);
        for (i, value) in values.iter().enumerate() {
            squares[i % LANES] += value * value;
            min = if *value < min { *value } else { min };
            max = if *value > max { *value } else { max };
        }
        if max == min {
            return (0.0, -min);
        }
        // Errors of large values have a larger weight.
        let mean = (total(&squares) / SUB as f32).sqrt();
        let mut weights = [0f32; SUB];
        for (weight, value) in weights.iter_mut().zip(values) {
            *weight = mean + value.abs();
        }
        let steps = self.largest / (max - min);
        let start = (1.0 / steps, min);
        let mut best = (self.error(&weights, steps, min, start), start);
        let (from, n) = self.candidates;
        for step in 0..=n {
            let steps = (from + 0.1 * step as f32 + self.largest) / (max - min);
            let Some(improved) = self.improved(&weights, steps, min) else { continue };
            let error = self.error(&weights, steps, min, improved);
            if error < best.0 {
                best = (error, improved);
            }
        }
        let (scale, min) = best.1;
        (scale, -min)
    }

    /// Returns the code of a value, with `steps` codes per unit and code 0 at `min`.
    #[inline(always)]
    fn code(&self, value: f32, steps: f32, min: f32) -> f32 {
        let code = (steps * (value - min)).round_ties_even();
        let code = if code < 0.0 { 0.0 } else { code };
        if code > self.largest { self.largest } else { code }
    }

    /// Returns the weighted squared error of the codes that `steps` and `min` give, if these codes are decoded with
    /// `scale` and `offset`.
    #[inline(always)]
    fn error(&self, weights: &[f32; SUB], steps: f32, min: f32, (scale, offset): (f32, f32)) -> f32 {
        let mut errors = [0f32; LANES];
        for start in (0..SUB).step_by(LANES) {
            for lane in 0..LANES {
                let value = self.values[start + lane];
                let difference = scale * self.code(value, steps, min) + offset - value;
                errors[lane] += weights[start + lane] * (difference * difference);
            }
        }
        total(&errors)
    }

    /// Returns the scale and the minimum with the smallest weighted squared error for the codes that `steps` and `min`
    /// give. Returns `None` if these codes do not determine both.
    #[inline(always)]
    fn improved(&self, weights: &[f32; SUB], steps: f32, min: f32) -> Option<(f32, f32)> {
        let [mut w, mut x, mut l, mut l2, mut xl] = [[0f32; LANES]; 5];
        for start in (0..SUB).step_by(LANES) {
            for lane in 0..LANES {
                let (weight, value) = (weights[start + lane], self.values[start + lane]);
                let code = self.code(value, steps, min);
                w[lane] += weight;
                x[lane] += weight * value;
                l[lane] += weight * code;
                l2[lane] += weight * code * code;
                xl[lane] += weight * code * value;
            }
        }
        let [w, x, l, l2, xl] = [total(&w), total(&x), total(&l), total(&l2), total(&xl)];
        let determinant = w * l2 - l * l;
        if determinant <= 0.0 {
            return None;
        }
        let offset = (l2 * x - l * xl) / determinant;
        match offset > 0.0 {
            true => Some((xl / l2, 0.0)), // a minimum is never above 0
            false => Some(((w * xl - x * l) / determinant, offset)),
        }
    }
}

impl Work for SearchBoth<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> (f32, f32) {
        self.search()
    }
}

/// A search for the scale of a sub-block of Q6_K.
struct SearchScale<'a>(&'a [f32; SUB_6]);

impl Work for SearchScale<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        search_scale(self.0)
    }
}

/// Returns the scale with the smallest squared error for codes from −32 to 31. The error of each value is weighted with
/// the square of this value.
#[inline(always)]
fn search_scale(values: &[f32; SUB_6]) -> f32 {
    let mut extreme = 0f32;
    for value in values {
        extreme = if value.abs() > extreme.abs() { *value } else { extreme };
    }
    if extreme.abs() < SMALLEST {
        return 0.0;
    }
    let (product, square) = scale_sums(values, -32.0 / extreme);
    let mut scale = if square > 0.0 { product / square } else { 0.0 };
    let mut best = scale * product;
    for step in -9i8..=9 {
        let (product, square) = scale_sums(values, -(32.0 + 0.1 * f32::from(step)) / extreme);
        if step != 0 && square > 0.0 && product * product > best * square {
            scale = product / square;
            best = scale * product;
        }
    }
    scale
}

/// Returns two weighted sums over the values: the sum of value times code, and the sum of the squared codes.
#[inline(always)]
fn scale_sums(values: &[f32; SUB_6], steps: f32) -> (f32, f32) {
    let (mut products, mut squares) = ([0f32; LANES], [0f32; LANES]);
    for start in (0..SUB_6).step_by(LANES) {
        for lane in 0..LANES {
            let value = values[start + lane];
            let code = (steps * value).round_ties_even();
            let code = if code < -32.0 { -32.0 } else { code };
            let code = if code > 31.0 { 31.0 } else { code };
            let weight = value * value;
            products[lane] += weight * value * code;
            squares[lane] += weight * code * code;
        }
    }
    (total(&products), total(&squares))
}
