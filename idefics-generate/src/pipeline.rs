//! A model folder as one object: images and text in, text out.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use burn::tensor::Device;
#[cfg(feature = "hub")]
use idefics_hub::{HubOptions, fetch_with};
use idefics_nn::checkpoint::LoadProgress;
use idefics_processor::{ProcessOptions, ProcessedInputs, Processor, Sample, Tokenizer};

use crate::feature_cache::FeatureCache;
use crate::loading::load_placed;
use crate::placement::{Placement, Plan};
use crate::{
    Answer, EosTokenId, Error, FinishReason, Generation, GenerationConfig, GenerationWarning, InputError, Model,
    ModelConfig, ModelWarning, Prompts, Timings, Usage, VisionBatch, WeightOptions, folder, load_processor,
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
}

/// Bytes of image tokens that a model keeps by default: 250 pictures of the 8B model in f32.
const FEATURE_BYTES: usize = 256 << 20;

/// What is being waited for while a model loads.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LoadStage {
    /// Files come from the hub.
    #[cfg(feature = "hub")]
    Download(idefics_hub::HubProgress),
    /// Weights go to the device.
    Weights(LoadProgress),
}

impl Idefics {
    /// Loads a model folder in the public layout, or a GGUF file or a folder with one, on `device`; `weights` may be a dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] naming the file, key or tensor at fault.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadStage),
    ) -> Result<Self, Error> {
        Self::load(folder, device, None, weights.into(), progress)
    }

    /// As [`Idefics::from_folder`], each part where a plan for this model's configuration says
    /// ([`ModelConfig::blocks`]).
    ///
    /// # Errors
    /// As [`Idefics::from_folder`]; [`Error::NotPlaceable`] for a model that cannot be split.
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
        let path = folder::beside(folder, "generation_config.json");
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
            None => Placement::on(device),
        };
        let (model, of_weights) = load_placed(&config, folder, &placement, weights, progress)?;
        warnings.extend(of_weights);
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
        })
    }

    /// Warnings about the folder, which can be used all the same.
    pub fn warnings(&self) -> &[ModelWarning] {
        &self.warnings
    }

    /// Loads a model of the hub, `org/name`, from the standard cache, to which missing files are downloaded.
    ///
    /// # Errors
    /// [`Error::Hub`], or as [`Idefics::from_folder`].
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
        hub.allow_pickles = weights.pickles == idefics_checkpoint::Pickles::Allowed;
        let folder = fetch_with(&hub, repo, revision, &mut |state| progress(LoadStage::Download(state)))?;
        Self::from_folder(&folder, device, weights, progress)
    }

    /// The model.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Sets how many images the vision tower encodes together.
    pub fn set_vision_batch(&mut self, vision_batch: VisionBatch) {
        self.vision_batch = vision_batch;
    }

    /// The processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The folder's generation options, over which those of a call are laid.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// The options of a call over the folder's. Conversations in the words of the first Idefics end with a turn, unless
    /// the call says what they end with: its folders do not.
    ///
    /// # Errors
    /// [`Error::Generation`] or [`Error::FolderOption`] for what cannot be followed.
    pub(crate) fn options(&self, options: &GenerationConfig, is_conversation: bool) -> Result<GenerationConfig, Error> {
        let mut together = options.over(&self.generation_config);
        if let Some(end) = self.processor.turn_end_id().filter(|_| is_conversation && options.eos_token_id.is_none()) {
            let ends = together.eos_token_ids().iter().copied().chain([end]).collect();
            together.eos_token_id = Some(EosTokenId::Many(ends));
        }
        together.validate().map_err(|error| options.blame(error, &self.folder))?;
        Ok(together)
    }

    /// Ids and tiles of samples.
    ///
    /// # Errors
    /// [`InputError::TextOnly`] for an image where the model has no vision tower, or as [`Processor::process`].
    pub(crate) fn process(&self, samples: &[Sample], options: &ProcessOptions) -> Result<ProcessedInputs, Error> {
        if !self.config.family().has_vision() && samples.iter().any(|sample| !sample.images().is_empty()) {
            return Err(InputError::TextOnly.into());
        }
        Ok(self.processor.process(samples, options)?)
    }

    /// Rows of ids for the model, padded, with what they see of their images.
    ///
    /// # Errors
    /// [`InputError::Empty`], or [`InputError::NoEmbedding`] for a token that the tokenizer alone knows.
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

    /// Says whatever is wrong with options or tokens before anything is computed.
    pub(crate) fn check(&self, prompts: &Prompts, options: &GenerationConfig) -> Result<(), Error> {
        let shape = self.model.shape();
        let options = options.resolve(prompts.seq(), shape.vocab_size)?;
        Ok(options.check_memory(prompts.seq(), &shape.text)?)
    }

    /// What became of a row.
    pub(crate) fn answer(
        &self,
        generation: &Generation<'_>,
        processed: &ProcessedInputs,
        row: usize,
        process: &ProcessOptions,
        timings: Timings,
    ) -> Result<Answer, Error> {
        let token_ids = generation.generated(row).to_vec();
        let sample = row / generation.answers_per_sample();
        let image_token_id = self.processor.tokenizer().image_token_id();
        let input_ids = &processed.input_ids[sample];
        let (n_tokens, context) = (input_ids.len() + token_ids.len(), self.model.shape().text.max_position_embeddings);
        let beyond = GenerationWarning::BeyondContext { n_tokens, context };
        Ok(Answer {
            text: self.processor.tokenizer_for(process.compatibility).decode(&token_ids, true)?,
            prompt: processed.prompts[sample].clone(),
            finish_reason: generation.finish_reason(row).unwrap_or(FinishReason::Cancelled),
            usage: Usage {
                prompt_tokens: input_ids.len(),
                image_tokens: input_ids.iter().filter(|&&id| id == image_token_id).count(),
                completion_tokens: token_ids.len(),
            },
            token_ids,
            timings,
            replay_refusal: generation.replay_refusal().map(str::to_owned),
            score: generation.sequences_scores().map(|scores| scores[row]),
            logprobs: generation.logprobs(row).to_vec(),
            prompt_logprobs: generation.prompt_logprobs(sample).map(<[f32]>::to_vec),
            warnings: (n_tokens > context).then_some(beyond).into_iter().collect(),
        })
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.device.sync().map_err(|error| Error::Execution { reason: format!("{error:?}") })
    }
}

