//! IDEFICS v1: each image is one tile and reaches the model by cross-attention. A single token marks its place
//! in the text.
//!
//! Source: `IdeficsProcessor` and `IdeficsImageProcessorPil` of transformers 5.23.

use idefics_image::{Crop, Filter, ResizeTarget};
use serde_json::{Map, Value};

use super::{ExpandedPrompt, FamilyRules, PromptContext, PromptStyle, PromptText, TileGrid, TileSizes};
use crate::error::ProcessorError;
use crate::image::{ImageConfigError, ImageProcessorConfig, ImageSize, field_error, number_error};
use crate::processor::ProcessOptions;
use crate::prompt::{ImageTokens, PromptPart};
use crate::tokenizer;

/// The rules of IDEFICS v1 (9b and 80b, base and instruct).
#[derive(Debug, Clone, Copy)]
pub struct Idefics1;

impl FamilyRules for Idefics1 {
    fn model_type(&self) -> &'static str {
        "idefics"
    }

    fn image_config(&self, section: Map<String, Value>) -> Result<ImageProcessorConfig, ImageConfigError> {
        ImageProcessorConfig::from_idefics1_object(section)
    }

    fn image_seq_len(&self, _configured: Option<&Value>) -> Option<usize> {
        Some(1) // the text has one token per image; the image's vectors are not part of the sequence
    }

    fn prompt_style(&self) -> PromptStyle {
        PromptStyle::Interleaved
    }

    fn tile_sizes(&self) -> TileSizes {
        TileSizes::Equal
    }

    fn check_options(&self, options: &ProcessOptions) -> Result<(), ProcessorError> {
        if options.do_image_splitting == Some(true) { Err(ProcessorError::NoSplitting) } else { Ok(()) }
    }

    fn layout(&self, width: u32, height: u32, config: &ImageProcessorConfig) -> TileGrid {
        let crop = Crop::whole(width, height);
        let (width, height) = match config.size {
            ImageSize::Exact { height, width } if config.do_resize => (width, height),
            _ => (width, height),
        };
        TileGrid::new(1, 1, vec![ResizeTarget { crop, width, height, filter: config.resample }])
    }

    fn expand(&self, prompt: PromptText<'_>, context: &PromptContext<'_>) -> ExpandedPrompt {
        let PromptContext { tokens, bos, eos, options, .. } = *context;
        let end_of_utterance = match options.add_end_of_utterance_token {
            Some(false) => None,
            None => context.end_of_utterance,
            Some(true) => Some(tokenizer::END_OF_UTTERANCE),
        };
        let rules = InterleavedRules { tokens, bos, end_of_utterance, eos: options.add_eos_token.then_some(eos) };
        let text = match prompt {
            PromptText::Text(text) => rules.expand_placeholders(text),
            // The template may have written the start token already. Source: `ProcessorMixin.apply_chat_template`.
            PromptText::Conversation(text) => {
                let text = text.strip_prefix(bos).unwrap_or(text);
                rules.expand_placeholders(text)
            }
            PromptText::Parts(parts) => rules.expand_parts(parts),
        };
        ExpandedPrompt { text, add_special_tokens: false }
    }
}

/// Supported values of `image_processor_type`.
const IMAGE_PROCESSOR_TYPES: [&str; 3] =
    ["IdeficsImageProcessor", "IdeficsImageProcessorFast", "IdeficsImageProcessorPil"];

impl ImageProcessorConfig {
    /// Reads and validates the fields of an IDEFICS v1 checkpoint. Fields that are absent or null get their default.
    /// The key `image_size` sets `size` too. Image splitting is rejected.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] for a value that is invalid or not supported.
    pub fn from_idefics1_object(mut object: Map<String, Value>) -> Result<Self, ImageConfigError> {
        if let Some(channels) = object.remove("image_num_channels").filter(|channels| channels != 3) {
            return Err(field_error("image_num_channels", &channels, "3"));
        }
        let mut config = Self::idefics1();
        if let Some(side) = object.remove("image_size").filter(|side| !side.is_null()) {
            let pixels = side.as_u64().and_then(|pixels| u32::try_from(pixels).ok());
            let side = pixels.ok_or_else(|| field_error("image_size", &side, "a whole number of pixels"))?;
            config.size = ImageSize::Exact { height: side, width: side };
        }
        let config = config.with_fields(&object, &IMAGE_PROCESSOR_TYPES)?;
        config.check_idefics1()?;
        Ok(config)
    }

