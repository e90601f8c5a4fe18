//! A loaded model with its processor: images and text in, text out.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use burn::tensor::Device;
#[cfg(feature = "hub")]
use idefics_hub::{HubOptions, fetch_with};
use idefics_nn::checkpoint::LoadProgress;
use idefics_processor::{END_OF_UTTERANCE, ProcessOptions, ProcessedInputs, Processor, Sample, Tokenizer};

use crate::feature_cache::FeatureCache;
use crate::loading::load_placed;
use crate::placement::{Placement, Plan};
use crate::running::Generated;
use crate::{
    Answer, EosTokenId, Error, GenerationConfig, GenerationWarning, InputError, Model, ModelConfig, ModelWarning,
    Prompts, Timings, Usage, VisionBatch, WeightOptions, folder, load_processor,
};

/// A model with its processor and its generation options.
#[derive(Debug)]
pub struct Idefics {
    folder: PathBuf,
    pub(crate) model: Box<dyn Model>,
    config: ModelConfig,
    pub(crate) vision_batch: VisionBatch,
    processor: Processor,
    generation_config: GenerationConfig,
    device: Device,
    pub(crate) features: Mutex<FeatureCache>,
    warnings: Vec<ModelWarning>,
    /// The tokens in the form that grammars need; empty until the first grammar is compiled.
    #[cfg(feature = "grammar")]
    vocabulary: std::sync::OnceLock<crate::GrammarVocabulary>,
}

/// Default maximum size of the cache of image vectors, in bytes. It holds about 250 images of the 8B model in f32.
const FEATURE_BYTES: usize = 256 << 20;

/// A stage of loading a model, with its progress.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LoadStage {
    /// Downloading files from the hub.
    #[cfg(feature = "hub")]
    Download(idefics_hub::HubProgress),
    /// Loading weights onto the device.
    Weights(LoadProgress),
}

