use std::path::PathBuf;

use idefics_checkpoint::CheckpointError;
use idefics_nn::ConfigError;
use idefics_processor::{ProcessorError, io_words};

use crate::device::DeviceError;
use crate::generation_config::GenerationError;
use crate::inputs::InputError;
use crate::placement::PlacementError;

/// Why a model could not be loaded or could not answer. The message is one line that names what is wrong and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("{}: cannot be read: {}", path.display(), io_words(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {}", path.display(), io_words(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The model folder is not there.
    #[error("{}: no such model; expected a folder with config.json, tokenizer.json and model.safetensors, or a GGUF file", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder with a PEFT adapter and no model.
    #[error(
        "{}: is a PEFT adapter of {base}, not a model, and adapters are not loaded yet; merge it into that model with PEFT \
         (`merge_and_unload`, `save_pretrained`) and give the folder of the result",
        folder.display()
    )]
    Adapter {
        /// The folder.
        folder: PathBuf,
        /// The model that it was trained on.
        base: String,
    },
    /// A Git LFS pointer lies in the place of a file.
    #[error(
        "{}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again",
        path.display()
    )]
    GitLfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file of the model folder is not what it should be.
    #[error("{}: {reason}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A `model_type` that is not implemented.
    #[error("{}: `model_type` is {family:?}, supported: {supported}", path.display())]
    UnknownFamily {
        /// The file.
        path: PathBuf,
        /// What it says.
        family: String,
        /// What is implemented.
        supported: String,
    },
    /// A model of another generation than was asked for.
    #[error("{}: `model_type` is of another generation than {expected:?}", path.display())]
    OtherFamily {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: &'static str,
    },
    /// A model whose parts all go to one device was to be spread over several.
    #[error(
        "{}: only the first Idefics (`model_type` idefics) is placed over several devices; leave --device-map out",
        folder.display()
    )]
    NotPlaceable {
        /// The model folder.
        folder: PathBuf,
    },
    /// What was asked of placement cannot be done.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A configuration value that describes no model.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key and value.
        source: ConfigError,
    },
    /// A shape that describes no model.
    #[error(transparent)]
    Shape(#[from] ConfigError),
    /// The weights are not what the configuration asks for.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Tokenizer, template or preprocessor files, or the sample itself.
    #[error(transparent)]
    Processor(ProcessorError),
    /// Processor and model disagree about the tokens of an image.
    #[error(
        "{}: the processor writes {image_seq_len} tokens an image (`image_seq_len`), the model makes {n_vectors} vectors \
         of one; set `image_seq_len` in processor_config.json to {n_vectors}",
        folder.display()
    )]
    ImageTokens {
        /// The model folder.
        folder: PathBuf,
        /// Tokens that the processor writes.
        image_seq_len: usize,
        /// Vectors that the model makes.
        n_vectors: usize,
    },
    /// Tokenizer and model disagree about the token of an image.
    #[error(
        "{}: the tokenizer's `<image>` is token {tokenizer_image_id}, the model takes {image_token_id} for an image \
         (`image_token_id`): images would be read as words; take the tokenizer of this checkpoint",
        folder.display()
    )]
    ImageToken {
        /// The model folder.
        folder: PathBuf,
        /// The tokenizer's `<image>`.
        tokenizer_image_id: u32,
        /// The model's.
        image_token_id: u32,
    },
    /// Tokens and images that do not fit the model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An option of the model folder that cannot be followed, of which the call says nothing.
    #[error("{}: {source}; correct it, or give another value with the call", path.display())]
    FolderOption {
        /// The file.
        path: PathBuf,
        /// The option and its value.
        source: GenerationError,
    },
    /// Generation options that cannot be followed.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device failed while computing.
    #[error("the device failed: {reason}")]
    Execution {
        /// Burn's answer.
        reason: String,
    },
    /// The model computed NaN or infinity.
    #[error("row {row}: the logits are not finite after {n_tokens} tokens; load the model with --dtype f32")]
    NonFinite {
        /// Row of the batch, from 0.
        row: usize,
        /// Tokens generated so far.
        n_tokens: usize,
    },
    /// Every token is forbidden.
    #[error("row {row}: the options forbid every token")]
    NoAllowedToken {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// Nothing to rank, or a label without words.
    #[error("no labels, or a label that is empty")]
    NoLabels,
    /// The same label twice: each would have half of the probability.
    #[error("the label {label:?} is there twice")]
    SameLabel {
        /// The label.
        label: String,
    },
    /// [`CancelToken::cancel`](crate::CancelToken::cancel) ended what has no result until it is done.
    #[error("cancelled")]
    Cancelled,
    /// Nothing came for as long as the caller would wait.
    #[error("no text came for {seconds} seconds")]
    Timeout {
        /// How long was waited.
        seconds: f64,
    },
    /// The system gives no thread.
    #[error("no thread to generate on: {}", io_words(source))]
    Thread {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The hub could not deliver a model.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] idefics_hub::HubError),
}

