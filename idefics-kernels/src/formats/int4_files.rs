//! Conversion of the layouts of AWQ, GPTQ and compressed-tensors files to [`Int4`]. Codes are rearranged, not changed.
//!
//! A word is a 32-bit little-endian integer with eight codes of four bits.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::error::{check_length, element_count};
use super::{FormatError, Int4};

/// Number of codes in a word.
const PER_WORD: usize = 8;

/// Number of neighbouring words of a file row that are read together: one cache line.
const LINE: usize = 16;

/// The output feature, from 0 to 7, of each code of a word, counted from the lowest bits, in AutoAWQ's layout "gemm".
const AWQ_COLUMNS: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Mask for the low half of each byte of a word.
const LOW_HALVES: u32 = 0x0f0f_0f0f;

impl Int4<'static> {
    /// Creates a weight from the tensors of AutoAWQ's layout "gemm". Every word holds codes of eight output features in
    /// the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits.
    ///
    /// - `qweight`: `[d_in, d_out / 8]` words
    /// - `qzeros`: `[d_in / group, d_out / 8]` words, with `d_in / group` rounded up
    /// - `scales`: `[d_in / group, d_out]`
    ///
    /// Source: AutoAWQ, `WQLinear_GEMM.from_linear`.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, or if `d_out` is not a multiple of 8. Also the errors of
    /// [`Int4::new`].
    pub fn from_awq(
        qweight: &[u8],
        qzeros: &[u8],
        scales: &[f32],
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Self, FormatError> {
        let [d_out, d_in] = dims;
        let groups = d_in.div_ceil(group.get());
        check_parts(dims, [d_in * d_out.div_ceil(PER_WORD), qweight.len()], groups, qzeros, scales)?;
        let words = d_out / PER_WORD;
        let row_bytes = d_in.div_ceil(2);
        let mut codes = vec![0u8; d_out * row_bytes];
        if row_bytes > 0 {
            codes.par_chunks_mut(LINE * PER_WORD * row_bytes).enumerate().for_each(|(line, codes)| {
                for column in (0..d_in).step_by(2) {
                    for (at, codes) in codes.chunks_exact_mut(PER_WORD * row_bytes).enumerate() {
                        let place = LINE * line + at;
                        let first = word(qweight, column * words + place);
                        let second = if column + 1 < d_in { word(qweight, (column + 1) * words + place) } else { 0 };
                        // Each byte combines codes of both columns: `even` has codes 0, 2, 4, 6 of the words, `odd` has
                        // codes 1, 3, 5, 7.
                        let even = (first & LOW_HALVES | (second & LOW_HALVES) << 4).to_le_bytes();
                        let odd = ((first >> 4) & LOW_HALVES | second & !LOW_HALVES).to_le_bytes();
                        for index in 0..PER_WORD {
                            let byte = if index % 2 == 0 { even[index / 2] } else { odd[index / 2] };
                            codes[AWQ_COLUMNS[index] * row_bytes + column / 2] = byte;
                        }
                    }
                }
            });
        }
        let zero = |row: usize, group: usize| {
            let index = AWQ_COLUMNS.iter().position(|column| *column == row % PER_WORD).unwrap_or(0);
            nibble(qzeros, (group * words + row / PER_WORD) * PER_WORD + index)
        };
        let scales = pairs(dims, groups, |row, group| [scales[group * d_out + row], zero(row, group)]);
        Self::new(codes, scales, group, dims)
    }

    /// Creates a weight from the tensors of GPTQ. A word of `qweight` holds the codes of eight inputs; a word of
    /// `qzeros` holds the zero points of eight output features. Both are in ascending order from the lowest bits.
    ///
    /// - `qweight`: `[d_in / 8, d_out]` words
    /// - `qzeros`: `[d_in / group, d_out / 8]` words, with `d_in / group` rounded up. `zero_offset` is added to the
    ///   zero points: 1 for checkpoint format `gptq`, 0 for `gptq_v2`
    /// - `scales`: `[d_in / group, d_out]`
    /// - `order`: the input of each column of the result, `[d_in]`; `None` if column `i` is input `i`
    ///
    /// Source: GPTQModel, `PackableQuantLinear.dequantize_weight` and `convert_gptq_v1_to_v2_format_module`.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, or if `d_out` is not a multiple of 8. Also the errors of
    /// [`Int4::new`].
    ///
    /// # Panics
    /// If an entry of `order` is not less than `d_in`.
    pub fn from_gptq(
        qweight: &[u8],
        qzeros: &[u8],
        zero_offset: u8,
        scales: &[f32],
        order: Option<&[u32]>,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Self, FormatError> {
        let [d_out, d_in] = dims;
        let groups = d_in.div_ceil(group.get());
        check_parts(dims, [d_in.div_ceil(PER_WORD) * d_out, qweight.len()], groups, qzeros, scales)?;
        check_order(order, dims)?;
        let row_bytes = d_in.div_ceil(2);
        let mut codes = vec![0u8; d_out * row_bytes];
        if row_bytes > 0 {
            codes.par_chunks_mut(LINE * row_bytes).enumerate().for_each(|(line, codes)| {
                for at in 0..row_bytes {
                    for (row, codes) in codes.chunks_exact_mut(row_bytes).enumerate() {
                        let row = LINE * line + row;
                        let code = |input: usize| {
                            word(qweight, input / PER_WORD * d_out + row) >> (4 * (input % PER_WORD)) & 15
                        };
                        codes[at] = match order {
                            Some(order) => {
                                let second = order.get(2 * at + 1).map_or(0, |input| code(*input as usize));
                                (code(order[2 * at] as usize) | second << 4) as u8
                            }
                            // In the file, the two codes of a byte are adjacent too.
                            None => (word(qweight, at / 4 * d_out + row) >> (8 * (at % 4))) as u8,
                        };
                    }
                }
            });
        }
        let words = d_out / PER_WORD;
        let zero = |row: usize, group: usize| {
            nibble(qzeros, (group * words + row / PER_WORD) * PER_WORD + row % PER_WORD) + f32::from(zero_offset)
        };
        let scales = pairs(dims, groups, |row, group| [scales[group * d_out + row], zero(row, group)]);
        Self::new(codes, scales, group, dims)
    }
}

impl<'a> Int4<'a> {
    /// Creates a weight from the tensors of compressed-tensors' format `pack-quantized` with four bits. A word of
    /// `weight_packed` holds the codes of eight inputs; a word of `zero_point` holds the zero points of eight output
    /// features. Both are in ascending order from the lowest bits. The codes are borrowed if they already have the
    /// order and the row length of [`Int4`].
    ///
    /// - `weight_packed`: `[d_out, d_in / 8]` words, with `d_in / 8` rounded up
    /// - `zero_point`: `[d_out / 8, groups]` words, with `d_out / 8` rounded up; if `None`, all zero points are 8
    /// - `scale`: `[d_out, groups]`
    /// - `order`: the input of each column of the result, `[d_in]`; `None` if column `i` is input `i`
    ///
    /// Source: compressed-tensors 0.20.1, `pack_to_int32` and `unpack_from_int32`.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size. Also the errors of [`Int4::new`].
    ///
    /// # Panics
    /// If an entry of `order` is not less than `d_in`.
    pub fn from_compressed_tensors(
        weight_packed: &'a [u8],
        zero_point: Option<&[u8]>,
        scale: &[f32],
        order: Option<&[u32]>,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Self, FormatError> {
        let [d_out, d_in] = dims;
        element_count(d_out, d_in)?;
        let groups = d_in.div_ceil(group.get());
        let file_row = 4 * d_in.div_ceil(PER_WORD);
        check_length("packed codes", dims, d_out * file_row, weight_packed.len())?;
        check_length("scales", dims, d_out * groups, scale.len())?;
        if let Some(zero_point) = zero_point {
            check_length("packed zero points", dims, d_out.div_ceil(PER_WORD) * 4 * groups, zero_point.len())?;
        }
        check_order(order, dims)?;
        let row_bytes = d_in.div_ceil(2);
        let codes: Cow<'a, [u8]> = match order {
            None if row_bytes == file_row => weight_packed.into(),
            None => weight_packed
                .chunks(file_row.max(1))
                .flat_map(|row| &row[..row_bytes])
                .copied()
                .collect::<Vec<_>>()
                .into(),
            Some(order) => {
                let mut codes = vec![0u8; d_out * row_bytes];
                let rows = codes.par_chunks_mut(row_bytes.max(1)).zip(weight_packed.par_chunks(file_row.max(1)));
                rows.for_each(|(codes, packed)| {
                    for (column, input) in order.iter().enumerate() {
                        let input = *input as usize;
                        codes[column / 2] |= (packed[input / 2] >> (4 * (input % 2)) & 15) << (4 * (column % 2));
                    }
                });
                codes.into()
            }
        };
        let zero = |row: usize, group: usize| match zero_point {
            Some(words) => nibble(words, (row / PER_WORD * groups + group) * PER_WORD + row % PER_WORD),
            None => 8.0,
        };
        let scales = pairs(dims, groups, |row, group| [scale[row * groups + group], zero(row, group)]);
        Self::new(codes, scales, group, dims)
    }
}

/// Checks the sizes of the parts of AWQ and GPTQ weights. `qweight` holds the expected number of words and the number
/// of bytes found.
fn check_parts(
    dims: [usize; 2],
    qweight: [usize; 2],
    groups: usize,
    qzeros: &[u8],
    scales: &[f32],
) -> Result<(), FormatError> {
    let [d_out, d_in] = dims;
    element_count(d_out, d_in)?;
    let words = d_out.div_ceil(PER_WORD);
    check_length("output features (a multiple of 8)", dims, PER_WORD * words, d_out)?;
    check_length("qweight", dims, 4 * qweight[0], qweight[1])?;
    check_length("qzeros", dims, 4 * groups * words, qzeros.len())?;
    check_length("scales", dims, groups * d_out, scales.len())
}

/// Checks the length of the order of the inputs.
fn check_order(order: Option<&[u32]>, dims: [usize; 2]) -> Result<(), FormatError> {
    order.map_or(Ok(()), |order| check_length("order of the inputs", dims, dims[1], order.len()))
}

/// Returns the scale and the zero point of each row and group, `[d_out, groups, 2]`.
fn pairs([d_out, _]: [usize; 2], groups: usize, pair: impl Fn(usize, usize) -> [f32; 2] + Sync) -> Vec<f32> {
    let mut pairs = vec![0f32; 2 * d_out * groups];
    pairs.par_chunks_mut((2 * groups).max(1)).enumerate().for_each(|(row, pairs)| {
        for (group, out) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *out = pair(row, group);
        }
    });
    pairs
}

/// Returns word `index` of `bytes`.
fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks::<4>().0[index])
}

/// Returns code `index` of `bytes`, counted from the lowest bits of the first word.
fn nibble(bytes: &[u8], index: usize) -> f32 {
    f32::from(bytes[index / 2] >> (4 * (index % 2)) & 15)
}
