//! The horizontal loop for AVX-512 with VNNI. The instruction `vpdpbusd` sums products of four pixels and 8-bit weights
//! in 32 bits. A weight is split into three signed 8-bit digits, so every sum is exact.

use std::arch::x86_64::*;

use super::super::ROWS;
use super::super::taps::{PRECISION_BITS, ROUND, Taps};
use super::{CHUNK, GROUP, LAST_SHIFT, LOADS, QUAD, Strip, chunk, load, put_group};

/// The weights of the horizontal pass.
#[derive(Debug)]
pub(in super::super) struct Columns {
    strips: Vec<Strip>,
    /// Index of the first quad of pixels of each output, within its strip.
    firsts: Vec<[usize; GROUP]>,
    /// The digits of four weights, lowest first; `quads` entries for each output, padded with zeros.
    weights: Vec<[[i32; 3]; GROUP]>,
    quads: usize,
}

impl Columns {
    /// `None` if the CPU does not support the instructions, or a weight is too large for three digits.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        let is_there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        if is_there { Self::of(taps) } else { None }
    }

    fn of(taps: &Taps) -> Option<Self> {
        let strips = Strip::of(taps);
        let quads = (0..taps.len()).map(|output| taps.groups::<QUAD>(output, QUAD).1.count()).max()?;
        let groups = taps.len().div_ceil(GROUP);
        let mut firsts = vec![[0; GROUP]; groups];
        let mut weights = vec![[[0; 3]; GROUP]; quads * groups];
        for strip in &strips {
            for output in GROUP * strip.groups.start..taps.len().min(GROUP * strip.groups.end) {
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

    /// Resizes four rows horizontally, each from `[width, 3]` to `[outputs, 3]`. With fewer `outs`, only the first rows
    /// are written.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        // SAFETY: `new` returns these weights only if the CPU supports the instructions.
        #[allow(unsafe_code)]
        unsafe {
            self.four_rows(rows, outs);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn four_rows(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        let zero = _mm512_setzero_si512();
        let round = _mm512_set1_epi32(ROUND);
        // Four pixels r0 g0 b0 r1 … b3 of each row: r0 r1 r2 r3, g0 …, b0 …, and four unused bytes.
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9));
        let last_order = _mm512_add_epi8(order, _mm512_set1_epi8(LAST_SHIFT));
        let without_fourth =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
        let chunks = self.strips.iter().map(|strip| strip.chunks).max().unwrap_or(0);
        // Padded with zeros, because quads of zero weights may read beyond the strip.
        let mut pixels = vec![[zero; 4]; chunks + self.quads.div_ceil(4)];
        let mut spare = [[0; CHUNK]; ROWS];
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
                for (value, [low, middle, high]) in values.iter_mut().zip(sums) {
                    // Partial sums may wrap, but the total is below 2^31, so the result is right.
                    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), _mm512_slli_epi32::<16>(high));
                    *value = _mm512_srai_epi32::<PRECISION_BITS>(_mm512_add_epi32(low, upper));
                }
                // Each quarter becomes the four pixels of a row.
                let [first, second] =
                    [_mm512_packs_epi32(values[0], values[1]), _mm512_packs_epi32(values[2], values[3])];
                let bytes = _mm512_shuffle_epi8(_mm512_packus_epi16(first, second), without_fourth);
                let quarters = [
                    _mm512_castsi512_si128(bytes),
                    _mm512_extracti32x4_epi32::<1>(bytes),
                    _mm512_extracti32x4_epi32::<2>(bytes),
                    _mm512_extracti32x4_epi32::<3>(bytes),
                ];
                for (out, pixels) in outs.iter_mut().zip(quarters) {
                    put_group(out, group, pixels);
                }
            }
        }
    }
}

/// Splits four weights into three signed 8-bit digits, `d0 + d1 × 2^8 + d2 × 2^16`, lowest first; `None` if one does
/// not fit. Weights up to 1.99 fit.
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
