use std::path::PathBuf;

use idefics_checkpoint::CheckpointError;
use idefics_nn::ConfigError;
use idefics_processor::{ProcessorError, describe_io_error};

use crate::device::DeviceError;
use crate::engine::EngineError;
use crate::generation_config::GenerationError;
use crate::inputs::InputError;
use crate::placement::PlacementError;

/// An error from loading or running a model. The message is one line that says what is wrong and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("{}: cannot be read: {}", path.display(), describe_io_error(source))]
    Read {
        /// Path of the file that could not be read.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {}", path.display(), describe_io_error(source))]
    Write {
        /// Path of the file that could not be written.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The path is neither a model folder nor a GGUF file.
    #[error(
        "{}: is not a model; expected a folder with config.json, tokenizer.json and model.safetensors, or a GGUF file",
        path.display()
    )]
    NoFolder {
        /// Path of the folder.
        path: PathBuf,
    },
    /// A folder without `config.json`.
    #[error(
        "{}: is not a model folder, because it has no config.json; a model folder has config.json, tokenizer.json and \
         model.safetensors (or model.safetensors.index.json with its shards), or a GGUF file",
        folder.display()
    )]
    NoConfig {
        /// Path of the folder.
        folder: PathBuf,
    },
    /// A folder with a PEFT adapter but no model.
    #[error(
        "{}: is a PEFT adapter of {base}, not a model; adapters cannot be loaded; merge it into its model with PEFT \
         (`merge_and_unload`, `save_pretrained`) and give the folder of the merged model",
        folder.display()
    )]
    Adapter {
        /// Path of the folder.
        folder: PathBuf,
        /// Name of the base model.
        base: String,
    },
    /// A Git LFS pointer instead of the actual file.
    #[error(
        "{}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again",
        path.display()
    )]
    GitLfsPointer {
        /// Path of the pointer.
        path: PathBuf,
    },
    /// A file of the model folder has the wrong content.
    #[error("{}: {reason}", path.display())]
    ModelFile {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A `model_type` that is not implemented.
    #[error("{}: `model_type` is {family:?}; supported: {supported}", path.display())]
    UnknownFamily {
        /// Path of the file.
        path: PathBuf,
        /// Value in the file.
        family: String,
        /// Supported values.
        supported: String,
    },
    /// A model of a different family than requested.
    #[error("{}: is not a model of the requested family; expected `model_type` {expected:?}", path.display())]
    OtherFamily {
        /// Path of the file.
        path: PathBuf,
        /// The `model_type` that was requested, or several joined by `or`.
        expected: String,
    },
    /// A device map was given for a model that cannot be split over devices.
    #[error(
        "{}: only models with `model_type` idefics can be split over devices; omit --device-map",
        folder.display()
    )]
    NotPlaceable {
        /// The model folder.
        folder: PathBuf,
    },
    /// An invalid placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// An invalid configuration value.
    #[error("{}: {source}", path.display())]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// The key and its value.
        source: ConfigError,
    },
    /// Invalid model dimensions.
    #[error(transparent)]
    Shape(#[from] ConfigError),
    /// The weights cannot be read, or do not match the configuration.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An error in tokenizer, template or preprocessor files, or in the sample itself.
    #[error(transparent)]
    Processor(ProcessorError),
    /// The processor and the model disagree about the number of tokens per image.
    #[error(
        "{}: the processor writes {image_seq_len} tokens per image (`image_seq_len`), but the model produces \
         {n_vectors} vectors per image; set `image_seq_len` in processor_config.json to {n_vectors}",
        folder.display()
    )]
    ImageTokens {
        /// The model folder.
        folder: PathBuf,
        /// Tokens per image that the processor writes.
        image_seq_len: usize,
        /// Vectors per image that the model produces.
        n_vectors: usize,
    },
    /// The tokenizer and the model disagree about the id of the image token.
    #[error(
        "{}: the tokenizer's `<image>` has the id {tokenizer_image_id}, but the model's `image_token_id` is \
         {image_token_id}; use the tokenizer of this checkpoint",
        folder.display()
    )]
    ImageToken {
        /// The model folder.
        folder: PathBuf,
        /// Id of the tokenizer's `<image>`.
        tokenizer_image_id: u32,
        /// Id that the model expects.
        image_token_id: u32,
    },
    /// The tokens or images of a prompt do not match the model or each other.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An invalid generation option in the model folder that the call does not override.
    #[error("{}: {source}; correct the file, or override the option in the call", path.display())]
    FolderOption {
        /// Path of the file.
        path: PathBuf,
        /// The option and its value.
        source: GenerationError,
    },
    /// Invalid generation options.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device failed while computing.
    #[error("the device failed: {reason}")]
    Execution {
        /// Burn's error message.
        reason: String,
    },
    /// The model computed NaN or infinity.
    #[error("row {row}: the logits are not finite after {n_tokens} tokens; load the model with --dtype f32")]
    NonFinite {
        /// Row of the batch, from 0.
        row: usize,
        /// Number of tokens generated so far.
        n_tokens: usize,
    },
    /// Every token is forbidden.
    #[error("row {row}: the generation options, with the grammar if there is one, forbid every token; relax them")]
    NoAllowedToken {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// The grammar of the answer reached a limit.
    #[error(
        "row {row}: after {n_tokens} tokens, the grammar needs more memory or time for the next token than is allowed; \
         simplify it"
    )]
    GrammarLimit {
        /// Row of the batch, from 0.
        row: usize,
        /// Number of tokens generated so far.
        n_tokens: usize,
    },
    /// A grammar that is rejected.
    #[cfg(feature = "grammar")]
    #[error(transparent)]
    Grammar(#[from] crate::GrammarError),
    /// There are no labels to rank, or a label is empty.
    #[error("there are no labels, or a label is empty; give at least one label with text")]
    NoLabels,
    /// A label is given twice. Each copy would get half of the label's probability.
    #[error("the label {label:?} is given twice")]
    SameLabel {
        /// The label.
        label: String,
    },
    /// [`CancelToken::cancel`](crate::CancelToken::cancel) stopped an operation that has no partial result.
    #[error("cancelled")]
    Cancelled,
    /// No text was generated within the timeout.
    #[error("no text was generated for {seconds} seconds")]
    Timeout {
        /// The timeout in seconds.
        seconds: f64,
    },
    /// The thread that generates an answer panicked.
    #[error("this is a bug in idefics; please report it: the generating thread panicked")]
    Panic,
    /// The engine cannot be created, or cannot take a request.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread could not be started.
    #[error("cannot start a thread for the generation: {}", describe_io_error(source))]
    Thread {
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A model could not be downloaded from the hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] idefics_hub::HubError),
}

