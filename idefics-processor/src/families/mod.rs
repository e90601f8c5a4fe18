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

/// The family for the `model_type` of a `config.json`; Idefics2 if the file has none.
pub(crate) fn for_model_type(model_type: Option<&str>) -> Option<&'static dyn FamilyRules> {
    let name = model_type.unwrap_or("idefics2");
    FAMILIES.into_iter().find(|family| family.model_type() == name)
}

/// The supported `model_type` values, for error messages.
pub(crate) fn supported() -> String {
    FAMILIES.map(FamilyRules::model_type).join(", ")
}

/// How a family cuts pictures into tiles and expands prompts.
///
/// Pictures are processed first: the number of tiles, and so of image tokens in the prompt, may depend on a picture's
/// size.
pub trait FamilyRules: Debug + Send + Sync {
    /// The `model_type` in the family's `config.json`.
    fn model_type(&self) -> &'static str;

    /// The image processor's configuration: the fields of the file, and the defaults of the reference's class for the
    /// rest.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for a value that is invalid or not supported.
    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError>;

    /// Number of image tokens per tile. `configured` is the `image_seq_len` of `processor_config.json`. `None` if it
    /// is not a number from 1 to 4096.
    fn image_seq_len(&self, configured: Option<&Value>) -> Option<usize>;

    /// Number of image tokens of a tile of `width` × `height` pixels, which [`Self::expand`] writes. `image_seq_len` is
    /// the result of [`Self::image_seq_len`]. By default, all tiles have that number.
    fn tile_tokens(&self, _width: usize, _height: usize, image_seq_len: usize) -> usize {
        image_seq_len
    }

    /// The kinds of prompts.
    fn prompt_style(&self) -> PromptStyle;

    /// The sizes of the tiles that [`Self::layout`] returns.
    fn tile_sizes(&self) -> TileSizes;

    /// How videos are read; `None`, the default, for families without videos.
    fn video(&self) -> Option<VideoRules> {
        None
    }

    /// Rejects options of other families. By default, those of [`PromptStyle::Interleaved`] in another style.
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

    /// The tiles of an upright picture of `width` × `height` pixels, both at least 1. Each tile is a rectangle inside
    /// the picture and a target size with sides of at least 1 pixel. Depends on the picture's size only, not on its
    /// pixels.
    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid;

    /// The number of tiles that [`Self::layout`] returns. Families that may return very long lists compute it without
    /// the list, so that a limit can be checked first.
    fn n_tiles(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> u64 {
        self.layout(width, height, config).tiles.len() as u64
    }

    /// Expands the placeholders of a prompt to image tokens. [`PromptText::Parts`] is only passed in the style
    /// [`PromptStyle::Interleaved`].
    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt;
}

/// The kinds of prompts that a family reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptStyle {
    /// Texts, and conversations for a chat template. The processor adds image tokens and `<end_of_utterance>` to a
    /// tokenizer that lacks them.
    Template,
    /// Also lists of texts and images ([`PromptText::Parts`]). Without a chat template, conversations are written with
    /// `<end_of_utterance>` after each turn. The tokenizer keeps the tokens of its files.
    Interleaved,
}

/// The sizes of a family's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileSizes {
    /// All tiles have the same size.
    Equal,
    /// Tiles have different sizes. Those of a batch go into one array after padding, or if they happen to be equal.
    Varying,
}

/// How a picture is cut into tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileGrid {
    /// Number of rows. If the picture stays whole: 1, or 0 in Idefics3, as in the reference.
    pub rows: usize,
    /// Number of columns, as `rows`.
    pub cols: usize,
    /// Resizes of the whole picture, one after another, before the tiles are cut from the last result. Usually none.
    pub resizes: Vec<ResizeTarget>,
    /// The tiles: a rectangle of the picture and the size it is resized to. An empty rectangle gives a black tile.
    pub tiles: Vec<ResizeTarget>,
}

impl TileGrid {
    /// A grid of `rows` × `cols` tiles. `tiles` may have more, such as the whole picture.
    pub fn new(rows: usize, cols: usize, tiles: Vec<ResizeTarget>) -> Self {
        Self { rows, cols, resizes: Vec::new(), tiles }
    }

    /// The same grid, cut from the picture after `resizes`.
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
    /// Stand-ins that mask special tokens typed by a user.
    pub literals: &'a Literals,
    /// The options of the call.
    pub options: &'a ProcessOptions,
}

impl PromptContext<'_> {
    /// The release of the reference to reproduce.
    pub fn compatibility(&self) -> Compatibility {
        self.options.compatibility
    }
}

/// A prompt with its image placeholders expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandedPrompt {
    /// The text to encode.
    pub text: String,
    /// Whether the tokenizer adds its start token.
    pub add_special_tokens: bool,
}
