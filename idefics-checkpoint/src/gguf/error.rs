use std::path::{Path, PathBuf};

/// The error for an invalid or unsupported GGUF file. The message names the file and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct GgufError {
    /// Path of the file, or of the folder if several files are at fault.
    pub path: PathBuf,
    /// What is wrong with the file.
    pub fault: GgufFault,
}

impl GgufError {
    pub(super) fn new(path: &Path, fault: GgufFault) -> Self {
        Self { path: path.to_owned(), fault }
    }
}

/// What is wrong with a GGUF file. Offsets are bytes from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// The file is not a GGUF file.
    #[error("not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"; download it again")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The version is not supported.
    #[error("GGUF version {found} is not supported; expected 2 or 3; convert the model again with a current llama.cpp")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// The file is big-endian.
    #[error("the GGUF file is big-endian; expected little-endian; convert the model again without --bigendian")]
    BigEndian,
    /// The file ends too early.
    #[error(
        "truncated GGUF: {what} at byte {offset} needs {needed} bytes, but only {left} are left; download it again"
    )]
    Truncated {
        /// The part of the file that is incomplete.
        what: String,
        /// Offset of the first byte of this part.
        offset: u64,
        /// Minimum number of bytes that this part needs.
        needed: u64,
        /// Number of bytes from `offset` to the end of the file.
        left: u64,
    },
    /// A value is not allowed by the format, or exceeds a limit.
    #[error("damaged GGUF: {what} at byte {offset} is {found}; expected {expected}; download it again")]
    Value {
        /// The field that has the value.
        what: String,
        /// Offset of the field.
        offset: u64,
        /// The value.
        found: String,
        /// The allowed values.
        expected: String,
    },
    /// Two keys or two tensors have the same name.
    #[error("damaged GGUF: {what} `{name}` at byte {offset} occurs twice")]
    Duplicate {
        /// `key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
        /// Offset of the second key, or of the description of the second tensor.
        offset: u64,
    },
    /// Two tensors overlap.
    #[error("damaged GGUF: tensors `{first}` and `{second}` overlap at byte {offset}")]
    Overlap {
        /// Name of the tensor that begins first.
        first: String,
        /// Name of the other tensor.
        second: String,
        /// Offset of the other tensor.
        offset: u64,
    },
    /// The type of a tensor is not supported.
    #[error(
        "GGUF tensor `{name}` (byte {offset}) has type {found}; expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or \
         Q2_K to Q6_K; download the model in another quantisation, such as Q8_0 or Q4_K_M"
    )]
    TensorType {
        /// Name of the tensor.
        name: String,
        /// Offset of the tensor's description.
        offset: u64,
        /// Name of the type, or its number if the name is unknown.
        found: String,
    },
    /// A required key is missing from the metadata.
    #[error("the GGUF metadata has no `{key}`; expected {expected}")]
    MissingKey {
        /// The key.
        key: String,
        /// The expected value.
        expected: &'static str,
    },
    /// A value of the metadata is not supported.
    #[error("`{key}` of the GGUF metadata is {found}; expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// The value of the key.
        found: String,
        /// The supported values.
        expected: String,
    },
    /// A tensor is unknown, or does not match the metadata.
    #[error("GGUF tensor `{name}`: {reason}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with the tensor.
        reason: String,
    },
    /// The model cannot be stored in GGUF files.
    #[error("the model cannot be written as GGUF: {reason}")]
    Export {
        /// Why the model cannot be stored.
        reason: String,
    },
    /// The files do not belong together, or one is missing.
    #[error("GGUF: {reason}")]
    Files {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Cuts text from a file after 80 characters, for use in a message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
