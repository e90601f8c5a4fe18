//! Weights in the blocks of GGUF files, kept as they are stored.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::error::{check_length, element_count};
use super::gguf_quantize::LARGEST;
use super::{FormatError, GgufType};

/// A row-major `[d_out, d_in]` weight in blocks of a GGUF file. Borrowed bytes may be memory-mapped.
///
/// Each row consists of a whole number of blocks ([`GgufType`] describes them). Scales are not checked. A scale that is
/// not finite gives values that are not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks<'a> {
    kind: GgufType,
    d_out: usize,
    d_in: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Blocks<'a> {
    /// Creates a weight from existing blocks, row by row.
    ///
    /// # Errors
    /// [`FormatError::RowLength`] if a row is not a whole number of blocks, [`FormatError::Length`] for the wrong
    /// number of bytes, [`FormatError::TooLarge`].
    pub fn new(
        kind: GgufType,
        bytes: impl Into<Cow<'a, [u8]>>,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        let bytes = bytes.into();
        element_count(d_out, d_in)?;
        check_length("blocks", [d_out, d_in], Self::byte_count(kind, d_out, d_in)?, bytes.len())?;
        Ok(Self { kind, d_out, d_in, bytes })
    }

    /// Quantises f32 weights, `[d_out, d_in]`.
    ///
    /// # Errors
    /// As [`Blocks::new`], and [`FormatError::NonFinite`] for a NaN, or a weight beyond the range of f16.
    ///
    /// # Panics
    /// If the type has no quantiser ([`GgufType::is_quantizable`]).
    pub fn quantize(
        kind: GgufType,
        weights: &[f32],
        d_out: usize,
        d_in: usize,
    ) -> Result<Blocks<'static>, FormatError> {
        check_length("weights", [d_out, d_in], element_count(d_out, d_in)?, weights.len())?;
        if let Some(index) = weights.par_iter().position_first(|weight| weight.is_nan() || weight.abs() > LARGEST) {
            return Err(FormatError::NonFinite { index, value: weights[index] });
        }
        let mut bytes = vec![0u8; Self::byte_count(kind, d_out, d_in)?];
        if d_in > 0 {
            let rows = bytes.par_chunks_mut((bytes_per_row(kind, d_in)?).max(1)).zip(weights.par_chunks(d_in));
            rows.for_each(|(blocks, weights)| kind.quantize(weights, blocks));
        }
        Blocks::new(kind, bytes, d_out, d_in)
    }

    fn byte_count(kind: GgufType, d_out: usize, d_in: usize) -> Result<usize, FormatError> {
        bytes_per_row(kind, d_in)?.checked_mul(d_out).ok_or(FormatError::TooLarge { d_out, d_in })
    }

    /// The type of the blocks.
    pub fn kind(&self) -> GgufType {
        self.kind
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// The blocks, row by row.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Converts the weight into its blocks, row by row.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_owned()
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Size of a row in bytes.
    pub(crate) fn row_bytes(&self) -> usize {
        self.bytes.len() / self.d_out.max(1)
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.d_in, "`out` must hold one value per weight");
        let row_bytes = self.row_bytes();
        self.kind.dequantize(&self.bytes[rows.start * row_bytes..rows.end * row_bytes], out);
    }
}

fn bytes_per_row(kind: GgufType, d_in: usize) -> Result<usize, FormatError> {
    kind.row_bytes(d_in).ok_or(FormatError::RowLength { format: kind.name(), block: kind.block_len(), d_in })
}
