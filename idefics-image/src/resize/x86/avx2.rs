//! The horizontal and the vertical loop for AVX2.
//!
//! Weights have 22 fractional bits, too many for one 16-bit multiplication. They are split into two parts,
//! `weight = high × 2^16 + low`, where `low` is a signed 16-bit and `high` a signed 8-bit number. Products with `low`
//! are summed in 32 bits, products with `high` in 16 bits. Both sums are exact if [`is_exact`] returns true.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::ROWS;
use super::super::taps::{PRECISION_BITS, ROUND, Taps};
use super::QUAD;

/// The high part of a weight: its upper bits, rounded.
fn high(weight: i32) -> i32 {
    (weight + (1 << 15)) >> 16
}

/// The low parts of two weights, 16 bits each.
fn low_pair(weights: [i32; 2]) -> i32 {
    let [first, second] = weights.map(|weight| weight - (high(weight) << 16));
    first & 0xffff | second << 16
}

/// Whether for every output, each high part fits in 8 bits, and 255 × the sum of the high parts of one sign in 16 bits.
/// This only fails if the rounding of more than a hundred weights adds up, which real images do not cause.
fn is_exact(taps: &Taps) -> bool {
    (0..taps.len()).all(|output| {
        let highs = taps.of(output).1.iter().map(|&weight| high(weight));
        let (positive, negative) = highs.fold((0, 0), |(p, n), part| (p + part.max(0), n + part.min(0)));
        positive <= 127 && negative >= -128
    })
}

/// Whether the CPU supports AVX2, and sums with these weights are exact.
fn is_usable(taps: &Taps) -> bool {
    is_x86_feature_detected!("avx2") && is_exact(taps)
}

/// The weights of the horizontal pass.
#[derive(Debug)]
pub(in super::super) struct Columns {
    /// First pixel of each output, and the end of its weights in `quads`.
    outputs: Vec<(usize, usize)>,
    quads: Vec<Quad>,
    /// The first output with a load beyond the end of the row (even if only for zero weights), and its first pixel.
    edge: (usize, usize),
}

/// Four consecutive weights, each in two parts.
#[derive(Debug, Clone, Copy)]
struct Quad {
    /// The low parts, two 16-bit numbers each.
    low: [i32; 2],
    /// The high parts, four 8-bit numbers.
    high: i32,
}

impl Quad {
    fn new(weights: [i32; QUAD]) -> Self {
        let [first, second, third, fourth] = weights;
        let high = i32::from_le_bytes(weights.map(|weight| high(weight) as u8));
        Self { low: [low_pair([first, second]), low_pair([third, fourth])], high }
    }
}

/// Bytes from an output's first pixel to the end of its last load.
fn reach(quads: usize) -> usize {
    3 * QUAD * (quads.max(1) - 1) + 16
}

