//! Root mean square normalisation.

#![allow(unsafe_code)] // vectors

use rayon::prelude::*;

use super::Isa;
use super::vector::{Vector, Work};

/// Values of one task, at least.
const TASK: usize = 1 << 15;

/// `x / √(mean(x²) + eps) · weight` for each row. Sums are f32; the reference multiplies in the same order.
///
/// # Shapes
/// - `x`, `out`: `[rows, weight.len()]`
///
/// # Panics
/// If `x` and `out` differ in length, or it is not a multiple of `weight.len()`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_on(Isa::best(), x, weight, eps, out);
}

/// [`rms_norm`] on a given instruction set.
///
/// # Panics
/// As [`rms_norm`], and if the machine does not have `isa`.
pub fn rms_norm_on(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "an output for each value");
    let width = weight.len();
    if width == 0 {
        return assert!(x.is_empty(), "rows have no values");
    }
    assert!(x.len().is_multiple_of(width), "rows of {width} values");
    let rows = |(x, out): (&[f32], &mut [f32])| {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            isa.run(Row { x, weight, eps, out }, plain);
        }
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

/// What the row is multiplied with.
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
        // SAFETY: whole vectors first, then the `rest` values that are left; all slices have `width`.
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
