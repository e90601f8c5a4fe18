//! A checkpoint's processor: samples in, numbers out.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, Sourced, shorten};
use crate::error::ProcessorError;
use crate::family::Family;
use crate::image::{
    Alpha, DecodeOptions, ImageProcessor, ImageProcessorConfig, ImageSize, ImageSource, ImageTile, Limits, load,
};
use crate::inputs::ProcessedInputs;
use crate::prompt::{
    ChatTemplate, Content, ImageTokens, InterleavedRules, Literals, Message, PromptPart, Sample, SpecialTokensInText,
    TextLimits, conversation, expand_images, find_token,
};
use crate::tokenizer::{self, Compatibility, Tokenizer, TokenizerConfig};

/// What a call of [`Processor::process`] may change.
#[derive(Debug, Clone, Default)]
pub struct ProcessOptions {
    /// Whether each image is also given as its four quarters; the checkpoint's own choice where it is `None`.
    pub do_image_splitting: Option<bool>,
    /// What becomes of transparent pixels.
    pub alpha: Alpha,
    /// Page of the images that have several, from 1; the first where it is `None`.
    pub page: Option<NonZeroU32>,
    /// What an image may cost.
    pub limits: Limits,
    /// How much text a sample may have.
    pub text_limits: TextLimits,
    /// What becomes of special tokens that a message spells.
    pub special_tokens_in_text: SpecialTokensInText,
    /// Which release of the reference computes the ids.
    pub compatibility: Compatibility,
    /// Whether texts of a prompt list that follow one another are ended with `<end_of_utterance>`. Where it is `None`,
    /// they are if the tokenizer has that token, as in release 4 of the reference; release 5 never ends them by itself.
    pub add_end_of_utterance_token: Option<bool>,
    /// Whether prompts of the first Idefics end in `</s>`.
    pub add_eos_token: bool,
}

impl ProcessOptions {
    fn decoding(&self) -> DecodeOptions {
        DecodeOptions::from(self.alpha).with_page(self.page.unwrap_or(NonZeroU32::MIN))
    }
}

/// Turns text and images into what a model reads.
///
/// Source: `IdeficsProcessor` and `Idefics2Processor` of transformers 5.23.
#[derive(Debug, Clone)]
pub struct Processor {
    family: Family,
    tokenizers: Tokenizers,
    tokenizer_config: TokenizerConfig,
    images: ImageProcessor,
    chat_template: Option<ChatTemplate>,
    image_tokens: ImageTokens,
}

/// One tokenizer for each release of the reference; the same one where the two agree.
#[derive(Debug, Clone)]
struct Tokenizers {
    transformers5: Arc<Tokenizer>,
    transformers4: Arc<Tokenizer>,
}

impl Processor {
    /// Reads the processor of a checkpoint folder.
    ///
    /// `tokenizer.json` must be there. `config.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `preprocessor_config.json`, `processor_config.json` and the chat template may be missing; then the defaults of
    /// the reference's classes hold.
    ///
    /// # Errors
    /// A [`ProcessorError`] of kind [`FileSystem`](crate::ErrorKind::FileSystem) or [`Model`](crate::ErrorKind::Model)
    /// that names the file, and the field where one is at fault.
    pub fn from_folder(folder: &Path) -> Result<Self, ProcessorError> {
        let checkpoint = Checkpoint::open(folder)?;
        let head = checkpoint.model_head()?;
        let config = checkpoint.json("tokenizer_config.json")?;
        let tokenizer_config = TokenizerConfig::read(&checkpoint, config.as_ref(), &head)?;
        let family = head.family().unwrap_or(Family::Idefics2);
        let files = checkpoint.processor(family, config.as_ref())?;
        let images = ImageProcessor::new(files.images)
            .map_err(|error| ProcessorError::ImageConfig { path: files.images_path, error })?;
        let chat_template = match files.chat_template {
            Some(Sourced { path, content }) => Some(ChatTemplate::new(content, &path)?),
            None => None,
        };

        let file = checkpoint.tokenizer()?;
        let load = |compatibility| tokenizer::load(&file, &tokenizer_config, compatibility).map(Arc::new);
        let tokenizers = match tokenizer_config.is_rebuilt() {
            true => {
                let (transformers5, transformers4) =
                    rayon::join(|| load(Compatibility::Transformers5), || load(Compatibility::Transformers4));
                Tokenizers { transformers5: transformers5?, transformers4: transformers4? }
            }
            false => {
                let tokenizer = load(Compatibility::Transformers4)?;
                Tokenizers { transformers5: tokenizer.clone(), transformers4: tokenizer }
            }
        };
        let tokenizer = &tokenizers.transformers5;
        let image_tokens = ImageTokens {
            image: tokenizer.content(tokenizer.image_token_id()),
            fake: tokenizer.content(tokenizer.fake_token_id()),
            image_seq_len: files.image_seq_len,
        };
        Ok(Self { family, tokenizers, tokenizer_config, images, chat_template, image_tokens })
    }

