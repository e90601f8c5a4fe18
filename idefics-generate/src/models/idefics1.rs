//! The first Idefics: CLIP → Flamingo resampler → LLaMA with gated cross-attention. Images stand beside the text: a
//! token sees the latest image before it.
//!
//! Paper: <https://arxiv.org/abs/2306.16527>. Reference: `IdeficsForVisionText2Text`, `modeling_idefics.py`,
//! Transformers 5.23.0. Field paths are the checkpoint's tensor names.
//!
//! Axes: `n_images` images of the whole batch, `n_vectors` an image (the resampler's latents, or all patches without
//! one), `d_image` = `vision_config.embed_dim`, `batch` rows, `max_images` images of the row with most, `seq` tokens,
//! `d` = `hidden_size`.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_nn::{ConfigError, ContextCache, KvCache, Step, beside, flat_module};
use idefics_perceiver::flamingo::PerceiverResampler;
use idefics_processor::Tokenizer;
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, CrossAttentionDecoder, DecoderObserver, DecoupledLinear, TextConfig, Unobserved};
use idefics_vision::clip::VisionTransformer;

use super::{EncodeStage, LogitsToKeep, Model, VisionBatch, keep};
use crate::features::{arrange, distinct};
use crate::inputs::{InputError, Prompts, SeenImages, upload_ids};
use crate::placement::Placement;
use crate::{Error, Idefics1Config};

/// The whole model.
#[derive(Module, Debug)]
pub struct Idefics1 {
    /// Everything up to the last hidden states.
    pub model: Idefics1Model,
    /// Hidden states to logits, those of the added tokens last.
    pub lm_head: DecoupledLinear,
    #[module(skip)]
    config: Idefics1Config,
    interpolates: bool,
    #[module(skip)]
    vision_batch: VisionBatch,
}

/// The two sides, whose tensors lie side by side in the checkpoint.
#[derive(Debug, Clone)]
pub struct Idefics1Model {
    /// Pixels to what the gated layers read.
    pub images: ImageEncoder,
    /// Tokens, and what they see of the images, to hidden states.
    pub text: CrossAttentionDecoder,
}
flat_module!(Idefics1Model { images, text });

/// Pixels to image vectors.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    /// Pixels to patch features.
    pub vision_model: VisionTransformer,
    /// Patch features to latents, if `use_resampler`.
    pub perceiver_resampler: Option<PerceiverResampler>,
}

impl Idefics1 {
    /// The model, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Idefics1Config::validate`].
    pub fn new(config: &Idefics1Config, device: &Device) -> Result<Self, ConfigError> {
        Self::placed(config, &Placement::on(device))
    }

