//! Idefics2: an image becomes one tile, or five with splitting (its quarters and the whole). Each tile is a run of
//! image tokens in the text.
//!
//! Source: `Idefics2Processor` and `Idefics2ImageProcessorPil` of transformers 5.23.

use idefics_image::{Crop, Filter, ResizeTarget};
use serde_json::{Map, Value};

use super::{ExpandedPrompt, FamilyRules, PromptContext, PromptStyle, PromptText, TileGrid, TileSizes};
use crate::image::{ImageConfigError, ImageProcessorConfig, ImageSize, field_error};
use crate::prompt::{ImageTokens, Literals};
use crate::tokenizer::Compatibility;

/// The rules of Idefics2 (8b, 8b-base, 8b-chatty).
#[derive(Debug, Clone, Copy)]
pub struct Idefics2;

impl FamilyRules for Idefics2 {
    fn model_type(&self) -> &'static str {
        "idefics2"
    }

    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError> {
        ImageProcessorConfig::from_idefics2_object(&section)
    }

    fn image_seq_len(&self, configured: Option<&Value>) -> Option<usize> {
        match configured {
            None | Some(Value::Null) => Some(64), // `Idefics2Processor.__init__`
            // Public checkpoints have 64 to 1024 tokens per tile.
            Some(value) => value.as_u64().filter(|length| (1..=4096).contains(length)).map(|length| length as usize),
        }
    }

    fn prompt_style(&self) -> PromptStyle {
        PromptStyle::Template
    }

    fn tile_sizes(&self) -> TileSizes {
        TileSizes::Varying
    }

    /// Without `do_image_splitting`, the whole picture is the only tile. With it, the tiles are the quarters (top
    /// left, top right, bottom left, bottom right), cut at half the height and width (rounded down) before resizing,
    /// then the whole picture.
    ///
    /// If a side has a single pixel, its first half is empty. An empty quarter becomes a black tile. The reference
    /// does the same for a width of 1; for a height of 1 it divides by zero. Without `do_resize`, an empty tile would
    /// have no size, so both halves contain that pixel.
    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid {
        let target = |crop: Crop| {
            let (width, height) = output_size(crop.width(), crop.height(), config);
            ResizeTarget { crop, width, height, filter: config.resample }
        };
        let whole = target(Crop::whole(width, height));
        if !config.do_image_splitting {
            return TileGrid::new(1, 1, vec![whole]);
        }
        let least = u32::from(!config.do_resize);
        let halves = |side: u32| {
            let middle = side / 2;
            [(0, middle.max(least)), (middle, side)]
        };
        let mut tiles = Vec::with_capacity(5);
        for (top, bottom) in halves(height) {
            for (left, right) in halves(width) {
                tiles.push(target(Crop { left, top, right, bottom }));
            }
        }
        tiles.push(whole);
        TileGrid::new(2, 2, tiles)
    }

    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt {
        let PromptContext { tokens, literals, bos, .. } = *context;
        // The template may have written the start token already. Source: `ProcessorMixin.apply_chat_template`.
        let (text, has_bos) = match prompt {
            PromptText::Text(text) => (text, false),
            PromptText::Conversation(text) => (text, !bos.is_empty() && text.starts_with(bos)),
            PromptText::Parts(_) => ("", false), // never passed to families with `PromptStyle::Template`
        };
        let tiles: Vec<usize> = context.grids.iter().map(|grid| grid.tiles.len()).collect();
        let text = expand_images(text, tokens, &tiles, literals, context.compatibility());
        ExpandedPrompt { text, add_special_tokens: !has_bos }
    }
}

/// Supported values of `image_processor_type`.
const IMAGE_PROCESSOR_TYPES: [&str; 3] =
    ["Idefics2ImageProcessor", "Idefics2ImageProcessorFast", "Idefics2ImageProcessorPil"];

impl ImageProcessorConfig {
    /// Reads and validates the fields of an Idefics2 checkpoint. Fields that are absent or null get their default.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for a value that is invalid or not supported.
    pub fn from_idefics2_object(object: &Map<String, Value>) -> Result<Self, ImageConfigError> {
        let config = Self::default().with_fields(object, &IMAGE_PROCESSOR_TYPES)?;
        if let ImageSize::LongestEdge { .. } = config.size {
            let expected = "{shortest_edge, longest_edge} or {height, width} in whole pixels";
            return Err(field_error("size", object.get("size").unwrap_or(&Value::Null), expected));
        }
        Ok(config)
    }
}

/// Defaults of `Idefics2ImageProcessorPil`.
impl Default for ImageProcessorConfig {
    fn default() -> Self {
        Self {
            do_convert_rgb: true,
            do_resize: true,
            size: ImageSize::Edges { shortest_edge: 378, longest_edge: 980 },
            resample: Filter::Bilinear,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            do_pad: true,
            do_image_splitting: false,
            max_image_size: None,
        }
    }
}

fn output_size(width: u32, height: u32, config: &ImageProcessorConfig) -> (u32, u32) {
    match config.size {
        _ if !config.do_resize => (width, height),
        ImageSize::Exact { height, width } => (width, height),
        ImageSize::Edges { shortest_edge, longest_edge } => {
            resize_output_size(width, height, shortest_edge, longest_edge)
        }
        ImageSize::LongestEdge { .. } => (width, height), // rejected when the configuration is read
    }
}