    /// Returns the defaults of the reference's `IdeficsImageProcessorPil`.
    pub fn idefics1() -> Self {
        Self {
            size: ImageSize::Exact { height: 224, width: 224 },
            resample: Filter::Bicubic,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            do_pad: false,
            ..Self::default()
        }
    }

    /// Rejects settings that IDEFICS v1 does not support.
    fn check_idefics1(&self) -> Result<(), ImageConfigError> {
        if self.do_image_splitting {
            return Err(number_error("do_image_splitting", true, "false, because IDEFICS v1 does not split images"));
        }
        match (self.do_resize, self.size) {
            (true, ImageSize::Exact { .. }) => Ok(()),
            (true, _) => Err(number_error("size", "given by its edges", "{height, width} in whole pixels")),
            (false, _) => Err(number_error("do_resize", false, "true, because IDEFICS v1 needs images of one size")),
        }
    }
}

/// Tokens that are written into interleaved prompts.
#[derive(Debug, Clone, Copy)]
struct InterleavedRules<'a> {
    tokens: &'a ImageTokens,
    /// Written before the prompt.
    bos: &'a str,
    /// Written between two consecutive texts.
    end_of_utterance: Option<&'a str>,
    /// Written after the prompt.
    eos: Option<&'a str>,
}

impl InterleavedRules<'_> {
    /// Writes a prompt list as text. Spaces around each text are dropped. An image becomes a fake token
    /// (`<fake_token_around_image>`), an image token and a fake token. Consecutive images share the fake token between
    /// them.
    fn expand_parts(&self, parts: &[PromptPart]) -> String {
        let mut text = self.bos.to_owned();
        let mut before: Option<&PromptPart> = None;
        for part in parts {
            match part {
                PromptPart::Text(words) => {
                    if let (Some(PromptPart::Text(_)), Some(end)) = (before, self.end_of_utterance) {
                        text.push_str(end);
                    }
                    text.push_str(words.trim_matches(' '));
                }
                PromptPart::Image(_) => text.push_str(&self.image(matches!(before, Some(PromptPart::Image(_))))),
            }
            before = Some(part);
        }
        text + self.eos.unwrap_or_default()
    }

    /// Expands the placeholders of a text, one per image, and adds the start and end tokens.
    fn expand_placeholders(&self, text: &str) -> String {
        let mut written = self.bos.to_owned();
        let mut follows_image = false;
        for (index, words) in text.split(&self.tokens.image).enumerate() {
            if index > 0 {
                written.push_str(&self.image(follows_image));
            }
            written.push_str(words);
            follows_image = index > 0 && words.is_empty();
        }
        written + self.eos.unwrap_or_default()
    }

    fn image(&self, shares_fake: bool) -> String {
        let ImageTokens { image, fake, .. } = self.tokens;
        match shares_fake {
            true => format!("{image}{fake}"),
            false => format!("{fake}{image}{fake}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageSource;

    fn tokens() -> ImageTokens {
        ImageTokens { image: "<image>".to_owned(), fake: "<f>".to_owned(), image_seq_len: 1 }
    }

    fn image() -> PromptPart {
        PromptPart::Image("a.png".parse::<ImageSource>().unwrap())
    }

    fn words(text: &str) -> PromptPart {
        PromptPart::Text(text.to_owned())
    }

    fn text(parts: &[PromptPart], end_of_utterance: Option<&str>) -> String {
        InterleavedRules { tokens: &tokens(), bos: "<s>", end_of_utterance, eos: None }.expand_parts(parts)
    }

    #[test]
    fn consecutive_images_share_a_fake_token() {
        assert_eq!(text(&[image(), image(), words(" a "), image()], None), "<s><f><image><f><image><f>a<f><image><f>");
    }

    #[test]
    fn spaces_are_dropped_and_line_breaks_kept() {
        assert_eq!(text(&[words("  Story: \n"), words("\n x ")], None), "<s>Story: \n\n x");
    }

    #[test]
    fn end_of_utterance_is_only_between_consecutive_texts() {
        let parts = [words("User:"), image(), words("What?"), words("\nAssistant:"), image()];
        assert_eq!(text(&parts, Some("<e>")), "<s>User:<f><image><f>What?<e>\nAssistant:<f><image><f>");
    }

    #[test]
    fn placeholders_expand_like_images_of_a_prompt_list() {
        let rules = InterleavedRules { tokens: &tokens(), bos: "<s>", end_of_utterance: None, eos: Some("</s>") };
        assert_eq!(
            rules.expand_placeholders("<image><image> a<image>"),
            "<s><f><image><f><image><f> a<f><image><f></s>"
        );
        assert_eq!(rules.expand_placeholders("no image"), "<s>no image</s>");
    }
}
