use std::path::{Path, PathBuf};

/// An invalid or unsupported GGUF file. The message names the file and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct GgufError {
    /// The file, or the folder if several files are at fault.
    pub path: PathBuf,
    /// What is wrong with it.
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
        /// The version.
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
        /// What the missing bytes belong to.
        what: String,
        /// Offset of its first byte.
        offset: u64,
        /// Minimum number of bytes that it needs.
        needed: u64,
        /// Number of bytes from there to the end of the file.
        left: u64,
    },
    /// The format does not allow a value, or it exceeds a limit.
    #[error("damaged GGUF: {what} at byte {offset} is {found}; expected {expected}; download it again")]
    Value {
        /// The field.
        what: String,
        /// Where it lies.
        offset: u64,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Two keys or two tensors of one name.
    #[error("damaged GGUF: {what} `{name}` at byte {offset} occurs twice")]
    Duplicate {
        /// A key, or a tensor.
        what: &'static str,
        /// The name.
        name: String,
        /// Where the second one is described.
        offset: u64,
    },
    /// Two tensors overlap.
    #[error("damaged GGUF: tensors `{first}` and `{second}` overlap at byte {offset}")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The other tensor.
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
        /// The tensor.
        name: String,
        /// Where it is described.
        offset: u64,
        /// The type's name, or its number.
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
    /// A value of the metadata is valid, but not supported.
    #[error("`{key}` of the GGUF metadata is {found}; expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// The supported values.
        expected: String,
    },
    /// A tensor is unknown, or does not match the metadata.
    #[error("GGUF tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A model that GGUF files cannot hold.
    #[error("the model cannot be written as GGUF: {reason}")]
    Export {
        /// Why.
        reason: String,
    },
    /// The files do not belong together, or one is missing.
    #[error("GGUF: {reason}")]
    Files {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Text of a file for a message, cut after 80 characters.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
