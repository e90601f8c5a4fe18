//! Four bits per weight with a scale and a zero point per group of inputs, as in AWQ, GPTQ and compressed-tensors
//! files.
//!
//! The layouts of these files are converted without loss: see [`Int4::from_awq`], [`Int4::from_gptq`] and
//! [`Int4::from_compressed_tensors`].

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::ops::Range;

use rayon::prelude::*;

use super::FormatError;
use super::error::{check_length, element_count};

/// The largest zero point. GPTQ files store zero points minus one in four bits, so a stored 15 means 16.
const LARGEST_ZERO: f32 = 16.0;

/// The largest weight magnitude that is quantised, so that no scale overflows.
const LARGEST: f32 = f32::MAX / 16.0;

/// An int4 weight: `w = (code − zero[row, g]) · scale[row, g]`, where `g = column / group` is the group of the column.
///
/// Bits per weight: 4, plus 64 per group.
///
/// - `codes`: `[d_out, ceil(d_in / 2)]` bytes. Byte `b` of a row holds the codes of columns `2 b` (low half) and
///   `2 b + 1` (high half).
/// - `scales`: `[d_out, ceil(d_in / group), 2]`, the scale and the zero point of each group. Zero points are integers
///   from 0 to 16.
#[derive(Debug, Clone, PartialEq)]
pub struct Int4<'a> {
    d_out: usize,
    d_in: usize,
    group: NonZeroUsize,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [f32]>,
}

impl<'a> Int4<'a> {
    /// Creates a weight from existing codes and scales, in the layout of [`Int4`]. `group` is the number of columns per
    /// group; the last group of a row may be shorter.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, [`FormatError::TooLarge`], and [`FormatError::Scale`] for
    /// a scale that is not finite when multiplied by 16, or a zero point that is not an integer from 0 to 16.
    pub fn new(
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [f32]>>,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Self, FormatError> {
        let weight = Self::from_parts(codes.into(), scales.into(), group, dims)?;
        for (index, pair) in weight.scales.as_chunks::<2>().0.iter().enumerate() {
            let [scale, zero] = *pair;
            if !(scale * 16.0).is_finite() {
                let expected = "a number that stays finite when multiplied by 16";
                return Err(FormatError::Scale { part: "int4 scales", index, value: scale, expected });
            }
            if zero.fract() != 0.0 || !(0.0..=LARGEST_ZERO).contains(&zero) {
                let expected = "an integer from 0 to 16";
                return Err(FormatError::Scale { part: "int4 zero points", index, value: zero, expected });
            }
        }
        Ok(weight)
    }

    /// Creates a weight like [`Int4::new`], without checking scales and zero points. The caller must have checked them.
    ///
    /// # Errors
    /// [`FormatError::Length`], [`FormatError::TooLarge`].
    pub fn from_parts(
        codes: Cow<'a, [u8]>,
        scales: Cow<'a, [f32]>,
        group: NonZeroUsize,
        [d_out, d_in]: [usize; 2],
    ) -> Result<Self, FormatError> {
        element_count(d_out, d_in)?;
        let [n_codes, n_scales] = Self::part_lens(group, [d_out, d_in]);
        check_length("int4 codes", [d_out, d_in], n_codes, codes.len())?;
        check_length("int4 scales", [d_out, d_in], n_scales, scales.len())?;
        Ok(Self { d_out, d_in, group, codes, scales })
    }

    /// Quantises f32 weights, `[d_out, d_in]`. The smallest and the largest weight of a group become the ends of its
    /// range, and weights are rounded to the nearest of sixteen steps.
    ///
    /// Source: AutoAWQ, `pseudo_quantize_tensor` with `zero_point`, without AutoAWQ's search for scales.
    ///
    /// # Errors
    /// [`FormatError::Length`] for the wrong number of weights, [`FormatError::TooLarge`], [`FormatError::NonFinite`].
    pub fn quantize(weights: &[f32], group: NonZeroUsize, dims: [usize; 2]) -> Result<Int4<'static>, FormatError> {
        let [d_out, d_in] = dims;
        check_length("weights", dims, element_count(d_out, d_in)?, weights.len())?;
        if let Some(index) = weights.iter().position(|weight| weight.is_nan() || weight.abs() > LARGEST) {
            return Err(FormatError::NonFinite { index, value: weights[index] });
        }
        let [n_codes, n_scales] = Self::part_lens(group, dims);
        let (mut codes, mut scales) = (vec![0u8; n_codes], vec![0f32; n_scales]);
        if d_out > 0 && d_in > 0 {
            let rows = codes.par_chunks_mut(n_codes / d_out).zip(scales.par_chunks_mut(n_scales / d_out));
            rows.zip(weights.par_chunks(d_in)).for_each(|((codes, scales), weights)| {
                let groups = weights.chunks(group.get()).zip(scales.as_chunks_mut::<2>().0);
                for (index, (weights, pair)) in groups.enumerate() {
                    *pair = quantize_group(weights, |at, code| {
                        let column = index * group.get() + at;
                        codes[column / 2] |= code << (4 * (column % 2));
                    });
                }
            });
        }
        Int4::from_parts(codes.into(), scales.into(), group, dims)
    }