/// Says what processor and model see differently, before weights are read.
fn check_tokens(folder: &Path, config: &ModelConfig, processor: &Processor) -> Result<Option<ModelWarning>, Error> {
    config.family().check_processor(folder, processor)?;
    let tokenizer = processor.tokenizer();
    let vocab_size = config.family().shape().vocab_size;
    let without_embedding = (vocab_size as u64..=u64::from(tokenizer.max_id())).take(MOST_TOKENS_WITHOUT_EMBEDDING);
    let names = without_embedding.filter_map(|id| tokenizer.id_to_token(id as u32));
    // Base checkpoints have none for the end of a turn, which is no surprise.
    let of_images = processor.image_tokens();
    let is_expected = |token: &String| {
        let has_no_images = !config.family().has_vision() && [&of_images.image, &of_images.fake].contains(&token);
        token == END_OF_UTTERANCE || has_no_images
    };
    let tokens: Vec<String> = names.filter(|token| !is_expected(token)).collect();
    let folder = folder.to_owned();
    Ok((!tokens.is_empty()).then_some(ModelWarning::TokensWithoutEmbedding { folder, vocab_size, tokens }))
}

const END_OF_UTTERANCE: &str = "<end_of_utterance>";

/// Tokens without an embedding that are looked at; files can number them as they like.
const MOST_TOKENS_WITHOUT_EMBEDDING: usize = 1 << 16;

/// Milliseconds since then.
pub(crate) fn milliseconds(clock: Instant) -> f64 {
    clock.elapsed().as_secs_f64() * 1e3
}
