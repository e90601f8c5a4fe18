use std::path::PathBuf;

use safetensors::Dtype;

use crate::StoredError;
use crate::files::{OtherFile, io_words};
use crate::gguf::GgufError;
use crate::pickle::PickleError;

/// Why a checkpoint cannot be opened or loaded. Each message names the file or tensor and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder holds no weights in a layout that is read.
    #[error(
        "{}: no weights: expected model.safetensors, or model.safetensors.index.json with its shards",
        folder.display()
    )]
    NotFound {
        /// The model folder.
        folder: PathBuf,
    },
    /// A PyTorch file that was refused; its message names the file.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// A GGUF file that was refused; its message names the file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// There are only PyTorch files, and they were not allowed.
    #[error(
        "{}: PyTorch pickles are read only if allowed (--allow-pickle; nothing in them is run); or convert it once with \
         PyTorch: safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")",
        path.display()
    )]
    PickleRefused {
        /// The file, or the index of several.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{}: cannot be read: {}", path.display(), io_words(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file system refused to write.
    #[error("{}: cannot be written: {}; what was there before is untouched", path.display(), io_words(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A directory, pipe or device where a file was expected.
    #[error("{}: is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file of another kind lies in the place of weights or of their index.
    #[error("{}: {found}", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: OtherFile,
    },
    /// The file ends too early: most often an interrupted download.
    #[error(
        "{}: truncated: {what} needs {expected} bytes, the file has {found}; download it again", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What the missing bytes belong to.
        what: String,
        /// Bytes that the file needs.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The header's own length is out of bounds.
    #[error("{}: the header claims {claimed} bytes, at most {limit} are accepted", path.display())]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// Bytes claimed.
        claimed: u64,
        /// Bytes accepted.
        limit: u64,
    },
    /// The header is not what the format says.
    #[error("{}: not a safetensors file: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two tensors of one name in a file.
    #[error("{}: tensor `{name}` is there twice", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The shard index is not what the format says.
    #[error("{}: not a shard index: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A shard name that is not a plain file name.
    #[error(
        "{}: tensor `{name}` is in shard {shard:?}, which is not a plain file name; only files of the model folder are read",
        path.display()
    )]
    ShardName {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the index says.
        shard: String,
    },
    /// Shards that the index names are not there.
    #[error("{}: shards missing from the folder: {}; download them again", path.display(), list(names))]
    ShardMissing {
        /// The index file.
        path: PathBuf,
        /// The shards.
        names: Vec<String>,
    },
    /// Tensors that the model needs are not in the checkpoint.
    #[error("{}: {} tensors are missing: {}", folder.display(), names.len(), list(names))]
    Missing {
        /// The model folder.
        folder: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// The tensors are there under longer names: those of a module that the model was wrapped into.
    #[error(
        "{}: the model's tensors have the prefix `{prefix}` before their names, as in `{prefix}{name}`; {}",
        folder.display(), unwrapped(prefix)
    )]
    Prefixed {
        /// The model folder.
        folder: PathBuf,
        /// What stands before the names.
        prefix: String,
        /// A tensor that the model needs.
        name: String,
    },
    /// A tensor's shape is not what `config.json` implies.
    #[error("{file}: tensor `{name}` has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type cannot be a weight.
    #[error("{file}: tensor `{name}` is {found:?}, expected F32, F16 or BF16")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Type in the file.
        found: Dtype,
    },
    /// NaN or infinity among the weights, or a weight too large for the dtype that was asked for.
    #[error("{file}: tensor `{name}` has {count} values that are not finite as {dtype}, the first at index {first}")]
    NonFinite {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The dtype it was loaded to.
        dtype: String,
        /// How many.
        count: usize,
        /// Flat index of the first.
        first: usize,
    },
    /// A quantised weight that cannot be what it says, or a weight that cannot be quantised.
    #[error("{file}: tensor `{name}`: {source}")]
    Quantized {
        /// The file.
        file: String,
        /// The weight.
        name: String,
        /// What is wrong.
        source: Box<StoredError>,
    },
    /// A tensor that the file has quantised, though the model does not multiply with it.
    #[error("{file}: tensor `{name}` is {found}: only the weights of linear layers can be")]
    NotLinear {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its format.
        found: &'static str,
    },
    /// A weight that the file has in another format than the one to quantise to.
    #[error(
        "{file}: tensor `{name}` is {found} already and cannot become {asked}: leave out --quantize, or start from the original checkpoint"
    )]
    AlreadyQuantized {
        /// The file.
        file: String,
        /// The weight.
        name: String,
        /// Its format.
        found: &'static str,
        /// The format that was asked for.
        asked: &'static str,
    },
}

/// How names lose a prefix.
fn unwrapped(prefix: &str) -> String {
    if prefix.starts_with("base_model.") {
        return "save the model that PEFT wraps: model.merge_and_unload().save_pretrained(FOLDER)".to_owned();
    }
    format!(
        "save the model itself and not what wraps it, or rename them once in each file with Python: \
         from safetensors.torch import load_file, save_file; save_file({{k.removeprefix(\"{prefix}\"): v for k, v in \
         load_file(FILE).items()}}, FILE, {{\"format\": \"pt\"}})"
    )
}

/// The first few names, and how many more there are.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
