//! Why a checkpoint's processor could not be loaded, or a sample could not be turned into model inputs.

use std::io;
use std::path::PathBuf;

use crate::files::{io_words, json_words};
use crate::image::{ImageConfigError, ImageErrorKind, PadError, TileError};

/// Which kind of failure a [`ProcessorError`] is, for exit codes and HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system refused: missing folder, no permission, not a regular file.
    FileSystem,
    /// The checkpoint's own files are at fault: missing, malformed, inconsistent, or hostile.
    Model,
    /// The sample is at fault.
    Input,
    /// The sample has more text, or an image more encoded bytes, than a limit allows.
    Limit,
    /// A remote image could not be fetched.
    Network,
    /// The caller gave up.
    Cancelled,
}

/// Why a processor could not be loaded, or a batch could not be processed.
///
/// Rows, messages and images are counted from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// The file system did not hand over a file or folder.
    #[error("{}: cannot be read: {}", path.display(), io_words(error))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },

    /// A path that should be a file or folder is something else.
    #[error("{}: expected {expected}", path.display())]
    NotThere {
        /// The path.
        path: PathBuf,
        /// What should lie there.
        expected: &'static str,
    },

    /// A file without which there is no processor.
    #[error("{}: the checkpoint has no {file}; download it beside config.json", folder.display())]
    MissingFile {
        /// The checkpoint folder.
        folder: PathBuf,
        /// The file's name.
        file: &'static str,
    },

    /// A file of the checkpoint is larger than any real one.
    #[error("{}: {bytes} bytes; a file of this name may have at most {limit}", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
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

    /// A file of the checkpoint is not JSON, or not of the expected form.
    #[error("{}: {}", path.display(), json_words(error))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        error: serde_json::Error,
    },

    /// A file of the checkpoint is not UTF-8 text.
    #[error("{}: not UTF-8 text from byte {offset} on", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The first byte that is not UTF-8.
        offset: usize,
    },

    /// A field of a checkpoint file has a value that cannot be used.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },

    /// The image processor's configuration cannot be honored.
    #[error("{}: {error}", path.display())]
    ImageConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: ImageConfigError,
    },

    /// The checkpoint belongs to a family that this crate does not process.
    #[error("{}: `model_type` is `{model_type}`; this processor reads {supported}", path.display())]
    Family {
        /// The file.
        path: PathBuf,
        /// The family that it names.
        model_type: String,
        /// The families that are read.
        supported: String,
    },

    /// The tokenizers library refused the tokenizer.
    #[error("{}: not a usable tokenizer: {error}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the library said.
        #[source]
        error: tokenizers::Error,
    },

    /// The tokenizers library failed on an assertion of its own; the process goes on.
    #[error("{}: the tokenizer panicked while {doing}; the file is damaged or hostile", path.display())]
    TokenizerPanic {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },

    /// The tokenizer lacks tokens without which no prompt can be written.
    #[error("{}: the tokenizer lacks {}; it does not belong to this checkpoint", path.display(), missing.join(", "))]
    MissingTokens {
        /// The file.
        path: PathBuf,
        /// The tokens, all of them.
        missing: Vec<String>,
    },

    /// Two tokens that must differ share an id, or a token has no usable content.
    #[error("{}: token `{token}` (id {id}): {reason}", path.display())]
    TokenInvalid {
        /// The file.
        path: PathBuf,
        /// The token's content, shortened.
        token: String,
        /// Its id.
        id: u32,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The tokenizer could not encode or decode.
    #[error("the tokenizer failed: {error}")]
    Encode {
        /// What the library said.
        #[source]
        error: tokenizers::Error,
    },

    /// A sample with messages was given, and the checkpoint has no chat template.
    #[error(
        "row {row}: the checkpoint has no chat template (a base model); give `text` with one <image> for each image"
    )]
    NoChatTemplate {
        /// The row of the batch.
        row: usize,
    },

    /// The chat template does not parse.
    #[error("{}: the chat template does not parse: {error}", path.display())]
    Template {
        /// The file that holds it.
        path: PathBuf,
        /// Where and what.
        #[source]
        error: idefics_template::Error,
    },

    /// The chat template failed on these messages.
    #[error("row {row}: the chat template failed: {error}")]
    Render {
        /// The row of the batch.
        row: usize,
        /// Where and what; a template's own `raise_exception` message is in it.
        #[source]
        error: idefics_template::Error,
    },

    /// The chat template ran longer, deeper or larger than a chat template may.
    #[error("row {row}: the chat template exceeded its limit of {limit}; it loops or grows without end")]
    TemplateLimit {
        /// The row of the batch.
        row: usize,
        /// Which limit, with its figure.
        limit: String,
    },

    /// The chat template dropped or invented image placeholders.
    #[error("row {row}: the messages hold {images} images, and the chat template wrote {placeholders} placeholders")]
    TemplateLossy {
        /// The row of the batch.
        row: usize,
        /// Image parts in the messages.
        images: usize,
        /// Placeholders in the rendered text.
        placeholders: usize,
    },

    /// Nothing to process.
    #[error("the batch is empty; give at least one sample")]
    EmptyBatch,

    /// A conversation without messages.
    #[error("row {row}: the conversation has no messages")]
    EmptyMessages {
        /// The row of the batch.
        row: usize,
    },

    /// A role that is not a plain word.
    #[error(
        "row {row}, message {message}: the role {role:?} is not a word of at most 64 letters, digits, -, _ or .; \
         templates write roles among their own text, so they must not spell anything else"
    )]
    Role {
        /// The row of the batch.
        row: usize,
        /// The message.
        message: usize,
        /// The role, shortened.
        role: String,
    },

    /// A part that only a chat template could write, and there is none.
    #[error(
        "row {row}, message {message}: the content has a part of type {kind:?}; this model has no chat template, so \
         give parts of type `text` and `image`"
    )]
    PartType {
        /// The row of the batch.
        row: usize,
        /// The message.
        message: usize,
        /// The type of the part.
        kind: String,
    },

    /// Image parts without an image, or images without a part.
    #[error(
        "row {row}: {images} in `images` for {parts} without a picture in `messages`; give one for each, \
         as {{\"type\": \"image\"}} parts (text never becomes an image)"
    )]
    ImageParts {
        /// The row of the batch.
        row: usize,
        /// Entries of [`Chat::images`](crate::Chat::images), with the noun.
        images: String,
        /// Image parts that have no image of their own, with the noun.
        parts: String,
    },

    /// An interleaved prompt list, which only Idefics v1 reads.
    #[error(
        "row {row}: a `prompt` list is the form of the first Idefics (`model_type` idefics); \
         give this checkpoint `messages`, or `text` with `images`"
    )]
    PromptList {
        /// The row of the batch.
        row: usize,
    },

    /// Image splitting was asked for where there is none.
    #[error("the first Idefics (`model_type` idefics) does not split images; leave do_image_splitting out")]
    NoSplitting,

    /// An option for prompts of the first Idefics, asked of another model.
    #[error(
        "{option} is for the first Idefics (`model_type` idefics), whose prompts this model does not read; leave it out"
    )]
    Idefics1Option {
        /// Its name.
        option: &'static str,
    },

    /// The text has more or fewer placeholders than there are images.
    #[error("row {row}: the text has {placeholders} {token} placeholders and {images} images were given")]
    ImageCount {
        /// The row of the batch.
        row: usize,
        /// Placeholders in the text.
        placeholders: usize,
        /// Images of the sample.
        images: usize,
        /// The placeholder.
        token: String,
    },

    /// After encoding, the number of image tokens is not the number written: text around them joined with them.
    #[error("row {row}: {expected} image tokens were written and {found} were encoded; the tokenizer does not fit")]
    ImageTokenCount {
        /// The row of the batch.
        row: usize,
        /// Tokens written.
        expected: usize,
        /// Tokens encoded.
        found: usize,
    },

    /// A conversation spells a special token, and [`SpecialTokensInText::Reject`](crate::SpecialTokensInText::Reject) is
    /// set.
    #[error("row {row}: `{variable}` contains the special token {token}")]
    SpecialTokenInText {
        /// The row of the batch.
        row: usize,
        /// The template's variable: `messages`, `tools`, or another.
        variable: String,
        /// The token.
        token: String,
    },

    /// More text than [`TextLimits`](crate::TextLimits) allow.
    #[error("row {row}: {found} {what}; at most {limit} are allowed")]
    TextTooLarge {
        /// The row of the batch.
        row: usize,
        /// What is counted, with its unit.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },

    /// An image could not be used.
    #[error("row {row}, image {image}: {error}")]
    Image {
        /// The row of the batch.
        row: usize,
        /// The image in that row.
        image: usize,
        /// Why.
        #[source]
        error: TileError,
    },

    /// The checkpoint turns padding off, and the images of the batch differ in size or number.
    #[error(transparent)]
    Pad(#[from] PadError),
}

impl ProcessorError {
    /// Which kind of failure this is.
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
            | Self::Idefics1Option { .. }
            | Self::ImageCount { .. }
            | Self::SpecialTokenInText { .. }
            | Self::Pad(_) => ErrorKind::Input,
            Self::TextTooLarge { .. } => ErrorKind::Limit,
            Self::Image { error: TileError::TooMany { .. }, .. } => ErrorKind::Limit,
            Self::Image { error: TileError::Image(error), .. } => match error.kind() {
                ImageErrorKind::FileSystem => ErrorKind::FileSystem,
                ImageErrorKind::Cancelled => ErrorKind::Cancelled,
                ImageErrorKind::Limit => ErrorKind::Limit,
                ImageErrorKind::Network => ErrorKind::Network,
                _ => ErrorKind::Input,
            },
        }
    }
}
