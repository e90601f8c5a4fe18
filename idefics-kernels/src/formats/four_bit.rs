//! The four-bit formats NF4 and FP4, in the layout of bitsandbytes.
//!
//! Source: bitsandbytes 0.50.2, `backends/default/ops.py` (`quantize_4bit`, `_dequantize_4bit_compute`) and
//! `functional.py` (`get_4bit_type`). NF4: QLoRA, <https://arxiv.org/abs/2305.14314>.
//!
//! The weight is flattened and cut into blocks of 64 values. Blocks ignore row boundaries: a block may begin in the
//! middle of a row. Each value is divided by the largest magnitude of its block (absmax) and replaced by the code of
//! the nearest of sixteen table entries. A byte holds two codes, the first in its high half.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::error::{check_finite, check_length, check_scales, element_count};
use super::{FormatError, NestedAbsmax};

/// Number of values that share a scale.
pub const BLOCK: usize = 64;

/// Number of blocks that a task quantises.
const BLOCKS_PER_TASK: usize = 1 << 10;

/// Smallest number that the weights of a block are divided by, as in bitsandbytes.
const SMALLEST_ABSMAX: f32 = 1e-38;

/// A table of sixteen values for the four-bit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FourBitType {
    /// NF4: quantiles of the normal distribution.
    Nf4,
    /// FP4: one sign bit, two exponent bits, one mantissa bit.
    Fp4,
}

/// Quantiles of the normal distribution, scaled to the range −1 to 1. One of them is exactly 0.
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// FP4 values by code; bit 3 is the sign.
const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    -0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// Codes of [`NF4`] in ascending order of their values.
const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Codes of [`FP4`] in ascending order of their values.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl FourBitType {
    /// The sixteen values, indexed by code.
    pub fn table(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// `nf4` or `fp4`: the name of the type in the tensor `quant_state` of a file, and the suffix of that tensor's
    /// name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// Checks the `quant_map` of a file against [`FourBitType::table`].
    ///
    /// # Errors
    /// [`FormatError::QuantMap`] with the first difference.
    pub fn check_quant_map(self, quant_map: &[f32]) -> Result<(), FormatError> {
        check_map("quant_map", quant_map, self.table(), 0.0)
    }

    /// The rounding rule of this table.
    fn nearest(self) -> Nearest {
        let order = match self {
            Self::Nf4 => NF4_ORDER,
            Self::Fp4 => FP4_ORDER,
        };
        let value = |rank: usize| self.table()[usize::from(order[rank])];
        Nearest { midpoints: std::array::from_fn(|rank| (value(rank) + value(rank + 1)) / 2.0), order }
    }
}

/// Returns an error if a table differs from `expected` by more than `tolerance`.
pub(super) fn check_map(
    table: &'static str,
    found: &[f32],
    expected: &[f32],
    tolerance: f32,
) -> Result<(), FormatError> {
    let is_same = |index: usize| {
        let pair = found.get(index).zip(expected.get(index));
        pair.is_some_and(|(found, expected)| (found - expected).abs() <= tolerance)
    };
    match (0..expected.len().max(found.len())).find(|&index| !is_same(index)) {
        None => Ok(()),
        Some(index) => Err(FormatError::QuantMap {
            table,
            index,
            found: found.get(index).copied().unwrap_or(f32::NAN),
            expected: expected.get(index).copied().unwrap_or(f32::NAN),
        }),
    }
}

/// Finds the nearest table entry by comparing with the midpoints between neighbours. A value on a midpoint rounds down.
struct Nearest {
    midpoints: [f32; 15],
    order: [u8; 16],
}

impl Nearest {
    fn code(&self, value: f32) -> u8 {
        let rank = self.midpoints.iter().filter(|midpoint| value > **midpoint).count();
        self.order[rank]
    }
}

/// A four-bit weight: `w = table[code] · absmax[block]`.
///
/// Bits per weight: 4.5, or 4.127 on disk with quantised scales ([`super::NestedAbsmax`]).
#[derive(Debug, Clone, PartialEq)]
pub struct FourBit<'a> {
    kind: FourBitType,
    d_out: usize,
    d_in: usize,
    codes: Cow<'a, [u8]>,
    absmax: Cow<'a, [f32]>,
}

impl<'a> FourBit<'a> {
    /// Creates a weight from existing codes, two per byte, and scales, one per 64 values.
    ///
    /// The codes are bytes, whatever element type the file declares: FSDP exports store them as bf16.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, [`FormatError::Scale`] for a scale that is negative or not
    /// finite, [`FormatError::TooLarge`].
    pub fn new(
        kind: FourBitType,
        codes: impl Into<Cow<'a, [u8]>>,
        absmax: impl Into<Cow<'a, [f32]>>,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        let absmax = absmax.into();
        check_scales("absmax", &absmax)?;
        Self::from_parts(kind, codes.into(), absmax, [d_out, d_in])
    }

