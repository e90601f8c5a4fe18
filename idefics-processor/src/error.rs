//! Errors from loading a checkpoint's processor and from processing samples.

use std::io;
use std::path::PathBuf;

use crate::files::{describe_io_error, describe_json_error};
use crate::image::{ImageConfigError, ImageErrorKind, PadError, TileError};
use crate::video::VideoError;

/// Category of a [`ProcessorError`], for exit codes and HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file system error: a missing folder, no permission, or not a regular file.
    FileSystem,
    /// The checkpoint's files are missing, malformed, inconsistent or malicious.
    Model,
    /// The sample is invalid.
    Input,
    /// The sample's text, or an encoded image, is larger than its limit.
    Limit,
    /// A remote image could not be fetched.
    Network,
    /// The caller cancelled the call.
    Cancelled,
}

/// An error from loading a processor or from processing a batch.
///
/// Rows, messages and images are counted from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file or folder could not be read.
    #[error("{}: cannot be read: {}", path.display(), describe_io_error(error))]
    Read {
        /// Path of the file or folder that could not be read.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        error: io::Error,
    },

    /// The path exists, but is not the kind of file or folder that was expected.
    #[error("{}: expected {expected}", path.display())]
    NotThere {
        /// The path that was checked.
        path: PathBuf,
        /// The kind of file or folder that was expected.
        expected: &'static str,
    },

    /// The checkpoint folder lacks a required file.
    #[error("{}: {file} is missing; download it into this folder", folder.display())]
    MissingFile {
        /// The checkpoint folder.
        folder: PathBuf,
        /// Name of the missing file.
        file: &'static str,
    },

    /// A file of the checkpoint exceeds its size limit, which no real checkpoint reaches.
    #[error("{}: the file has {bytes} bytes; at most {limit} are allowed", path.display())]
    FileTooLarge {
        /// Path of the file.
        path: PathBuf,
        /// File size, in bytes.
        bytes: u64,
        /// Largest accepted size, in bytes.
        limit: u64,
    },

    /// A file is a Git LFS pointer instead of the real content.
    #[error(
        "{}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again",
        path.display()
    )]
    GitLfsPointer {
        /// Path of the pointer file.
        path: PathBuf,
    },

    /// A file of the checkpoint is not valid JSON, or a value in it has the wrong type.
    #[error("{}: {}", path.display(), describe_json_error(error))]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// Error of the JSON parser, with line and column.
        #[source]
        error: serde_json::Error,
    },

    /// A file of the checkpoint is not UTF-8 text.
    #[error("{}: invalid UTF-8 at byte {offset}; expected UTF-8 text", path.display())]
    Encoding {
        /// Path of the file.
        path: PathBuf,
        /// Offset of the first byte that is not valid UTF-8.
        offset: usize,
    },

    /// A field of a checkpoint file has an invalid value.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    Field {
        /// Path of the file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// The value in the file, shortened.
        found: String,
        /// The values that are accepted.
        expected: String,
    },

    /// The image processor's configuration is invalid or not supported.
    #[error("{}: {error}", path.display())]
    ImageConfig {
        /// Path of the configuration file.
        path: PathBuf,
        /// The error in the configuration.
        #[source]
        error: ImageConfigError,
    },

    /// The checkpoint's model family is not supported.
    #[error("{}: `model_type` is {model_type:?}; supported: {supported}", path.display())]
    Family {
        /// Path of `config.json`.
        path: PathBuf,
        /// The `model_type` in the file, shortened.
        model_type: String,
        /// The supported `model_type` values, separated by commas.
        supported: String,
    },

    /// The `tokenizers` library could not build the tokenizer.
    #[error("{}: the tokenizer cannot be loaded: {error}", path.display())]
    Tokenizer {
        /// Path of `tokenizer.json`.
        path: PathBuf,
        /// Error of the library.
        #[source]
        error: tokenizers::Error,
    },

    /// The `tokenizers` library panicked. The panic was caught.
    #[error("{}: the tokenizer crashed while {doing}; the file is damaged or malicious", path.display())]
    TokenizerPanic {
        /// Path of `tokenizer.json`.
        path: PathBuf,
        /// The operation: `loading`, `encoding` or `decoding`.
        doing: &'static str,
    },

    /// The tokenizer lacks tokens that prompts need.
    #[error("{}: the tokenizer lacks {}; use the tokenizer of this checkpoint", path.display(), missing.join(", "))]
    MissingTokens {
        /// Path of `tokenizer.json`.
        path: PathBuf,
        /// All missing tokens, in backticks.
        missing: Vec<String>,
    },

    /// Two tokens that must differ share an id, or a token is too long.
    #[error("{}: token `{token}` (id {id}): {reason}", path.display())]
    TokenInvalid {
        /// Path of `tokenizer.json`.
        path: PathBuf,
        /// The token's content, shortened.
        token: String,
        /// The token's id.
        id: u32,
        /// Why the token is invalid.
        reason: &'static str,
    },

    /// The tokenizer could not encode or decode a text.
    #[error("the tokenizer failed: {error}")]
    Encode {
        /// Error of the `tokenizers` library.
        #[source]
        error: tokenizers::Error,
    },

    /// The sample has messages, but the checkpoint has no chat template.
    #[error(
        "row {row}: the checkpoint has no chat template (it is a base model); \
         instead of `messages`, give `text` with one <image> per image"
    )]
    NoChatTemplate {
        /// Row in the batch.
        row: usize,
    },

    /// The chat template could not be parsed.
    #[error("{}: the chat template cannot be parsed: {error}", path.display())]
    Template {
        /// Path of the file with the template.
        path: PathBuf,
        /// Error of the parser, with the line.
        #[source]
        error: idefics_template::Error,
    },

    /// The chat template failed to render the messages.
    #[error("row {row}: the chat template failed: {error}")]
    Render {
        /// Row in the batch.
        row: usize,
        /// Error of the template, with the line. It includes the message of a `raise_exception` call.
        #[source]
        error: idefics_template::Error,
    },

    /// The chat template exceeded a limit on steps, nesting depth or size.
    #[error("row {row}: the chat template exceeded its limit of {limit}; its loops or its output may never end")]
    TemplateLimit {
        /// Row in the batch.
        row: usize,
        /// The limit with its unit, such as `128 nested values`.
        limit: String,
    },

    /// The chat template did not write exactly one placeholder per image.
    #[error("row {row}: the chat template wrote {placeholders} image placeholders; expected {images}, one per image")]
    TemplateLossy {
        /// Row in the batch.
        row: usize,
        /// Number of images in the messages.
        images: usize,
        /// Number of placeholders in the rendered text.
        placeholders: usize,
    },

    /// The texts of a conversation have placeholders without images. They count because special tokens in texts are
    /// parsed ([`SpecialTokensInText::Parse`](crate::SpecialTokensInText::Parse)).
    #[error(
        "row {row}: the texts of the messages contain {typed}, for which there is no image; write image parts instead, \
         or treat special tokens in texts as ordinary text"
    )]
    PlaceholderInText {
        /// Row in the batch.
        row: usize,
        /// Number of placeholders in the texts, with their noun: `2 <image> placeholders`.
        typed: String,
    },

    /// The batch has no samples.
    #[error("the batch is empty; give at least one sample")]
    EmptyBatch,

    /// The conversation has no messages.
    #[error("row {row}: the conversation has no messages; give at least one")]
    EmptyMessages {
        /// Row in the batch.
        row: usize,
    },

    /// A role is not a plain word. Templates write roles between special tokens, so a role with other characters could
    /// imitate such a token.
    #[error(
        "row {row}, message {message}: invalid role {role:?}; a role must have 1 to 64 characters, \
         which may be letters, digits, `-`, `_` and `.`"
    )]
    Role {
        /// Row in the batch.
        row: usize,
        /// Index of the message.
        message: usize,
        /// The role, shortened.
        role: String,
    },

    /// The model has no chat template and cannot write a message part of this type.
    #[error(
        "row {row}, message {message}: the content has a part of type {kind:?}; this model has no chat template, so \
         only parts of type `text` and `image` are supported"
    )]
    PartType {
        /// Row in the batch.
        row: usize,
        /// Index of the message.
        message: usize,
        /// Type of the part, shortened.
        kind: String,
    },

    /// The number of entries in `images` differs from the number of image parts that have no image of their own.
    #[error(
        "row {row}: `images` has {images}, but `messages` has {parts} without an image; give one \
         {{\"type\": \"image\"}} part per image (an <image> inside a text counts only if special tokens in texts are \
         parsed)"
    )]
    ImageParts {
        /// Row in the batch.
        row: usize,
        /// Number of entries in [`Chat::images`](crate::Chat::images), with its noun: `2 images`.
        images: String,
        /// Number of image parts without an image of their own, with its noun: `1 image part`.
        parts: String,
    },

    /// The sample is an interleaved prompt list, which only IDEFICS v1 supports.
    #[error(
        "row {row}: `prompt` lists are only supported by IDEFICS v1 (`model_type` idefics); \
         use `messages`, or `text` with `images`"
    )]
    PromptList {
        /// Row in the batch.
        row: usize,
    },

    /// The model family does not support image splitting.
    #[error("do_image_splitting is not supported by IDEFICS v1 (`model_type` idefics); omit it")]
    NoSplitting,

    /// The option is only for families with [`PromptStyle::Interleaved`](crate::families::PromptStyle).
    #[error("{option} is only supported by IDEFICS v1 (`model_type` idefics); omit it")]
    InterleavedOption {
        /// Name of the option.
        option: &'static str,
    },

    /// The number of placeholders in the text differs from the number of images.
    #[error("row {row}: the text has {placeholders} {token} placeholders; expected {images}, one per image")]
    ImageCount {
        /// Row in the batch.
        row: usize,
        /// Number of placeholders in the text.
        placeholders: usize,
        /// Number of images in the sample.
        images: usize,
        /// Spelling of the placeholder.
        token: String,
    },

    /// Encoding changed the number of image tokens, because the tokenizer merged them with the text around them.
    #[error(
        "row {row}: the prompt has {expected} image tokens before encoding but {found} after it; \
         use the tokenizer of this checkpoint"
    )]
    ImageTokenCount {
        /// Row in the batch.
        row: usize,
        /// Number of image tokens in the text of the prompt.
        expected: usize,
        /// Number of image tokens among the encoded ids.
        found: usize,
    },

    /// A conversation contains the text of a special token, and
    /// [`SpecialTokensInText::Reject`](crate::SpecialTokensInText::Reject) is set.
    #[error("row {row}: `{variable}` contains the special token {token}; remove it from the text")]
    SpecialTokenInText {
        /// Row in the batch.
        row: usize,
        /// The template variable with the text: `messages`, `tools`, or another.
        variable: String,
        /// The special token.
        token: String,
    },

    /// The sample exceeds its [`TextLimits`](crate::TextLimits).
    #[error("row {row}: {found} {what}; at most {limit} are allowed")]
    TextTooLarge {
        /// Row in the batch.
        row: usize,
        /// What is counted, such as `images` or `bytes of text`.
        what: &'static str,
        /// The count in the sample.
        found: usize,
        /// The largest accepted count.
        limit: usize,
    },

    /// An image could not be loaded.
    #[error("row {row}, image {image}: {error}")]
    Image {
        /// Row in the batch.
        row: usize,
        /// Index of the image in the row.
        image: usize,
        /// Why the image could not be loaded.
        #[source]
        error: TileError,
    },

    /// The videos of a sample do not fit its text or the model.
    #[error("row {row}: {error}")]
    Videos {
        /// Row in the batch.
        row: usize,
        /// What is wrong.
        #[source]
        error: VideoError,
    },

    /// A video could not be read.
    #[error("row {row}, video {video}: {error}")]
    Video {
        /// Row in the batch.
        row: usize,
        /// Index of the video in the row.
        video: usize,
        /// Why the video could not be read.
        #[source]
        error: VideoError,
    },

    /// The checkpoint turns padding off (`do_pad`), but the images of the batch differ in size or number.
    #[error(transparent)]
    Pad(#[from] PadError),
}

