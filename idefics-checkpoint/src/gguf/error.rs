use std::path::{Path, PathBuf};

/// Why a GGUF file was refused. The message names the file, and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct GgufError {
    /// The file, or the folder of several.
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
    /// The file is of another kind.
    #[error("not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"; download it again")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version that is not read.
    #[error("GGUF version {found}: versions 2 and 3 are read; convert the model again with a current llama.cpp")]
    Version {
        /// The version.
        found: u32,
    },
    /// A file for machines of the other byte order.
    #[error("a big-endian GGUF file: only little-endian ones are read; convert the model again without --bigendian")]
    BigEndian,
    /// The file ends too early.
    #[error("truncated GGUF: {what} at byte {offset} needs {needed} bytes, {left} are left; download it again")]
    Truncated {
        /// What the missing bytes belong to.
        what: String,
        /// Where it begins.
        offset: u64,
        /// Bytes that it needs, at least.
        needed: u64,
        /// Bytes of the file from there on.
        left: u64,
    },
    /// A value that the format does not allow, or that is beyond a limit.
    #[error("damaged GGUF: {what} at byte {offset} is {found}, expected {expected}; download it again")]
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
    #[error("damaged GGUF: {what} `{name}` at byte {offset} is there twice")]
    Duplicate {
        /// A key, or a tensor.
        what: &'static str,
        /// The name.
        name: String,
        /// Where the second one is described.
        offset: u64,
    },
    /// Two tensors that share bytes.
    #[error("damaged GGUF: tensors `{first}` and `{second}` overlap at byte {offset}")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
        /// Where the other begins.
        offset: u64,
    },
    /// A tensor type that is not read.
    #[error(
        "GGUF tensor `{name}` (byte {offset}) has type {found}, which is not read; take a file with F32, F16, BF16, Q8_0, \
         Q4_0, Q4_1, Q5_0, Q5_1 or Q2_K to Q6_K, such as Q8_0 or Q4_K_M"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// Where it is described.
        offset: u64,
        /// The type's name, or its number.
        found: String,
    },
    /// Metadata without which the file is no model.
    #[error("the GGUF metadata has no `{key}`, expected {expected}")]
    MissingKey {
        /// The key.
        key: String,
        /// What its value would be.
        expected: &'static str,
    },
    /// A value of the metadata that is well-formed and not read.
    #[error("`{key}` of the GGUF metadata is {found}, expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is read.
        expected: String,
    },
    /// A tensor that the model has no place for, or that is not what the metadata says.
    #[error("GGUF tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Files that do not make one model together.
    #[error("GGUF: {reason}")]
    Files {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Text of a file for a message, cut where it is long.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
