//! What is odd about a checkpoint that can be used.

use std::path::PathBuf;

use super::error::list;

/// What is odd about a checkpoint that can be used; see [`Checkpoint::warnings`](super::Checkpoint::warnings).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointWarning {
    /// The index names tensors that no shard holds. What the model needs of them is missed when it is loaded.
    #[error("{}: no shard has {} of the tensors that the index names: {}", path.display(), names.len(), list(names))]
    NotInShards {
        /// The index file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// The files hold tensors that no part of the model takes.
    #[error(
        "{}: {} tensors belong to no part of the model and are not used: {}", folder.display(), names.len(), list(names)
    )]
    Unused {
        /// The model folder.
        folder: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
}
