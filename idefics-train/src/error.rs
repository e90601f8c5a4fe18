use std::path::PathBuf;

use idefics_checkpoint::CheckpointError;
use idefics_generate::{ErrorKind, InputError};
use idefics_processor::io_words;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Tokens and images that do not fit the model.
    #[error("step {step}: {source}")]
    Input {
        /// The step, from 0.
        step: u64,
        /// What does not fit.
        source: InputError,
    },
    /// Loss or gradients stayed non-finite.
    #[error(
        "step {step}: loss or gradients were not finite in {skipped} steps in a row; the last checkpoint is as it \
         was, train anew with a lower learning rate"
    )]
    NonFinite {
        /// The step, from 0.
        step: u64,
        /// Steps in a row that were skipped.
        skipped: u32,
    },
    /// No label counts in a whole step.
    #[error("step {step}: no label counts, there is nothing to learn")]
    NoLabels {
        /// The step, from 0.
        step: u64,
    },
    /// A checkpoint's weights cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file system refused.
    #[error("{}: {}; checkpoints that were complete before are untouched", path.display(), io_words(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of a checkpoint is not what was written.
    #[error("{}: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint belongs to another run.
    #[error("{}: made with another `{field}`; train in another folder, or with the same settings", path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The setting that differs.
        field: String,
    },
    /// The threads could not be started.
    #[error("the worker threads could not be started: {reason}")]
    Threads {
        /// Why.
        reason: String,
    },
}

impl TrainError {
    /// Who is at fault.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Input { .. } | Self::NoLabels { .. } => ErrorKind::Input,
            Self::NonFinite { .. } | Self::Checkpoint(CheckpointError::NonFinite { .. }) => ErrorKind::Numeric,
            Self::Io { .. } | Self::Checkpoint(CheckpointError::Write { .. } | CheckpointError::Io { .. }) => {
                ErrorKind::FileSystem
            }
            Self::OtherRun { .. } => ErrorKind::Usage,
            Self::State { .. } | Self::Checkpoint(_) => ErrorKind::Model,
            Self::Threads { .. } => ErrorKind::Limit,
        }
    }
}
