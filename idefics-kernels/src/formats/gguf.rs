//! The block types of GGUF files: their sizes, and the conversion of rows to f32.
//!
//! A row is a whole number of consecutive blocks. A block is a group of values with common scales. The scale `d` and
//! the minimum `m` of a block are stored as f16 and converted to f32 exactly. Products and sums are computed in f32 in
//! the order written here, so that the values equal those of the reference bit for bit.
//!
//! Source: `gguf/quants.py` of gguf-py 0.19.

use half::{bf16, f16};

/// Number of values of a block with sub-blocks.
const SUPER: usize = 256;
/// Number of values of a block without sub-blocks.
const PLAIN: usize = 32;

/// A supported tensor type of GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the names that GGUF files and programs use")]
pub enum GgufType {
    /// Plain f32.
    F32,
    /// Plain f16.
    F16,
    /// Plain bf16.
    BF16,
    /// 32 values of four bits with a scale.
    Q4_0,
    /// 32 values of four bits with a scale and a minimum.
    Q4_1,
    /// 32 values of five bits with a scale.
    Q5_0,
    /// 32 values of five bits with a scale and a minimum.
    Q5_1,
    /// 32 values of eight bits with a scale.
    Q8_0,
    /// 256 values of two bits; scales and minima of four bits, one of each per 16 values.
    Q2_K,
    /// 256 values of three bits; scales of six bits, one per 16 values.
    Q3_K,
    /// 256 values of four bits; scales and minima of six bits, one of each per 32 values.
    Q4_K,
    /// 256 values of five bits; scales and minima of six bits, one of each per 32 values.
    Q5_K,
    /// 256 values of six bits; scales of eight bits, one per 16 values.
    Q6_K,
}

impl GgufType {
    /// Every supported type.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The type with this number in the file; `None` if it is not supported.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// The number of the type in files (`ggml_type`).
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// The name of the type, as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Number of values in a block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => PLAIN,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => SUPER,
        }
    }

    /// Size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Size of a row of `n` values in bytes; `None` if `n` is not a whole number of blocks or the size overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        n.is_multiple_of(self.block_len()).then(|| (n / self.block_len()).checked_mul(self.block_bytes()))?
    }

    /// Converts whole blocks to f32. A scale that is not finite gives values that are not finite.
    ///
    /// # Panics
    /// If the length of `blocks` is not the result of [`row_bytes`](Self::row_bytes) for `out.len()` values.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(blocks.len()), "`blocks` must hold {} values", out.len());
        match self {
            Self::F32 => each(blocks, out, |&b: &[u8; 4], out: &mut [f32; 1]| out[0] = f32::from_le_bytes(b)),
            Self::F16 => each(blocks, out, |&b: &[u8; 2], out: &mut [f32; 1]| out[0] = f16::from_le_bytes(b).to_f32()),
            Self::BF16 => {
                each(blocks, out, |&b: &[u8; 2], out: &mut [f32; 1]| out[0] = bf16::from_le_bytes(b).to_f32());
            }
            Self::Q4_0 => each(blocks, out, q4_0),
            Self::Q4_1 => each(blocks, out, q4_1),
            Self::Q5_0 => each(blocks, out, q5_0),
            Self::Q5_1 => each(blocks, out, q5_1),
            Self::Q8_0 => each(blocks, out, q8_0),
            Self::Q2_K => each(blocks, out, q2_k),
            Self::Q3_K => each(blocks, out, q3_k),
            Self::Q4_K => each(blocks, out, q4_k),
            Self::Q5_K => each(blocks, out, q5_k),
            Self::Q6_K => each(blocks, out, q6_k),
        }
    }
}

/// Decodes blocks of `B` bytes to `N` values each.
fn each<const B: usize, const N: usize>(blocks: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    let (blocks, _) = blocks.as_chunks::<B>();
    let (out, _) = out.as_chunks_mut::<N>();
    for (block, out) in blocks.iter().zip(out) {
        decode(block, out);
    }
}

/// Returns the f16 at byte `at` of a block, as f32.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Returns code `i` of 32 codes of four bits. The low nibbles hold codes 0 to 15, the high nibbles codes 16 to 31.
fn nibble(codes: &[u8], i: usize) -> u8 {
    if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 }
}

/// Returns the fifth bits of 32 codes; bit `i` belongs to code `i`.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Returns code `i` of 32 codes of five bits. `high` holds the fifth bits.
fn five_bits(codes: &[u8], high: u32, i: usize) -> u8 {
    nibble(codes, i) | ((high >> i & 1) as u8) << 4
}

fn q4_0(block: &[u8; 18], out: &mut [f32; PLAIN]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&block[2..], i)) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; PLAIN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&block[4..], i)) + m;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; PLAIN]) {
    let (d, high) = (half_at(block, 0), fifth_bits(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(five_bits(&block[6..], high, i)) - 16.0);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; PLAIN]) {
    let (d, m, high) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(five_bits(&block[8..], high, i)) + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; PLAIN]) {
    let d = half_at(block, 0);
    for (out, code) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(code.cast_signed()) * d;
    }
}

/// Returns code `i` of 256 codes of two bits in 64 bytes.
fn two_bits(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

fn q2_k(block: &[u8; 84], out: &mut [f32; SUPER]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, m) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        *out = (d * f32::from(scale & 15)) * f32::from(two_bits(codes, i)) - m * f32::from(scale >> 4);
    }
}

fn q3_k(block: &[u8; 110], out: &mut [f32; SUPER]) {
    let (high, codes, scales, d) = (&block[..32], &block[32..96], &block[96..108], half_at(block, 108));
    for (i, out) in out.iter_mut().enumerate() {
        let j = i / 16;
        let scale = scales[j % 8] >> (4 * (j / 8)) & 15 | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
        let offset = if high[i % 32] >> (i / 32) & 1 == 1 { 0.0 } else { 4.0 };
        *out = (d * (f32::from(scale) - 32.0)) * (f32::from(two_bits(codes, i)) - offset);
    }
}

/// Returns the scale and the minimum of sub-block `j` of eight. The 12 bytes of `s` hold six bits for each of these 16
/// numbers.
fn scale_and_minimum(s: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (s[j] & 63, s[j + 4] & 63),
        _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
    }
}

/// Returns code `i` of 256 codes of four bits in 128 bytes.
fn nibble_of_super(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 64) + i % 32] >> (4 * (i % 64 / 32)) & 15
}

fn q4_k(block: &[u8; 144], out: &mut [f32; SUPER]) {
    let (d, m, scales, codes) = (half_at(block, 0), half_at(block, 2), &block[4..16], &block[16..]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, j);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        for (e, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(nibble_of_super(codes, 32 * j + e)) - minimum;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; SUPER]) {
    let (d, m, scales, high, codes) =
        (half_at(block, 0), half_at(block, 2), &block[4..16], &block[16..48], &block[48..]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, j);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        for (e, out) in out.iter_mut().enumerate() {
            let code = nibble_of_super(codes, 32 * j + e) | (high[e] >> j & 1) << 4;
            *out = scale * f32::from(code) - minimum;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, out) in out.iter_mut().enumerate() {
        let (k, g, e) = (i / 128, i % 128 / 32, i % 32);
        let code = low[64 * k + 32 * (g % 2) + e] >> (4 * (g / 2)) & 15 | (high[32 * k + e] >> (2 * g) & 3) << 4;
        *out = (d * f32::from(scales[i / 16].cast_signed())) * (f32::from(code) - 32.0);
    }
}
