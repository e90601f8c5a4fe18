//! Quantisers of GGUF blocks with one scale for all 32 values, and of plain numbers.
//!
//! The results are bitwise equal to those of gguf-py 0.19 (`gguf/quants.py`), which implements llama.cpp's reference
//! quantisers. [`super::gguf_k_quantize`] has the types with sub-blocks.

use half::{bf16, f16};

use super::GgufType;
use super::gguf_k_quantize::{q4_k, q5_k, q6_k};

/// Number of values in a block.
const PLAIN: usize = 32;

/// The largest magnitude that can be quantised: scales and minima are f16.
pub(super) const LARGEST: f32 = 65504.0;

impl GgufType {
    /// Whether values can be quantised to this type.
    pub fn is_quantizable(self) -> bool {
        !matches!(self, Self::Q2_K | Self::Q3_K)
    }

    /// Quantises whole blocks of finite values with magnitudes of at most 65504.
    ///
    /// # Panics
    /// If the length of `blocks` is not the result of [`row_bytes`](Self::row_bytes) for `values.len()` values, or the
    /// type has no quantiser.
    pub fn quantize(self, values: &[f32], blocks: &mut [u8]) {
        assert_eq!(self.row_bytes(values.len()), Some(blocks.len()), "`blocks` must hold {} values", values.len());
        match self {
            Self::F32 => each(values, blocks, |&[value]: &[f32; 1], out: &mut [u8; 4]| *out = value.to_le_bytes()),
            Self::F16 => each(values, blocks, |&[value]: &[f32; 1], out: &mut [u8; 2]| {
                *out = f16::from_f32(value).to_le_bytes();
            }),
            Self::BF16 => each(values, blocks, |&[value]: &[f32; 1], out: &mut [u8; 2]| {
                *out = bf16::from_f32(value).to_le_bytes();
            }),
            Self::Q4_0 => each(values, blocks, q4_0),
            Self::Q4_1 => each(values, blocks, q4_1),
            Self::Q5_0 => each(values, blocks, q5_0),
            Self::Q5_1 => each(values, blocks, q5_1),
            Self::Q8_0 => each(values, blocks, q8_0),
            Self::Q4_K => each(values, blocks, q4_k),
            Self::Q5_K => each(values, blocks, q5_k),
            Self::Q6_K => each(values, blocks, q6_k),
            Self::Q2_K | Self::Q3_K => panic!("{} has no quantiser", self.name()),
        }
    }
}

/// Calls `encode` with the `N` values and the `B` bytes of each block.
fn each<const N: usize, const B: usize>(values: &[f32], blocks: &mut [u8], encode: impl Fn(&[f32; N], &mut [u8; B])) {
    let (values, _) = values.as_chunks::<N>();
    let (blocks, _) = blocks.as_chunks_mut::<B>();
    for (values, block) in values.iter().zip(blocks) {
        encode(values, block);
    }
}

/// Returns `1 / d`, or 0 if `d` is 0.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Returns the value of largest magnitude, or the first such value if there are several.
fn extreme(values: &[f32; PLAIN]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, value| if value.abs() > extreme.abs() { *value } else { extreme })
}

/// Returns the smallest and the largest value.
fn range(values: &[f32; PLAIN]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), value| (min.min(*value), max.max(*value)))
}

fn write_half(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Writes 32 codes of four bits. The low nibbles hold codes 0 to 15, the high nibbles codes 16 to 31.
fn write_nibbles(out: &mut [u8], codes: &[u8; PLAIN]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = codes[i] & 15 | codes[i + 16] << 4;
    }
}

/// Writes the fifth bits of 32 codes.
fn write_fifth_bits(out: &mut [u8], codes: &[u8; PLAIN]) {
    let bits = codes.iter().enumerate().fold(0, |bits: u32, (i, code)| bits | u32::from(code >> 4 & 1) << i);
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

/// Returns the scale and the codes, where code `middle` means 0 and code 0 is the value of largest magnitude. Half a
/// step is added before codes are rounded down. Codes are at most `largest`.
fn symmetric(values: &[f32; PLAIN], middle: f32, largest: u8) -> (f32, [u8; PLAIN]) {
    let d = extreme(values) / -middle;
    let reciprocal = reciprocal(d);
    (d, values.map(|value| ((value * reciprocal + (middle + 0.5)) as u8).min(largest)))
}

/// Returns the scale, the smallest value and the codes. Code 0 is the smallest value, and code `largest` the largest
/// value.
fn from_minimum(values: &[f32; PLAIN], largest: u8) -> (f32, f32, [u8; PLAIN]) {
    let (min, max) = range(values);
    let d = (max - min) / f32::from(largest);
    let reciprocal = reciprocal(d);
    (d, min, values.map(|value| (((value - min) * reciprocal + 0.5) as u8).min(largest)))
}

fn q4_0(values: &[f32; PLAIN], out: &mut [u8; 18]) {
    let (d, codes) = symmetric(values, 8.0, 15);
    write_half(out, d);
    write_nibbles(&mut out[2..], &codes);
}

fn q4_1(values: &[f32; PLAIN], out: &mut [u8; 20]) {
    let (d, min, codes) = from_minimum(values, 15);
    write_half(out, d);
    write_half(&mut out[2..], min);
    write_nibbles(&mut out[4..], &codes);
}

fn q5_0(values: &[f32; PLAIN], out: &mut [u8; 22]) {
    let (d, codes) = symmetric(values, 16.0, 31);
    write_half(out, d);
    write_fifth_bits(&mut out[2..], &codes);
    write_nibbles(&mut out[6..], &codes);
}

fn q5_1(values: &[f32; PLAIN], out: &mut [u8; 24]) {
    let (d, min, codes) = from_minimum(values, 31);
    write_half(out, d);
    write_half(&mut out[2..], min);
    write_fifth_bits(&mut out[4..], &codes);
    write_nibbles(&mut out[8..], &codes);
}

fn q8_0(values: &[f32; PLAIN], out: &mut [u8; 34]) {
    let d = extreme(values).abs() / 127.0;
    let reciprocal = reciprocal(d);
    write_half(out, d);
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = ((value * reciprocal).round() as i8).cast_unsigned();
    }
}
