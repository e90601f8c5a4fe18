/// Why the parts of a weight do not make a weight. Each message says what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A part has another size than the weight's shape implies.
    #[error("{part} of a [{d_out}, {d_in}] weight: expected {expected} elements, found {found}")]
    Length {
        /// Which part: codes, scales, absmax.
        part: &'static str,
        /// Output features.
        d_out: usize,
        /// Input features.
        d_in: usize,
        /// Elements that the shape implies.
        expected: usize,
        /// Elements that are there.
        found: usize,
    },
    /// A shape whose element count does not fit in memory.
    #[error("a weight of [{d_out}, {d_in}] is larger than memory can be")]
    TooLarge {
        /// Output features.
        d_out: usize,
        /// Input features.
        d_in: usize,
    },
    /// A scale that no quantiser writes.
    #[error("{part}[{index}] is {value}, expected {expected}")]
    Scale {
        /// Which part: scales, absmax, nested absmax, nested offset.
        part: &'static str,
        /// Index of the first such scale.
        index: usize,
        /// Its value.
        value: f32,
        /// What a scale may be.
        expected: &'static str,
    },
    /// NaN or infinity among the weights to be quantised, or a weight that is too large for the format.
    #[error("weight {index} is {value}, expected a finite number that is not too large for the format")]
    NonFinite {
        /// Flat index of the first such weight.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The table beside the codes is not the one of its quantisation type.
    #[error("{table}[{index}] is {found}, expected {expected}")]
    QuantMap {
        /// `quant_map` or `nested_quant_map`.
        table: &'static str,
        /// Index of the first difference.
        index: usize,
        /// Value in the file; NaN where the table ends too early.
        found: f32,
        /// Value of the type.
        expected: f32,
    },
}

/// `d_out · d_in`, if that is a size that memory can have.
pub(super) fn element_count(d_out: usize, d_in: usize) -> Result<usize, FormatError> {
    // Four bytes an element, and an allocation is at most isize::MAX bytes.
    d_out
        .checked_mul(d_in)
        .filter(|count| *count <= isize::MAX as usize / size_of::<f32>())
        .ok_or(FormatError::TooLarge { d_out, d_in })
}

/// Refuses a part that is longer or shorter than the shape implies.
pub(super) fn check_length(
    part: &'static str,
    [d_out, d_in]: [usize; 2],
    expected: usize,
    found: usize,
) -> Result<(), FormatError> {
    if found == expected { Ok(()) } else { Err(FormatError::Length { part, d_out, d_in, expected, found }) }
}

/// Refuses scales that are not finite or below zero.
pub(super) fn check_scales(part: &'static str, scales: &[f32]) -> Result<(), FormatError> {
    match scales.iter().position(|scale| !scale.is_finite() || *scale < 0.0) {
        None => Ok(()),
        Some(index) => {
            Err(FormatError::Scale { part, index, value: scales[index], expected: "finite and not negative" })
        }
    }
}

/// Refuses weights that are NaN or infinite.
pub(super) fn check_finite(weights: &[f32]) -> Result<(), FormatError> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(index) => Err(FormatError::NonFinite { index, value: weights[index] }),
    }
}