    /// Creates a weight from existing codes, two per byte, and quantised scales.
    ///
    /// # Errors
    /// As [`FourBit::new`] and [`NestedAbsmax::dequantize`].
    pub fn from_nested(
        kind: FourBitType,
        codes: impl Into<Cow<'a, [u8]>>,
        absmax: &NestedAbsmax,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        Self::from_parts(kind, codes.into(), absmax.dequantize()?.into(), [d_out, d_in])
    }

    /// Creates a weight like [`FourBit::new`], without checking the scales. The caller must have checked them.
    ///
    /// # Errors
    /// [`FormatError::Length`], [`FormatError::TooLarge`].
    pub fn from_parts(
        kind: FourBitType,
        codes: Cow<'a, [u8]>,
        absmax: Cow<'a, [f32]>,
        [d_out, d_in]: [usize; 2],
    ) -> Result<Self, FormatError> {
        let count = element_count(d_out, d_in)?;
        check_length("four-bit codes", [d_out, d_in], count.div_ceil(2), codes.len())?;
        check_length("absmax", [d_out, d_in], count.div_ceil(BLOCK), absmax.len())?;
        Ok(Self { kind, d_out, d_in, codes, absmax })
    }

    /// Quantises f32 weights, `[d_out, d_in]`.
    ///
    /// # Errors
    /// [`FormatError::Length`] for the wrong number of weights, [`FormatError::TooLarge`], [`FormatError::NonFinite`].
    pub fn quantize(
        kind: FourBitType,
        weights: &[f32],
        d_out: usize,
        d_in: usize,
    ) -> Result<FourBit<'static>, FormatError> {
        let count = element_count(d_out, d_in)?;
        check_length("weights", [d_out, d_in], count, weights.len())?;
        check_finite(weights)?;
        let mut codes = vec![0u8; count.div_ceil(2)];
        let mut absmax = vec![0f32; count.div_ceil(BLOCK)];
        let nearest = kind.nearest();
        let tasks = codes.par_chunks_mut(BLOCKS_PER_TASK * BLOCK / 2).zip(absmax.par_chunks_mut(BLOCKS_PER_TASK));
        tasks.zip(weights.par_chunks(BLOCKS_PER_TASK * BLOCK)).for_each(|((codes, absmax), weights)| {
            let blocks = codes.chunks_mut(BLOCK / 2).zip(absmax).zip(weights.chunks(BLOCK));
            for ((codes, absmax), weights) in blocks {
                *absmax = quantize_block(&nearest, weights, codes);
            }
        });
        FourBit::new(kind, codes, absmax, d_out, d_in)
    }

    /// The type of the codes.
    pub fn kind(&self) -> FourBitType {
        self.kind
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// The codes, two per byte: `[ceil(d_out · d_in / 2)]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales, one per 64 values: `[ceil(d_out · d_in / 64)]`.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Codes and scales, in the layout of [`Self::codes`] and [`Self::absmax`].
    pub fn into_parts(self) -> (Vec<u8>, Vec<f32>) {
        (self.codes.into_owned(), self.absmax.into_owned())
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.absmax())
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`. Each product is rounded once, as in bitsandbytes.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.d_out, "rows {rows:?} are out of range for {} rows", self.d_out);
        assert_eq!(out.len(), rows.len() * self.d_in, "`out` must hold one value per weight");
        let table = self.kind.table();
        for (out, index) in out.iter_mut().zip(rows.start * self.d_in..) {
            let pair = self.codes[index / 2];
            let code = if index.is_multiple_of(2) { pair >> 4 } else { pair & 15 };
            *out = table[usize::from(code)] * self.absmax[index / BLOCK];
        }
    }
}

/// Writes the codes of one block, two per byte, and returns its scale.
fn quantize_block(nearest: &Nearest, weights: &[f32], codes: &mut [u8]) -> f32 {
    let mut absmax = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    let divisor = absmax.max(SMALLEST_ABSMAX);
    let code = |weight: &f32| {
        // As in bitsandbytes, weights of a full block are multiplied by the reciprocal, and weights of an incomplete
        // last block are divided.
        let scaled = if weights.len() == BLOCK { weight * (1.0 / divisor) } else { weight / divisor };
        nearest.code(scaled.clamp(-1.0, 1.0))
    };
    for (codes, weights) in codes.iter_mut().zip(weights.chunks(2)) {
        let second = weights.get(1).unwrap_or(&0.0); // an odd number of weights is padded with a zero
        *codes = code(&weights[0]) << 4 | code(second);
    }
    if weights.len() < BLOCK {
        absmax = divisor;
    }
    absmax
}