impl Idefics {
    /// Loads a model folder in the Hugging Face layout, or a GGUF file, onto `device`. `weights` is a set of options,
    /// or just a dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] that names the invalid file, key or tensor.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadStage),
    ) -> Result<Self, Error> {
        Self::load(folder, device, None, weights.into(), progress)
    }

    /// Loads a model like [`Idefics::from_folder`], with each part on the device that `plan` gives. The plan must have
    /// been made for this model ([`ModelConfig::blocks`]).
    ///
    /// # Errors
    /// See [`Idefics::from_folder`]; also [`Error::NotPlaceable`] if the model cannot be split.
    pub fn from_folder_placed(
        folder: &Path,
        plan: &Plan,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadStage),
    ) -> Result<Self, Error> {
        let placement = plan.open()?;
        let device = placement.device("model.embed_tokens");
        Self::load(folder, &device, Some(&placement), weights.into(), progress)
    }

    fn load(
        folder: &Path,
        device: &Device,
        placement: Option<&Placement>,
        weights: WeightOptions,
        mut progress: impl FnMut(LoadStage),
    ) -> Result<Self, Error> {
        let config = ModelConfig::from_folder(folder)?;
        let mut generation_config = GenerationConfig::from_folder(folder)?;
        let dropped = generation_config.drop_unsupported(config.family().shape().vocab_size).into_iter();
        let path = folder::sibling_path(folder, "generation_config.json");
        let mut warnings: Vec<ModelWarning> =
            dropped.map(|warning| ModelWarning::Generation { path: path.clone(), warning }).collect();
        let processor = load_processor(folder)?;
        warnings.extend(processor.warnings().iter().cloned().map(ModelWarning::from));
        warnings.extend(check_tokens(folder, &config, &processor)?);

        let progress = |loaded| progress(LoadStage::Weights(loaded));
        let placement = match placement {
            Some(_) if config.family().blocks().is_empty() => {
                return Err(Error::NotPlaceable { folder: folder.to_owned() });
            }
            Some(placement) => placement.clone(),
            None => Placement::single_device(device),
        };
        let (model, weight_warnings) = load_placed(&config, folder, &placement, weights, progress)?;
        warnings.extend(weight_warnings);
        Ok(Self {
            folder: folder.to_owned(),
            model,
            config,
            vision_batch: VisionBatch::default(),
            processor,
            generation_config,
            device: device.clone(),
            features: Mutex::new(FeatureCache::new(FEATURE_BYTES)),
            warnings,
            #[cfg(feature = "grammar")]
            vocabulary: std::sync::OnceLock::new(),
        })
    }

    /// Compiles a grammar for this model. The result is used as [`Controls::grammar`](crate::Controls::grammar).
    ///
    /// # Errors
    /// [`Error::Grammar`].
    #[cfg(feature = "grammar")]
    pub fn compile_grammar(&self, grammar: &crate::Grammar) -> Result<crate::CompiledGrammar, Error> {
        let vocabulary = match self.vocabulary.get() {
            Some(vocabulary) => vocabulary,
            None => {
                let width = self.model.shape().vocab_size;
                let made = crate::GrammarVocabulary::new(self.processor.tokenizer(), width)?;
                self.vocabulary.get_or_init(|| made)
            }
        };
        Ok(grammar.compile(vocabulary)?)
    }

    /// Returns warnings about the folder. They do not prevent its use.
    pub fn warnings(&self) -> &[ModelWarning] {
        &self.warnings
    }

    /// Loads the model `repo` (`org/name`) from the standard hub cache, after downloading missing files.
    ///
    /// # Errors
    /// [`Error::Hub`], and those of [`Idefics::from_folder`].
    #[cfg(feature = "hub")]
    pub fn from_hub(
        repo: &str,
        revision: Option<&str>,
        device: &Device,
        weights: impl Into<WeightOptions>,
        mut progress: impl FnMut(LoadStage),
    ) -> Result<Self, Error> {
        let weights = weights.into();
        let mut hub = HubOptions::from_env()?;
        hub.allow_pickles = weights.pickles == idefics_checkpoint::PicklePolicy::Allowed;
        let folder = fetch_with(&hub, repo, revision, &mut |state| progress(LoadStage::Download(state)))?;
        Self::from_folder(&folder, device, weights, progress)
    }

    /// Returns the model.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Sets how many images the vision tower encodes together.
    pub fn set_vision_batch(&mut self, vision_batch: VisionBatch) {
        self.vision_batch = vision_batch;
    }

    /// Returns the processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Returns the folder's generation options, which the options of a call override.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Merges the options of a call with those of the folder. In conversations with IDEFICS v1, answers also end at the
    /// end-of-turn token, which the folders of these checkpoints do not list. If the call sets `eos_token_id`, only the
    /// tokens in it end an answer.
    ///
    /// # Errors
    /// [`Error::Generation`] or [`Error::FolderOption`] if an option is invalid.
    pub(crate) fn options(&self, options: &GenerationConfig, is_conversation: bool) -> Result<GenerationConfig, Error> {
        let mut together = options.over(&self.generation_config);
        if let Some(end) = self.processor.end_of_turn_id().filter(|_| is_conversation && options.eos_token_id.is_none())
        {
            let ends = together.eos_token_ids().iter().copied().chain([end]).collect();
            together.eos_token_id = Some(EosTokenId::Many(ends));
        }
        together.validate().map_err(|error| options.blame(error, &self.folder))?;
        Ok(together)
    }

    /// Converts samples to token ids and image tiles.
    ///
    /// # Errors
    /// [`InputError::TextOnly`] if a sample has an image or a video and the model has no vision tower; those of
    /// [`Processor::process`].
    pub(crate) fn process(&self, samples: &[Sample], options: &ProcessOptions) -> Result<ProcessedInputs, Error> {
        let has_media = |sample: &Sample| !sample.images().is_empty() || !sample.videos().is_empty();
        if !self.config.family().has_vision() && samples.iter().any(has_media) {
            return Err(InputError::TextOnly.into());
        }
        Ok(self.processor.process(samples, options)?)
    }

    /// Pads rows of token ids. For models with cross-attention, also sets which images each token may attend to.
    ///
    /// # Errors
    /// [`InputError::Empty`] if a row has no tokens; [`InputError::NoEmbedding`] if the model has no embedding for a
    /// token of the tokenizer.
    pub(crate) fn prompts(&self, rows: &[Vec<u32>], tokenizer: &Tokenizer) -> Result<Prompts, InputError> {
        let vocab_size = self.model.shape().vocab_size;
        for (row, ids) in rows.iter().enumerate() {
            let mut without = ids.iter().filter(|&&id| id as usize >= vocab_size);
            if let Some((id, token)) = without.find_map(|&id| Some((id, tokenizer.id_to_token(id)?))) {
                return Err(InputError::NoEmbedding { row, token, id, vocab_size });
            }
        }
        let prompts = Prompts::pad_left(rows, tokenizer.pad_token_id_or_fallback())?;
        Ok(self.config.family().see_images(prompts, tokenizer))
    }

    /// Checks options and token ids before anything is computed.
    pub(crate) fn check(&self, prompts: &Prompts, options: &GenerationConfig) -> Result<(), Error> {
        let shape = self.model.shape();
        let options = options.resolve(prompts.seq(), shape.vocab_size)?;
        Ok(options.check_memory(prompts.seq(), &shape.text)?)
    }

    /// Builds an answer to a sample.
    pub(crate) fn answer(
        &self,
        generated: Generated,
        processed: &ProcessedInputs,
        sample: usize,
        process: &ProcessOptions,
        timings: Timings,
    ) -> Result<Answer, Error> {
        let Generated { token_ids, finish_reason, replay_refusal, score, logprobs, prompt_logprobs } = generated;
        let image_token_id = self.processor.tokenizer().image_token_id();
        let input_ids = &processed.input_ids[sample];
        let (n_tokens, context) = (input_ids.len() + token_ids.len(), self.model.shape().text.max_position_embeddings);
        let beyond = GenerationWarning::BeyondContext { n_tokens, context };
        Ok(Answer {
            text: self.processor.tokenizer_for(process.compatibility).decode(&token_ids, true)?,
            prompt: processed.prompts[sample].clone(),
            finish_reason,
            usage: Usage {
                prompt_tokens: input_ids.len(),
                image_tokens: input_ids.iter().filter(|&&id| id == image_token_id).count(),
                completion_tokens: token_ids.len(),
            },
            token_ids,
            timings,
            replay_refusal,
            score,
            logprobs,
            prompt_logprobs,
            warnings: (n_tokens > context).then_some(beyond).into_iter().collect(),
        })
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.device.sync().map_err(|error| Error::Execution { reason: format!("{error:?}") })
    }
}

