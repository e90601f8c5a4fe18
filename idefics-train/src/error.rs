use std::path::PathBuf;

use idefics_checkpoint::CheckpointError;
use idefics_generate::{ErrorKind, InputError};
use idefics_processor::describe_io_error;

/// An error that stops training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The tokens or images of a batch do not fit the model.
    #[error("step {step}: {source}")]
    Input {
        /// The step, counted from 0.
        step: u64,
        /// What does not fit the model.
        source: InputError,
    },
    /// Loss or gradients were not finite in too many consecutive steps.
    #[error(
        "step {step}: loss or gradients were not finite in {skipped} consecutive steps; the last checkpoint is \
         unchanged; restart from the beginning with a lower learning rate"
    )]
    NonFinite {
        /// The step, counted from 0.
        step: u64,
        /// Number of consecutive steps that were skipped.
        skipped: u32,
    },
    /// All labels of a step are ignored.
    #[error("step {step}: all labels are ignored, so there is nothing to learn; check the labels of the data")]
    NoLabels {
        /// The step, counted from 0.
        step: u64,
    },
    /// The weights of a checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file or folder cannot be written or read.
    #[error("{}: {}; earlier checkpoints are unchanged", path.display(), describe_io_error(source))]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// The error reported by the system.
        source: std::io::Error,
    },
    /// A file of a checkpoint is damaged.
    #[error("{}: {reason}", path.display())]
    State {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint belongs to another run.
    #[error("{}: the run has a different `{field}`; use another folder or the same settings", path.display())]
    OtherRun {
        /// Path of the file.
        path: PathBuf,
        /// The setting that differs.
        field: String,
    },
    /// The worker threads could not be started.
    #[error("the worker threads could not be started: {reason}")]
    Threads {
        /// The error of the thread pool.
        reason: String,
    },
}

impl TrainError {
    /// The category of the error.
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