impl ProcessorError {
    /// Returns the category of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } | Self::NotThere { .. } => ErrorKind::FileSystem,
            Self::MissingFile { .. }
            | Self::FileTooLarge { .. }
            | Self::GitLfsPointer { .. }
            | Self::Json { .. }
            | Self::Encoding { .. }
            | Self::Field { .. }
            | Self::ImageConfig { .. }
            | Self::Family { .. }
            | Self::Tokenizer { .. }
            | Self::TokenizerPanic { .. }
            | Self::MissingTokens { .. }
            | Self::TokenInvalid { .. }
            | Self::Encode { .. }
            | Self::NoChatTemplate { .. }
            | Self::Template { .. }
            | Self::Render { .. }
            | Self::TemplateLimit { .. }
            | Self::TemplateLossy { .. }
            | Self::ImageTokenCount { .. } => ErrorKind::Model,
            Self::EmptyBatch
            | Self::EmptyMessages { .. }
            | Self::Role { .. }
            | Self::PartType { .. }
            | Self::ImageParts { .. }
            | Self::PromptList { .. }
            | Self::NoSplitting
            | Self::InterleavedOption { .. }
            | Self::ImageCount { .. }
            | Self::PlaceholderInText { .. }
            | Self::SpecialTokenInText { .. }
            | Self::Pad(_) => ErrorKind::Input,
            Self::TextTooLarge { .. } => ErrorKind::Limit,
            Self::Image { error, .. } => tile_kind(error),
            Self::Videos { error, .. } | Self::Video { error, .. } => match error {
                VideoError::Frame(error) => tile_kind(error),
                VideoError::Read { .. } => ErrorKind::FileSystem,
                VideoError::TooManyFrames { .. } | VideoError::FolderTooLarge { .. } | VideoError::Timeout { .. } => {
                    ErrorKind::Limit
                }
                _ => ErrorKind::Input,
            },
        }
    }
}

fn tile_kind(error: &TileError) -> ErrorKind {
    match error {
        TileError::TooMany { .. } => ErrorKind::Limit,
        TileError::Image(error) => match error.kind() {
            ImageErrorKind::FileSystem => ErrorKind::FileSystem,
            ImageErrorKind::Cancelled => ErrorKind::Cancelled,
            ImageErrorKind::Limit => ErrorKind::Limit,
            ImageErrorKind::Network => ErrorKind::Network,
            _ => ErrorKind::Input,
        },
    }
}