/// Checks that the processor and the model agree about tokens. No weights are needed for this.
fn check_tokens(folder: &Path, config: &ModelConfig, processor: &Processor) -> Result<Option<ModelWarning>, Error> {
    config.family().check_processor(folder, processor)?;
    let tokenizer = processor.tokenizer();
    let vocab_size = config.family().shape().vocab_size;
    let without_embedding = (vocab_size as u64..=u64::from(tokenizer.max_id())).take(MAX_TOKENS_WITHOUT_EMBEDDING);
    let names = without_embedding.filter_map(|id| tokenizer.id_to_token(id as u32));
    // Base checkpoints have no embedding for the end-of-turn token, and text models have none for image tokens.
    let image_tokens = processor.image_tokens();
    let is_expected = |token: &String| {
        let is_image_token = [&image_tokens.image, &image_tokens.fake].contains(&token);
        token == END_OF_UTTERANCE || (!config.family().has_vision() && is_image_token)
    };
    let tokens: Vec<String> = names.filter(|token| !is_expected(token)).collect();
    let folder = folder.to_owned();
    Ok((!tokens.is_empty()).then_some(ModelWarning::TokensWithoutEmbedding { folder, vocab_size, tokens }))
}

/// Maximum number of tokens without an embedding to check, because files can contain arbitrarily large ids.
const MAX_TOKENS_WITHOUT_EMBEDDING: usize = 1 << 16;

/// Returns the time since `clock` in milliseconds.
pub(crate) fn milliseconds(clock: Instant) -> f64 {
    clock.elapsed().as_secs_f64() * 1e3
}
