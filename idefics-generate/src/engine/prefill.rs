//! The computation of a prompt: its images one at a time, and then its tokens in chunks.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::Tensor;
use idefics_nn::{ContextCache, KvCache, PageStore, in_thread_pool};
use idefics_text::{NoObserver, Positions};

use super::context::{self, LayerContexts};
use super::prompt::{Prompt, PromptImage};
use crate::feature_cache::FeatureCache;
use crate::pipeline::milliseconds;
use crate::{Error, ImageVectors, InputError, Model, StepwiseEncoder, Timings, VisionBatch};

/// The state of a prompt while it is computed.
pub(super) struct Prefill<'m> {
    prompt: Prompt,
    /// Vectors of each image, `[n_vectors, d]`; `None` until the image has been encoded.
    vectors: Vec<Option<Tensor<2>>>,
    /// The image that is being encoded.
    encoder: Option<Box<dyn StepwiseEncoder + 'm>>,
    /// Input of the decoder from position `cached` on, `[1, n, d]`.
    inputs_embeds: Option<Tensor<3>>,
    /// Number of tokens whose keys and values are known from earlier requests.
    cached: usize,
    /// All images, for cross-attention.
    context: Option<ContextCache>,
    chunk: Option<Chunk>,
}

/// A chunk of which some layers have run.
struct Chunk {
    hidden_states: Tensor<3>,
    positions: Positions,
    context: LayerContexts,
}

impl<'m> Prefill<'m> {
    pub(super) fn new(prompt: Prompt) -> Self {
        let vectors = vec![None; prompt.images.len()];
        Self { prompt, vectors, encoder: None, inputs_embeds: None, cached: 0, context: None, chunk: None }
    }

    /// Runs layers of the vision tower on an image, and then the connector. The connector counts as the layer after the
    /// last one. Returns true if the image's vectors were already available, from an equal image or the cache; then no
    /// layers need to run.
    ///
    /// # Errors
    /// [`Error::Input`] if the image does not fit the model, [`Error::Execution`].
    pub(super) fn encode(
        &mut self,
        model: &'m dyn Model,
        features: Option<&Mutex<FeatureCache>>,
        index: usize,
        layers: &Range<usize>,
        timings: &mut Timings,
    ) -> Result<bool, Error> {
        let invalid = |error: InputError| Error::from(error.at_image(index));
        let PromptImage { tile, key, .. } = &self.prompt.images[index];
        if layers.start == 0 {
            let same = self.prompt.images[..index].iter().position(|image| image.key == *key);
            let known = same.and_then(|same| self.vectors[same].clone()).or_else(|| lock(features)?.get(key));
            if let Some(known) = known {
                self.vectors[index] = Some(known);
                return Ok(true);
            }
            let tiles = [tile];
            let batches = model.shape().image_batches(&tiles, VisionBatch::default()).map_err(invalid)?;
            self.encoder = Some(model.vision(&batches[0]).map_err(invalid)?);
        }
        let encoder = self.encoder.as_mut().ok_or_else(lost)?;
        let tower = model.shape().vision_layers;
        let clock = Instant::now();
        if layers.start < tower {
            in_thread_pool(&model.device(), || encoder.step(layers.end.min(tower) - layers.start));
            sync(model)?;
        }
        timings.vision_ms += milliseconds(clock);
        if layers.end > tower {
            let clock = Instant::now();
            let vectors = in_thread_pool(&model.device(), || encoder.step(1)); // [1, n_vectors, d]
            let vectors = vectors.ok_or_else(lost)?;
            self.encoder = None;
            let vectors = ImageVectors::from(vectors);
            if let Some(mut features) = lock(features) {
                features.insert(&[*key], &vectors);
            }
            self.vectors[index] = Some(vectors.into_rows());
            sync(model)?;
            timings.connector_ms += milliseconds(clock);
        }
        Ok(false)
    }

