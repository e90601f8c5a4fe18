//! The generation loop. A [`Generation`] is a batch of rows that grow by one token per step.

mod beams;
mod controls;
mod device;
mod host;
pub(crate) mod logprobs;
mod rows;
mod steps;
mod stops;

use std::time::Instant;

use burn::tensor::Tensor;
use idefics_nn::KvCache;
use idefics_text::Branches;
use serde::Serialize;

use crate::generation_config::GenerationConfig;
use crate::logits::ProcessorChain;
use crate::{Error, ImageVectors, LogitsToKeep, Model, Prompts};

use beams::Beams;
use device::OnDevice;
use host::OnHost;
use rows::Rows;
use steps::Steps;
pub(crate) use stops::Stops;

pub use controls::{CancelToken, Controls, GraphCapture};
pub use logprobs::{GeneratedLogprob, TokenLogprob};
pub(crate) use steps::CapturedStep;

/// Why a row stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token or a stop string was generated, or the grammar of the answer allows nothing more.
    Stop,
    /// The maximum length was reached.
    Length,
    /// `max_time` passed.
    Time,
    /// [`CancelToken::cancel`] was called.
    Cancelled,
    /// No token could be chosen; see [`Generation::failure`].
    Failed,
}

/// A running generation of answers for a batch. Dropping it ends the generation.
///
/// Each row is an answer; rows are ordered by sample. During beam search, each row is a beam.
///
/// A generation stays on the thread that started it (it is not `Send`), because a captured step is replayed on the
/// thread of its [`DeviceLease`](crate::DeviceLease). To generate on another thread, use
/// [`Idefics::generate_in_background`](crate::Idefics::generate_in_background), which returns a
/// [`BackgroundText`](crate::BackgroundText) that is `Send`. The compiler rejects a move to another thread:
///
/// ```compile_fail,E0277
/// fn on_another_thread(mut generation: idefics_generate::Generation<'static>) {
///     std::thread::spawn(move || generation.step());
/// }
/// ```
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a dyn Model,
    config: GenerationConfig,
    rows: Rows,
    stops: Stops<'a>,
    /// Declared before `cache`, because captured steps use the cache's memory and must be dropped first.
    steps: Steps<'a>,
    cache: KvCache,
    /// Which token each token in the shared cache follows; `None` if each sample has only one row.
    branches: Option<Branches>,
    /// Logits after the prompts, `[samples, vocab_size]`, until the first tokens are chosen.
    logits: Option<Tensor<2>>,
    strategy: Strategy,
    cancel: CancelToken,
    n_top: Option<usize>,
    logprobs: Vec<Vec<GeneratedLogprob>>,
    prompt_logprobs: Option<Vec<Vec<f32>>>,
}

/// How the next tokens are chosen.
#[derive(Debug)]
enum Strategy {
    OnDevice(OnDevice),
    OnHost(OnHost),
    Beams(Beams),
}

impl<'a> Generation<'a> {
    /// Starts a generation: runs the prompts through the model. `image_hidden_states` is the result of
    /// [`Model::encode_images`] for all images of the prompts, row by row.
    ///
    /// # Errors
    /// [`Error::Generation`] if an option is invalid, [`Error::Input`] if the prompts do not fit the model.
    pub fn start(
        model: &'a dyn Model,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Self, Error> {
        let cache = KvCache::new(0, Vec::new(), 0);
        Self::begin(model, prompts, image_hidden_states, cache, options, controls.into())
    }

    /// Starts a generation like [`Generation::start`], for a single prompt whose beginning is already cached. Only the
    /// remaining tokens are computed, and `image_hidden_states` contains only the images of these tokens.
    /// [`Generation::into_cache`] returns the cache afterwards.
    ///
    /// # Errors
    /// See [`Generation::start`].
    ///
    /// # Panics
    /// If the cache or the prompts have more than one row, or the cache already contains the whole prompt.
    pub fn resume(
        model: &'a dyn Model,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: KvCache,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Self, Error> {
        assert!(cache.batch() == 1 && prompts.batch() == 1, "the cache and the prompts must have one row each");
        assert!(cache.len() < prompts.seq(), "the cache must not contain the whole prompt");
        Self::begin(model, prompts, image_hidden_states, cache, options, controls.into())
    }

