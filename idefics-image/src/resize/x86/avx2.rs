//! Both loops for AVX2.
//!
//! Weights have 22 fractional bits, more than one 16-bit multiplication takes. They are split in two parts,
//! `weight = high × 2^16 + low` with `low` a signed 16-bit and `high` a signed 8-bit number. Products with `low` are
//! summed in 32 bits, those with `high` in 16 bits, and both sums are exact. [`Parts`] says where that holds.

use std::arch::x86_64::*;

use super::super::ROWS;
use super::super::taps::{PRECISION_BITS, ROUND, Taps};
use super::{CHUNK, GROUP, LAST_SHIFT, LOADS, QUAD, Strip, chunk, load, put_group};

/// The part that 8 bits hold, rounded, of each weight.
fn high(weight: i32) -> i32 {
    (weight + (1 << 15)) >> 16
}

/// The 16-bit rests of two weights.
fn low_pair(weights: [i32; 2]) -> i32 {
    let [first, second] = weights.map(|weight| weight - (high(weight) << 16));
    first & 0xffff | second << 16
}

/// Whether 255 × the high parts of one sign fits in 16 bits, and each part in 8, for every output. To fail that takes over
/// a hundred weights whose rounding adds up, so no picture that people have gets there.
fn is_exact(taps: &Taps) -> bool {
    (0..taps.len()).all(|output| {
        let highs = taps.of(output).1.iter().map(|&weight| high(weight));
        let (positive, negative) = highs.fold((0, 0), |(p, n), part| (p + part.max(0), n + part.min(0)));
        positive <= 127 && negative >= -128
    })
}

/// Whether AVX2 gives exact sums with these weights on this machine.
fn is_usable(taps: &Taps) -> bool {
    is_x86_feature_detected!("avx2") && is_exact(taps)
}

/// The weights of the horizontal pass.
#[derive(Debug)]
pub(in super::super) struct Columns {
    strips: Vec<Strip>,
    /// Of each output, its first pair and quad of pixels in its strip.
    firsts: Vec<(usize, usize)>,
    /// Low parts of two weights; `pairs` of them for each output. Zeros fill up.
    low: Vec<i32>,
    pairs: usize,
    /// High parts of four weights; `quads` of them for each output.
    high: Vec<i32>,
    quads: usize,
}