    /// Whose rules these are.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether conversations can be written: with the checkpoint's chat template, or in the words of the first Idefics'
    /// instructed checkpoints, which have a token for the end of a turn and no template.
    pub fn can_chat(&self) -> bool {
        self.chat_template.is_some() || self.turns().is_some()
    }

    /// What ends a turn of a conversation that is written without a template: `<end_of_utterance>`.
    pub fn turn_end_id(&self) -> Option<u32> {
        let writes_turns = self.family == Family::Idefics1 && self.chat_template.is_none();
        self.tokenizer().end_of_utterance_id().filter(|_| writes_turns)
    }

    /// Its spelling.
    fn turns(&self) -> Option<String> {
        self.turn_end_id().map(|end| self.tokenizer().content(end))
    }

    /// The tokenizer under the default [`Compatibility`]. Its ids mean the same under the other.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer_for(Compatibility::default())
    }

    /// The tokenizer as one release of the reference builds it.
    pub fn tokenizer_for(&self, compatibility: Compatibility) -> &Tokenizer {
        match compatibility {
            Compatibility::Transformers5 => &self.tokenizers.transformers5,
            Compatibility::Transformers4 => &self.tokenizers.transformers4,
        }
    }

    /// Image tokens of one (sub-)image. It must equal the model's `resampler_n_latents`.
    pub fn image_seq_len(&self) -> usize {
        self.image_tokens.image_seq_len
    }

    /// The spellings of which an image's place in the text is built.
    pub fn image_tokens(&self) -> &ImageTokens {
        &self.image_tokens
    }

    /// The image side's configuration.
    pub fn image_config(&self) -> &ImageProcessorConfig {
        self.images.config()
    }

    /// The checkpoint's chat template; base models have none.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Turns a batch of samples into ids and tiles. Rows are independent: each comes out as it would alone.
    ///
    /// # Errors
    /// The first row at fault, text before images: a [`ProcessorError`] that names the row, and the image where one is
    /// at fault.
    pub fn process(&self, samples: &[Sample], options: &ProcessOptions) -> Result<ProcessedInputs, ProcessorError> {
        if samples.is_empty() {
            return Err(ProcessorError::EmptyBatch);
        }
        self.check_options(options)?;
        // Text first: it is cheap, and nothing is fetched for a batch that cannot be used.
        let images = self.image_processor(options)?;
        let sub_images = images.tiles_per_image();
        let rows: Vec<(String, Vec<u32>)> = samples
            .par_iter()
            .enumerate()
            .map(|(row, sample)| self.process_text(sample, row, sub_images, options))
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<_, _>>()?;
        let (prompts, input_ids) = rows.into_iter().unzip();

        let tiles = samples
            .par_iter()
            .enumerate()
            .map(|(row, sample)| process_images(&images, &sample.images(), row, options))
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        if !images.config().do_pad && self.family == Family::Idefics2 {
            images.pad(&tiles)?; // refuses what cannot stand in one array
        }
        Ok(ProcessedInputs { prompts, input_ids, images: tiles })
    }

    /// The text of a conversation by the chat template, before images are written out; what the reference's
    /// `apply_chat_template` returns.
    ///
    /// # Errors
    /// As [`Self::process`], for row 0.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ProcessorError> {
        let options = ProcessOptions { special_tokens_in_text: SpecialTokensInText::Parse, ..Default::default() };
        let (text, _) = self.render_messages(messages, add_generation_prompt, 0, &options)?;
        Ok(text)
    }

    /// The images of a batch of the first Idefics in the reference's layout, and its shape: `[batch, n_images, 3,
    /// height, width]`, zeros where a row has fewer, and one slot of zeros where no row has any.
    pub fn idefics1_pixel_values(&self, processed: &ProcessedInputs) -> ([usize; 5], Vec<f32>) {
        let of_config = match self.images.config().size {
            ImageSize::Exact { height, width } => (height as usize, width as usize),
            ImageSize::Edges { shortest_edge, .. } => (shortest_edge as usize, shortest_edge as usize),
        };
        let first = processed.images.iter().flatten().next();
        let (height, width) = first.map_or(of_config, |tile| (tile.height, tile.width));
        let n_images = processed.images.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let shape = [processed.images.len(), n_images, 3, height, width];
        let mut pixel_values = vec![0.0; shape.iter().product()];
        for (slots, tiles) in pixel_values.chunks_mut(n_images * 3 * height * width).zip(&processed.images) {
            for (slot, tile) in slots.chunks_mut(3 * height * width).zip(tiles) {
                slot.copy_from_slice(&tile.pixels);
            }
        }
        (shape, pixel_values)
    }

    /// Refuses what another generation's prompts have.
    fn check_options(&self, options: &ProcessOptions) -> Result<(), ProcessorError> {
        match self.family {
            Family::Idefics1 if options.do_image_splitting == Some(true) => Err(ProcessorError::NoSplitting),
            Family::Idefics2 if options.add_end_of_utterance_token == Some(true) => {
                Err(ProcessorError::Idefics1Option { option: "add_end_of_utterance_token" })
            }
            Family::Idefics2 if options.add_eos_token => {
                Err(ProcessorError::Idefics1Option { option: "add_eos_token" })
            }
            Family::Idefics1 | Family::Idefics2 => Ok(()),
        }
    }

    fn image_processor(&self, options: &ProcessOptions) -> Result<ImageProcessor, ProcessorError> {
        let mut config = self.images.config().clone();
        match options.do_image_splitting {
            Some(splitting) if splitting != config.do_image_splitting => {
                config.do_image_splitting = splitting;
                let path = "preprocessor_config.json".into();
                ImageProcessor::new(config).map_err(|error| ProcessorError::ImageConfig { path, error })
            }
            _ => Ok(self.images.clone()),
        }
    }

    fn process_text(
        &self,
        sample: &Sample,
        row: usize,
        sub_images: usize,
        options: &ProcessOptions,
    ) -> Result<(String, Vec<u32>), ProcessorError> {
        check_size(sample, row, &options.text_limits)?;
        let (text, literals) = match sample {
            Sample::Text { text, images } => {
                let placeholders = self.image_tokens.count(text);
                if placeholders != images.len() {
                    let token = self.image_tokens.image.clone();
                    return Err(ProcessorError::ImageCount { row, placeholders, images: images.len(), token });
                }
                (text.clone(), Literals::default())
            }
            Sample::Messages { messages, add_generation_prompt } => {
                let (text, literals) = self.render_messages(messages, *add_generation_prompt, row, options)?;
                let (images, placeholders) = (sample.images().len(), self.image_tokens.count(&text));
                if placeholders != images {
                    return Err(ProcessorError::TemplateLossy { row, images, placeholders });
                }
                (text, literals)
            }
            Sample::Prompt(_) if self.family == Family::Idefics2 => return Err(ProcessorError::PromptList { row }),
            Sample::Prompt(parts) => {
                let placeholders: usize = texts_of_parts(parts).map(|text| self.image_tokens.count(text)).sum();
                if placeholders > 0 {
                    let (images, token) = (sample.images().len(), self.image_tokens.image.clone());
                    return Err(ProcessorError::ImageCount { row, placeholders: placeholders + images, images, token });
                }
                (String::new(), Literals::default())
            }
        };

        let tokenizer = self.tokenizer_for(options.compatibility);
        let (expanded, adds_bos) = match (self.family, sample) {
            (Family::Idefics1, Sample::Prompt(parts)) => {
                (self.interleaved(options, |rules| rules.text_of_parts(parts)), false)
            }
            (Family::Idefics1, _) => (self.interleaved(options, |rules| rules.text_of_placeholders(&text)), false),
            (Family::Idefics2, _) => {
                (expand_images(&text, &self.image_tokens, sub_images, &literals, options.compatibility), true)
            }
        };
        let ids = tokenizer.encode_literal(&expanded, &literals, adds_bos)?;
        let expected = self.image_tokens.count(&expanded);
        let found = ids.iter().filter(|&&id| id == tokenizer.image_token_id()).count();
        if found != expected {
            return Err(ProcessorError::ImageTokenCount { row, expected, found });
        }
        Ok((literals.restore(&expanded), ids))
    }

    /// A prompt of the first Idefics.
    fn interleaved(&self, options: &ProcessOptions, write: impl FnOnce(&InterleavedRules<'_>) -> String) -> String {
        let end_of_utterance = match options.add_end_of_utterance_token {
            Some(false) => None,
            None => self.tokenizer().end_of_utterance_id().map(|end| self.tokenizer().content(end)),
            Some(true) => Some(tokenizer::END_OF_UTTERANCE.to_owned()),
        };
        let (bos, eos) = self.tokenizer_config.ends();
        write(&InterleavedRules {
            tokens: &self.image_tokens,
            bos,
            end_of_utterance: end_of_utterance.as_deref(),
            eos: options.add_eos_token.then_some(eos),
        })
    }

    /// The rendered text, with the user's special tokens broken by the stand-ins of the literals.
    fn render_messages(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        row: usize,
        options: &ProcessOptions,
    ) -> Result<(String, Literals), ProcessorError> {
        if !self.can_chat() {
            return Err(ProcessorError::NoChatTemplate { row });
        }
        let source = self.chat_template.as_ref().map_or("User:Assistant:", ChatTemplate::source);
        let tokens: Vec<&str> = self.tokenizer().protected().collect();
        if options.special_tokens_in_text == SpecialTokensInText::Reject {
            for (message, parts) in messages.iter().enumerate() {
                if let Some(token) = texts(parts).find_map(|text| find_token(text, &tokens)) {
                    return Err(ProcessorError::SpecialTokenInText { row, message, token: token.to_owned() });
                }
            }
        }
        let written = messages.iter().flat_map(texts).chain([source]).chain(tokens.iter().copied());
        let mut literals = Literals::new(written);
        let names = self.tokenizer_config.template_tokens();
        let protect = |text: &str| match options.special_tokens_in_text {
            SpecialTokensInText::Parse => text.to_owned(),
            SpecialTokensInText::Literal | SpecialTokensInText::Reject => literals.protect(text, &tokens),
        };
        let rendered = match (&self.chat_template, self.turns()) {
            (Some(template), _) => template.render(messages, add_generation_prompt, &names, row, protect)?,
            (None, end) => {
                let end = end.unwrap_or_default(); // `can_chat` says that there is one
                conversation(messages, add_generation_prompt, &self.image_tokens, &end, protect)
            }
        };
        Ok((rendered, literals))
    }
}