    fn begin(
        model: &'a dyn Model,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        mut cache: KvCache,
        options: &GenerationConfig,
        mut controls: Controls<'a>,
    ) -> Result<Self, Error> {
        let clock = Instant::now();
        let vocab_size = model.shape().vocab_size;
        let config = options.resolve(prompts.seq(), vocab_size)?;
        config.check_memory(prompts.seq(), &model.shape().text)?;
        controls.check(&config, vocab_size)?;
        controls.add_mask(&config);
        let stops = Stops::new(&config, controls.tokenizer, clock)?;
        let mut chain = ProcessorChain::new(&config)?;
        let on_device = config.is_plain() && controls.processors.is_empty() && controls.logprobs.is_none();
        controls.processors.into_iter().for_each(|processor| chain.push(processor));

        let per_sample = config.num_beams().max(config.num_return_sequences());
        let rows = Rows::new(prompts, per_sample, &config);
        // The last token of each row is never fed back to the model, so it needs no slot.
        let max_new_tokens = config.max_length() - prompts.seq();
        let capacity = prompts.seq() + per_sample * (max_new_tokens - 1);
        let new = match cache.len() {
            0 => {
                cache = model.empty_cache(prompts.left_padding().to_vec(), capacity);
                prompts.clone()
            }
            known => {
                cache.reserve(capacity);
                let n_images = prompts.seen_images().map_or(0, |seen| seen.n_images()[0]);
                let n_new = image_hidden_states.as_ref().map_or(0, ImageVectors::n_images);
                prompts.skip_prefix(known, n_images.saturating_sub(n_new))
            }
        };
        let hidden_states = model.hidden_states(&new, image_hidden_states, &mut cache)?;
        let prompt_logprobs = match controls.prompt_logprobs {
            true => Some(logprobs::of_prompts(model, &new, &hidden_states)?),
            false => None,
        };
        let logits: Tensor<2> = model.logits(LogitsToKeep::Last(1).select(hidden_states)).squeeze_dim(1);
        let strategy = match config.num_beams() {
            1 if on_device => Strategy::OnDevice(OnDevice::new(&config, vocab_size, &logits.device())),
            1 => Strategy::OnHost(OnHost::new(&config, chain, controls.seed, &rows)),
            _ => Strategy::Beams(Beams::new(&config, chain, controls.seed, controls.logprobs, &rows)),
        };
        Ok(Self {
            model,
            stops,
            steps: Steps::new(controls.graph_capture, model),
            branches: (per_sample > 1).then(|| Branches::new(&cache)),
            cache,
            logits: Some(logits),
            strategy,
            cancel: controls.cancel,
            n_top: controls.logprobs,
            logprobs: vec![Vec::new(); rows.len()],
            prompt_logprobs,
            config,
            rows,
        })
    }

