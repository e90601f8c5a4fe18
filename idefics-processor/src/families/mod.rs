//! What differs between the model families on the processor's side, one file each.
//!
//! A new family is a file that implements [`FamilyRules`], and its entry in `FAMILIES`.

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

pub use idefics1::Idefics1;
pub use idefics2::{Idefics2, edges_size, expand_images};
pub use idefics3::Idefics3;

/// Every family that is read.
const FAMILIES: [&dyn FamilyRules; 4] = [&Idefics1, &Idefics2, &Idefics3::IDEFICS3, &Idefics3::SMOLVLM];

/// The rules of the family that `model_type` of a `config.json` names; a folder that names none is one of Idefics2.
pub(crate) fn of_model_type(model_type: Option<&str>) -> Option<&'static dyn FamilyRules> {
    let name = model_type.unwrap_or("idefics2");
    FAMILIES.into_iter().find(|family| family.model_type() == name)
}

/// The `model_type` values that are read, for messages.
pub(crate) fn supported() -> String {
    FAMILIES.map(FamilyRules::model_type).join(", ")
}

/// How a family makes tiles of a picture and text of a prompt.
///
/// Pictures come first: how many tiles one becomes may depend on its size, and so may the image tokens of the prompt.
pub trait FamilyRules: Debug + Send + Sync {
    /// The `model_type` of its `config.json`.
    fn model_type(&self) -> &'static str;

    /// The image processor's configuration: the defaults of the reference's class, with the fields of a file over them.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] naming what cannot be honored.
    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError>;

    /// Image tokens of a tile; `configured` is `image_seq_len` of a `processor_config.json`. `None` if that is no number of 1
    /// to 4096.
    fn image_seq_len(&self, configured: Option<&Value>) -> Option<usize>;

    /// Whether the processor adds image tokens and `<end_of_utterance>` to a tokenizer that lacks them.
    fn adds_prompt_tokens(&self) -> bool;

    /// Whether prompts may be lists of texts and images without placeholders.
    fn reads_prompt_lists(&self) -> bool;

    /// Whether conversations can be written without a chat template, each turn ended by `<end_of_utterance>`.
    fn writes_turns(&self) -> bool;

    /// Whether all tiles of a batch fit in one array, so that without padding they must be of one size.
    fn needs_equal_tiles(&self) -> bool;

    /// Rejects options of other families.
    ///
    /// # Errors
    /// A [`ProcessorError`] of kind [`Input`](crate::ErrorKind::Input) that names the option.
    fn check_options(&self, options: &ProcessOptions) -> Result<(), ProcessorError>;

    /// The tiles of an upright picture of `width` × `height` pixels, both at least 1: rectangles inside the picture, and sides
    /// of at least 1 pixel to bring them to. Needs no pixels.
    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid;

    /// How many tiles [`Self::layout`] returns, where a picture can become so many that the list itself is too large.
    fn n_tiles(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> u64 {
        self.layout(width, height, config).tiles.len() as u64
    }

    /// The text of a prompt as it is encoded: image tokens written out. Prompt lists come only where they are read.
    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt;
}

/// How a picture is cut into tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileGrid {
    /// Rows of the grid; 1 if the picture stays whole (0 in Idefics3, as the reference counts).
    pub rows: usize,
    /// Columns of the grid.
    pub cols: usize,
    /// Resizes of the whole picture, one after another, before tiles are cut from the last result. Usually none.
    pub resizes: Vec<ResizeTarget>,
    /// Each tile: a rectangle of the picture, and the size that it is brought to. A rectangle without pixels becomes black.
    pub tiles: Vec<ResizeTarget>,
}

impl TileGrid {
    /// A grid of `rows` × `cols` tiles; `tiles` may have others besides, such as the whole picture.
    pub fn new(rows: usize, cols: usize, tiles: Vec<ResizeTarget>) -> Self {
        Self { rows, cols, resizes: Vec::new(), tiles }
    }

    /// The same grid, cut from the picture after these resizes of the whole.
    #[must_use]
    pub fn after(self, resizes: Vec<ResizeTarget>) -> Self {
        Self { resizes, ..self }
    }
}

/// A prompt before its images are written out.
#[derive(Debug, Clone, Copy)]
pub enum PromptText<'a> {
    /// A text with a placeholder for each image.
    Text(&'a str),
    /// A conversation, by the chat template or in turns, with a placeholder for each image.
    Conversation(&'a str),
    /// A list of texts and images without placeholders.
    Parts(&'a [PromptPart]),
}

/// What the text of a prompt depends on.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PromptContext<'a> {
    /// The spellings of image tokens.
    pub tokens: &'a ImageTokens,
    /// What each image becomes, in the order of the prompt: one for each placeholder.
    pub grids: &'a [TileGrid],
    /// The start token; empty if the tokenizer has none.
    pub bos: &'a str,
    /// The end token; empty if the tokenizer has none.
    pub eos: &'a str,
    /// Spelling of `<end_of_utterance>`, if the tokenizer has it.
    pub end_of_utterance: Option<&'a str>,
    /// Characters that stand for special tokens in a user's text.
    pub literals: &'a Literals,
    /// The options of the call.
    pub options: &'a ProcessOptions,
}

impl PromptContext<'_> {
    /// Which release of the reference computes the ids.
    pub fn compatibility(&self) -> Compatibility {
        self.options.compatibility
    }
}

/// A prompt with its images written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandedPrompt {
    /// What is encoded.
    pub text: String,
    /// Whether the tokenizer adds its own start token.
    pub add_special_tokens: bool,
}
