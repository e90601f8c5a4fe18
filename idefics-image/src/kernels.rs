//! The two inner loops of [`resize`](crate::resize), with AVX2 versions chosen at run time.
//!
//! Weights have 22 fractional bits, more than one 16-bit multiplication takes. AVX2 multiplies 8-bit pixels by two parts
//! of each weight: `weight = high × 2^16 + low` with `low` a signed 16-bit and `high` a signed 8-bit number. Products with
//! `low` are summed in 32 bits, those with `high` in 16 bits, and both sums are exact. [`Split`] says where that holds.

/// Fractional bits of a fixed-point weight; 255 × the sum of all weights fits in 32 bits.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// One half of the last bit, which sums start from.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// Pixels that one step of the horizontal loop reads.
const STEP: usize = 4;

/// Bytes after each input row that the horizontal loop may read without using them: up to `STEP - 1` pixels with zero
/// weights, and the rest of a 16-byte load.
pub(crate) const PADDING: usize = 3 * (STEP - 1) + 16 - 3 * STEP;

/// Rows that the horizontal loop takes together.
pub(crate) const ROWS: usize = 4;

/// For each output position along one axis, the inputs it reads and their fixed-point weights.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    /// First input of each output.
    starts: Vec<usize>,
    /// End of each output's weights in `weights`; they begin where the previous output's end.
    ends: Vec<usize>,
    weights: Vec<i32>,
    /// The same weights in two parts.
    split: Split,
}

/// Weights in two parts, four at a time, padded with zeros.
#[derive(Debug, Default)]
struct Split {
    /// End of each output's groups in `groups`.
    ends: Vec<usize>,
    groups: Vec<Group>,
    /// Whether some output's high parts need more than the 16-bit sums hold. It takes over a hundred weights whose
    /// rounding adds up, so no picture that people have gets there; the plain loop takes it.
    is_inexact: bool,
}

/// Four consecutive weights in two parts.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
struct Group {
    /// The low parts, two 16-bit numbers each.
    low: [i32; 2],
    /// The high parts, four 8-bit numbers.
    high: i32,
}

impl Split {
    fn push(&mut self, weights: &[i32]) {
        let (mut positive, mut negative) = (0, 0);
        self.groups.extend(weights.chunks(STEP).map(|chunk| {
            let weight = |at: usize| chunk.get(at).copied().unwrap_or(0);
            let high = |at: usize| (weight(at) + (1 << 15)) >> 16;
            let low = |at: usize| weight(at) - (high(at) << 16);
            for at in 0..STEP {
                positive += high(at).max(0);
                negative += high(at).min(0);
            }
            let pair = |first: i32, second: i32| first & 0xffff | second << 16;
            let bytes = [0, 1, 2, 3].map(|at| high(at) as u8);
            Group { low: [pair(low(0), low(1)), pair(low(2), low(3))], high: i32::from_le_bytes(bytes) }
        }));
        self.ends.push(self.groups.len());
        // 255 × the parts of one sign fits in 16 bits, and each part in 8.
        self.is_inexact |= positive > 127 || negative < -128;
    }
}

impl Taps {
    /// Adds the next output, which reads the inputs from `start` on.
    pub(crate) fn push(&mut self, start: usize, weights: impl Iterator<Item = i32>) {
        let begin = self.weights.len();
        self.starts.push(start);
        self.weights.extend(weights);
        self.ends.push(self.weights.len());
        self.split.push(&self.weights[begin..]);
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

    /// The weights of `output` in two parts.
    #[cfg(target_arch = "x86_64")]
    fn groups(&self, output: usize) -> &[Group] {
        let begin = if output == 0 { 0 } else { self.split.ends[output - 1] };
        &self.split.groups[begin..self.split.ends[output]]
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One row of pixels along x: `[width, 3]` to `[taps.len(), 3]`.
fn horizontal_plain(row: &[u8], taps: &Taps, out: &mut [u8]) {
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

/// The output row at `position` along y; `rows(y)` is an input row as long as `out`.
fn vertical_plain<'a>(rows: &impl Fn(usize) -> &'a [u8], taps: &Taps, position: usize, out: &mut [u8]) {
    let (start, weights) = taps.of(position);
    for (column, out) in out.iter_mut().enumerate() {
        let products = weights.iter().zip(start..).map(|(&weight, y)| weight * i32::from(rows(y)[column]));
        *out = clip(ROUND + products.sum::<i32>());
    }
}

/// Rows of pixels along x, `[width, 3]` each and at least [`PADDING`] bytes more, to `[rows, taps.len(), 3]`.
pub(crate) fn horizontal(rows: &[&[u8]], taps: &Taps, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if let &[row0, row1, row2, row3] = rows
        && !taps.split.is_inexact
        && is_x86_feature_detected!("avx2")
    {
        return avx2::horizontal([row0, row1, row2, row3], taps, out);
    }
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(3 * taps.len())) {
        horizontal_plain(row, taps, out);
    }
}

/// The output row at `position` along y; `rows(y)` is an input row as long as `out`.
pub(crate) fn vertical<'a>(rows: impl Fn(usize) -> &'a [u8], taps: &Taps, position: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= avx2::LANES && !taps.split.is_inexact && is_x86_feature_detected!("avx2") {
        return avx2::vertical(rows, taps, position, out);
    }
    vertical_plain(&rows, taps, position, out);
}

/// AVX2 versions of both loops. Calls of functions that need AVX2, and loads and stores through pointers, are unsafe.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Group, PRECISION_BITS, ROUND, ROWS, STEP, Taps};

