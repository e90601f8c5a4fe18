//! The two inner loops of [`resize`](crate::image::resize), compiled for the instruction sets that the machine has.
//!
//! The loops are plain Rust over fixed-size arrays, which the compiler turns into vector code. On x86-64 it may only
//! assume SSE2, which has no 32-bit multiplication, so the same loops are compiled a second time for AVX2 and chosen at
//! run time. Elsewhere (NEON) the plain version is already vector code.

use std::ops::Range;

/// Bits behind the point of a weight; a sum of 255 times all weights still fits 32 bits.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// One half of the last bit, which sums start from.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// Lanes of the vertical loop: four AVX2 registers of sums.
const LANES: usize = 32;

/// For each output position along one axis, the inputs it reads and their fixed-point weights.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    /// First input of each output.
    starts: Vec<usize>,
    /// Where each output's weights end in `weights`; they begin where the previous one's end.
    ends: Vec<usize>,
    weights: Vec<i32>,
}

impl Taps {
    /// Adds the next output, which reads the inputs from `start` on.
    pub(crate) fn push(&mut self, start: usize, weights: impl Iterator<Item = i32>) {
        self.starts.push(start);
        self.weights.extend(weights);
        self.ends.push(self.weights.len());
    }

    /// Number of outputs.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The first input of `output`, and its weights.
    pub(crate) fn of(&self, output: usize) -> (usize, &[i32]) {
        let begin = if output == 0 { 0 } else { self.ends[output - 1] };
        (self.starts[output], &self.weights[begin..self.ends[output]])
    }

    /// All inputs that any output reads.
    pub(crate) fn inputs(&self) -> Range<usize> {
        let (start, _) = self.of(0);
        let (last, weights) = self.of(self.len() - 1);
        start..last + weights.len()
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One row of pixels along x. `row` is `[width, 3]` and one byte more, so that every pixel can be read as four;
/// `out` is `[taps.len(), 3]`.
#[inline(always)]
fn horizontal_plain(row: &[u8], taps: &Taps, out: &mut [u8]) {
    let mut begin = 0;
    for ((out_pixel, &start), &end) in out.chunks_exact_mut(3).zip(&taps.starts).zip(&taps.ends) {
        let weights = &taps.weights[begin..end];
        begin = end;
        let pixels = &row[3 * start..3 * (start + weights.len()) + 1];
        let mut sums = [ROUND; 4];
        for (pixel, &weight) in pixels.windows(4).step_by(3).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                // The fourth lane is the next pixel's red and is dropped; it wraps at worst.
                *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
            }
        }
        for (value, sum) in out_pixel.iter_mut().zip(sums) {
            *value = clip(sum);
        }
    }
}

/// One output row along y: `rows(offset)` is the input row that `weights[offset]` belongs to, as long as `out`.
#[inline(always)]
fn vertical_plain<'a>(rows: impl Fn(usize) -> &'a [u8], weights: &[i32], out: &mut [u8]) {
    let whole = out.len() / LANES * LANES;
    for (chunk, out) in out[..whole].chunks_exact_mut(LANES).enumerate() {
        let mut sums = [ROUND; LANES];
        for (offset, &weight) in weights.iter().enumerate() {
            let values = &rows(offset)[chunk * LANES..][..LANES];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
            }
        }
        for (value, sum) in out.iter_mut().zip(sums) {
            *value = clip(sum);
        }
    }
    for (column, out) in out.iter_mut().enumerate().skip(whole) {
        let products = weights.iter().enumerate().map(|(offset, &weight)| weight * i32::from(rows(offset)[column]));
        *out = clip(ROUND + products.sum::<i32>());
    }
}

/// See [`horizontal_plain`].
pub(crate) fn horizontal(row: &[u8], taps: &Taps, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return avx2::horizontal(row, taps, out);
    }
    horizontal_plain(row, taps, out);
}

/// See [`vertical_plain`].
pub(crate) fn vertical<'a>(rows: impl Fn(usize) -> &'a [u8], weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return avx2::vertical(rows, weights, out);
    }
    vertical_plain(rows, weights, out);
}

/// The plain loops, compiled with AVX2. The only unsafe operation is calling a function that needs it.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use super::{Taps, horizontal_plain, vertical_plain};

    pub(super) fn horizontal(row: &[u8], taps: &Taps, out: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn compiled(row: &[u8], taps: &Taps, out: &mut [u8]) {
            horizontal_plain(row, taps, out);
        }
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the machine has AVX2, asserted on the line above.
        unsafe { compiled(row, taps, out) }
    }

    pub(super) fn vertical<'a>(rows: impl Fn(usize) -> &'a [u8], weights: &[i32], out: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn compiled<'a>(rows: impl Fn(usize) -> &'a [u8], weights: &[i32], out: &mut [u8]) {
            vertical_plain(rows, weights, out);
        }
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the machine has AVX2, asserted on the line above.
        unsafe { compiled(rows, weights, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of every size, reproducible.
    fn values(length: usize) -> Vec<u8> {
        (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
    }

    #[test]
    fn compiled_loops_equal_the_plain_ones() {
        let one = 1 << PRECISION_BITS;
        for taps_each in 1..20 {
            let mut taps = Taps::default();
            for start in (0..50).step_by(3) {
                let weight = |index: i32| one / taps_each + (index - taps_each / 2) * (one / 40);
                taps.push(start, (0..taps_each).map(weight));
            }
            let row = values(3 * (50 + taps_each as usize) + 1);
            let (mut fast, mut plain) = (vec![0; 3 * taps.len()], vec![1; 3 * taps.len()]);
            horizontal(&row, &taps, &mut fast);
            horizontal_plain(&row, &taps, &mut plain);
            assert_eq!(fast, plain, "{taps_each} taps");

            let (_, weights) = taps.of(0);
            for width in [1, 31, 32, 33, 64, 100] {
                let rows = values(width * weights.len());
                let (mut fast, mut plain) = (vec![0; width], vec![1; width]);
                vertical(|offset| &rows[offset * width..][..width], weights, &mut fast);
                vertical_plain(|offset| &rows[offset * width..][..width], weights, &mut plain);
                assert_eq!(fast, plain, "{taps_each} rows of {width}");
            }
        }
    }
}
