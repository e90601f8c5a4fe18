//! The horizontal and the vertical loop for AVX-512 with VNNI.
//!
//! The instruction `vpdpbusd` multiplies four 8-bit values by four 8-bit weights and adds the products to a 32-bit sum.
//! A weight is split into three signed digits of 8 bits, so that every sum is exact.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::taps::{PRECISION_BITS, ROUND, Taps};
use super::super::{LANES, ROWS};
use super::{CHUNK, GROUP, Groups, LAST_SHIFT, LOADS, QUAD, Strip, chunk, load, prefetch};

fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// The weights of the horizontal pass.
#[derive(Debug)]
pub(in super::super) struct Columns {
    strips: Vec<Strip>,
    /// For each output of a group, the index of its first quad of pixels, counted from the start of the strip.
    firsts: Vec<[usize; GROUP]>,
    /// The weights, padded with zeros. There are `quads` entries for each group of outputs. An entry holds, for each
    /// output of the group, the digits of four weights, lowest digit first.
    weights: Vec<[[i32; 3]; GROUP]>,
    quads: usize,
}

impl Columns {
    /// Returns `None` if the CPU does not support the instructions, or if a weight is too large for three digits.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        if is_there() { Self::of(taps) } else { None }
    }

    fn of(taps: &Taps) -> Option<Self> {
        let strips = Strip::of(taps);
        let quads = (0..taps.len()).map(|output| taps.groups::<QUAD>(output, QUAD).1.count()).max()?;
        let groups = taps.len().div_ceil(GROUP);
        let mut firsts = vec![[0; GROUP]; groups];
        let mut weights = vec![[[0; 3]; GROUP]; quads * groups];
        for strip in &strips {
            for output in strip.outputs(taps.len()) {
                let (group, lane) = (output / GROUP, output % GROUP);
                let (start, quads_of_weights) = taps.groups(output, QUAD);
                firsts[group][lane] = (start - strip.start) / QUAD;
                for (target, four) in weights[quads * group..].iter_mut().zip(quads_of_weights) {
                    target[lane] = digits(four)?;
                }
            }
        }
        Some(Self { strips, firsts, weights, quads })
    }

    /// Resizes rows along x, and writes them to an interleaved block. Each input row is `[width, 3]`. Rows that are not
    /// in `used` may be skipped.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], used: Range<usize>, block: &mut [u8]) {
        let half = block.len() / 2;
        let halves = rows.as_chunks::<LANES>().0.iter().zip(block.chunks_exact_mut(half));
        for (rows, group) in halves.take(used.end.div_ceil(LANES)).skip(used.start / LANES) {
            // SAFETY: only `new` creates these weights, and only if the CPU supports the instructions.
            #[allow(unsafe_code, reason = "calls a function that needs AVX-512")]
            unsafe {
                self.four_rows(rows, group);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn four_rows(&self, rows: &[&[u8]; LANES], out: &mut [u8]) {
        let zero = _mm512_setzero_si512();
        let round = _mm512_set1_epi32(ROUND);
        // Four pixels r0 g0 b0 r1 … b3 of each row become r0 r1 r2 r3, g0 …, b0 …, and four unused bytes.
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9));
        let last_order = _mm512_add_epi8(order, _mm512_set1_epi8(LAST_SHIFT));
        let without_fourth =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
        // `transposed` brings the same four columns of all rows into each quarter. `interleaved` then makes the bytes
        // of a column adjacent.
        let transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let interleaved = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        let chunks = self.strips.iter().map(|strip| strip.chunks).max().unwrap_or(0);
        // The buffer extends beyond the strip, because quads whose weights are all 0 may be read there.
        let mut pixels = vec![[zero; 4]; chunks + self.quads.div_ceil(4)];
        let mut spare = [[0; CHUNK]; LANES];
        for strip in &self.strips {
            for (index, pixels) in pixels[..strip.chunks].iter_mut().enumerate() {
                let x = strip.start + 4 * QUAD * index;
                let [spare0, spare1, spare2, spare3] = &mut spare;
                let (row0, row1) = (chunk(rows[0], x, spare0), chunk(rows[1], x, spare1));
                let (row2, row3) = (chunk(rows[2], x, spare2), chunk(rows[3], x, spare3));
                for (quad, at) in LOADS.into_iter().enumerate() {
                    let one = _mm512_castsi128_si512(load(row0, at));
                    let two = _mm512_inserti32x4::<1>(one, load(row1, at));
                    let three = _mm512_inserti32x4::<2>(two, load(row2, at));
                    let order = if quad == 3 { last_order } else { order };
                    pixels[quad] = _mm512_shuffle_epi8(_mm512_inserti32x4::<3>(three, load(row3, at)), order);
                }
            }
            let pixels = pixels.as_flattened();
            for group in strip.groups.clone() {
                for row in rows {
                    prefetch(row, 3 * (strip.start + QUAD * self.firsts[group][0]));
                }
                let weights = &self.weights[self.quads * group..][..self.quads];
                let mut inputs = [pixels; GROUP];
                for (inputs, &first) in inputs.iter_mut().zip(&self.firsts[group]) {
                    *inputs = &pixels[first..][..self.quads];
                }
                let mut sums = [[round, zero, zero]; GROUP];
                for (quad, weights) in weights.iter().enumerate() {
                    for lane in 0..GROUP {
                        for digit in 0..3 {
                            let sum = &mut sums[lane][digit];
                            *sum =
                                _mm512_dpbusd_epi32(*sum, inputs[lane][quad], _mm512_set1_epi32(weights[lane][digit]));
                        }
                    }
                }
                let mut values = [zero; GROUP];
                for (out, sums) in values.iter_mut().zip(sums) {
                    *out = value(sums);
                }
                // Each quarter becomes the four pixels of a row.
                let [first, second] =
                    [_mm512_packs_epi32(values[0], values[1]), _mm512_packs_epi32(values[2], values[3])];
                let bytes = _mm512_shuffle_epi8(_mm512_packus_epi16(first, second), without_fourth);
                let columns = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(transposed, bytes), interleaved);
                // The last quarter is unused. The next group overwrites it.
                let rest = &mut out[3 * GROUP * LANES * group..];
                match rest.first_chunk_mut() {
                    Some(target) => store(target, columns),
                    None => {
                        let mut bytes = [0; 64];
                        store(&mut bytes, columns);
                        let count = rest.len().min(3 * GROUP * LANES);
                        rest[..count].copy_from_slice(&bytes[..count]);
                    }
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(target: &mut [u8; 64], value: __m512i) {
    // SAFETY: `target` has 64 bytes, and the store may be unaligned.
    #[allow(unsafe_code, reason = "a vector store takes a pointer")]
    unsafe {
        _mm512_storeu_si512(target.as_mut_ptr().cast(), value);
    }
}

/// The weights of the vertical pass.
#[derive(Debug)]
pub(in super::super) struct Rows(Groups<[i32; 3]>);

impl Rows {
    /// Number of bytes of a row that one iteration computes.
    const COLUMNS: usize = 64;

    /// Returns `None` if the CPU does not support the instructions, a weight is too large for three digits, or
    /// `row_bytes` is less than [`Self::COLUMNS`].
    pub(super) fn new(taps: &Taps, row_bytes: usize) -> Option<Self> {
        if row_bytes >= Self::COLUMNS && is_there() { Groups::of(taps, LANES, digits).map(Self) } else { None }
    }

    /// Computes the output row at `position`, of at least [`Self::COLUMNS`] bytes. `groups` are interleaved input rows.
    pub(super) fn vertical(&self, groups: &[&[u8]], position: usize, out: &mut [u8]) {
        // SAFETY: only `new` creates these weights, and only if the CPU supports the instructions.
        #[allow(unsafe_code, reason = "calls a function that needs AVX-512")]
        unsafe {
            one_row(groups, self.0.at(position), out);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn one_row(groups: &[&[u8]], weights: &[[i32; 3]], out: &mut [u8]) {
    const COLUMNS: usize = Rows::COLUMNS;
    let width = out.len();
    let is_long = |group: &&[u8]| group.len() >= LANES * width;
    assert!(width >= COLUMNS && groups.iter().all(is_long), "the output or an input row is too short");
    let zero = _mm512_setzero_si512();
    let round = _mm512_set1_epi32(ROUND);
    // Packing leaves four columns in each 32-bit element. This permutation puts the elements in order.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut column = 0;
    loop {
        let mut sums = [[round, zero, zero]; 4];
        for (group, digits) in groups.iter().zip(weights) {
            for (quarter, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the load ends at byte LANES * (column + COLUMNS) of the group, or before. The loop keeps
                // column + COLUMNS <= width, and the assertion above checks that every group has at least LANES * width
                // bytes.
                #[allow(unsafe_code, reason = "a vector load takes a pointer")]
                let pixels = unsafe { _mm512_loadu_si512(group.as_ptr().add(LANES * column + 64 * quarter).cast()) };
                for (sum, &digit) in sums.iter_mut().zip(digits) {
                    *sum = _mm512_dpbusd_epi32(*sum, pixels, _mm512_set1_epi32(digit));
                }
            }
        }
        let values = sums.map(|sums| value(sums));
        let [first, second] = [_mm512_packs_epi32(values[0], values[1]), _mm512_packs_epi32(values[2], values[3])];
        let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
        let target = out[column..].first_chunk_mut().expect("column + COLUMNS <= width");
        store(target, bytes);
        if column + COLUMNS == width {
            break;
        }
        // The last iteration may compute some bytes a second time.
        column = (column + COLUMNS).min(width - COLUMNS);
    }
}

/// Combines the sums of the three digits into the output values. Partial sums may wrap around. The result is still
/// correct, because the full sum is below 2^31.
#[inline]
#[target_feature(enable = "avx512f")]
fn value([low, middle, high]: [__m512i; 3]) -> __m512i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), _mm512_slli_epi32::<16>(high));
    _mm512_srai_epi32::<PRECISION_BITS>(_mm512_add_epi32(low, upper))
}

/// Splits four weights into three digits of 8 bits each, `d0 + d1 × 2^8 + d2 × 2^16`, lowest digit first. Returns
/// `None` if a weight does not fit. Weights up to 1.99 fit.
fn digits(weights: [i32; QUAD]) -> Option<[i32; 3]> {
    let mut digits = [[0; QUAD]; 3];
    for (at, weight) in weights.into_iter().enumerate() {
        let lowest = weight as i8;
        let rest = (weight - i32::from(lowest)) >> 8;
        let middle = rest as i8;
        let highest = i8::try_from((rest - i32::from(middle)) >> 8).ok()?;
        for (digit, value) in digits.iter_mut().zip([lowest, middle, highest]) {
            digit[at] = value as u8;
        }
    }
    Some(digits.map(i32::from_le_bytes))
}
