//! Idefics2: SigLIP → gated projection → perceiver resampler → Mistral. Start reading here.
//!
//! Paper: <https://arxiv.org/abs/2405.02246>. Reference: `Idefics2ForConditionalGeneration`, `modeling_idefics2.py`,
//! Transformers 5.23.0. Field paths are the checkpoint's tensor names.
//!
//! Axes: `n_images` images of the whole batch, `patches`, `n_latents` vectors an image, `batch` rows, `seq` tokens,
//! `d` = `text_config.hidden_size`.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_nn::{ConfigError, KvCache, Linear, Step};
use idefics_perceiver::Connector;
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, Decoder, DecoderObserver, TextConfig, Unobserved};
use idefics_vision::VisionTransformer;

use super::{EncodeStage, LogitsToKeep, Model, VisionBatch, keep};
use crate::features::{ImageBatch, arrange, distinct, image_batches};
use crate::inputs::{InputError, Prompts, upload_ids};
use crate::{Error, Idefics2Config};

/// The whole model.
#[derive(Module, Debug)]
pub struct Idefics2 {
    /// Everything up to the last hidden states.
    pub model: Idefics2Model,
    /// Hidden states to logits.
    pub lm_head: Linear,
    #[module(skip)]
    config: Idefics2Config,
    #[module(skip)]
    vision_batch: VisionBatch,
}

/// The three components.
#[derive(Module, Debug)]
pub struct Idefics2Model {
    /// Pixels to patch features.
    pub vision_model: VisionTransformer,
    /// Patch features to image tokens.
    pub connector: Connector,
    /// Tokens to hidden states.
    pub text_model: Decoder,
}