    /// Returns the number of bytes of codes, and the total number of scales and zero points.
    pub fn part_lens(group: NonZeroUsize, [d_out, d_in]: [usize; 2]) -> [usize; 2] {
        [d_out * d_in.div_ceil(2), 2 * d_out * d_in.div_ceil(group.get())]
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// Number of columns per group.
    pub fn group(&self) -> NonZeroUsize {
        self.group
    }

    /// The codes, `[d_out, ceil(d_in / 2)]` bytes of two codes each.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale and the zero point of each group, `[d_out, ceil(d_in / group), 2]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Codes and scales, in the layout of [`Self::codes`] and [`Self::scales`].
    pub fn into_parts(self) -> (Cow<'a, [u8]>, Cow<'a, [f32]>) {
        (self.codes, self.scales)
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.scales())
    }

    /// Returns the codes of row `row`, two per byte, and the scale and the zero point of each group of the row.
    ///
    /// # Panics
    /// If `row` is out of range.
    pub(crate) fn row(&self, row: usize) -> (&[u8], &[[f32; 2]]) {
        assert!(row < self.d_out, "row {row} is out of range for {} rows", self.d_out);
        let (row_bytes, groups) = (self.d_in.div_ceil(2), self.d_in.div_ceil(self.group.get()));
        let scales = &self.scales[2 * row * groups..2 * (row + 1) * groups];
        (&self.codes[row * row_bytes..(row + 1) * row_bytes], scales.as_chunks().0)
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`. The values are exact if the scales have at most nineteen
    /// significant bits, as numbers in f16 and bf16 do.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.d_out, "rows {rows:?} are out of range for {} rows", self.d_out);
        assert_eq!(out.len(), rows.len() * self.d_in, "`out` must hold one value per weight");
        if self.d_in == 0 {
            return;
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(self.d_in)) {
            let (codes, scales) = self.row(row);
            for (index, (out, [scale, zero])) in out.chunks_mut(self.group.get()).zip(scales).enumerate() {
                for (out, column) in out.iter_mut().zip(index * self.group.get()..) {
                    let code = codes[column / 2] >> (4 * (column % 2)) & 15;
                    *out = (f32::from(code) - zero) * scale;
                }
            }
        }
    }
}

/// Quantises one group. Calls `write` with the index and the code of each weight. Returns the scale and the zero point.
fn quantize_group(weights: &[f32], mut write: impl FnMut(usize, u8)) -> [f32; 2] {
    let smallest = weights.iter().fold(0f32, |smallest, weight| smallest.min(*weight));
    let largest = weights.iter().fold(0f32, |largest, weight| largest.max(*weight));
    let scale = ((largest - smallest) / 15.0).max(1e-10);
    let zero = (-smallest / scale).round_ties_even().clamp(0.0, 15.0);
    for (at, weight) in weights.iter().enumerate() {
        // The clamp keeps the value in the range of a code, so that `as` does not saturate.
        write(at, ((weight / scale).round_ties_even() + zero).clamp(0.0, 15.0) as u8);
    }
    [scale, zero]
}