impl Columns {
    /// `None` if the CPU does not support AVX2, or sums would not be exact.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        is_usable(taps).then(|| Self::of(taps))
    }

    fn of(taps: &Taps) -> Self {
        let (mut outputs, mut quads) = (Vec::with_capacity(taps.len()), Vec::new());
        let width = (0..taps.len()).map(|output| taps.inputs(output).end).max().unwrap_or(0);
        let mut edge = (taps.len(), width);
        for output in 0..taps.len() {
            let begin = quads.len();
            let (start, weights) = taps.groups(output, 1);
            quads.extend(weights.map(Quad::new));
            outputs.push((start, quads.len()));
            if edge.0 == taps.len() && 3 * start + reach(quads.len() - begin) > 3 * width {
                edge = (output, start);
            }
        }
        Self { outputs, quads, edge }
    }

    /// Resizes four rows horizontally, each from `[width, 3]` to `[outputs, 3]`. With fewer `outs`, only the first rows
    /// are written.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        let (edge, start) = self.edge;
        let last = self.outputs.len();
        // The last pixels of each row are copied and padded, so that loads beyond the end of the row are valid.
        let most = (edge..last).map(|output| self.outputs[output].1 - self.begin(output)).max().unwrap_or(0);
        let padding = vec![0; reach(most)];
        let ends = rows.map(|row| [&row[3 * start..], &padding].concat());
        // SAFETY: `new` returns these weights only if the CPU supports AVX2.
        #[allow(unsafe_code)]
        unsafe {
            self.four_rows(0..edge, 0, rows, outs);
            self.four_rows(edge..last, start, ends.each_ref().map(Vec::as_slice), outs);
        }
    }

    fn begin(&self, output: usize) -> usize {
        if output == 0 { 0 } else { self.outputs[output - 1].1 }
    }

    /// Computes a range of outputs of four rows; the slices of the rows begin at pixel `start`.
    #[target_feature(enable = "avx2")]
    fn four_rows(&self, outputs: Range<usize>, start: usize, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        let both = |half: __m128i| _mm256_broadcastsi128_si256(half);
        // Four pixels r0 g0 b0 r1 … b3 of two rows: two of them as the 16-bit pairs r0 r1, g0 g1, b0 b1, 0 0 …
        let first_pair = both(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
        let second_pair = both(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
        // … and all four as the bytes r0 r1 r2 r3, g0 …, b0 …, 0.
        let all = both(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
        let zero = _mm256_setzero_si256();
        let round = _mm256_set1_epi32(ROUND);
        let ones = _mm256_set1_epi16(1);
        let mut begin = self.begin(outputs.start);
        for output in outputs {
            let (first, end) = self.outputs[output];
            let quads = &self.quads[begin..end];
            begin = end;
            // Slicing checks that every load is in bounds.
            let (from, to) = (3 * (first - start), 3 * (first - start) + reach(quads.len()));
            let (row0, row1) = (rows[0][from..to].as_ptr(), rows[1][from..to].as_ptr());
            let (row2, row3) = (rows[2][from..to].as_ptr(), rows[3][from..to].as_ptr());
            let (mut low, mut high) = ([round; 2], [zero; 2]);
            for (index, quad) in quads.iter().enumerate() {
                let at = 3 * QUAD * index;
                // SAFETY: 16 bytes from `at` on are inside the slices that the pointers come from.
                #[allow(unsafe_code)]
                let pixels = unsafe {
                    let load = |row: *const u8| _mm_loadu_si128(row.add(at).cast());
                    [_mm256_set_m128i(load(row1), load(row0)), _mm256_set_m128i(load(row3), load(row2))]
                };
                let [low01, low23] = [_mm256_set1_epi32(quad.low[0]), _mm256_set1_epi32(quad.low[1])];
                let high0123 = _mm256_set1_epi32(quad.high);
                for half in 0..2 {
                    let first = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels[half], first_pair), low01);
                    let second = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels[half], second_pair), low23);
                    low[half] = _mm256_add_epi32(low[half], _mm256_add_epi32(first, second));
                    let products = _mm256_maddubs_epi16(_mm256_shuffle_epi8(pixels[half], all), high0123);
                    high[half] = _mm256_add_epi16(high[half], products);
                }
            }
            for half in 0..2 {
                // Partial sums may wrap, but the total is below 2^31, so the result is right.
                let high = _mm256_slli_epi32::<16>(_mm256_madd_epi16(high[half], ones));
                let value = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(low[half], high));
                let words = _mm256_packs_epi32(value, value);
                let bytes = _mm256_packus_epi16(words, words);
                let rgb = [_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes)];
                for (out, rgb) in outs.iter_mut().skip(2 * half).zip(rgb) {
                    let rgb = rgb.to_le_bytes();
                    // The fourth byte is overwritten by the next output.
                    let rest = &mut out[3 * output..];
                    match rest.first_chunk_mut() {
                        Some(pixel) => *pixel = rgb,
                        None => rest.copy_from_slice(&rgb[..3]),
                    }
                }
            }
        }
    }
}

/// The weights of the vertical pass.
#[derive(Debug)]
pub(in super::super) struct Rows {
    /// End of each output's pairs.
    ends: Vec<usize>,
    pairs: Vec<RowPair>,
}

/// The weights of two input rows.
#[derive(Debug, Clone, Copy)]
struct RowPair {
    low: i32,
    high: i16,
}

impl Rows {
    /// Number of bytes that the loop computes together.
    const LANES: usize = 32;

