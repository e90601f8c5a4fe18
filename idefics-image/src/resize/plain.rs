//! The horizontal and the vertical loop in portable code. Tests compare the vector loops with these loops.

use std::ops::Range;

use super::taps::{PRECISION_BITS, ROUND, Taps};
use super::{LANES, ROWS};

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes the rows `used` along x, and writes them to a block with `taps.len()` pixels per row. Each input row is
/// `[width, 3]`.
pub(super) fn horizontal(rows: [&[u8]; ROWS], used: Range<usize>, taps: &Taps, block: &mut [u8]) {
    for lane in used {
        let group = &mut block[lane / LANES * LANES * 3 * taps.len()..];
        for (position, out_pixel) in group.as_chunks_mut::<{ 3 * LANES }>().0.iter_mut().take(taps.len()).enumerate() {
            let (start, weights) = taps.of(position);
            let mut sums = [ROUND; 3];
            for (pixel, &weight) in rows[lane][3 * start..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(value);
                }
            }
            for (lanes, sum) in out_pixel.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                lanes[lane % LANES] = clip(sum);
            }
        }
    }
}

/// Resizes a row along x with the nearest filter, which only copies pixels: `[width, 3]` to `[taps.len(), 3]`.
pub(super) fn pick(row: &[u8], taps: &Taps, out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<3>();
    for (pixel, start) in out.as_chunks_mut::<3>().0.iter_mut().zip(taps.starts()) {
        *pixel = pixels[*start];
    }
}

/// Computes the output row at `position` along y. `groups` are the interleaved input rows.
pub(super) fn vertical(groups: &[&[u8]], taps: &Taps, position: usize, out: &mut [u8]) {
    /// Number of columns that are computed together, so that their sums stay in registers.
    const COLUMNS: usize = 16;
    let (_, weights) = taps.groups::<LANES>(position, LANES);
    let weights: Vec<[i32; LANES]> = weights.collect();
    for (index, outs) in out.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [ROUND; COLUMNS];
        for (group, weights) in groups.iter().zip(&weights) {
            let columns = group.as_chunks::<LANES>().0[COLUMNS * index..].iter();
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum += column.iter().zip(weights).map(|(&value, &weight)| i32::from(value) * weight).sum::<i32>();
            }
        }
        for (out, sum) in outs.iter_mut().zip(sums) {
            *out = clip(sum);
        }
    }
}
