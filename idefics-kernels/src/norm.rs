//! RMS norm and layer norm over rows.

#![allow(unsafe_code)] // SIMD

use rayon::prelude::*;

use crate::Isa;
use crate::vector::{Vector, Work};

/// Minimum number of values per task.
const TASK: usize = 1 << 15;

/// Computes the RMS norm of each row: `x / √(mean(x²) + eps) · weight`. Sums are f32, or f64 in the plain loops.
/// Multiplications are in the order of `LlamaRMSNorm` in Transformers.
///
/// # Shapes
/// - `x`, `out`: `[rows, weight.len()]`
///
/// # Panics
/// If `x` and `out` differ in length, or their length is not a multiple of `weight.len()`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_on(Isa::best(), x, weight, eps, out);
}

/// [`rms_norm`] on a given instruction set.
///
/// # Panics
/// As [`rms_norm`], and if the CPU does not support `isa`.
pub fn rms_norm_on(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for_each_row(x, weight.len(), out, |x, out| isa.run(Row { x, weight, eps, out }, plain));
}

/// Computes the layer norm of each row: `(x − mean(x)) / √(var(x) + eps) · weight + bias`, with the biased variance.
///
/// # Shapes
/// - `x`, `out`: `[rows, weight.len()]`
/// - `bias`: same as `weight`
///
/// # Panics
/// As [`rms_norm`], and if `weight` and `bias` differ in length.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    layer_norm_on(Isa::best(), x, weight, bias, eps, out);
}

/// [`layer_norm`] on a given instruction set.
///
/// # Panics
/// As [`layer_norm`], and if the CPU does not support `isa`.
pub fn layer_norm_on(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(weight.len(), bias.len(), "weight and bias must have the same length");
    for_each_row(x, weight.len(), out, |x, out| {
        isa.run(CentredRow { x, weight, bias, eps, out }, CentredRow::plain);
    });
}

/// Calls `row` with each row of `width` values and the matching row of the output.
fn for_each_row(x: &[f32], width: usize, out: &mut [f32], row: impl Fn(&[f32], &mut [f32]) + Sync) {
    assert_eq!(x.len(), out.len(), "x and out must have the same length");
    if width == 0 {
        return assert!(x.is_empty(), "x must be empty if the weight is empty");
    }
    assert!(x.len().is_multiple_of(width), "the length of x must be a multiple of {width}");
    let rows = |(x, out): (&[f32], &mut [f32])| {
        x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(|(x, out)| row(x, out));
    };
    let task = TASK.div_ceil(width) * width;
    if x.len() <= task {
        return rows((x, out));
    }
    x.par_chunks(task).zip(out.par_chunks_mut(task)).for_each(rows);
}

struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

/// The factor that normalises a row: `1 / √(mean(x²) + eps)`.
fn inverse_rms(sum_of_squares: f32, width: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares / width as f32 + eps).sqrt()
}

fn plain(row: Row<'_>) {
    let sum: f64 = row.x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let inverse = inverse_rms(sum as f32, row.x.len(), row.eps);
    for ((out, x), weight) in row.out.iter_mut().zip(row.x).zip(row.weight) {
        *out = x * inverse * weight;
    }
}

impl Work for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        const SUMS: usize = 4;
        let width = self.x.len();
        let (x, weight, out) = (self.x.as_ptr(), self.weight.as_ptr(), self.out.as_mut_ptr());
        let rest = width % V::LANES;
        let whole = width - rest;
        // SAFETY: whole vectors first, then the remaining `rest` values; all slices have length `width`.
        unsafe {
            let mut sums = [V::splat(0.0); SUMS];
            let mut start = 0;
            while start + SUMS * V::LANES <= whole {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let x = V::load(x.add(start + index * V::LANES));
                    *sum = x.mul_add(x, *sum);
                }
                start += SUMS * V::LANES;
            }
            while start < whole {
                let x = V::load(x.add(start));
                sums[0] = x.mul_add(x, sums[0]);
                start += V::LANES;
            }
            let tail = V::load_head(x.add(whole), rest, 0.0);
            sums[1] = tail.mul_add(tail, sums[1]);
            let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();

            let inverse = V::splat(inverse_rms(sum, width, self.eps));
            for start in (0..whole).step_by(V::LANES) {
                let normed = V::load(x.add(start)).mul(inverse).mul(V::load(weight.add(start)));
                normed.store(out.add(start));
            }
            let weight = V::load_head(weight.add(whole), rest, 0.0);
            tail.mul(inverse).mul(weight).store_head(out.add(whole), rest);
        }
    }
}

struct CentredRow<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl CentredRow<'_> {
    fn plain(self) {
        let width = self.x.len() as f64;
        let mean = self.x.iter().map(|x| f64::from(*x)).sum::<f64>() / width;
        let variance = self.x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width;
        let inverse = 1.0 / (variance as f32 + self.eps).sqrt();
        let affine = self.weight.iter().zip(self.bias);
        for ((out, x), (weight, bias)) in self.out.iter_mut().zip(self.x).zip(affine) {
            *out = (x - mean as f32) * inverse * weight + bias;
        }
    }
}

impl Work for CentredRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        const SUMS: usize = 4;
        let width = self.x.len();
        let (x, weight, bias, out) = (self.x.as_ptr(), self.weight.as_ptr(), self.bias.as_ptr(), self.out.as_mut_ptr());
        // SAFETY: all slices have length `width`, so `n` values are in bounds from `start`.
        unsafe {
            let mut sums = [V::splat(0.0); SUMS];
            for (index, start) in (0..width).step_by(V::LANES).enumerate() {
                let n = V::LANES.min(width - start);
                sums[index % SUMS] = sums[index % SUMS].add(V::load_head(x.add(start), n, 0.0));
            }
            let mean = total(sums) / width as f32;
            // The variance is computed from centred values, because `mean(x²) − mean(x)²` would lose precision.
            let mut sums = [V::splat(0.0); SUMS];
            for (index, start) in (0..width).step_by(V::LANES).enumerate() {
                let n = V::LANES.min(width - start);
                let centred = V::load_head(x.add(start), n, mean).sub(V::splat(mean));
                sums[index % SUMS] = centred.mul_add(centred, sums[index % SUMS]);
            }
            let inverse = V::splat(1.0 / (total(sums) / width as f32 + self.eps).sqrt());
            for start in (0..width).step_by(V::LANES) {
                let n = V::LANES.min(width - start);
                let normed = V::load_head(x.add(start), n, mean).sub(V::splat(mean)).mul(inverse);
                let weight = V::load_head(weight.add(start), n, 0.0);
                normed.mul_add(weight, V::load_head(bias.add(start), n, 0.0)).store_head(out.add(start), n);
            }
        }
    }
}

#[inline(always)]
unsafe fn total<V: Vector>(sums: [V; 4]) -> f32 {
    // SAFETY: guaranteed by the caller.
    unsafe { sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum() }
}