    /// Bytes that the vertical loop makes at once.
    pub(super) const LANES: usize = 32;

    /// [`super::horizontal`] for exactly four rows and exact taps.
    pub(super) fn horizontal(rows: [&[u8]; ROWS], taps: &Taps, out: &mut [u8]) {
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the machine has AVX2, asserted above.
        unsafe { four_rows(rows, taps, out) }
    }

    #[target_feature(enable = "avx2")]
    fn four_rows(rows: [&[u8]; ROWS], taps: &Taps, out: &mut [u8]) {
        // Four pixels r0 g0 b0 r1 … b3, in both halves: two of them as the 16-bit pairs r0 r1, g0 g1, b0 b1, 0 0 …
        let first_pair =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
        let second_pair =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
        // … and all four as the bytes r0 r1 r2 r3, g0 …, b0 …, 0.
        let all = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
        let zero = _mm256_setzero_si256();
        let round = _mm256_set1_epi32(ROUND);
        let ones = _mm256_set1_epi16(1);
        let mut outs = out.chunks_exact_mut(3 * taps.len());
        let mut outs: [&mut [u8]; ROWS] = std::array::from_fn(|_| outs.next().expect("one output row for each row"));
        for position in 0..taps.len() {
            let groups = taps.groups(position);
            let start = 3 * taps.starts[position];
            // The last load begins at the last group and reads 16 bytes; slicing checks that they are there.
            let reach = 3 * STEP * (groups.len().max(1) - 1) + 16;
            let [row0, row1, row2, row3] = rows.map(|row| row[start..start + reach].as_ptr());
            let (mut low, mut high) = ([round; 2], [zero; 2]);
            for (index, &Group { low: [low01, low23], high: high0123 }) in groups.iter().enumerate() {
                let at = 3 * STEP * index;
                // SAFETY: at + 16 <= reach, the length of the slices that the pointers come from.
                let pixels = unsafe {
                    let load = |row: *const u8| _mm_loadu_si128(row.add(at).cast());
                    [_mm256_set_m128i(load(row1), load(row0)), _mm256_set_m128i(load(row3), load(row2))]
                };
                let low01 = _mm256_set1_epi32(low01);
                let low23 = _mm256_set1_epi32(low23);
                let high0123 = _mm256_set1_epi32(high0123);
                for half in 0..2 {
                    let first = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels[half], first_pair), low01);
                    let second = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels[half], second_pair), low23);
                    low[half] = _mm256_add_epi32(low[half], _mm256_add_epi32(first, second));
                    let products = _mm256_maddubs_epi16(_mm256_shuffle_epi8(pixels[half], all), high0123);
                    high[half] = _mm256_add_epi16(high[half], products);
                }
            }
            for half in 0..2 {
                // Partial sums may wrap; the whole is below 2^31, so it comes out right.
                let high = _mm256_slli_epi32::<16>(_mm256_madd_epi16(high[half], ones));
                let value = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(low[half], high));
                let words = _mm256_packs_epi32(value, value);
                let bytes = _mm256_packus_epi16(words, words);
                let rgb = [_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes)];
                for (out, rgb) in outs[2 * half..].iter_mut().zip(rgb) {
                    let rgb = rgb.to_le_bytes();
                    // The fourth byte is made again by the next position.
                    match out[3 * position..].first_chunk_mut() {
                        Some(pixel) => *pixel = rgb,
                        None => out[3 * position..].copy_from_slice(&rgb[..3]),
                    }
                }
            }
        }
    }

    /// [`super::vertical`] for at least [`LANES`] bytes and exact taps.
    pub(super) fn vertical<'a>(rows: impl Fn(usize) -> &'a [u8], taps: &Taps, position: usize, out: &mut [u8]) {
        assert!(is_x86_feature_detected!("avx2"));
        let (start, weights) = taps.of(position);
        let inputs: Vec<&[u8]> = (start..start + weights.len()).map(rows).collect();
        // SAFETY: the machine has AVX2, asserted above.
        unsafe { one_row(&inputs, taps.groups(position), out) }
    }

    #[target_feature(enable = "avx2")]
    fn one_row(rows: &[&[u8]], groups: &[Group], out: &mut [u8]) {
        let width = out.len();
        assert!(width >= LANES && rows.iter().all(|row| row.len() >= width));
        // The weights of two rows each; without a second row, the first one with weight 0.
        let pairs: Vec<(*const u8, *const u8, i32, i16)> = rows
            .chunks(2)
            .enumerate()
            .map(|(index, pair)| {
                let group = groups[index / 2];
                let high = (group.high >> (16 * (index % 2))) as i16;
                (pair[0].as_ptr(), pair[pair.len() - 1].as_ptr(), group.low[index % 2], high)
            })
            .collect();
        let zero = _mm256_setzero_si256();
        let round = _mm256_set1_epi32(ROUND);
        let mut column = 0;
        loop {
            let (mut low, mut high) = ([round; 4], [zero; 2]);
            for &(row0, row1, low_pair, high_pair) in &pairs {
                // SAFETY: column + LANES <= width, and every row has at least `width` bytes, asserted above.
                let (row0, row1) = unsafe {
                    (_mm256_loadu_si256(row0.add(column).cast()), _mm256_loadu_si256(row1.add(column).cast()))
                };
                let low_pair = _mm256_set1_epi32(low_pair);
                let high_pair = _mm256_set1_epi16(high_pair);
                let bytes = [_mm256_unpacklo_epi8(row0, row1), _mm256_unpackhi_epi8(row0, row1)];
                for half in 0..2 {
                    high[half] = _mm256_add_epi16(high[half], _mm256_maddubs_epi16(bytes[half], high_pair));
                    let words = [_mm256_unpacklo_epi8(bytes[half], zero), _mm256_unpackhi_epi8(bytes[half], zero)];
                    for (quarter, words) in words.into_iter().enumerate() {
                        let sum = &mut low[2 * half + quarter];
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(words, low_pair));
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
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(column).cast(), bytes) };
            if column + LANES == width {
                break;
            }
            // The last step may make some bytes again.
            column = (column + LANES).min(width - LANES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of every size, reproducible.
    fn values(length: usize) -> Vec<u8> {
        (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
    }

    /// Outputs of `count` weights each, of both signs, whose sum is about one; the first input is `start`.
    fn taps(starts: impl Iterator<Item = usize>, count: i32) -> Taps {
        let one = 1 << PRECISION_BITS;
        let mut taps = Taps::default();
        for start in starts {
            let weight = |index: i32| one / count + (index - count / 2) * (one / 40 / count);
            taps.push(start, (0..count).map(weight));
        }
        taps
    }

    #[test]
    fn vector_loops_equal_the_plain_ones() {
        for count in (1..20).chain([63, 64, 65, 127, 128, 129, 200]) {
            let taps = taps((0..50).step_by(3), count);
            assert!(!taps.split.is_inexact, "{count} weights");
            // The last output reads the last pixel.
            let length = 3 * (48 + count as usize) + PADDING;
            let rows: Vec<Vec<u8>> = (0..ROWS).map(|row| values(length * (row + 1)).split_off(length * row)).collect();
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let stride = 3 * taps.len();
            let (mut fast, mut plain) = (vec![0; ROWS * stride], vec![1; ROWS * stride]);
            horizontal(&rows, &taps, &mut fast);
            for (row, out) in rows.iter().zip(plain.chunks_exact_mut(stride)) {
                horizontal_plain(row, &taps, out);
            }
            assert_eq!(fast, plain, "{count} weights");

            for width in [1, 31, 32, 33, 64, 100] {
                let image = values(width * (48 + count as usize));
                let row = |y: usize| &image[y * width..][..width];
                for position in [0, taps.len() - 1] {
                    let (mut fast, mut plain) = (vec![0; width], vec![1; width]);
                    vertical(row, &taps, position, &mut fast);
                    vertical_plain(&row, &taps, position, &mut plain);
                    assert_eq!(fast, plain, "{count} rows of {width}");
                }
            }
        }
    }

    #[test]
    fn extreme_pixels_and_weights_do_not_overflow() {
        let one = 1 << PRECISION_BITS;
        for weights in [
            vec![one],
            vec![one / 2; 2],
            vec![one + one / 4, -one / 4],
            vec![-one / 8, one, one / 8 + 1],
            vec![32_768; 127],
        ] {
            let mut taps = Taps::default();
            taps.push(0, weights.iter().copied());
            for value in [0, 1, 254, 255] {
                let row = vec![value; 3 * weights.len() + PADDING];
                let rows = [row.as_slice(); ROWS];
                let (mut fast, mut plain) = ([0; 3 * ROWS], [1; 3]);
                horizontal(&rows, &taps, &mut fast);
                horizontal_plain(&row, &taps, &mut plain);
                assert_eq!(fast[..3], plain, "{weights:?}");
                let row = [value; 40];
                let (mut fast, mut plain) = ([0; 40], [1; 40]);
                vertical(|_| &row, &taps, 0, &mut fast);
                vertical_plain(&|_| &row[..], &taps, 0, &mut plain);
                assert_eq!(fast, plain, "{weights:?}");
            }
        }
    }

    #[test]
    fn weights_whose_parts_are_too_large_take_the_plain_loop() {
        let taps = taps([0].into_iter(), 128);
        assert!(!taps.split.is_inexact);
        let mut taps = Taps::default();
        taps.push(0, (0..170).map(|_| 32_768));
        assert!(taps.split.is_inexact);
        let row = vec![255; 3 * 170 + PADDING];
        let mut out = [0; 3 * ROWS];
        horizontal(&[&row, &row, &row, &row], &taps, &mut out);
        assert_eq!(out, [255; 3 * ROWS]);
    }
}
