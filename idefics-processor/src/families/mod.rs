//! Processing rules that differ between model families, one file per family.
//!
//! To add a family, implement [`FamilyRules`] in a new file and add it to `FAMILIES`.

mod idefics1;
mod idefics2;
mod idefics3;

use std::fmt::Debug;

use idefics_image::ResizeTarget;
use serde_json::{Map, Value};

use crate::error::ProcessorError;
use crate::image::{ImageConfigError, ImageProcessorConfig};
use crate::processor::ProcessOptions;
use crate::prompt::{ImageTokens, Literals, PromptPart};
use crate::tokenizer::Compatibility;
use crate::video::{SampledVideo, VideoRules};

pub use idefics1::Idefics1;
pub use idefics2::{Idefics2, expand_images, resize_output_size};
pub use idefics3::Idefics3;

/// All supported families.
const FAMILIES: [&dyn FamilyRules; 4] = [&Idefics1, &Idefics2, &Idefics3::IDEFICS3, &Idefics3::SMOLVLM];

/// Returns the family for the `model_type` of a `config.json`, or Idefics2 if the file has no `model_type`.
pub(crate) fn for_model_type(model_type: Option<&str>) -> Option<&'static dyn FamilyRules> {
    let name = model_type.unwrap_or("idefics2");
    FAMILIES.into_iter().find(|family| family.model_type() == name)
}

/// Returns the supported `model_type` values, separated by commas, for error messages.
pub(crate) fn supported() -> String {
    FAMILIES.map(FamilyRules::model_type).join(", ")
}

/// How a family cuts pictures into tiles and expands prompts.
///
/// Pictures are processed before prompts, because the number of tiles, and so the number of image tokens in the prompt,
/// may depend on the size of a picture.
pub trait FamilyRules: Debug + Send + Sync {
    /// Returns the `model_type` in the family's `config.json`.
    fn model_type(&self) -> &'static str;

    /// Returns the image processor's configuration: the fields in `section`, and the defaults of the reference's class
    /// for all others.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for a value that is invalid or not supported.
    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError>;

    /// Returns the number of image tokens per tile. `configured` is the `image_seq_len` of `processor_config.json`, if
    /// the file has it. The result is `None` if this value is not a number from 1 to 4096.
    fn image_seq_len(&self, configured: Option<&Value>) -> Option<usize>;

    /// Returns the number of image tokens that [`Self::expand`] writes for a tile of `width` × `height` pixels. The
    /// default is the same for all tiles: `image_seq_len`, the result of [`Self::image_seq_len`].
    fn tile_tokens(&self, _width: usize, _height: usize, image_seq_len: usize) -> usize {
        image_seq_len
    }

    /// Returns the kinds of prompts that the family supports.
    fn prompt_style(&self) -> PromptStyle;

    /// Returns whether the tiles of [`Self::layout`] all have the same size.
    fn tile_sizes(&self) -> TileSizes;

    /// Returns how videos are read. The default is `None`, for families without videos.
    fn video(&self) -> Option<VideoRules> {
        None
    }

    /// Rejects options that only other families support. The default rejects the options of
    /// [`PromptStyle::Interleaved`] if the family has another style.
    ///
    /// # Errors
    /// A [`ProcessorError`] of kind [`Input`](crate::ErrorKind::Input) that names the option.
    fn check_options(&self, options: &ProcessOptions) -> Result<(), ProcessorError> {
        let given = [
            ("add_end_of_utterance_token", options.add_end_of_utterance_token == Some(true)),
            ("add_eos_token", options.add_eos_token),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given && self.prompt_style() != PromptStyle::Interleaved) {
            Some((option, _)) => Err(ProcessorError::InterleavedOption { option }),
            None => Ok(()),
        }
    }

    /// Returns the tiles of an upright picture of `width` × `height` pixels, both at least 1. Each tile is a rectangle
    /// inside the picture and a target size with sides of at least 1 pixel. The result depends only on the picture's
    /// size, not on its pixels.
    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid;

