//! Warnings about a checkpoint.

use std::path::PathBuf;

use crate::error::list;

/// Something wrong with a checkpoint that can be used all the same; see [`Checkpoint::warnings`](crate::Checkpoint::warnings).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointWarning {
    /// The index names tensors that no shard holds. What the model needs of them is missed when it is loaded.
    #[error(
        "{}: no shard has {} of the tensors that the index names: {}; download the shards again if loading fails",
        path.display(), names.len(), list(names)
    )]
    NotInShards {
        /// The index file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// The files hold tensors that no part of the model takes.
    #[error(
        "{}: {} tensors belong to no part of the model and are not used: {}; check that config.json is of this checkpoint",
        folder.display(), names.len(), list(names)
    )]
    Unused {
        /// The model folder.
        folder: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// A vision tower in GGUF names another epsilon than all public models of the family have, which is taken: a converter
    /// writes it where the original configuration has none.
    #[error("{}: the epsilon of the vision tower is {found}; taken is 1e-6, as all public models have it", path.display())]
    GgufEpsilon {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: String,
    },
}
