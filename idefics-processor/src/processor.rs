//! The processor of a checkpoint: turns samples into model inputs.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, ExtraFiles, ModelHead, Sourced};
use crate::error::ProcessorError;
use crate::families::{ExpandedPrompt, FamilyRules, PromptContext, PromptStyle, PromptText, TileGrid, TileSizes};
use crate::image::{
    Alpha, DecodeOptions, ImageProcessor, ImageProcessorConfig, ImageTile, Limits, ReadOptions, SourcePolicy,
};
use crate::inputs::ProcessedInputs;
use crate::media::{self, VideoProcessor};
use crate::prompt::{
    self, Chat, ChatTemplate, Conversations, ImageTokens, Literals, Sample, SpecialTokensInText, TextLimits,
    texts_of_parts,
};
use crate::tokenizer::{self, Compatibility, Tokenizer, TokenizerConfig};
use crate::video::{SampledVideo, VIDEO_TOKEN, VideoError, VideoOptions, VideoSampling};
use crate::warning::ProcessorWarning;

/// Maximum number of tiles of an image, unless [`ProcessOptions::max_tiles`] is set.
pub const MAX_TILES: u64 = 100;

/// Options of [`Processor::process`].
#[derive(Debug, Clone, Default)]
pub struct ProcessOptions {
    /// Whether parts of each image are added before the image itself: its four quarters, or the tiles of a grid. `None`
    /// uses the setting of the checkpoint.
    pub do_image_splitting: Option<bool>,
    /// How transparent pixels are handled.
    pub alpha: Alpha,
    /// Page to read from multi-page images, counted from 1. `None` reads the first page.
    pub page: Option<NonZeroU32>,
    /// Limits on the size and cost of each image.
    pub limits: Limits,
    /// Maximum number of tiles of an image, in families whose number of tiles depends on the image's size. `None` means
    /// [`MAX_TILES`].
    pub max_tiles: Option<u64>,
    /// How videos are read.
    pub video: VideoOptions,
    /// The files and URLs that samples may load images and videos from. By default, all are allowed. Restrict them for
    /// samples from untrusted users.
    pub sources: SourcePolicy,
    /// A flag that cancels the reading of images and videos. Soon after it becomes `true`, even while waiting for a
    /// server, processing fails with an error of kind [`Cancelled`](crate::ErrorKind::Cancelled).
    pub cancel: Option<Arc<AtomicBool>>,
    /// Limits on the text and the number of messages and images of a sample.
    pub text_limits: TextLimits,
    /// How special tokens that a user types in a message are handled.
    pub special_tokens_in_text: SpecialTokensInText,
    /// The release of the reference to reproduce.
    pub compatibility: Compatibility,
    /// Whether `<end_of_utterance>` is inserted between consecutive texts of a prompt list. With `None`, it is inserted
    /// if the tokenizer has that token, as in release 4 of the reference. Release 5 never inserts it by default.
    pub add_end_of_utterance_token: Option<bool>,
    /// Whether `</s>` is appended to prompts of IDEFICS v1.
    pub add_eos_token: bool,
}

impl ProcessOptions {
    pub(crate) fn read(&self) -> ReadOptions {
        let mut read = ReadOptions::default();
        read.limits = self.limits.clone();
        read.sources = self.sources.clone();
        read.cancel = self.cancel.clone();
        read
    }

    pub(crate) fn decoding(&self) -> DecodeOptions {
        DecodeOptions::from(self.alpha).with_page(self.page.unwrap_or(NonZeroU32::MIN))
    }
}

/// Turns text and images into model inputs.
///
/// Source: `IdeficsProcessor` and `Idefics2Processor` of transformers 5.23.
#[derive(Debug, Clone)]
pub struct Processor {
    family: &'static dyn FamilyRules,
    tokenizers: Tokenizers,
    tokenizer_config: TokenizerConfig,
    images: ImageProcessor,
    /// `None` in families without videos.
    video: Option<VideoProcessor>,
    chat_template: Option<ChatTemplate>,
    image_tokens: ImageTokens,
    warnings: Vec<ProcessorWarning>,
}

