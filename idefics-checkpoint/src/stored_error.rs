use idefics_kernels::formats::FormatError;

/// Why the tensors of a quantised weight do not make a weight.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoredError {
    /// Codes or scales that make no weight of the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// `quant_state` is not the JSON that bitsandbytes writes.
    #[error("quant_state of {bytes} bytes is not the JSON of bitsandbytes (truncated or overwritten?): {source}")]
    QuantState {
        /// Bytes that are there.
        bytes: usize,
        /// What the parser met.
        source: serde_json::Error,
    },
    /// A field of `quant_state` has a value that is not known or not read.
    #[error("quant_state: {field} is {found}, expected {expected}")]
    QuantStateField {
        /// The JSON key.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// A tensor that belongs to a quantised weight is not in the checkpoint.
    #[error("`{name}` is missing, without which the codes mean nothing")]
    PartMissing {
        /// The tensor.
        name: String,
    },
    /// An LLM.int8 weight whose rows are not one after the other.
    #[error("`{name}` is {found}, expected 0: only weights that are stored row by row are read")]
    Tiled {
        /// The tensor that says so.
        name: String,
        /// What it says.
        found: u8,
    },
    /// A tensor that belongs to a quantised weight has another element type.
    #[error("`{name}` is {found}, expected {expected}")]
    PartDtype {
        /// The tensor.
        name: String,
        /// Its element type.
        found: String,
        /// The one that is read.
        expected: &'static str,
    },
}
