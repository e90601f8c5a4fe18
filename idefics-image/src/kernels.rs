//! The two inner loops of [`resize`](crate::resize), with AVX2 versions chosen at run time.
//!
//! Along y the loop is plain Rust over fixed-size arrays, compiled twice: for what the target promises (on x86-64 that
//! is SSE2, which has no 32-bit multiplication) and for AVX2. Along x the pixels that one sum reads lie three bytes
//! apart, which compilers do not turn into vector code, so AVX2 has its own version: four rows at once, two pixels at a
//! time as pairs of 16 bits, each weight in two parts of at most 15 bits so that a product of pairs is exact.

use std::ops::Range;

/// Bits behind the point of a weight; a sum of 255 times all weights still fits 32 bits.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Bits of the lower part of a split weight: the most that a signed 16-bit number holds.
const LOW_BITS: u32 = 15;

/// One half of the last bit, which sums start from.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// Bytes behind each input row of the horizontal loop, which may be read and do not matter: a whole load, and the
/// second pixel of an odd last pair.
pub(crate) const PADDING: usize = 16 + 3;

/// Rows that the horizontal loop likes to be given together.
pub(crate) const ROWS: usize = 4;

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
    /// The same, two weights at a time.
    pairs: Pairs,
}

/// Weights two at a time, split in 16-bit parts: what one multiplication of pairs takes.
#[derive(Debug, Default)]
struct Pairs {
    /// First input of each output, and where its weights end in `weights`.
    outputs: Vec<(usize, usize)>,
    /// The lower parts of two weights in one number, and the upper parts; 0 for the second of an odd last one.
    weights: Vec<[i32; 2]>,
}

impl Pairs {
    fn push(&mut self, start: usize, weights: &[i32]) {
        const MASK: i32 = (1 << LOW_BITS) - 1;
        self.weights.extend(weights.chunks(2).map(|pair| {
            let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
            let low = (first & MASK) | (second & MASK) << 16;
            let high = (first >> LOW_BITS) & 0xffff | (second >> LOW_BITS) << 16;
            [low, high]
        }));
        self.outputs.push((start, self.weights.len()));
    }
}