/// The texts of a message.
fn texts(message: &Message) -> impl Iterator<Item = &str> {
    message.content.iter().filter_map(|content| match content {
        Content::Text { text } => Some(text.as_str()),
        Content::Image { .. } => None,
    })
}

/// The texts of a prompt list.
fn texts_of_parts(parts: &[PromptPart]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        PromptPart::Text(text) => Some(text.as_str()),
        PromptPart::Image(_) => None,
    })
}

/// Loads and cuts up the images of one row, in parallel.
fn process_images(
    processor: &ImageProcessor,
    sources: &[&ImageSource],
    row: usize,
    options: &ProcessOptions,
) -> Result<Vec<ImageTile>, ProcessorError> {
    let tiles: Vec<Result<Vec<ImageTile>, ProcessorError>> =
        sources
            .par_iter()
            .enumerate()
            .map(|(image, source)| {
                let picture = load(source, &options.limits, options.decoding())
                    .map_err(|error| ProcessorError::Image { row, image, error })?;
                Ok(processor.process(&picture))
            })
            .collect();
    let tiles: Vec<Vec<ImageTile>> = tiles.into_iter().collect::<Result<_, _>>()?;
    Ok(tiles.into_iter().flatten().collect())
}

fn check_size(sample: &Sample, row: usize, limits: &TextLimits) -> Result<(), ProcessorError> {
    let check = |what, found, limit| match found > limit {
        true => Err(ProcessorError::TextTooLarge { row, what, found, limit }),
        false => Ok(()),
    };
    check("images", sample.images().len(), limits.max_images)?;
    match sample {
        Sample::Text { text, .. } => check("bytes of text", text.len(), limits.max_text_bytes),
        Sample::Messages { messages, .. } => {
            check("messages", messages.len(), limits.max_messages)?;
            if messages.is_empty() {
                return Err(ProcessorError::EmptyMessages { row });
            }
            let longest = messages.iter().flat_map(texts).map(str::len).max().unwrap_or(0);
            check("bytes in one text", longest, limits.max_text_bytes)?;
            let total = messages.iter().flat_map(texts).map(str::len).sum();
            check("bytes of text in all messages", total, limits.max_total_bytes)?;
            messages.iter().enumerate().try_for_each(|(message, parts)| check_role(&parts.role, row, message))
        }
        Sample::Prompt(parts) => {
            let longest = texts_of_parts(parts).map(str::len).max().unwrap_or(0);
            check("bytes in one text", longest, limits.max_text_bytes)?;
            let total = texts_of_parts(parts).map(str::len).sum();
            check("bytes of text in all parts", total, limits.max_total_bytes)
        }
    }
}

/// Templates write the role among their own text, so it must not be able to spell anything but a word.
fn check_role(role: &str, row: usize, message: usize) -> Result<(), ProcessorError> {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    match (1..=64).contains(&role.len()) && role.chars().all(is_word) {
        true => Ok(()),
        false => Err(ProcessorError::Role { row, message, role: shorten(role) }),
    }
}