/// One tokenizer per release of the reference. Both fields share one tokenizer if both releases build the same
/// tokenizer.
#[derive(Debug, Clone)]
struct Tokenizers {
    transformers5: Arc<Tokenizer>,
    transformers4: Arc<Tokenizer>,
}

impl Processor {
    /// Loads the processor of a checkpoint folder.
    ///
    /// `tokenizer.json` is required. `config.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `preprocessor_config.json`, `processor_config.json` and the chat template are optional; without them, the
    /// defaults of the reference's classes apply.
    ///
    /// # Errors
    /// A [`ProcessorError`] of kind [`FileSystem`](crate::ErrorKind::FileSystem) or [`Model`](crate::ErrorKind::Model)
    /// that names the file, and the field if a field is invalid.
    pub fn from_folder(folder: &Path) -> Result<Self, ProcessorError> {
        let checkpoint = Checkpoint::open(folder)?;
        let head = checkpoint.model_head()?;
        let family = checkpoint.family(&head)?;
        Self::new(&checkpoint, &head, family)
    }

    /// Loads the processor of a checkpoint folder, with additional files that are not in the folder.
    ///
    /// # Errors
    /// The errors of [`Self::from_folder`].
    pub fn from_folder_with_files(folder: &Path, others: ExtraFiles) -> Result<Self, ProcessorError> {
        let checkpoint = Checkpoint::open(folder)?.with_others(others);
        let head = checkpoint.model_head()?;
        let family = checkpoint.family(&head)?;
        Self::new(&checkpoint, &head, family)
    }

    /// Loads the processor of a checkpoint folder with the rules of `family`, instead of those of the family that
    /// `config.json` names.
    ///
    /// # Errors
    /// The errors of [`Self::from_folder`].
    pub fn from_folder_with(folder: &Path, family: &'static dyn FamilyRules) -> Result<Self, ProcessorError> {
        let checkpoint = Checkpoint::open(folder)?;
        let head = checkpoint.model_head()?;
        Self::new(&checkpoint, &head, family)
    }

    fn new(
        checkpoint: &Checkpoint,
        head: &ModelHead,
        family: &'static dyn FamilyRules,
    ) -> Result<Self, ProcessorError> {
        let config = checkpoint.json("tokenizer_config.json")?;
        let tokenizer_config = TokenizerConfig::read(checkpoint, config.as_ref(), head, family)?;
        let files = checkpoint.processor(family, config.as_ref())?;
        let images = ImageProcessor::new(family, files.images)
            .map_err(|error| ProcessorError::ImageConfig { path: files.images_path, error })?;
        let video = match files.video.zip(family.video()) {
            Some((Sourced { path, content }, rules)) => Some(VideoProcessor {
                chat_template: ChatTemplate::new(rules.chat_template.to_owned(), &path)?,
                images: ImageProcessor::new(family, content.images)
                    .map_err(|error| ProcessorError::ImageConfig { path, error })?,
                sampling: content.sampling,
            }),
            None => None,
        };
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
        let warnings = files.warnings;
        Ok(Self { family, tokenizers, tokenizer_config, images, video, chat_template, image_tokens, warnings })
    }

    /// Returns the problems of the checkpoint folder that do not prevent its use.
    pub fn warnings(&self) -> &[ProcessorWarning] {
        &self.warnings
    }

