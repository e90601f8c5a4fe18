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
    /// A GGUF vision tower has a different layer norm epsilon than all public models. The public value is used instead,
    /// because converters write a default if the original configuration has no epsilon.
    #[error(
        "{}: the layer norm epsilon of the vision tower is {found}; all public models have 1e-6, which is used instead",
        path.display()
    )]
    GgufEpsilon {
        /// Path of the GGUF file of the vision tower.
        path: PathBuf,
        /// The epsilon in the file.
        found: String,
    },
}