impl Taps {
    /// Adds the next output, which reads the inputs from `start` on.
    pub(crate) fn push(&mut self, start: usize, weights: impl Iterator<Item = i32>) {
        let begin = self.weights.len();
        self.starts.push(start);
        self.weights.extend(weights);
        self.ends.push(self.weights.len());
        self.pairs.push(start, &self.weights[begin..]);
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

/// Rows of pixels along x, `[rows, width, 3]` to `[rows, taps.len(), 3]`; `stride` is the length of an input row in
/// bytes, which is `3 × width` and [`PADDING`] more.
fn horizontal_plain(rows: &[u8], stride: usize, taps: &Taps, out: &mut [u8]) {
    for (row, out) in rows.chunks_exact(stride).zip(out.chunks_exact_mut(3 * taps.len())) {
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
pub(crate) fn horizontal(rows: &[u8], stride: usize, taps: &Taps, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if rows.len() == ROWS * stride && is_x86_feature_detected!("avx2") {
        return avx2::horizontal(rows.chunks_exact(stride), taps, out);
    }
    horizontal_plain(rows, stride, taps, out);
}

/// See [`vertical_plain`].
pub(crate) fn vertical<'a>(rows: impl Fn(usize) -> &'a [u8], weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return avx2::vertical(rows, weights, out);
    }
    vertical_plain(rows, weights, out);
}

/// What needs AVX2. Unsafe are the calls of functions that need it, and loads through pointers.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::*;
    use std::slice::ChunksExact;

    use super::{LOW_BITS, PRECISION_BITS, Pairs, ROUND, ROWS, Taps, vertical_plain};

    /// [`super::horizontal_plain`] for exactly four rows.
    pub(super) fn horizontal(mut rows: ChunksExact<'_, u8>, taps: &Taps, out: &mut [u8]) {
        assert!(is_x86_feature_detected!("avx2"));
        let rows: [&[u8]; ROWS] = std::array::from_fn(|_| rows.next().expect("the caller gives four rows"));
        // SAFETY: the machine has AVX2, asserted above.
        unsafe { four_rows(rows, &taps.pairs, out) }
    }

    #[target_feature(enable = "avx2")]
    fn four_rows(rows: [&[u8]; ROWS], pairs: &Pairs, out: &mut [u8]) {
        // Two pixels r0 g0 b0 r1 g1 b1 to the 16-bit pairs r0 r1, g0 g1, b0 b1, 0 0; in both halves.
        let to_pairs =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
        let mut outs = out.chunks_exact_mut(3 * pairs.outputs.len());
        let mut outs: [&mut [u8]; ROWS] = std::array::from_fn(|_| outs.next().expect("one output row for each row"));
        let zero = _mm256_setzero_si256();
        let mut begin = 0;
        for (position, &(start, end)) in pairs.outputs.iter().enumerate() {
            let weights = &pairs.weights[begin..end];
            begin = end;
            // The last load begins at the last pair and reads 16 bytes; slicing checks that they are there.
            let reach = 6 * weights.len() + 16 - 6;
            let [row0, row1, row2, row3] = rows.map(|row| row[3 * start..3 * start + reach].as_ptr());
            let (mut low, mut high) = ([zero; 2], [zero; 2]);
            for (pair, &[low_weights, high_weights]) in weights.iter().enumerate() {
                let at = 6 * pair;
                // SAFETY: at + 16 <= reach, the length of the slices that the pointers come from.
                let (pixels0, pixels1, pixels2, pixels3) = unsafe {
                    (
                        _mm_loadu_si128(row0.add(at).cast()),
                        _mm_loadu_si128(row1.add(at).cast()),
                        _mm_loadu_si128(row2.add(at).cast()),
                        _mm_loadu_si128(row3.add(at).cast()),
                    )
                };
                let low_weights = _mm256_set1_epi32(low_weights);
                let high_weights = _mm256_set1_epi32(high_weights);
                let first = _mm256_shuffle_epi8(_mm256_set_m128i(pixels1, pixels0), to_pairs);
                let second = _mm256_shuffle_epi8(_mm256_set_m128i(pixels3, pixels2), to_pairs);
                low[0] = _mm256_add_epi32(low[0], _mm256_madd_epi16(first, low_weights));
                high[0] = _mm256_add_epi32(high[0], _mm256_madd_epi16(first, high_weights));
                low[1] = _mm256_add_epi32(low[1], _mm256_madd_epi16(second, low_weights));
                high[1] = _mm256_add_epi32(high[1], _mm256_madd_epi16(second, high_weights));
            }
            for half in 0..2 {
                // Partial sums may wrap; the whole is below 2^31, so it comes out right.
                let sum = _mm256_add_epi32(low[half], _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[half]));
                let value =
                    _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(sum, _mm256_set1_epi32(ROUND)));
                let words = _mm256_packs_epi32(value, value);
                let bytes = _mm256_packus_epi16(words, words);
                let rgb = [_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes)];
                for (out, rgb) in outs[2 * half..].iter_mut().zip(rgb) {
                    out[3 * position..][..3].copy_from_slice(&rgb.to_le_bytes()[..3]);
                }
            }
        }
    }

    /// [`super::vertical_plain`], compiled with AVX2.
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
            // The last output reads the last pixel.
            let stride = 3 * (48 + taps_each as usize) + PADDING;
            let rows = values(ROWS * stride);
            let length = ROWS * 3 * taps.len();
            let (mut fast, mut plain) = (vec![0; length], vec![1; length]);
            horizontal(&rows, stride, &taps, &mut fast);
            horizontal_plain(&rows, stride, &taps, &mut plain);
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
