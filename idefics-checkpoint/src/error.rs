use std::path::PathBuf;

use safetensors::Dtype;

use crate::StoredWeightError;
use crate::files::{UnexpectedFile, describe_io_error};
use crate::gguf::GgufError;
use crate::pickle::PickleError;

/// Why a checkpoint cannot be opened, loaded or written. Every message names the file or tensor and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder has no weights in a supported layout.
    #[error(
        "{}: no weights found; expected model.safetensors, or model.safetensors.index.json and its shards",
        folder.display()
    )]
    NotFound {
        /// Path of the model folder.
        folder: PathBuf,
    },
    /// A PyTorch file was rejected. The [`PickleError`] names the file and the reason.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// A GGUF file was rejected. The [`GgufError`] names the file and the reason.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The folder has only PyTorch files, and these are not allowed.
    #[error(
        "{}: PyTorch pickles are not read by default; allow them with --allow-pickle (nothing in them is executed), or \
         convert them once with PyTorch: \
         safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")",
        path.display()
    )]
    PickleRefused {
        /// Path of the PyTorch file, or of the index if there are several.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {}", path.display(), describe_io_error(source))]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The error reported by the system.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("{}: cannot be written: {}; an existing file is unchanged", path.display(), describe_io_error(source))]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The error reported by the system.
        source: std::io::Error,
    },
    /// A file was written, but may be lost in a power failure.
    #[error(
        "{}: was written, but its folder cannot be synced to disk: {}; a power failure may lose the file",
        path.display(), describe_io_error(source)
    )]
    Sync {
        /// Path of the file.
        path: PathBuf,
        /// The error reported by the system.
        source: std::io::Error,
    },
    /// A directory, pipe or device was found where a file was expected.
    #[error("{}: is not a regular file", path.display())]
    NotAFile {
        /// The path of the directory, pipe or device.
        path: PathBuf,
    },
    /// A file that should hold weights or their index is of a different kind.
    #[error("{}: {found}", path.display())]
    UnexpectedFile {
        /// Path of the file.
        path: PathBuf,
        /// The kind of file that was found.
        found: UnexpectedFile,
    },
    /// The file is too short, most often because a download was interrupted.
    #[error(
        "{}: truncated: it must have at least {expected} bytes to hold {what}, but has {found}; download it again",
        path.display()
    )]
    Truncated {
        /// Path of the file.
        path: PathBuf,
        /// The part of the file that is incomplete.
        what: String,
        /// Minimum size of a complete file, in bytes.
        expected: u64,
        /// Size of the file, in bytes.
        found: u64,
    },
    /// The header is longer than the limit.
    #[error("{}: the header claims to be {claimed} bytes long; at most {limit} are allowed", path.display())]
    HeaderLength {
        /// Path of the file.
        path: PathBuf,
        /// Header length according to the file, in bytes.
        claimed: u64,
        /// Maximum header length, in bytes.
        limit: u64,
    },
    /// The header violates the safetensors format.
    #[error("{}: not a safetensors file: {reason}", path.display())]
    Header {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with the header.
        reason: String,
    },
    /// Two tensors in a file have the same name.
    #[error("{}: tensor `{name}` occurs twice", path.display())]
    Duplicate {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
    },
    /// The shard index is malformed or has too many shards.
    #[error("{}: not a shard index: {reason}", path.display())]
    Index {
        /// Path of the index file.
        path: PathBuf,
        /// What is wrong with the index.
        reason: String,
    },
    /// A shard name in the index is not a plain file name.
    #[error(
        "{}: shard {shard:?} of tensor `{name}` is not a plain file name; shards must be files in the model folder",
        path.display()
    )]
    ShardName {
        /// Path of the index file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// The shard name in the index.
        shard: String,
    },
    /// Shards named in the index do not exist.
    #[error("{}: shards missing from the folder: {}; download them again", path.display(), list(names))]
    ShardMissing {
        /// Path of the index file.
        path: PathBuf,
        /// Names of the missing shards.
        names: Vec<String>,
    },
    /// The checkpoint lacks tensors that the model needs.
    #[error("{}: {} tensors are missing: {}", folder.display(), names.len(), list(names))]
    Missing {
        /// Path of the model folder.
        folder: PathBuf,
        /// Names of the missing tensors.
        names: Vec<String>,
    },
    /// All tensor names have a prefix, because the model was saved inside a wrapper module.
    #[error(
        "{}: the tensor names have the extra prefix `{prefix}`, as in `{prefix}{name}`; {}",
        folder.display(), prefix_remedy(prefix)
    )]
    Prefixed {
        /// Path of the model folder.
        folder: PathBuf,
        /// The extra prefix.
        prefix: String,
        /// Name of a tensor that the model needs, without the prefix.
        name: String,
    },
    /// A tensor's shape contradicts `config.json`.
    #[error("{file}: tensor `{name}` has shape {found:?}, but the configuration requires {expected:?}")]
    Shape {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the tensor.
        name: String,
        /// Shape according to the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A weight is stored in an unsupported element type.
    #[error("{file}: tensor `{name}` is {found:?}; expected F32, F16 or BF16")]
    Dtype {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the tensor.
        name: String,
        /// Element type in the file.
        found: Dtype,
    },
    /// A weight has values that are NaN, infinite, or too large for the requested dtype.
    #[error("{file}: tensor `{name}` has {count} values that are not finite in {dtype}, the first at index {first}")]
    NonFinite {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the tensor.
        name: String,
        /// The dtype that the tensor was converted to.
        dtype: String,
        /// Number of values that are not finite.
        count: usize,
        /// Flat index of the first value that is not finite.
        first: usize,
    },
    /// A quantised weight is invalid, or a weight cannot be quantised.
    #[error("{file}: tensor `{name}`: {source}")]
    Quantized {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the weight.
        name: String,
        /// What is wrong with the weight.
        source: Box<StoredWeightError>,
    },
    /// A setting of the quantisation method is not supported.
    #[error(
        "{}: {field} is {found}; expected {expected}; use the original checkpoint with --quantize instead", path.display()
    )]
    Packing {
        /// The file with the settings.
        path: PathBuf,
        /// Name of the setting.
        field: String,
        /// Value of the setting, as JSON.
        found: String,
        /// The supported values.
        expected: &'static str,
    },
    /// Weights are packed, but no configuration file says how.
    #[error(
        "{file}: tensor `{name}` holds packed codes, but config.json has no quantization_config for them, and there is no \
         quantize_config.json; download the configuration files again"
    )]
    PackingUnknown {
        /// Name of the file in the model folder.
        file: String,
        /// Name of a tensor with codes.
        name: String,
    },
    /// A tensor is quantised, but it is not the weight of a linear layer.
    #[error("{file}: tensor `{name}` is stored as {found}, but only weights of linear layers can be quantised")]
    NotLinear {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the tensor.
        name: String,
        /// The format that the tensor is stored in.
        found: &'static str,
    },
    /// A weight is already quantised, but not to the requested format.
    #[error(
        "{file}: tensor `{name}` is already quantised to {found} and cannot become {asked}; omit --quantize, or \
         use the original checkpoint"
    )]
    AlreadyQuantized {
        /// Name of the file in the model folder.
        file: String,
        /// Name of the weight.
        name: String,
        /// The format that the weight is stored in.
        found: &'static str,
        /// The requested format.
        asked: &'static str,
    },
}

/// Returns advice on how to remove a prefix from the tensor names.
fn prefix_remedy(prefix: &str) -> String {
    if prefix.starts_with("base_model.") {
        return "save the model that PEFT wraps: model.merge_and_unload().save_pretrained(FOLDER)".to_owned();
    }
    format!(
        "save the model itself instead of its wrapper, or rename the tensors of each file once with Python: \
         from safetensors.torch import load_file, save_file; save_file({{k.removeprefix(\"{prefix}\"): v for k, v in \
         load_file(FILE).items()}}, FILE, {{\"format\": \"pt\"}})"
    )
}

/// Lists the first 8 names, and says how many more there are.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
