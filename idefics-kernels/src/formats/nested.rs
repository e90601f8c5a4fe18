//! Double quantisation: stores the scales of a four-bit weight in eight bits each.
//!
//! Source: bitsandbytes 0.50.2, `functional.py` (`create_dynamic_map`, `quantize_4bit` with `compress_statistics`).
//! Source of the dynamic data type: <https://arxiv.org/abs/1511.04561>.

use super::FormatError;
use super::error::{check_finite, check_length, check_scales};
use super::four_bit::check_map;

/// Number of scales that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// Half the largest distance between neighbours in [`dynamic_map`], rounded up.
const HALF_STEP: f32 = 0.0071;

/// Scales in eight bits each: `absmax = map[code] · nested_absmax[block] + offset`, where `map` is [`dynamic_map`].
#[derive(Debug, Clone, PartialEq)]
pub struct NestedAbsmax {
    /// Code of each scale: an index into the map.
    pub codes: Vec<u8>,
    /// Nested scales, one per 256 codes.
    pub nested_absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

impl NestedAbsmax {
    /// Quantises scales around their mean, which is computed in f64.
    ///
    /// # Errors
    /// [`FormatError::Scale`] for a scale that is negative or not finite.
    pub fn quantize(absmax: &[f32]) -> Result<Self, FormatError> {
        check_scales("absmax", absmax)?;
        let sum: f64 = absmax.iter().map(|scale| f64::from(*scale)).sum();
        Self::quantize_around((sum / absmax.len().max(1) as f64) as f32, absmax)
    }

    /// Quantises scales around a given offset.
    ///
    /// # Errors
    /// [`FormatError::Scale`] for a scale that is negative or not finite, [`FormatError::NonFinite`] for an offset that
    /// is not finite.
    pub fn quantize_around(offset: f32, absmax: &[f32]) -> Result<Self, FormatError> {
        check_scales("absmax", absmax)?;
        check_finite(&[offset])?;
        let map = dynamic_map();
        let mut codes = Vec::with_capacity(absmax.len());
        let mut nested_absmax = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK));
        for block in absmax.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0f32, |largest, scale| largest.max((scale - offset).abs()));
            nested_absmax.push(largest);
            if largest == 0.0 {
                codes.resize(codes.len() + block.len(), 0); // every code has the same result; bitsandbytes writes 0
                continue;
            }
            let reciprocal = 1.0 / largest;
            codes.extend(block.iter().map(|scale| nearest(&map, ((scale - offset) * reciprocal).clamp(-1.0, 1.0))));
        }
        Ok(Self { codes, nested_absmax, offset })
    }

    /// Expands the scales, rounding like bitsandbytes.
    ///
    /// An expanded scale of very small weights may be slightly negative: by up to half the largest step of the map,
    /// times the nested scale.
    ///
    /// # Errors
    /// [`FormatError::Length`] if there is not one nested scale per 256 codes. [`FormatError::Scale`] for a nested
    /// scale or an offset that is negative or not finite, and for an expanded scale that is not finite or is below the
    /// limit above.
    pub fn dequantize(&self) -> Result<Vec<f32>, FormatError> {
        let count = self.codes.len();
        check_length("nested absmax", [count, 1], count.div_ceil(NESTED_BLOCK), self.nested_absmax.len())?;
        check_scales("nested absmax", &self.nested_absmax)?;
        if !self.offset.is_finite() || self.offset < 0.0 {
            let expected = "a finite number, at least 0";
            return Err(FormatError::Scale { part: "nested offset", index: 0, value: self.offset, expected });
        }
        let map = dynamic_map();
        let mut absmax = Vec::with_capacity(count);
        for (codes, scale) in self.codes.chunks(NESTED_BLOCK).zip(&self.nested_absmax) {
            for code in codes {
                let value = map[usize::from(*code)] * scale + self.offset;
                if !value.is_finite() || value < -HALF_STEP * scale {
                    let expected = "a finite number of at least −0.0071 times its nested scale";
                    return Err(FormatError::Scale { part: "expanded absmax", index: absmax.len(), value, expected });
                }
                absmax.push(value);
            }
        }
        Ok(absmax)
    }
}

/// Returns the index of the number in the map that is nearest to `value`. If two are equally near, returns the lower
/// index.
fn nearest(map: &[f32; 256], value: f32) -> u8 {
    let above = map.partition_point(|entry| *entry < value).clamp(1, 255);
    let is_above = map[above] - value < value - map[above - 1];
    if is_above { above as u8 } else { (above - 1) as u8 }
}

/// Returns `n` evenly spaced numbers from `start` to `end`, rounded like `torch.linspace`.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| {
        if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, end) }
    };
    (0..n).map(at).collect()
}

/// Checks a file's `nested_quant_map` against [`dynamic_map`]. Allows rounding differences, because `torch.linspace`
/// rounds differently in different versions of PyTorch.
///
/// # Errors
/// [`FormatError::QuantMap`] with the first difference.
pub fn check_nested_quant_map(nested_quant_map: &[f32]) -> Result<(), FormatError> {
    check_map("nested_quant_map", nested_quant_map, &dynamic_map(), 1e-6)
}

/// Returns the 256 numbers of the signed dynamic data type, in ascending order. The type has seven decades, with finer
/// steps in higher decades.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = Vec::with_capacity(256);
    for decade in 0..7 {
        let scale = 10f64.powi(decade - 6);
        let n_means = 1usize << decade;
        let boundaries = linspace(0.1, 1.0, n_means + 1);
        for pair in boundaries.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            let value = (scale as f32) * mean;
            map.extend([value, -value]);
        }
    }
    map.extend([0.0, 1.0]);
    map.sort_by(f32::total_cmp);
    map.try_into().expect("the map must have 127 values of each sign, 0 and 1")
}