    /// Generates the next token of each row, or the pad token in rows that have finished. Returns `None` once all rows
    /// have finished.
    ///
    /// If no token can be chosen for a row, that row ends with [`FinishReason::Failed`], and the others continue.
    ///
    /// # Errors
    /// [`Error::Execution`] if the device fails. If every row has failed, the [`Error::NonFinite`] or
    /// [`Error::NoAllowedToken`] of the first row.
    pub fn step(&mut self) -> Result<Option<Vec<u32>>, Error> {
        if self.cancel.is_cancelled() && !self.rows.all_finished() {
            match &mut self.strategy {
                Strategy::Beams(beams) => {
                    beams.end(&mut self.rows, &self.stops, FinishReason::Cancelled);
                    self.logprobs = beams.logprobs().unwrap_or_default();
                }
                _ => self.rows.finish_all(FinishReason::Cancelled),
            }
        }
        if self.rows.all_finished() {
            return Ok(None);
        }
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => self.forward()?,
        };
        let next_tokens = match &mut self.strategy {
            Strategy::OnDevice(choice) => choice.choose(logits, &mut self.rows)?,
            Strategy::OnHost(choice) => {
                let logits = logprobs::read(logits)?;
                let chosen = choice.choose(&logits, &mut self.rows)?;
                if let Some(n_top) = self.n_top {
                    let width = self.model.shape().vocab_size;
                    for (row, &id) in chosen.iter().enumerate().filter(|(row, _)| self.rows.finished[*row].is_none()) {
                        let logits = self.rows.scores_of(row, &logits, width);
                        self.logprobs[row].push(logprobs::of_token(logits, id, n_top));
                    }
                }
                chosen
            }
            Strategy::Beams(beams) => {
                let logits = logprobs::read(logits)?;
                let next_tokens = beams.step(&logits, &mut self.rows, &self.stops)?;
                if self.rows.all_finished() {
                    self.logprobs = beams.logprobs().unwrap_or_default();
                }
                return Ok(Some(next_tokens));
            }
        };
        if self.rows.all_finished() {
            return Ok(None); // the last rows ended without a token
        }
        Ok(Some(self.rows.push(next_tokens, &self.config, &self.stops)))
    }

    /// Runs the model on the last token of each row. Returns the logits of the next token, `[rows, vocab_size]`.
    fn forward(&mut self) -> Result<Tensor<2>, Error> {
        let last = self.rows.last_tokens();
        let Some(branches) = &mut self.branches else {
            return self.steps.decode(self.model, &last, &mut self.cache);
        };
        match &self.strategy {
            Strategy::Beams(beams) => branches.append(&self.rows.parents(beams.continued())),
            _ => branches.append(&self.rows.parents(&(0..last.len()).collect::<Vec<_>>())),
        }
        let logits = self.model.decode_branches(&last, branches, &mut self.cache)?; // [samples, per_sample, vocab_size]
        Ok(logits.flatten(0, 1))
    }

    /// Returns the full rows, as the reference's `generate` does: padding, prompt, answer, and filler after the end of
    /// the answer.
    pub fn sequences(&self) -> &[Vec<u32>] {
        &self.rows.sequences
    }

    /// Returns the scores of the answers of a finished beam search: log-probabilities with length penalty. `None` while
    /// the search runs, and without beam search.
    pub fn sequences_scores(&self) -> Option<&[f32]> {
        match &self.strategy {
            Strategy::Beams(beams) => beams.scores(),
            _ => None,
        }
    }

    /// Returns the number of answers per sample.
    pub fn answers_per_sample(&self) -> usize {
        self.config.num_return_sequences()
    }

    /// Returns the generated tokens of a row, including the end token.
    pub fn generated(&self, row: usize) -> &[u32] {
        self.rows.generated(row)
    }

    /// Returns why a row ended, if it has ended.
    pub fn finish_reason(&self, row: usize) -> Option<FinishReason> {
        self.rows.finished[row]
    }

    /// Returns the error of a row that failed: [`Error::NonFinite`] or [`Error::NoAllowedToken`].
    pub fn failure(&self, row: usize) -> Option<Error> {
        self.rows.failure(row)
    }

    /// Returns the log-probabilities of a row's generated tokens. Empty unless they were requested with
    /// [`Controls::logprobs`], and empty while a beam search runs.
    pub fn logprobs(&self, row: usize) -> &[GeneratedLogprob] {
        self.logprobs.get(row).map_or(&[], Vec::as_slice)
    }

    /// Returns the log-probability of each prompt token after the first, if requested with
    /// [`Controls::prompt_logprobs`].
    pub fn prompt_logprobs(&self, sample: usize) -> Option<&[f32]> {
        self.prompt_logprobs.as_ref().map(|samples| samples[sample].as_slice())
    }

    /// Returns the scores of each row's first token after all logits processors and filters, `[rows, vocab_size]`. They
    /// are available only before the first step, and only if tokens are chosen on the host.
    ///
    /// # Errors
    /// [`Error::Execution`].
    pub fn first_scores(&mut self) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let (Some(logits), Strategy::OnHost(choice)) = (&self.logits, &mut self.strategy) else { return Ok(None) };
        let logits = logprobs::read(logits.clone())?;
        Ok(Some((0..self.rows.len()).map(|row| choice.scores(row, &logits, &self.rows)).collect()))
    }

    /// Returns whether steps are replayed; see [`GraphCapture`].
    pub fn uses_captured_graph(&self) -> bool {
        matches!(self.steps, Steps::Replayed(_))
    }

    /// Returns why no step is replayed although graph capture was requested.
    pub fn replay_refusal(&self) -> Option<&str> {
        match &self.steps {
            Steps::AlwaysEager { reason } => reason.as_deref(),
            _ => None,
        }
    }

    /// Returns the KV cache. It contains every token of row 0 except the last generated one.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }
}
