//! Warnings about a checkpoint that can still be used.

use std::path::PathBuf;

use crate::error::list;

/// A problem that does not prevent the use of a checkpoint; see [`Checkpoint::warnings`](crate::Checkpoint::warnings).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointWarning {
    /// The index names tensors that are in no shard. Loading fails if the model needs one of them.
    #[error(
        "{}: {} of the tensors in the index are in no shard: {}; download the shards again if loading fails",
        path.display(), names.len(), list(names)
    )]
    NotInShards {
        /// Path of the index file.
        path: PathBuf,
        /// Names of the missing tensors.
        names: Vec<String>,
    },
    /// The files have tensors that the model does not use.
    #[error(
        "{}: {} tensors are not part of the model and are ignored: {}; check that config.json belongs to this checkpoint",
        folder.display(), names.len(), list(names)
    )]
    Unused {
        /// Path of the model folder.
        folder: PathBuf,
        /// Names of the unused tensors.
        names: Vec<String>,
    },
    /// The epsilon in a GGUF vision tower differs from that of all public models, which is used instead: converters
    /// write a default if the original configuration has no epsilon.
    #[error(
        "{}: the epsilon of the vision tower is {found}; 1e-6 is used instead, the value of all public models",
        path.display()
    )]
    GgufEpsilon {
        /// The file.
        path: PathBuf,
        /// The epsilon in the file.
        found: String,
    },
}