    /// As [`Self::new`], each part on its own device.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Idefics1Config::validate`].
    pub fn placed(config: &Idefics1Config, placement: &Placement) -> Result<Self, ConfigError> {
        config.validate()?;
        let resampler = || config.resampler().init(&placement.device("model.perceiver_resampler"));
        let images = ImageEncoder {
            vision_model: config.vision_config.init(&placement.device("model.vision_model"))?,
            perceiver_resampler: config.use_resampler.then(resampler).transpose()?,
        };
        let text = config.text().init_on(&|part| placement.device(&format!("model.{part}")))?;
        Ok(Self {
            model: Idefics1Model { images, text },
            lm_head: DecoupledLinear::new(
                config.hidden_size,
                config.vocab_size,
                config.additional_vocab_size,
                &placement.device("lm_head"),
            ),
            config: config.clone(),
            interpolates: false,
            vision_batch: VisionBatch::default(),
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &Idefics1Config {
        &self.config
    }

    /// Whether images of another size than `vision_config.image_size` are read, at positions that are interpolated
    /// (`interpolate_pos_encoding`); they are refused otherwise.
    #[must_use]
    pub fn interpolating_positions(mut self, interpolates: bool) -> Self {
        self.interpolates = interpolates;
        self
    }

    /// Patch features of images, `[n_images, 1 + patches, d_image]` for each batch that is encoded together.
    ///
    /// # Errors
    /// [`InputError::ImageSize`].
    pub fn vision_features(&self, images: &[ImageTile]) -> Result<Vec<Tensor<3>>, InputError> {
        let images: Vec<&ImageTile> = images.iter().collect();
        Ok(self.batches(&images)?.into_iter().map(|batch| self.batch_features(batch)).collect())
    }

    /// Patch features of images of one size, `[n_images, 1 + patches, d_image]`.
    fn batch_features(&self, images: &[&ImageTile]) -> Tensor<3> {
        self.model.images.vision_model.forward(self.upload(images))
    }

    /// Images of one size that follow one another, as many as are encoded together.
    fn batches<'s, 'i>(&self, images: &'s [&'i ImageTile]) -> Result<Vec<&'s [&'i ImageTile]>, InputError> {
        let expected = self.config.vision_config.image_size;
        let is_wrong = |image: &&ImageTile| match self.interpolates {
            true => image.width().min(image.height()) < self.config.vision_config.patch_size,
            false => (image.width(), image.height()) != (expected, expected),
        };
        if let Some(image_idx) = images.iter().position(is_wrong) {
            let (width, height) = (images[image_idx].width(), images[image_idx].height());
            return Err(InputError::ImageSize { image_idx, width, height, expected });
        }
        let patch = self.config.vision_config.patch_size;
        let same_size = images.chunk_by(|image, next| (image.width(), image.height()) == (next.width(), next.height()));
        let batches = same_size.flat_map(|images| {
            let patches = (images[0].width() / patch) * (images[0].height() / patch) + 1;
            let image_bytes = patches * self.config.vision_config.activation_bytes_per_patch();
            images.chunks(self.vision_batch.images(image_bytes as u64))
        });
        Ok(batches.collect())
    }

    /// Image vectors from patch features, `[n_images, n_vectors, d_image]`; `None` if there is no image.
    ///
    /// # Panics
    /// If, without a resampler, images of different sizes are mixed: rows of one batch have as many vectors an image.
    pub fn connect(&self, features: Vec<Tensor<3>>) -> Option<Tensor<3>> {
        let connected: Vec<Tensor<3>> = features.into_iter().map(|features| self.connect_batch(features)).collect();
        (!connected.is_empty()).then(|| Tensor::cat(connected, 0))
    }

    /// [`Model::encode_in_stages`].
    fn encode<E: From<InputError>>(
        &self,
        images: &[&ImageTile],
        done: &mut dyn FnMut(EncodeStage) -> Result<(), E>,
    ) -> Result<Option<Tensor<3>>, E> {
        let mut connected = Vec::new();
        for batch in self.batches(images)? {
            let features = self.batch_features(batch); // [n_images, 1 + patches, d_image]
            done(EncodeStage::Vision)?;
            connected.push(self.connect_batch(features)); // [n_images, n_vectors, d_image]
            done(EncodeStage::Connector)?;
        }
        Ok((!connected.is_empty()).then(|| Tensor::cat(connected, 0)))
    }

    /// Image vectors of one batch, `[n_images, n_vectors, d_image]`.
    fn connect_batch(&self, features: Tensor<3>) -> Tensor<3> {
        match &self.model.images.perceiver_resampler {
            Some(resampler) => resampler.forward(beside(features, &resampler.latents.val())),
            None => features,
        }
    }

    /// Pixels of images of one size, `[n_images, 3, height, width]`.
    fn upload(&self, images: &[&ImageTile]) -> Tensor<4> {
        let (width, height) = (images[0].width(), images[0].height());
        let pixels: Vec<f32> = images.iter().flat_map(|image| image.pixels()).copied().collect();
        Tensor::from_data(
            TensorData::new(pixels, [images.len(), 3, height, width]),
            (&self.vision_device(), DType::F32),
        )
    }

    /// Puts images into the cache: keys and values of every gated layer.
    fn read_images(
        &self,
        seen: Option<&SeenImages>,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<(), InputError> {
        let images = image_hidden_states.as_ref().map_or(0, |states| states.dims()[0]);
        let Some(seen) = seen else {
            // Nothing was said of images: the tokens go on seeing what the cache says.
            return if images == 0 { Ok(()) } else { Err(InputError::ImageCount { shown: 0, images }) };
        };
        let shown: usize = seen.n_images().iter().sum();
        let n_new = seen.n_images().iter().copied().max().unwrap_or(0);
        let (known, view) = (cache.take_context(), seen.view());
        let n_known = known.as_ref().map_or(0, |context| context.view().n_parts());
        let kept = view.n_parts() - n_new;
        if shown != images || kept > n_known {
            return Err(InputError::ImageCount { shown: shown + kept.saturating_sub(n_known), images });
        }
        let new = image_hidden_states.map(|states| {
            let [_, n_vectors, _] = states.dims();
            (self.model.text.context_key_values(&place(states, seen.n_images(), n_new)), n_vectors)
        });
        cache.set_context(match (known, new) {
            (Some(known), new) => Some(known.continued(kept, new.map(|(layers, _)| layers), view)),
            (None, Some((layers, n_vectors))) => Some(ContextCache::new(layers, n_vectors, view)),
            (None, None) => None,
        });
        Ok(())
    }

    /// As [`Model::prefill_observed`], for rows that branch if `branches` says which token follows which.
    ///
    /// # Errors
    /// As [`Model::prefill_observed`].
    pub fn prefill_branches(
        &self,
        prompts: &Prompts,
        branches: Option<&Branches>,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError> {
        let text = &self.model.text;
        let input_ids = prompts.upload(self.vocab_size(), &self.device())?;
        let seen = prompts.seen_images();
        self.read_images(seen, image_hidden_states, cache)?;
        let inputs_embeds = text.embed(input_ids); // [batch, seq, d]
        let positions = match branches {
            None => text.positions(&inputs_embeds, cache),
            Some(branches) => text.branch_positions(&inputs_embeds, branches, cache),
        };
        let seen = text.seen_context(seen.map(SeenImages::view), prompts.seq(), cache, &inputs_embeds.device());
        Ok(text.forward_at(inputs_embeds, positions, seen, cache, observer))
    }

    /// Where tokens go in.
    fn device(&self) -> Device {
        self.model.text.embed_tokens.table.weight.val().device()
    }

    /// Where pixels go in.
    fn vision_device(&self) -> Device {
        self.model.images.vision_model.pre_layrnorm.weight.val().device()
    }
}

/// Every row's image vectors side by side, `[batch, max_images · n_vectors, d_image]`; rows with fewer images have
/// others' vectors behind theirs, which they never see.
fn place(image_hidden_states: Tensor<3>, n_images: &[usize], max_images: usize) -> Tensor<3> {
    let [_, n_vectors, d_image] = image_hidden_states.dims();
    let batch = n_images.len();
    let mut images = Vec::with_capacity(batch * max_images);
    let mut first = 0;
    for &n_images in n_images {
        images.extend((0..max_images).map(|image| if image < n_images { first + image } else { 0 }));
        first += n_images;
    }
    arrange(image_hidden_states, &images).reshape([batch, max_images * n_vectors, d_image])
}

impl Model for Idefics1 {
    fn see_images(&self, prompts: Prompts, tokenizer: &Tokenizer) -> Prompts {
        prompts.seeing_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id())
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size + self.config.additional_vocab_size
    }

    fn text_config(&self) -> Cow<'_, TextConfig> {
        Cow::Owned(self.config.text().text)
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
        let (distinct, places) = distinct(images);
        let image_hidden_states = self.encode(&distinct, &mut |_| Ok::<_, InputError>(()))?;
        Ok(image_hidden_states.map(|states| arrange(states, &places)))
    }

    fn hidden_states(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let text = &self.model.text;
        let inputs_embeds = text.embed(prompts.upload(self.vocab_size(), &self.device())?); // [batch, seq, d]
        let seen = prompts.seen_images();
        self.read_images(seen, image_hidden_states, cache)?;
        Ok(text.forward(inputs_embeds, seen.map(SeenImages::view), cache))
    }

    fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError> {
        self.prefill_branches(prompts, None, image_hidden_states, cache, observer)
    }

    /// An image token is an ordinary token here, and new tokens see what the last of the prompt sees.
    fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError> {
        let input_ids = upload_ids(next_tokens, [next_tokens.len(), 1], self.vocab_size(), &self.device())?;
        let hidden_states = self.model.text.forward(self.model.text.embed(input_ids), None, cache); // [batch, 1, d]
        Ok(self.logits(hidden_states, LogitsToKeep::All).squeeze_dim(1))
    }

    #[allow(unsafe_code)] // a step that can be replayed, see `Step::new`
    fn slot_step<'m>(&'m self, [next_tokens, slot]: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'m>> {
        let text = &self.model.text;
        if self.devices().len() > 1 {
            return None; // a graph is one device's
        }
        let mut slot_cache = cache.at_slot(slot)?;
        let inputs_embeds = text.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
        let positions = text.slot_positions(&inputs_embeds, cache)?;
        let seen = text.seen_context(None, 1, cache, &self.device());
        let (next_tokens, slot) = (next_tokens.clone(), slot.clone());
        let step = move || {
            let inputs_embeds = text.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
            let positions = positions.at(&slot);
            let hidden_states =
                text.forward_at(inputs_embeds, positions, seen.clone(), &mut slot_cache, &mut Unobserved);
            self.logits(hidden_states, LogitsToKeep::All).squeeze_dim(1)
        };
        // SAFETY: the step holds or borrows the model, the cache, the context and the inputs, whose memory stays; it does the
        // same at each call, and uploads nothing: `positions` was made before.
        Some(unsafe { Step::new(step) })
    }

    fn branch_states(
        &self,
        next_tokens: &[u32],
        branches: &Branches,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let shape = [branches.batch(), next_tokens.len() / branches.batch()];
        let input_ids = upload_ids(next_tokens, shape, self.vocab_size(), &self.device())?;
        let inputs_embeds = self.model.text.embed(input_ids); // [batch, n_new, d]
        Ok(self.model.text.forward_branches(inputs_embeds, branches, cache))
    }

    fn logits(&self, hidden_states: Tensor<3>, kept: LogitsToKeep) -> Tensor<3> {
        let hidden_states = self.lm_head.linear.receive(keep(hidden_states, kept));
        self.lm_head.forward(hidden_states).cast(DType::F32)
    }
}
