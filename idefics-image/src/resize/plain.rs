//! The two inner loops in portable code. Tests compare the vector loops with them.

use super::taps::{PRECISION_BITS, ROUND, Taps};

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes one row of pixels horizontally, `[width, 3]` to `[taps.len(), 3]`.
pub(super) fn horizontal(row: &[u8], taps: &Taps, out: &mut [u8]) {
    for (position, out_pixel) in out.chunks_exact_mut(3).enumerate() {
        let (start, weights) = taps.of(position);
        let mut sums = [ROUND; 3];
        for (pixel, &weight) in row[3 * start..].chunks_exact(3).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += weight * i32::from(value);
            }
        }
        for (value, sum) in out_pixel.iter_mut().zip(sums) {
            *value = clip(sum);
        }
    }
}

/// [`horizontal`] for the nearest filter: every output pixel is a copy of an input pixel.
pub(super) fn pick(row: &[u8], taps: &Taps, out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<3>();
    for (pixel, start) in out.as_chunks_mut::<3>().0.iter_mut().zip(taps.starts()) {
        *pixel = pixels[*start];
    }
}

/// Computes the output row at `position`. `rows` are its input rows, each as long as `out`.
pub(super) fn vertical(rows: &[&[u8]], taps: &Taps, position: usize, out: &mut [u8]) {
    let (_, weights) = taps.of(position);
    for (column, out) in out.iter_mut().enumerate() {
        let products = weights.iter().zip(rows).map(|(&weight, row)| weight * i32::from(row[column]));
        *out = clip(ROUND + products.sum::<i32>());
    }
}