/// The kind of an error. It determines the exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Options that are invalid, or that conflict with each other or with the model.
    Usage,
    /// An invalid image, prompt or sample.
    Input,
    /// An invalid model folder.
    Model,
    /// A file system error.
    FileSystem,
    /// A limit on size, memory or time was reached.
    Limit,
    /// A network error.
    Network,
    /// The model computed values that are not finite.
    Numeric,
    /// A device error.
    Device,
    /// The caller cancelled the operation.
    Cancelled,
    /// A bug in this program.
    Bug,
}

impl ErrorKind {
    /// Returns the exit code of a program that ends with an error of this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Input => 3,
            Self::Model => 4,
            Self::FileSystem => 5,
            Self::Limit => 6,
            Self::Network => 7,
            Self::Numeric => 8,
            Self::Bug => 70,
            Self::Device => 75,
            Self::Cancelled => 130,
        }
    }
}

/// Turns a cancellation during preprocessing into [`Error::Cancelled`], because the sample is not at fault.
impl From<ProcessorError> for Error {
    fn from(error: ProcessorError) -> Self {
        match error.kind() {
            idefics_processor::ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Processor(error),
        }
    }
}

impl Error {
    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::NoFolder { .. } => ErrorKind::FileSystem,
            Self::Checkpoint(
                CheckpointError::Io { .. }
                | CheckpointError::Write { .. }
                | CheckpointError::Sync { .. }
                | CheckpointError::NotAFile { .. },
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
            | Self::NoConfig { .. }
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
            #[cfg(feature = "grammar")]
            Self::Grammar(error) => match error.is_limit() {
                true => ErrorKind::Limit,
                false => ErrorKind::Usage,
            },
            Self::Engine(EngineError::Setting(_) | EngineError::SeveralDevices) => ErrorKind::Usage,
            Self::Engine(EngineError::Stopped) => ErrorKind::Device,
            Self::Engine(_) | Self::Timeout { .. } | Self::Thread { .. } | Self::GrammarLimit { .. } => {
                ErrorKind::Limit
            }
            Self::Device(_) | Self::NotPlaceable { .. } | Self::Placement(_) => ErrorKind::Usage,
            Self::Execution { .. } => ErrorKind::Device,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Panic => ErrorKind::Bug,
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