impl Columns {
    /// `None` if the machine has no AVX2, or sums would not be exact.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        is_usable(taps).then(|| Self::of(taps))
    }

    fn of(taps: &Taps) -> Self {
        let outputs = taps.len().next_multiple_of(GROUP);
        let pairs = (0..taps.len()).map(|output| taps.groups::<2>(output, 2).1.count()).max().unwrap_or(0);
        let quads = (0..taps.len()).map(|output| taps.groups::<QUAD>(output, QUAD).1.count()).max().unwrap_or(0);
        let mut columns = Self {
            strips: Strip::of(taps),
            firsts: vec![(0, 0); outputs],
            low: vec![0; pairs * outputs],
            pairs,
            high: vec![0; quads * outputs],
            quads,
        };
        for strip in &columns.strips {
            for output in GROUP * strip.groups.start..taps.len().min(GROUP * strip.groups.end) {
                let (pair_start, weights) = taps.groups(output, 2);
                for (target, two) in columns.low[pairs * output..].iter_mut().zip(weights) {
                    *target = low_pair(two);
                }
                let (quad_start, weights) = taps.groups::<QUAD>(output, QUAD);
                for (target, four) in columns.high[quads * output..].iter_mut().zip(weights) {
                    *target = i32::from_le_bytes(four.map(|weight| high(weight) as u8));
                }
                columns.firsts[output] = ((pair_start - strip.start) / 2, (quad_start - strip.start) / QUAD);
            }
        }
        columns
    }

    /// Four rows along x: `[width, 3]` each to `[outputs, 3]` each. Fewer rows of `outs` leave out the last ones.
    pub(super) fn narrow(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        // SAFETY: `new` made these weights, so the machine has AVX2.
        #[allow(unsafe_code)]
        unsafe {
            self.four_rows(rows, outs);
        }
    }

    #[target_feature(enable = "avx2")]
    fn four_rows(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        let both = |half: __m128i| _mm256_broadcastsi128_si256(half);
        // Four pixels r0 g0 b0 r1 … b3 of two rows: two of them as the 16-bit pairs r0 r1, g0 g1, b0 b1, 0 0 …
        let first_pair = both(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
        let second_pair = both(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
        // … and all four as the bytes r0 r1 r2 r3, g0 …, b0 …, 0.
        let all = both(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
        let without_fourth = both(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
        let zero = _mm256_setzero_si256();
        // Quads of zero weights may read beyond the strip. The two vectors are rows 0 and 1, and rows 2 and 3.
        let chunks = self.strips.iter().map(|strip| strip.chunks).max().unwrap_or(0) + self.quads.div_ceil(4);
        let mut pairs = vec![[[zero; 2]; 8]; chunks];
        let mut quads = vec![[[zero; 2]; 4]; chunks];
        let mut spare = [[0; CHUNK]; 2];
        for strip in &self.strips {
            for (index, (pairs, quads)) in pairs[..strip.chunks].iter_mut().zip(&mut quads).enumerate() {
                let x = strip.start + 4 * QUAD * index;
                for half in 0..2 {
                    let [spare0, spare1] = &mut spare;
                    let (row0, row1) = (chunk(rows[2 * half], x, spare0), chunk(rows[2 * half + 1], x, spare1));
                    for (quad, at) in LOADS.into_iter().enumerate() {
                        let pixels = _mm256_set_m128i(load(row1, at), load(row0, at));
                        let pixels =
                            if quad == 3 { _mm256_bsrli_epi128::<{ LAST_SHIFT as i32 }>(pixels) } else { pixels };
                        pairs[2 * quad][half] = _mm256_shuffle_epi8(pixels, first_pair);
                        pairs[2 * quad + 1][half] = _mm256_shuffle_epi8(pixels, second_pair);
                        quads[quad][half] = _mm256_shuffle_epi8(pixels, all);
                    }
                }
            }
            let (pairs, quads) = (pairs.as_flattened(), quads.as_flattened());
            for group in strip.groups.clone() {
                // Two outputs as words, of rows 0 and 1 and of rows 2 and 3.
                let mut words = [[zero; 2]; GROUP / 2];
                for (two, words) in words.iter_mut().enumerate() {
                    let first = GROUP * group + 2 * two;
                    let values = [self.output(first, pairs, quads), self.output(first + 1, pairs, quads)];
                    for half in 0..2 {
                        words[half] = _mm256_packs_epi32(values[0][half], values[1][half]);
                    }
                }
                let mut halves = [zero; 2];
                for (half, bytes) in halves.iter_mut().enumerate() {
                    // Each half of a vector becomes the four pixels of a row.
                    let four = _mm256_packus_epi16(words[0][half], words[1][half]);
                    *bytes = _mm256_shuffle_epi8(four, without_fourth);
                }
                let rows = [
                    _mm256_castsi256_si128(halves[0]),
                    _mm256_extracti128_si256::<1>(halves[0]),
                    _mm256_castsi256_si128(halves[1]),
                    _mm256_extracti128_si256::<1>(halves[1]),
                ];
                for (out, pixels) in outs.iter_mut().zip(rows) {
                    put_group(out, group, pixels);
                }
            }
        }
    }

    /// An output of the four rows in 32 bits, from the pixels of its strip.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn output(&self, output: usize, pairs: &[[__m256i; 2]], quads: &[[__m256i; 2]]) -> [__m256i; 2] {
        let (first_pair, first_quad) = self.firsts[output];
        let zero = _mm256_setzero_si256();
        let round = _mm256_set1_epi32(ROUND);
        let ones = _mm256_set1_epi16(1);
        let (mut low0, mut low1, mut high0, mut high1) = (round, round, zero, zero);
        let weights = &self.low[self.pairs * output..][..self.pairs];
        for (&weights, pixels) in weights.iter().zip(&pairs[first_pair..][..self.pairs]) {
            let weights = _mm256_set1_epi32(weights);
            low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(pixels[0], weights));
            low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(pixels[1], weights));
        }
        let weights = &self.high[self.quads * output..][..self.quads];
        for (&weights, pixels) in weights.iter().zip(&quads[first_quad..][..self.quads]) {
            let weights = _mm256_set1_epi32(weights);
            high0 = _mm256_add_epi16(high0, _mm256_maddubs_epi16(pixels[0], weights));
            high1 = _mm256_add_epi16(high1, _mm256_maddubs_epi16(pixels[1], weights));
        }
        // Partial sums may wrap; the whole is below 2^31, so it comes out right.
        let high0 = _mm256_slli_epi32::<16>(_mm256_madd_epi16(high0, ones));
        let high1 = _mm256_slli_epi32::<16>(_mm256_madd_epi16(high1, ones));
        const SHIFT: i32 = PRECISION_BITS as i32;
        [
            _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(low0, high0)),
            _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(low1, high1)),
        ]
    }
}

/// The weights of the vertical pass.
#[derive(Debug)]
pub(in super::super) struct Rows {
    /// End of each output's pairs.
    ends: Vec<usize>,
    pairs: Vec<RowPair>,
}

/// The weights of two rows.
#[derive(Debug, Clone, Copy)]
struct RowPair {
    low: i32,
    high: i16,
}

impl Rows {
    /// Bytes that the loop makes at once.
    const LANES: usize = 32;

    /// `None` if the machine has no AVX2, sums would not be exact, or the rows of `row_bytes` bytes are too short.
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

    /// The output row at `position`; `rows` are its inputs, at least as long as `out`, which has at least
    /// [`Self::LANES`] bytes.
    pub(in super::super) fn shorten(&self, rows: &[&[u8]], position: usize, out: &mut [u8]) {
        let begin = if position == 0 { 0 } else { self.ends[position - 1] };
        // SAFETY: `new` made these weights, so the machine has AVX2.
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
    // Without a second row, the first one, whose second weight is 0.
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
            // Partial sums may wrap; the whole is below 2^31, so it comes out right.
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
        // The last step may make some bytes again.
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