    /// Returns the number of tiles of [`Self::layout`]. Families whose list of tiles may be very long compute the
    /// number without building the list, so that a limit can be checked first.
    fn n_tiles(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> u64 {
        self.layout(width, height, config).tiles.len() as u64
    }

    /// Expands the placeholders of a prompt to image tokens. [`PromptText::Parts`] is passed only to families with
    /// [`PromptStyle::Interleaved`].
    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt;
}

/// The kinds of prompts that a family reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptStyle {
    /// Texts, and conversations for a chat template. The processor adds image tokens and `<end_of_utterance>` to a
    /// tokenizer that lacks them.
    Template,
    /// Texts, conversations, and lists of texts and images ([`PromptText::Parts`]). Without a chat template,
    /// conversations are written with `<end_of_utterance>` after each turn. No tokens are added to the tokenizer.
    Interleaved,
}

/// The sizes of a family's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileSizes {
    /// All tiles have the same size.
    Equal,
    /// Tiles may have different sizes. The tiles of a batch fit in one array if they are padded, or if their sizes
    /// happen to be equal.
    Varying,
}

/// How a picture is cut into tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileGrid {
    /// Number of rows. For a picture that is not split, it is 1, or 0 in Idefics3, as in the reference.
    pub rows: usize,
    /// Number of columns. For a picture that is not split, it is 1, or 0 in Idefics3, as in the reference.
    pub cols: usize,
    /// Resizes of the whole picture, done one after another. The tiles are cut from the last result. This list is
    /// usually empty.
    pub resizes: Vec<ResizeTarget>,
    /// The tiles. Each gives a rectangle of the picture, and the size to which this rectangle is resized. An empty
    /// rectangle gives a black tile.
    pub tiles: Vec<ResizeTarget>,
}

impl TileGrid {
    /// Creates a grid of `rows` × `cols` tiles. `tiles` may have further tiles, such as the whole picture.
    pub fn new(rows: usize, cols: usize, tiles: Vec<ResizeTarget>) -> Self {
        Self { rows, cols, resizes: Vec::new(), tiles }
    }

    /// Returns the same grid, with tiles that are cut after the whole picture has been resized by `resizes`.
    #[must_use]
    pub fn with_resizes(self, resizes: Vec<ResizeTarget>) -> Self {
        Self { resizes, ..self }
    }
}

/// A prompt before its image placeholders are expanded.
#[derive(Debug, Clone, Copy)]
pub enum PromptText<'a> {
    /// A text with one placeholder per image.
    Text(&'a str),
    /// A rendered conversation with one placeholder per image.
    Conversation(&'a str),
    /// A list of texts and images without placeholders.
    Parts(&'a [PromptPart]),
}

/// Everything that [`FamilyRules::expand`] needs besides the prompt.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PromptContext<'a> {
    /// The image tokens of the tokenizer.
    pub tokens: &'a ImageTokens,
    /// Tiles of each image, in the order of the placeholders.
    pub grids: &'a [TileGrid],
    /// The frames of each video, in the order of the placeholders; empty for families without videos.
    pub videos: &'a [SampledVideo],
    /// Start token, such as `<s>`; empty if the tokenizer has none.
    pub bos: &'a str,
    /// End token, such as `</s>`; empty if the tokenizer has none.
    pub eos: &'a str,
    /// The `<end_of_utterance>` token, if the tokenizer has it.
    pub end_of_utterance: Option<&'a str>,
    /// The stand-in characters that mask special tokens typed by a user.
    pub literals: &'a Literals,
    /// The options of the call.
    pub options: &'a ProcessOptions,
}

impl PromptContext<'_> {
    /// Returns the release of the reference to reproduce.
    pub fn compatibility(&self) -> Compatibility {
        self.options.compatibility
    }
}

/// A prompt with its image placeholders expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandedPrompt {
    /// The text to encode.
    pub text: String,
    /// Whether the tokenizer adds the special tokens around a text, such as its start token.
    pub add_special_tokens: bool,
}