    /// `None` if the CPU does not support AVX2, sums would not be exact, or rows of `row_bytes` bytes are too short.
    pub(in super::super) fn new(taps: &Taps, row_bytes: usize) -> Option<Self> {
        (row_bytes >= Self::LANES && is_usable(taps)).then(|| Self::of(taps))
    }

    fn of(taps: &Taps) -> Self {
        let (mut ends, mut pairs) = (Vec::with_capacity(taps.len()), Vec::new());
        for output in 0..taps.len() {
            pairs.extend(taps.groups(output, 1).1.map(|weights| {
                let [first, second] = weights.map(|weight| high(weight) as u8);
                RowPair { low: low_pair(weights), high: i16::from_le_bytes([first, second]) }
            }));
            ends.push(pairs.len());
        }
        Self { ends, pairs }
    }

    /// Computes the output row at `position`. `rows` are its input rows, at least as long as `out`, which has at least
    /// [`Self::LANES`] bytes.
    pub(in super::super) fn vertical(&self, rows: &[&[u8]], position: usize, out: &mut [u8]) {
        let begin = if position == 0 { 0 } else { self.ends[position - 1] };
        // SAFETY: `new` returns these weights only if the CPU supports AVX2.
        #[allow(unsafe_code)]
        unsafe {
            one_row(rows, &self.pairs[begin..self.ends[position]], out);
        }
    }
}

#[target_feature(enable = "avx2")]
fn one_row(rows: &[&[u8]], pairs: &[RowPair], out: &mut [u8]) {
    const LANES: usize = Rows::LANES;
    let width = out.len();
    assert!(width >= LANES && rows.iter().all(|row| row.len() >= width), "rows are as long as the output");
    // A pair without a second row reads the first row twice, with the second weight 0.
    let pairs: Vec<(*const u8, *const u8, RowPair)> = rows
        .chunks(2)
        .zip(pairs)
        .map(|(rows, &weights)| (rows[0].as_ptr(), rows[rows.len() - 1].as_ptr(), weights))
        .collect();
    let zero = _mm256_setzero_si256();
    let round = _mm256_set1_epi32(ROUND);
    let mut column = 0;
    loop {
        let (mut low, mut high) = ([round; 4], [zero; 2]);
        for &(row0, row1, weights) in &pairs {
            // SAFETY: column + LANES <= width, and every row has at least `width` bytes, asserted above.
            #[allow(unsafe_code)]
            let [row0, row1] = [row0, row1].map(|row| unsafe { _mm256_loadu_si256(row.add(column).cast()) });
            let low_weights = _mm256_set1_epi32(weights.low);
            let high_weights = _mm256_set1_epi16(weights.high);
            let bytes = [_mm256_unpacklo_epi8(row0, row1), _mm256_unpackhi_epi8(row0, row1)];
            for half in 0..2 {
                high[half] = _mm256_add_epi16(high[half], _mm256_maddubs_epi16(bytes[half], high_weights));
                let words = [_mm256_unpacklo_epi8(bytes[half], zero), _mm256_unpackhi_epi8(bytes[half], zero)];
                for (sum, words) in low[2 * half..].iter_mut().zip(words) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(words, low_weights));
                }
            }
        }
        let mut words = [zero; 2];
        for half in 0..2 {
            // Partial sums may wrap, but the total is below 2^31, so the result is right.
            let high = [_mm256_unpacklo_epi16(zero, high[half]), _mm256_unpackhi_epi16(zero, high[half])];
            let shift = |low, high| _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(low, high));
            words[half] = _mm256_packs_epi32(shift(low[2 * half], high[0]), shift(low[2 * half + 1], high[1]));
        }
        let bytes = _mm256_packus_epi16(words[0], words[1]);
        // SAFETY: column + LANES <= width, the length of `out`.
        #[allow(unsafe_code)]
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().add(column).cast(), bytes);
        }
        if column + LANES == width {
            break;
        }
        // The last step may compute some bytes a second time.
        column = (column + LANES).min(width - LANES);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::taps::tests::{one_output, ramp_taps};
    use super::*;

    #[test]
    fn sums_that_would_not_be_exact_are_left_to_the_plain_loop() {
        assert!(is_exact(&ramp_taps([0].into_iter(), 128)));
        assert!(!is_exact(&one_output(&[32_768; 170])));
    }
}