    /// Runs layers of the decoder on the tokens of a chunk. Before the first layer of the first chunk, embeds the
    /// tokens of the prompt from the start of the chunk to the end. After the last layer, returns the hidden states after
    /// the final norm, `[1, n, d]`.
    ///
    /// # Errors
    /// [`Error::Input`] if tokens or images do not match the model or each other, [`Error::Execution`].
    pub(super) fn run_chunk(
        &mut self,
        model: &'m dyn Model,
        store: &mut PageStore,
        pages: Vec<u32>,
        tokens: &Range<usize>,
        layers: &Range<usize>,
    ) -> Result<Option<Tensor<3>>, Error> {
        let decoder = model.decoder();
        if layers.start == 0 {
            if self.inputs_embeds.is_none() {
                self.embed(model, tokens.start)?;
            }
            let inputs_embeds = self.inputs_embeds.as_ref().ok_or_else(lost)?;
            let hidden_states = inputs_embeds.clone().narrow(1, tokens.start - self.cached, tokens.len());
            let view = self.prompt.tokens.seen_images().map(|seen| seen.view().narrow(tokens.clone()));
            let (context, seen) = context::of_chunk(self.context.as_ref(), view);
            let rules = decoder.position_rules();
            let positions = rules.for_chunk(&hidden_states, tokens.clone(), self.prompt.ids().len(), seen);
            self.chunk = Some(Chunk { hidden_states, positions, context });
        }
        let Chunk { hidden_states, positions, context } = self.chunk.take().ok_or_else(lost)?;
        let hidden_states = in_thread_pool(&model.device(), || {
            let mut key_values = store.chunk(pages, tokens.clone()).with_context(context.clone());
            decoder.layers(layers.clone(), hidden_states, &positions, &mut key_values, &mut NoObserver)
        });
        if layers.end == decoder.n_layers() {
            return Ok(Some(hidden_states));
        }
        self.chunk = Some(Chunk { hidden_states, positions, context });
        Ok(None)
    }

    /// Returns the context that the tokens of the answers see.
    pub(super) fn answer_context(&self) -> LayerContexts {
        match (&self.context, self.prompt.tokens.seen_images()) {
            (Some(context), Some(seen)) => context::of_answer(context, seen.view()),
            _ => Vec::new(),
        }
    }

    /// Embeds the tokens from position `cached` on, and stores the images for cross-attention.
    fn embed(&mut self, model: &dyn Model, cached: usize) -> Result<(), Error> {
        let images = self.prompt.images.iter().zip(&self.vectors);
        let vectors = if self.prompt.has_context() {
            images.map(|(_, vectors)| vectors.clone().ok_or_else(lost)).collect::<Result<Vec<_>, Error>>()?
        } else {
            // If an image is partly cached, only its last vectors are needed.
            let rest = |(image, vectors): (&PromptImage, &Option<Tensor<2>>)| {
                let n_cached = cached.max(image.tokens.start) - image.tokens.start;
                let vectors = vectors.clone().ok_or_else(lost)?;
                let n_vectors = vectors.dims()[0];
                Ok(vectors.narrow(0, n_cached.min(n_vectors), n_vectors.saturating_sub(n_cached)))
            };
            images.filter(|(image, _)| image.tokens.end > cached).map(rest).collect::<Result<Vec<_>, Error>>()?
        };
        let prompts = match cached {
            0 => self.prompt.tokens.clone(),
            _ => self.prompt.tokens.skip_prefix(cached, 0),
        };
        let mut images = KvCache::new(0, vec![0], 0);
        let inputs_embeds = model.begin(&prompts, ImageVectors::of_images(vectors), &mut images)?;
        self.context = images.take_context();
        self.inputs_embeds = Some(inputs_embeds);
        self.cached = cached;
        Ok(())
    }
}

/// Waits until the device has finished, so that the time of a slice is known.
pub(super) fn sync(model: &dyn Model) -> Result<(), Error> {
    model.device().sync().map_err(|error| Error::Execution { reason: format!("{error:?}") })
}

fn lock<'c>(features: Option<&'c Mutex<FeatureCache>>) -> Option<std::sync::MutexGuard<'c, FeatureCache>> {
    features.map(|features| features.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The error of a slice whose earlier slices have not run. This can only be a defect of the program.
fn lost() -> Error {
    Error::Execution { reason: "a step of the prompt is missing".to_owned() }
}
