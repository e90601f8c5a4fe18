/// An error in the parts of a weight. The message says what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A part does not have the size that the shape implies.
    #[error("{part} of a [{d_out}, {d_in}] weight: expected {expected} elements, found {found}")]
    Length {
        /// The part, such as `int8 codes`, `int8 scales` or `absmax`.
        part: &'static str,
        /// Number of output features.
        d_out: usize,
        /// Number of input features.
        d_in: usize,
        /// Number of elements that the shape implies.
        expected: usize,
        /// Number of elements found.
        found: usize,
    },
    /// A row is not a whole number of blocks.
    #[error("a row has {d_in} values; expected a multiple of {block}, the block length of {format}")]
    RowLength {
        /// The format.
        format: &'static str,
        /// Number of values in a block.
        block: usize,
        /// Number of input features.
        d_in: usize,
    },
    /// The weight is too large to allocate.
    #[error("a [{d_out}, {d_in}] weight is too large to allocate")]
    TooLarge {
        /// Number of output features.
        d_out: usize,
        /// Number of input features.
        d_in: usize,
    },
    /// An invalid scale.
    #[error("{part}[{index}] is {value}; expected {expected}")]
    Scale {
        /// The part, such as `int8 scales`, `nested absmax` or `nested offset`.
        part: &'static str,
        /// Index of the first invalid scale.
        index: usize,
        /// Value of the scale.
        value: f32,
        /// Description of the valid values.
        expected: &'static str,
    },
    /// A weight to quantise is NaN, infinite or too large for the format.
    #[error("weight {index} is {value}; expected a finite number in the range of the format")]
    NonFinite {
        /// Flat index of the first invalid weight.
        index: usize,
        /// Value of the weight.
        value: f32,
    },
    /// The file's code table differs from the table of its quantisation type.
    #[error("{table}[{index}] is {found}; expected {expected}")]
    QuantMap {
        /// `quant_map` or `nested_quant_map`.
        table: &'static str,
        /// Index of the first difference.
        index: usize,
        /// Value in the file; NaN if the table is too short.
        found: f32,
        /// Value in the table of the type; NaN if the file's table is too long.
        expected: f32,
    },
}

/// Returns `d_out · d_in`, or [`FormatError::TooLarge`] if an f32 weight of this size cannot be allocated.
pub(super) fn element_count(d_out: usize, d_in: usize) -> Result<usize, FormatError> {
    // An f32 element takes four bytes, and an allocation has at most isize::MAX bytes.
    d_out
        .checked_mul(d_in)
        .filter(|count| *count <= isize::MAX as usize / size_of::<f32>())
        .ok_or(FormatError::TooLarge { d_out, d_in })
}

/// Returns an error if a part does not have the expected length.
pub(super) fn check_length(
    part: &'static str,
    [d_out, d_in]: [usize; 2],
    expected: usize,
    found: usize,
) -> Result<(), FormatError> {
    if found == expected { Ok(()) } else { Err(FormatError::Length { part, d_out, d_in, expected, found }) }
}

/// Returns an error if a scale is negative or not finite.
pub(super) fn check_scales(part: &'static str, scales: &[f32]) -> Result<(), FormatError> {
    match scales.iter().position(|scale| !scale.is_finite() || *scale < 0.0) {
        None => Ok(()),
        Some(index) => {
            Err(FormatError::Scale { part, index, value: scales[index], expected: "a finite number, at least 0" })
        }
    }
}

/// Returns an error if a weight is NaN or infinite.
pub(super) fn check_finite(weights: &[f32]) -> Result<(), FormatError> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(index) => Err(FormatError::NonFinite { index, value: weights[index] }),
    }
}