impl Idefics2 {
    /// The model, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Idefics2Config::validate`].
    pub fn new(config: &Idefics2Config, device: &Device) -> Result<Self, ConfigError> {
        config.validate()?;
        let text = &config.text_config;
        Ok(Self {
            model: Idefics2Model {
                vision_model: config.vision_config.init(device)?,
                connector: config.connector().init(device)?,
                text_model: text.init(device)?,
            },
            lm_head: Linear::new_without_bias(text.hidden_size, text.vocab_size, device),
            config: config.clone(),
            vision_batch: VisionBatch::default(),
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &Idefics2Config {
        &self.config
    }

    /// Image tokens for every image, `[n_images, n_latents, d]`; `None` if there is none. An image that comes several
    /// times is encoded once.
    ///
    /// # Errors
    /// [`InputError::Patches`].
    pub fn encode_images(&self, images: &[ImageTile]) -> Result<Option<Tensor<3>>, InputError> {
        let (distinct, places) = distinct(images);
        let image_hidden_states = self.encode(&distinct, &mut |_| Ok::<_, InputError>(()))?; // [n_distinct, n_latents, d]
        Ok(image_hidden_states.map(|states| arrange(states, &places)))
    }

    /// [`Model::encode_in_stages`]: the features of one batch at a time, for they are much more than what the connector
    /// makes of them.
    fn encode<E: From<InputError>>(
        &self,
        images: &[&ImageTile],
        done: &mut dyn FnMut(EncodeStage) -> Result<(), E>,
    ) -> Result<Option<Tensor<3>>, E> {
        let batches = image_batches(images, &self.config.vision_config, self.vision_batch)?;
        let mut connected = Vec::with_capacity(batches.len());
        for batch in &batches {
            let features = self.vision_features(batch); // [n_images, patches, vision_hidden_size]
            done(EncodeStage::Vision)?;
            connected.push(self.model.connector.forward(features, None)); // [n_images, n_latents, d]
            done(EncodeStage::Connector)?;
        }
        Ok(self.in_order(&batches, connected))
    }

    /// Patch features of one batch, `[n_images, patches, vision_hidden_size]`.
    pub fn vision_features(&self, batch: &ImageBatch<'_>) -> Tensor<3> {
        let pixel_values = batch.upload(&self.device()); // [n_images, 3, height, width]
        self.model.vision_model.forward(pixel_values, &batch.layout)
    }

    /// Image tokens from the patch features of each batch, back in the order of the images:
    /// `[n_images, n_latents, d]`; `None` if there is none.
    pub fn connect(&self, batches: &[ImageBatch<'_>], features: Vec<Tensor<3>>) -> Option<Tensor<3>> {
        let image_hidden_states: Vec<Tensor<3>> =
            features.into_iter().map(|features| self.model.connector.forward(features, None)).collect();
        self.in_order(batches, image_hidden_states)
    }

    /// The image tokens of each batch, `[n_images, n_latents, d]` each, as one tensor in the order of the images.
    pub(crate) fn in_order(
        &self,
        batches: &[ImageBatch<'_>],
        image_hidden_states: Vec<Tensor<3>>,
    ) -> Option<Tensor<3>> {
        if image_hidden_states.is_empty() {
            return None;
        }
        let image_hidden_states = Tensor::cat(image_hidden_states, 0); // [n_images, n_latents, d], batch after batch
        let mut places = vec![0; image_hidden_states.dims()[0]];
        let encoded = batches.iter().flat_map(|batch| &batch.image_indices);
        for (row, &image_idx) in encoded.enumerate() {
            places[image_idx] = row;
        }
        Some(arrange(image_hidden_states, &places))
    }

    /// Runs whole prompts up to the last hidden states, `[batch, seq, d]`, showing `observer` the decoder's insides.
    ///
    /// `image_hidden_states` is [`Self::encode_images`] of all images of the batch, row after row.
    ///
    /// # Errors
    /// [`InputError`] for ids that do not fit the model, or another number of image tokens than image vectors.
    pub fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut (impl DecoderObserver + ?Sized),
    ) -> Result<Tensor<3>, InputError> {
        let inputs_embeds = self.inputs_embeds(prompts, image_hidden_states)?;
        Ok(self.model.text_model.forward_observed(inputs_embeds, cache, observer))
    }

    /// What the decoder reads: the tokens' vectors, at image tokens the images', `[batch, seq, d]`.
    ///
    /// # Errors
    /// As [`Self::prefill_observed`].
    pub fn inputs_embeds(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
    ) -> Result<Tensor<3>, InputError> {
        let n_vectors = image_hidden_states.as_ref().map_or(0, |states| states.dims()[0] * states.dims()[1]);
        let merge_rows = prompts.merge_rows(self.config.image_token_id, n_vectors)?;
        let input_ids = prompts.upload(self.config.text_config.vocab_size, &self.device())?;
        let inputs_embeds = self.model.text_model.embed(input_ids); // [batch, seq, d]
        Ok(match (image_hidden_states, merge_rows) {
            (Some(image_hidden_states), Some(merge_rows)) => merge(inputs_embeds, image_hidden_states, &merge_rows),
            _ => inputs_embeds,
        })
    }

    /// Runs one more token of each row and returns the logits of the next, `[batch, vocab_size]` in f32.
    ///
    /// An image token is an ordinary token here: images belong to the prompt.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    pub fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError> {
        let shape = [next_tokens.len(), 1];
        let input_ids = upload_ids(next_tokens, shape, self.config.text_config.vocab_size, &self.device())?;
        let inputs_embeds = self.model.text_model.embed(input_ids); // [batch, 1, d]
        let hidden_states = self.model.text_model.forward(inputs_embeds, cache);
        Ok(self.logits(hidden_states, LogitsToKeep::All).squeeze_dim(1))
    }

    /// Runs more tokens of rows that branch, those that `branches` was last given, up to the last hidden states,
    /// `[batch, n_new, d]`.
    pub(crate) fn branch_states(
        &self,
        next_tokens: &[u32],
        branches: &Branches,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let shape = [branches.batch(), next_tokens.len() / branches.batch()];
        let input_ids = upload_ids(next_tokens, shape, self.config.text_config.vocab_size, &self.device())?;
        let inputs_embeds = self.model.text_model.embed(input_ids); // [batch, n_new, d]
        Ok(self.model.text_model.forward_branches(inputs_embeds, branches, cache))
    }

    /// `[batch, seq, d]` in, `[batch, kept, vocab_size]` in f32 out.
    pub fn logits(&self, hidden_states: Tensor<3>, kept: LogitsToKeep) -> Tensor<3> {
        self.lm_head.forward(keep(hidden_states, kept)).cast(DType::F32)
    }

    pub(crate) fn device(&self) -> Device {
        self.model.text_model.norm.weight.val().device()
    }
}

impl Model for Idefics2 {
    fn vocab_size(&self) -> usize {
        self.config.text_config.vocab_size
    }

    fn text_config(&self) -> Cow<'_, TextConfig> {
        Cow::Borrowed(&self.config.text_config)
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn set_vision_batch(&mut self, vision_batch: VisionBatch) {
        self.vision_batch = vision_batch;
    }

    fn encode_in_stages(
        &self,
        images: &[&ImageTile],
        done: &mut dyn FnMut(EncodeStage) -> Result<(), Error>,
    ) -> Result<Option<Tensor<3>>, Error> {
        self.encode(images, done)
    }

    fn encode_images(&self, images: &[ImageTile]) -> Result<Option<Tensor<3>>, InputError> {
        self.encode_images(images)
    }

    fn hidden_states(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        Ok(self.model.text_model.forward(self.inputs_embeds(prompts, image_hidden_states)?, cache))
    }

    fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError> {
        self.prefill_observed(prompts, image_hidden_states, cache, observer)
    }

    fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError> {
        self.decode(next_tokens, cache)
    }

    #[allow(unsafe_code)] // a step that can be replayed, see `Step::new`
    fn slot_step<'m>(&'m self, [next_tokens, slot]: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'m>> {
        let text = &self.model.text_model;
        let mut slot_cache = cache.at_slot(slot)?;
        let inputs_embeds = text.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
        let positions = text.slot_positions(&inputs_embeds, cache)?;
        let (next_tokens, slot) = (next_tokens.clone(), slot.clone());
        let step = move || {
            let inputs_embeds = text.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
            let positions = positions.at(&slot);
            let hidden_states = text.forward_at(inputs_embeds, &positions, &mut slot_cache, &mut Unobserved);
            self.logits(hidden_states, LogitsToKeep::All).squeeze_dim(1)
        };
        // SAFETY: the step holds or borrows the model, the cache and the inputs, whose memory stays; it does the
        // same at each call, and uploads nothing: `positions` was made before.
        Some(unsafe { Step::new(step) })
    }

    fn branch_states(
        &self,
        next_tokens: &[u32],
        branches: &Branches,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        self.branch_states(next_tokens, branches, cache)
    }

    fn logits(&self, hidden_states: Tensor<3>, keep: LogitsToKeep) -> Tensor<3> {
        self.logits(hidden_states, keep)
    }
}

/// Text vectors with every image token's replaced by the next image vector.
///
/// # Shapes
/// - `inputs_embeds`: `[batch, seq, d]`
/// - `image_hidden_states`: `[n_images, n_latents, d]`
/// - `merge_rows`: [`Prompts::merge_rows`]
/// - returns `[batch, seq, d]`
fn merge(inputs_embeds: Tensor<3>, image_hidden_states: Tensor<3>, merge_rows: &[i32]) -> Tensor<3> {
    let [batch, seq, d] = inputs_embeds.dims();
    let [n_images, n_latents, _] = image_hidden_states.dims();
    let merge_rows = Tensor::from_data(TensorData::from(merge_rows), (&inputs_embeds.device(), DType::I32));
    let rows = Tensor::cat(
        vec![inputs_embeds.reshape([batch * seq, d]), image_hidden_states.reshape([n_images * n_latents, d])],
        0,
    );
    rows.select(0, merge_rows).reshape([batch, seq, d])
}
