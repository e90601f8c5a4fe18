//! Eight bits per weight with one scale per output feature, as in quanto's `int8` and in LLM.int8 files.
//!
//! Source: optimum-quanto 0.2.7, `AbsmaxOptimizer` and `quantize_symmetric`; bitsandbytes, `int8_vectorwise_dequant`.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::FormatError;
use super::error::{check_finite, check_length, check_scales, element_count};

/// An int8 weight: `w = code · scale[row]`.
///
/// Bits per weight: 8, plus 32 per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8<'a> {
    d_out: usize,
    d_in: usize,
    codes: Cow<'a, [i8]>,
    scales: Cow<'a, [f32]>,
}

impl<'a> Int8<'a> {
    /// Creates a weight from existing codes, `[d_out, d_in]`, and scales, `[d_out]`.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, [`FormatError::TooLarge`], and [`FormatError::Scale`] for
    /// a scale that is negative, overflows when multiplied by 128, or is 0 although its row has a code that is not 0.
    pub fn new(
        codes: impl Into<Cow<'a, [i8]>>,
        scales: impl Into<Cow<'a, [f32]>>,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        let weight = Self::from_parts(codes.into(), scales.into(), [d_out, d_in])?;
        check_scales("int8 scales", weight.scales())?;
        let absurd = |(row, scale): (usize, &f32)| {
            let codes = || &weight.codes[row * d_in..(row + 1) * d_in];
            !(scale * 128.0).is_finite() || (*scale == 0.0 && codes().iter().any(|code| *code != 0))
        };
        match weight.scales.iter().enumerate().position(absurd) {
            None => Ok(weight),
            Some(index) => {
                let expected = "at least 0, finite when multiplied by 128, and 0 only for a row of zeros";
                Err(FormatError::Scale { part: "int8 scales", index, value: weight.scales[index], expected })
            }
        }
    }

    /// Creates a weight like [`Int8::new`], without checking the scales. The caller must have checked them.
    ///
    /// # Errors
    /// [`FormatError::Length`], [`FormatError::TooLarge`].
    pub fn from_parts(
        codes: Cow<'a, [i8]>,
        scales: Cow<'a, [f32]>,
        [d_out, d_in]: [usize; 2],
    ) -> Result<Self, FormatError> {
        check_length("int8 codes", [d_out, d_in], element_count(d_out, d_in)?, codes.len())?;
        check_length("int8 scales", [d_out, d_in], d_out, scales.len())?;
        Ok(Self { d_out, d_in, codes, scales })
    }

    /// Creates a weight from an LLM.int8 file: codes `weight`, `[d_out, d_in]`, and row maxima `SCB`, `[d_out]`.
    ///
    /// # Errors
    /// As [`Int8::new`].
    pub fn from_llm_int8(
        weight: impl Into<Cow<'a, [i8]>>,
        scb: &[f32],
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        // As in bitsandbytes, the maxima are multiplied by the reciprocal of 127. bitsandbytes does this after
        // multiplying codes and maxima, so rounding may differ.
        let scales: Vec<f32> = scb.iter().map(|absmax| absmax * (1.0 / 127.0)).collect();
        Self::new(weight, scales, d_out, d_in)
    }

    /// Quantises f32 weights, `[d_out, d_in]`, with `scale = absmax(row) / 127`. Codes are rounded to the nearest
    /// integer, with ties to the even integer.
    ///
    /// # Errors
    /// [`FormatError::Length`] for the wrong number of weights, [`FormatError::TooLarge`], [`FormatError::NonFinite`].
    pub fn quantize(weights: &[f32], d_out: usize, d_in: usize) -> Result<Int8<'static>, FormatError> {
        check_length("weights", [d_out, d_in], element_count(d_out, d_in)?, weights.len())?;
        check_finite(weights)?;
        let mut codes = vec![0i8; weights.len()];
        let mut scales = vec![0f32; d_out];
        if d_in > 0 {
            codes
                .par_chunks_mut(d_in)
                .zip(weights.par_chunks(d_in))
                .zip(&mut scales)
                .for_each(|((codes, weights), scale)| *scale = quantize_row(weights, codes));
        }
        Int8::new(codes, scales, d_out, d_in)
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// The codes, `[d_out, d_in]`, row-major.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scales, `[d_out]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Codes and scales, in the layout of [`Self::codes`] and [`Self::scales`].
    pub fn into_parts(self) -> (Vec<i8>, Vec<f32>) {
        (self.codes.into_owned(), self.scales.into_owned())
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(self.codes()) + size_of_val(self.scales())
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let codes = &self.codes[rows.start * self.d_in..rows.end * self.d_in];
        assert_eq!(out.len(), codes.len(), "`out` must hold one value per weight");
        if self.d_in == 0 {
            return;
        }
        let rows = out.chunks_exact_mut(self.d_in).zip(codes.chunks_exact(self.d_in)).zip(&self.scales[rows]);
        for ((out, codes), scale) in rows {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = f32::from(*code) * scale;
            }
        }
    }
}

/// Writes the codes of one row and returns its scale. A row of zeros gets scale 0; quanto would divide 0 by 0.
fn quantize_row(weights: &[f32], codes: &mut [i8]) -> f32 {
    let scale = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs())) / 127.0;
    if scale == 0.0 {
        codes.fill(0);
        return 0.0;
    }
    for (code, weight) in codes.iter_mut().zip(weights) {
        // The clamp keeps the value in the range of i8, so that `as` does not saturate.
        *code = (weight / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
    }
    scale
}