    /// Returns the rules of the model family.
    pub fn family(&self) -> &'static dyn FamilyRules {
        self.family
    }

    /// Returns whether samples may have videos.
    pub fn reads_videos(&self) -> bool {
        self.video.is_some()
    }

    /// Returns the processor that turns the frames of videos into tiles, or `None` if the family has no videos.
    pub fn frame_processor(&self) -> Option<&ImageProcessor> {
        self.video.as_ref().map(|video| &video.images)
    }

    /// Returns how the checkpoint samples the frames of videos, or `None` if the family has no videos.
    pub fn video_sampling(&self) -> Option<VideoSampling> {
        self.video.as_ref().map(|video| video.sampling)
    }

    /// Returns whether conversations are supported. They need either a chat template, or the end-of-turn token of the
    /// instruct checkpoints of IDEFICS v1, which have a fixed format and no template.
    pub fn can_chat(&self) -> bool {
        self.chat_template.is_some() || self.end_of_turn().is_some()
    }

    /// Returns the id of the end-of-turn token, `<end_of_utterance>`, if conversations are written without a chat
    /// template.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        let writes_turns = self.chat_template.is_none() && self.family.prompt_style() == PromptStyle::Interleaved;
        self.tokenizer().end_of_utterance_id().filter(|_| writes_turns)
    }

    /// Returns the text of the token with the id [`Self::end_of_turn_id`].
    fn end_of_turn(&self) -> Option<String> {
        self.end_of_turn_id().map(|end| self.tokenizer().content(end))
    }

    /// Returns the tokenizer for the default [`Compatibility`]. An id means the same token in both releases.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer_for(Compatibility::default())
    }

    /// Returns the tokenizer as the given release of the reference builds it.
    pub fn tokenizer_for(&self, compatibility: Compatibility) -> &Tokenizer {
        match compatibility {
            Compatibility::Transformers5 => &self.tokenizers.transformers5,
            Compatibility::Transformers4 => &self.tokenizers.transformers4,
        }
    }

    /// Returns the number of image tokens per tile, unless [`FamilyRules::tile_tokens`] gives another number.
    pub fn image_seq_len(&self) -> usize {
        self.image_tokens.image_seq_len
    }

    /// Returns the tokens that represent an image in the text.
    pub fn image_tokens(&self) -> &ImageTokens {
        &self.image_tokens
    }

    /// Returns the image processor.
    pub fn image_processor(&self) -> &ImageProcessor {
        &self.images
    }

    /// Returns the configuration of the image processor.
    pub fn image_config(&self) -> &ImageProcessorConfig {
        self.images.config()
    }

    /// Returns the checkpoint's chat template. Base models have none.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Turns a batch of samples into token ids and image tiles. Rows are independent: each row gives the same result as
    /// it would alone in a batch.
    ///
    /// # Errors
    /// All texts are checked first, then all images are loaded, then all videos, and then the prompts are encoded. The
    /// error is that of the first row that fails in the first of these steps that fails. The error of an image or a
    /// video also has its index in the row.
    pub fn process(&self, samples: &[Sample], options: &ProcessOptions) -> Result<ProcessedInputs, ProcessorError> {
        if samples.is_empty() {
            return Err(ProcessorError::EmptyBatch);
        }
        self.family.check_options(options)?;
        // Check all texts before fetching any image.
        let images = self.image_processor_for(options)?;
        let written = collect_rows(samples, |row, sample| self.write(sample, row, options))?;
        let mut pictures =
            collect_rows(samples, |row, sample| media::load_images(&images, &sample.images(), row, options))?;
        let mut clips = collect_rows(samples, |row, sample| match &self.video {
            Some(video) => video.load(&sample.videos(), row, options),
            None => Ok(Vec::new()), // `write` has rejected samples with videos
        })?;
        let rows = pictures.iter_mut().zip(&mut clips).zip(&written);
        let in_order = |((pictures, clips), (text, _)): ((&mut _, &mut _), &(String, Literals))| {
            media::in_order(text, &self.image_tokens.image, pictures, clips)
        };
        let tiles: Vec<Vec<ImageTile>> = rows.map(in_order).collect();
        let grids: Vec<Vec<TileGrid>> = pictures.into_iter().map(media::without_tiles).collect();
        let videos: Vec<Vec<SampledVideo>> = clips.into_iter().map(media::without_tiles).collect();
        if !images.config().do_pad && self.family.tile_sizes() == TileSizes::Varying {
            images.pad(&tiles)?; // an error if the tiles do not fit in one array
        }
        let rows = collect_rows(samples, |row, sample| {
            self.encode(sample, &written[row], (&grids[row], &videos[row]), row, options)
        })?;
        let (prompts, input_ids) = rows.into_iter().unzip();
        let tokens_of =
            |tile: &ImageTile| self.family.tile_tokens(tile.width(), tile.height(), self.image_tokens.image_seq_len);
        let tile_tokens = tiles.iter().map(|row| row.iter().map(tokens_of).collect()).collect();
        Ok(ProcessedInputs { prompts, input_ids, images: tiles, tile_tokens, grids, videos })
    }

    /// Renders a conversation with the chat template, before image placeholders are expanded. The result equals that
    /// of the reference's `apply_chat_template`.
    ///
    /// # Errors
    /// The errors of [`Self::process`] for conversations, with row 0.
    pub fn render(&self, chat: &Chat) -> Result<String, ProcessorError> {
        let (text, _) = self.render_chat(chat, 0, SpecialTokensInText::Parse)?;
        Ok(text)
    }

    fn image_processor_for(&self, options: &ProcessOptions) -> Result<ImageProcessor, ProcessorError> {
        let mut config = self.images.config().clone();
        match options.do_image_splitting {
            Some(splitting) if splitting != config.do_image_splitting => {
                config.do_image_splitting = splitting;
                let path = "preprocessor_config.json".into();
                ImageProcessor::new(self.family, config).map_err(|error| ProcessorError::ImageConfig { path, error })
            }
            _ => Ok(self.images.clone()),
        }
    }

    /// Writes the text of a sample with one placeholder per image, and checks everything that does not need the
    /// images.
    fn write(
        &self,
        sample: &Sample,
        row: usize,
        options: &ProcessOptions,
    ) -> Result<(String, Literals), ProcessorError> {
        check_size(sample, row, &options.text_limits)?;
        let wrong_videos = |error| ProcessorError::Videos { row, error };
        if self.video.is_none() && !sample.videos().is_empty() {
            return Err(wrong_videos(VideoError::NotSupported { family: self.family.model_type() }));
        }
        // Without videos, `<video>` is ordinary text.
        let count_videos = |text: &str| self.video.as_ref().map_or(0, |_| text.matches(VIDEO_TOKEN).count());
        match sample {
            Sample::Text { text, images, videos } => {
                let placeholders = self.image_tokens.count(text);
                if placeholders != images.len() {
                    let token = self.image_tokens.image.clone();
                    return Err(ProcessorError::ImageCount { row, placeholders, images: images.len(), token });
                }
                let placeholders = count_videos(text);
                if placeholders != videos.len() {
                    return Err(wrong_videos(VideoError::Count { placeholders, videos: videos.len() }));
                }
                Ok((text.clone(), Literals::default()))
            }
            Sample::Messages(chat) => {
                let (text, literals) = self.render_chat(chat, row, options.special_tokens_in_text)?;
                let is_parsed = options.special_tokens_in_text == SpecialTokensInText::Parse;
                let tokens = is_parsed.then_some(&self.image_tokens);
                prompt::check_images(chat, self.image_tokens.count(&text), tokens, row)?;
                prompt::check_videos(chat, count_videos(&text)).map_err(wrong_videos)?;
                Ok((text, literals))
            }
            Sample::Prompt(_) if self.family.prompt_style() == PromptStyle::Template => {
                Err(ProcessorError::PromptList { row })
            }
            Sample::Prompt(parts) => {
                let placeholders: usize = texts_of_parts(parts).map(|text| self.image_tokens.count(text)).sum();
                if placeholders > 0 {
                    let (images, token) = (sample.images().len(), self.image_tokens.image.clone());
                    return Err(ProcessorError::ImageCount { row, placeholders: placeholders + images, images, token });
                }
                Ok((String::new(), Literals::default()))
            }
        }
    }

    /// Expands the image placeholders of a sample and encodes the text. Returns the text and its ids.
    fn encode(
        &self,
        sample: &Sample,
        (text, literals): &(String, Literals),
        (grids, videos): (&[TileGrid], &[SampledVideo]),
        row: usize,
        options: &ProcessOptions,
    ) -> Result<(String, Vec<u32>), ProcessorError> {
        let prompt = match sample {
            Sample::Text { .. } => PromptText::Text(text),
            Sample::Messages(_) => PromptText::Conversation(text),
            Sample::Prompt(parts) => PromptText::Parts(parts),
        };
        let end_of_utterance = self.tokenizer().end_of_utterance_id().map(|end| self.tokenizer().content(end));
        let (bos, eos) = self.tokenizer_config.bos_and_eos();
        let context = PromptContext {
            tokens: &self.image_tokens,
            grids,
            videos,
            bos,
            eos,
            end_of_utterance: end_of_utterance.as_deref(),
            literals,
            options,
        };
        let ExpandedPrompt { text, add_special_tokens } = self.family.expand(prompt, &context);
        let tokenizer = self.tokenizer_for(options.compatibility);
        let ids = tokenizer.encode_literal(&text, literals, add_special_tokens)?;
        let expected = self.image_tokens.count(&text);
        let found = ids.iter().filter(|&&id| id == tokenizer.image_token_id()).count();
        if found != expected {
            return Err(ProcessorError::ImageTokenCount { row, expected, found });
        }
        Ok((literals.restore(&text), ids))
    }

    /// Renders a conversation. Special tokens that the user typed are masked by the stand-ins in the returned
    /// [`Literals`].
    fn render_chat(
        &self,
        chat: &Chat,
        row: usize,
        special_tokens_in_text: SpecialTokensInText,
    ) -> Result<(String, Literals), ProcessorError> {
        // `<video>` need not be a token of the tokenizer, but user text must not produce it either.
        let video = self.video.as_ref();
        let protected: Vec<&str> = self.tokenizer().protected().chain(video.map(|_| VIDEO_TOKEN)).collect();
        let end_of_turn = self.end_of_turn();
        let for_videos = video.map(|video| &video.chat_template).filter(|_| chat.count_video_parts().0 > 0);
        let conversations = Conversations {
            template: for_videos.or(self.chat_template.as_ref()),
            end_of_turn: end_of_turn.as_deref(),
            image_tokens: &self.image_tokens,
            named_tokens: self.tokenizer_config.named_tokens(),
            protected: &protected,
            special_tokens_in_text,
        };
        conversations.render(chat, row)
    }
}

