use idefics_kernels::formats::FormatError;

/// Why a quantised weight cannot be assembled from its tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoredWeightError {
    /// Codes or scales that are invalid in the weight's format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// `quant_state` is not the JSON that bitsandbytes writes.
    #[error("quant_state ({bytes} bytes) is not the JSON that bitsandbytes writes: {source}; download the file again")]
    QuantState {
        /// Length of the tensor, in bytes.
        bytes: usize,
        /// The error of the JSON parser.
        source: serde_json::Error,
    },
    /// A field of `quant_state` has an unsupported value.
    #[error("quant_state: {field} is {found}; expected {expected}")]
    QuantStateField {
        /// The JSON key.
        field: &'static str,
        /// The value found.
        found: String,
        /// The supported values.
        expected: &'static str,
    },
    /// A tensor that belongs to a quantised weight is not in the checkpoint.
    #[error("`{name}` is missing; the codes cannot be read without it")]
    PartMissing {
        /// Name of the missing tensor.
        name: String,
    },
    /// An LLM.int8 weight in a tiled layout.
    #[error("`{name}` is {found}; expected 0: only row-major weights are supported")]
    Tiled {
        /// Name of the `weight_format` tensor.
        name: String,
        /// The first value other than 0.
        found: u8,
    },
    /// A tensor that belongs to a quantised weight has the wrong element type.
    #[error("`{name}` is {found}; expected {expected}")]
    PartDtype {
        /// Name of the tensor.
        name: String,
        /// Its element type in the file.
        found: String,
        /// The element type it should have.
        expected: &'static str,
    },
}