/// Returns the width and height after resizing with [`ImageSize::Edges`], in pixels.
///
/// First, a longer side above `longest_edge` is reduced to it, keeping the aspect ratio. Then each side below
/// `shortest_edge` is raised to it, ignoring the aspect ratio. If `longest_edge` is below `shortest_edge`, the second
/// step wins. A side of 0 pixels, as in an empty quarter of a picture, becomes `shortest_edge`.
///
/// Source: `get_resize_output_image_size` of `image_processing_pil_idefics2.py`, with the same f64 arithmetic and
/// truncation.
pub fn resize_output_size(width: u32, height: u32, shortest_edge: u32, longest_edge: u32) -> (u32, u32) {
    let aspect_ratio = f64::from(width) / f64::from(height);
    let (mut new_width, mut new_height) = (width, height);
    if width >= height && width > longest_edge {
        new_width = longest_edge;
        new_height = (f64::from(longest_edge) / aspect_ratio) as u32;
    } else if height > width && height > longest_edge {
        new_height = longest_edge;
        new_width = (f64::from(longest_edge) * aspect_ratio) as u32;
    }
    (new_width.max(shortest_edge), new_height.max(shortest_edge))
}

/// Expands each placeholder of `text` to the tokens of its tiles: for each tile a fake token
/// (`<fake_token_around_image>`), `image_seq_len` image tokens, and another fake token. Two consecutive fake tokens
/// become one.
///
/// `tiles` has the number of tiles of each image (1, or 5 with splitting), in the order of the placeholders. A missing
/// entry counts as 1.
///
/// With [`Compatibility::Transformers5`], a space is inserted after a fake token unless white space or `<` follows,
/// because tokenizers built by release 5 do not start a new word after a special token. `literals` gives the original
/// characters of the stand-ins that mask special tokens in `text`.
///
/// Source: `Idefics2Processor.__call__`.
pub fn expand_images(
    text: &str,
    tokens: &ImageTokens,
    tiles: &[usize],
    literals: &Literals,
    compatibility: Compatibility,
) -> String {
    let ImageTokens { image, fake, image_seq_len } = tokens;
    let block = format!("{fake}{}{fake}", image.repeat(*image_seq_len));
    let mut expanded = String::with_capacity(text.len());
    for (index, words) in text.split(image.as_str()).enumerate() {
        if index > 0 {
            expanded.push_str(&block.repeat(tiles.get(index - 1).copied().unwrap_or(1)));
        }
        expanded.push_str(words);
    }
    let text = expanded.replace(&fake.repeat(2), fake);
    match compatibility {
        Compatibility::Transformers4 => text,
        Compatibility::Transformers5 => space_after_fakes(&text, fake, literals),
    }
}

fn space_after_fakes(text: &str, fake: &str, literals: &Literals) -> String {
    let mut spaced = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(start) = rest.find(fake) {
        let (before, after) = rest.split_at(start + fake.len());
        spaced.push_str(before);
        let next = after.chars().next().map(|character| literals.restore_char(character));
        if next.is_some_and(|character| character != '<' && !is_python_space(character)) {
            spaced.push(' ');
        }
        rest = after;
    }
    spaced.push_str(rest);
    spaced
}

/// Returns whether Python's `\s` matches `character`: white space, or one of the separators U+001C to U+001F.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> ImageTokens {
        ImageTokens { image: "<image>".to_owned(), fake: "<f>".to_owned(), image_seq_len: 2 }
    }

    fn expand(text: &str, sub_images: usize, compatibility: Compatibility) -> String {
        expand_images(text, &tokens(), &[sub_images; 2], &Literals::default(), compatibility)
    }

    #[test]
    fn image_expands_between_fake_tokens() {
        let expanded = expand("User:<image> What?", 1, Compatibility::Transformers5);
        assert_eq!(expanded, "User:<f><image><image><f> What?");
    }

    #[test]
    fn consecutive_tiles_share_fake_tokens() {
        let expanded = expand("<image><image>\n", 1, Compatibility::Transformers5);
        assert_eq!(expanded, "<f><image><image><f><image><image><f>\n");
        let split = expand("<image>", 5, Compatibility::Transformers5);
        assert_eq!(split.matches("<f>").count(), 6);
        assert_eq!(split.matches("<image>").count(), 10);
    }

    #[test]
    fn fake_tokens_in_text_collapse_in_pairs_like_reference() {
        assert_eq!(expand("<f><f><f>", 1, Compatibility::Transformers4), "<f><f>");
    }

    #[test]
    fn only_transformers_5_inserts_space_before_word() {
        assert_eq!(expand("<image>What?", 1, Compatibility::Transformers5), "<f><image><image><f> What?");
        assert_eq!(expand("<image>What?", 1, Compatibility::Transformers4), "<f><image><image><f>What?");
        assert_eq!(expand("<image><b>", 1, Compatibility::Transformers5), "<f><image><image><f><b>");
        assert_eq!(expand("<image>\u{1C}", 1, Compatibility::Transformers5), "<f><image><image><f>\u{1C}");
    }
}
