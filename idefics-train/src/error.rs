use std::path::PathBuf;

use idefics_checkpoint::CheckpointError;
use idefics_generate::{ErrorKind, InputError};
use idefics_processor::describe_io_error;

/// A micro-batch that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Tokens or images do not fit the model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A text does not have one label per token.
    #[error(
        "text {text} has {tokens} tokens and {labels} labels; give every token a label; use -100 for tokens that are \
         only input"
    )]
    TextLabels {
        /// Index of the text among all texts of the batch, from 0.
        text: usize,
        /// Number of tokens in the text.
        tokens: usize,
        /// Number of labels of the text.
        labels: usize,
    },
    /// The batch does not have one label per slot.
    #[error(
        "the batch has {slots} slots and {labels} labels; give every slot a label; padding and input have the label \
         -100"
    )]
    LabelCount {
        /// Number of rows times number of slots in a row.
        slots: usize,
        /// Number of labels.
        labels: usize,
    },
    /// The batch does not have one parent per slot.
    #[error(
        "the batch has {slots} slots and {parents} parents; give every slot a parent; the first slot of \
         a text has the parent `None`"
    )]
    ParentCount {
        /// Number of rows times number of slots in a row.
        slots: usize,
        /// Number of parents.
        parents: usize,
    },
    /// The parent of a slot does not precede the slot.
    #[error("row {row}, slot {slot}: the parent is slot {parent}, but must be an earlier slot of the same row")]
    Parent {
        /// Row of the batch, from 0.
        row: usize,
        /// Slot in the row, from 0.
        slot: usize,
        /// Parent of the slot.
        parent: usize,
    },
    /// A row is padded on the left in a batch of rows that branch (whose texts share a prefix).
    #[error(
        "row {row}: a row that branches is padded on the left; pad it on the right, with tokens whose label is -100"
    )]
    LeftPadding {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// A label is not a token id.
    #[error(
        "row {row}, slot {slot}: label {label} is neither -100 nor a token id below the model's vocabulary size \
         {vocab_size}"
    )]
    Label {
        /// Row of the batch, from 0.
        row: usize,
        /// Slot in the row, from 0.
        slot: usize,
        /// The label.
        label: i64,
        /// Vocabulary size of the model, the number of logits per token.
        vocab_size: usize,
    },
}

/// An error that stops training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A micro-batch cannot be used.
    #[error("step {step}: {source}")]
    Input {
        /// The step, counted from 0.
        step: u64,
        /// What is wrong with the micro-batch.
        source: BatchError,
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
    #[error(
        "{}: belongs to a run with a different `{field}`; use another folder, or the settings of that run",
        path.display()
    )]
    OtherRun {
        /// Path of the file.
        path: PathBuf,
        /// The setting that differs.
        field: String,
    },
    /// A parameter of the module is on a device without autodiff, where it would not be trained.
    #[error("`{parameter}` is on a device without autodiff; build or load the module on `device.autodiff()`")]
    Device {
        /// Name of the first such parameter.
        parameter: String,
    },
    /// The worker threads could not be started.
    #[error("the worker threads could not be started: {reason}")]
    Threads {
        /// The error of the thread pool.
        reason: String,
    },
}

impl TrainError {
    /// Returns the category of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Input { .. } | Self::NoLabels { .. } => ErrorKind::Input,
            Self::NonFinite { .. } | Self::Checkpoint(CheckpointError::NonFinite { .. }) => ErrorKind::Numeric,
            Self::Io { .. }
            | Self::Checkpoint(
                CheckpointError::Write { .. } | CheckpointError::Sync { .. } | CheckpointError::Io { .. },
            ) => ErrorKind::FileSystem,
            Self::OtherRun { .. } | Self::Device { .. } => ErrorKind::Usage,
            Self::State { .. } | Self::Checkpoint(_) => ErrorKind::Model,
            Self::Threads { .. } => ErrorKind::Limit,
        }
    }
}