/// Computes the results of all rows in parallel. If several rows fail, returns the error of the first.
fn collect_rows<T: Send>(
    samples: &[Sample],
    result: impl Fn(usize, &Sample) -> Result<T, ProcessorError> + Sync,
) -> Result<Vec<T>, ProcessorError> {
    let rows = samples.par_iter().enumerate().map(|(row, sample)| result(row, sample));
    rows.collect::<Vec<_>>().into_iter().collect()
}

fn check_size(sample: &Sample, row: usize, limits: &TextLimits) -> Result<(), ProcessorError> {
    let check = |what, found, limit| match found > limit {
        true => Err(ProcessorError::TextTooLarge { row, what, found, limit }),
        false => Ok(()),
    };
    check("images", sample.images().len(), limits.max_images)?;
    check("videos", sample.videos().len(), limits.max_images)?;
    match sample {
        Sample::Text { text, .. } => check("bytes of text", text.len(), limits.max_text_bytes),
        Sample::Messages(chat) => prompt::check(chat, row, limits),
        Sample::Prompt(parts) => {
            let longest = texts_of_parts(parts).map(str::len).max().unwrap_or(0);
            check("bytes in one text", longest, limits.max_text_bytes)?;
            let total = texts_of_parts(parts).map(str::len).sum();
            check("bytes of text in all parts together", total, limits.max_total_bytes)
        }
    }
}