/// Who is at fault; the program's exit codes follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Options that contradict each other or the model.
    Usage,
    /// An image, prompt or sample.
    Input,
    /// The checkpoint folder.
    Model,
    /// The file system.
    FileSystem,
    /// A limit on size or memory.
    Limit,
    /// The network.
    Network,
    /// Non-finite numbers.
    Numeric,
    /// The device.
    Device,
    /// Nobody: the caller ended it.
    Cancelled,
}

impl ErrorKind {
    /// The exit code of a program that ends with such an error.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Input => 3,
            Self::Model => 4,
            Self::FileSystem => 5,
            Self::Limit => 6,
            Self::Network => 7,
            Self::Numeric => 8,
            Self::Device => 75,
            Self::Cancelled => 130,
        }
    }
}

/// An image that the caller stopped reading is no failure of the sample.
impl From<ProcessorError> for Error {
    fn from(error: ProcessorError) -> Self {
        match error.kind() {
            idefics_processor::ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Processor(error),
        }
    }
}

impl Error {
    /// Who is at fault.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::NoFolder { .. } => ErrorKind::FileSystem,
            Self::Checkpoint(
                CheckpointError::Io { .. } | CheckpointError::Write { .. } | CheckpointError::NotAFile { .. },
            ) => ErrorKind::FileSystem,
            Self::ModelFile { .. }
            | Self::UnknownFamily { .. }
            | Self::OtherFamily { .. }
            | Self::Config { .. }
            | Self::Shape(_)
            | Self::Checkpoint(_)
            | Self::ImageTokens { .. }
            | Self::ImageToken { .. }
            | Self::Adapter { .. }
            | Self::FolderOption { .. }
            | Self::GitLfsPointer { .. } => ErrorKind::Model,
            Self::Processor(error) => match error.kind() {
                idefics_processor::ErrorKind::FileSystem => ErrorKind::FileSystem,
                idefics_processor::ErrorKind::Model => ErrorKind::Model,
                idefics_processor::ErrorKind::Limit => ErrorKind::Limit,
                idefics_processor::ErrorKind::Network => ErrorKind::Network,
                _ => ErrorKind::Input,
            },
            Self::Input(_) => ErrorKind::Input,
            Self::Generation(GenerationError::Memory { .. }) => ErrorKind::Limit,
            Self::Generation(_) | Self::NoAllowedToken { .. } | Self::NoLabels | Self::SameLabel { .. } => {
                ErrorKind::Usage
            }
            Self::Timeout { .. } | Self::Thread { .. } => ErrorKind::Limit,
            Self::Device(_) | Self::NotPlaceable { .. } | Self::Placement(_) => ErrorKind::Usage,
            Self::Execution { .. } => ErrorKind::Device,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::NonFinite { .. } => ErrorKind::Numeric,
            #[cfg(feature = "hub")]
            Self::Hub(error) => match error.kind() {
                idefics_hub::HubErrorKind::FileSystem => ErrorKind::FileSystem,
                idefics_hub::HubErrorKind::NotFound | idefics_hub::HubErrorKind::Rejected => ErrorKind::Model,
                idefics_hub::HubErrorKind::Limit => ErrorKind::Limit,
                idefics_hub::HubErrorKind::Cancelled => ErrorKind::Cancelled,
                _ => ErrorKind::Network,
            },
        }
    }
}
