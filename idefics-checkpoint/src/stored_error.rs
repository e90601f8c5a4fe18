use idefics_kernels::formats::FormatError;

/// Why a quantised weight cannot be assembled from its tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoredWeightError {
    /// The codes or scales are invalid in the weight's format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// `quant_state` is not the JSON that bitsandbytes writes.
    #[error("quant_state ({bytes} bytes) is not the JSON that bitsandbytes writes: {source}; download the file again")]
    QuantState {
        /// Length of the `quant_state` tensor, in bytes.
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
    #[error("`{name}` is missing; the quantised weight cannot be read without it")]
    PartMissing {
        /// Name of the missing tensor.
        name: String,
    },
    /// An LLM.int8 weight has a tiled layout.
    #[error("`{name}` is {found}; expected 0, because only row-major weights are supported")]
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
        /// Element type of the tensor in the file.
        found: String,
        /// Element types that are supported for the tensor.
        expected: &'static str,
    },
    /// A tensor that belongs to a quantised weight has the wrong shape.
    #[error("`{name}` has shape {found:?}; expected {expected:?}")]
    PartShape {
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor in the file.
        found: Vec<usize>,
        /// Shape that follows from the shape of the weight and the group size.
        expected: Vec<usize>,
    },
    /// The stored shape of a weight contradicts the configuration.
    #[error("`{name}` stores the shape {found:?}, but the configuration requires {expected:?}")]
    DeclaredShape {
        /// Name of the tensor that stores the shape.
        name: String,
        /// The stored shape.
        found: Vec<i64>,
        /// The shape according to the configuration.
        expected: [usize; 2],
    },
    /// The dimensions of a weight are not multiples of the word or group size.
    #[error(
        "a [{d_out}, {d_in}] weight cannot be packed this way: d_out must be a multiple of {out_unit}, and d_in a \
         multiple of {in_unit}"
    )]
    Indivisible {
        /// Number of output features.
        d_out: usize,
        /// Number of input features.
        d_in: usize,
        /// Number that `d_out` must be a multiple of.
        out_unit: usize,
        /// Number that `d_in` must be a multiple of.
        in_unit: usize,
    },
    /// An input belongs to a group that does not exist.
    #[error("`{name}`[{at}] is {found}; expected a group from 0 to {}", groups.saturating_sub(1))]
    GroupIndex {
        /// Name of the tensor with the group of each input.
        name: String,
        /// Index of the input.
        at: usize,
        /// Group of the input in the file.
        found: i32,
        /// Number of groups.
        groups: usize,
    },
    /// The stored order of the inputs contains an input twice, or an input that does not exist.
    #[error("`{name}`[{at}] is {found}; expected each number from 0 to {inputs} - 1 exactly once in the tensor")]
    Order {
        /// Name of the tensor with the order.
        name: String,
        /// Index of the column.
        at: usize,
        /// Input of the column in the file.
        found: i32,
        /// Number of inputs.
        inputs: usize,
    },
    /// The groups of inputs have unequal sizes.
    #[error(
        "`{name}` puts {found} inputs into group {group}; expected {expected}, because only groups of equal size can be read"
    )]
    GroupSize {
        /// Name of the tensor with the group of each input.
        name: String,
        /// Index of the group.
        group: usize,
        /// Number of inputs of the group in the file.
        found: usize,
        /// Number of inputs that the group should have.
        expected: usize,
    },
}
