//! Unquantised weights: f32, bf16 or f16, as stored in the checkpoint.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::FormatError;
use super::error::{check_length, element_count};

/// Element type of a [`Dense`] weight.
pub trait Element: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Converts to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds an f32 to the nearest value of the type, with ties to the even value.
    fn from_f32(value: f32) -> Self;
    /// Reads one value from its little-endian bytes.
    ///
    /// # Panics
    /// If `bytes` does not have the size of the type.
    fn from_le_bytes(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($type:ty, $to_f32:expr, $from_f32:expr) => {
        impl Element for $type {
            #[inline]
            fn from_le_bytes(bytes: &[u8]) -> Self {
                <$type>::from_le_bytes(bytes.try_into().expect("`bytes` must have the size of the type"))
            }
            #[inline]
            fn to_f32(self) -> f32 {
                $to_f32(self)
            }
            #[inline]
            fn from_f32(value: f32) -> Self {
                $from_f32(value)
            }
        }
    };
}
element!(f32, |value| value, |value| value);
element!(bf16, bf16::to_f32, bf16::from_f32);
element!(f16, f16::to_f32, f16::from_f32);

/// A row-major `[d_out, d_in]` weight of `f32`, [`bf16`] or [`f16`](struct@f16). Borrowed values may be memory-mapped.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense<'a, E: Element> {
    d_out: usize,
    d_in: usize,
    values: Cow<'a, [E]>,
}

impl<'a, E: Element> Dense<'a, E> {
    /// Creates a weight from existing values, `[d_out, d_in]`.
    ///
    /// # Errors
    /// [`FormatError::Length`] if there are not `d_out · d_in` values, [`FormatError::TooLarge`].
    pub fn new(values: impl Into<Cow<'a, [E]>>, d_out: usize, d_in: usize) -> Result<Self, FormatError> {
        let values = values.into();
        check_length("values", [d_out, d_in], element_count(d_out, d_in)?, values.len())?;
        Ok(Self { d_out, d_in, values })
    }

    /// Rounds f32 weights, `[d_out, d_in]`, to the nearest values of the type.
    ///
    /// # Errors
    /// As [`Dense::new`], and [`FormatError::NonFinite`] for a NaN, an infinity, or a weight beyond the range of the
    /// type.
    pub fn quantize(weights: &[f32], d_out: usize, d_in: usize) -> Result<Dense<'static, E>, FormatError> {
        check_length("weights", [d_out, d_in], element_count(d_out, d_in)?, weights.len())?;
        let values: Vec<E> = weights.par_iter().map(|weight| E::from_f32(*weight)).collect();
        match values.par_iter().position_first(|value| !value.to_f32().is_finite()) {
            None => Dense::new(values, d_out, d_in),
            Some(index) => Err(FormatError::NonFinite { index, value: weights[index] }),
        }
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// The values, `[d_out, d_in]`, row-major.
    pub fn values(&self) -> &[E] {
        &self.values
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values())
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`. The conversion is exact.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let values = &self.values[rows.start * self.d_in..rows.end * self.d_in];
        assert_eq!(out.len(), values.len(), "`out` must hold one value per weight");
        for (out, value) in out.iter_mut().zip(values) {
            *out = value.to_f32();
        }
    }
}
