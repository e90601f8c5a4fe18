//! IDEFICS v1: CLIP → Flamingo resampler → LLaMA with gated cross-attention. Images are not part of the token
//! sequence: each token attends to the latest image before it.
//!
//! Paper: <https://arxiv.org/abs/2306.16527>. Reference: `IdeficsForVisionText2Text`, `modeling_idefics.py`,
//! Transformers 5.23.0. Field paths are the tensor names of the checkpoint.
//!
//! Axes: `n_images` images of the whole batch, `n_vectors` vectors per image (the resampler's latents, or all
//! patches without a resampler), `d_image` = `vision_config.embed_dim`, `batch` rows, `max_images` the largest
//! number of images in a row, `seq` tokens, `d` = `hidden_size`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{ConfigError, ContextCache, FlatModule, KvCache, to_parameter_device};
use idefics_perceiver::flamingo::PerceiverResampler;
use idefics_processor::image::ImageTile;
use idefics_text::{CrossAttentionDecoder, DecoderStack, DecoupledLinear};
use idefics_vision::clip::VisionTransformer;

use super::{Capturable, Model, ModelShape, StepwiseEncoder, TowerEncoder};
use crate::config::FamilyConfig;
use crate::features::ImageBatch;
use crate::inputs::{InputError, Prompts, SeenImages};
use crate::placement::Placement;
use crate::{Idefics1Config, ImageVectors};

/// The whole model: vision tower, resampler, decoder and head.
#[derive(Module, Debug)]
pub struct Idefics1 {
    /// All parts except the head.
    pub model: Idefics1Model,
    /// Maps hidden states to logits. The logits of the added tokens come last.
    pub lm_head: DecoupledLinear,
    #[module(skip)]
    config: Idefics1Config,
    #[module(skip)]
    shape: ModelShape,
    interpolates: bool,
}

/// The vision part and the text part. The field names `images` and `text` do not appear in the tensor names of the
/// checkpoint.
#[derive(Module, Debug)]
pub struct Idefics1Model {
    /// Maps pixels to image vectors, to which the gated layers attend.
    pub images: FlatModule<ImageEncoder>,
    /// Maps tokens to hidden states, with cross-attention to the images.
    pub text: FlatModule<CrossAttentionDecoder>,
}

/// Maps pixels to image vectors.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    /// Maps pixels to patch features.
    pub vision_model: VisionTransformer,
    /// Maps patch features to latents; `None` unless `use_resampler` is set.
    pub perceiver_resampler: Option<PerceiverResampler>,
}

impl Model for Idefics1 {
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        self.check_sizes(images)?;
        let tower = &self.model.images.vision_model;
        let pixel_values = images.upload(&self.vision_device()); // [n_images, 3, height, width]
        // [n_images, 1 + patches, d_image]
        let patch_embeds = tower.pre_layrnorm.forward(tower.embeddings.forward(pixel_values));
        Ok(Box::new(TowerEncoder::new(patch_embeds, &tower.encoder.layers, None, |features| self.connect(features))))
    }

    /// Embeds the prompts. Stores the images in the cache's context, as keys and values of every gated layer.
    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let input_ids = prompts.upload(self.shape.vocab_size, &self.device())?;
        self.read_images(prompts.seen_images(), image_hidden_states, cache)?;
        Ok(self.model.text.embed(input_ids)) // [batch, seq, d]
    }

    fn decoder(&self) -> &dyn DecoderStack {
        &*self.model.text
    }

    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.lm_head.forward(self.lm_head.linear.to_weight_device(hidden_states)).cast(DType::F32)
    }

    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn is_on_one_device(&self) -> bool {
        self.devices().len() == 1
    }

    fn capturable(&self) -> Option<&dyn Capturable> {
        Some(self)
    }
}

// SAFETY: the decoder and the head consist of layers of this workspace, which hold their weights in fields and have no
// mutable state. The operations of a forward pass depend only on the shapes of the arguments, and none of them uploads
// or reads back data.
#[allow(unsafe_code, reason = "the promise of `Capturable`")]
unsafe impl Capturable for Idefics1 {}

impl Idefics1 {
    /// Creates the model. The weights are random until a checkpoint is loaded. They are allocated only when they are
    /// loaded or first used.
    ///
    /// # Errors
    /// Those of [`Idefics1Config::validate`].
    pub fn new(config: &Idefics1Config, device: &Device) -> Result<Self, ConfigError> {
        Self::placed(config, &Placement::single_device(device))
    }

    /// Creates the model like [`Self::new`], with each part on the device that `placement` gives.
    ///
    /// # Errors
    /// Those of [`Idefics1Config::validate`].
    pub fn placed(config: &Idefics1Config, placement: &Placement) -> Result<Self, ConfigError> {
        config.validate()?;
        let resampler = || config.resampler().init(&placement.device("model.perceiver_resampler"));
        let images = ImageEncoder {
            vision_model: config.vision_config.init(&placement.device("model.vision_model"))?,
            perceiver_resampler: config.use_resampler.then(resampler).transpose()?,
        };
        let text = config.text().init_on(&|part| placement.device(&format!("model.{part}")))?;
        Ok(Self {
            model: Idefics1Model { images: images.into(), text: text.into() },
            lm_head: DecoupledLinear::new(
                config.hidden_size,
                config.vocab_size,
                config.additional_vocab_size,
                &placement.device("lm_head"),
            ),
            config: config.clone(),
            shape: config.shape(),
            interpolates: false,
        })
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> &Idefics1Config {
        &self.config
    }

    /// Sets whether images may have another size than `vision_config.image_size`. If so, the position embeddings are
    /// interpolated (`interpolate_pos_encoding`). Otherwise such images are rejected.
    #[must_use]
    pub fn interpolate_pos_encoding(mut self, interpolates: bool) -> Self {
        self.interpolates = interpolates;
        self
    }

    /// Computes the patch features of a batch, `[n_images, 1 + patches, d_image]`.
    ///
    /// # Errors
    /// [`InputError::ImageSize`].
    pub fn vision_features(&self, images: &ImageBatch<'_>) -> Result<Tensor<3>, InputError> {
        self.check_sizes(images)?;
        Ok(self.model.images.vision_model.forward(images.upload(&self.vision_device())))
    }

    /// Computes image vectors, `[n_images, n_vectors, d_image]`, from patch features.
    pub fn connect(&self, features: Tensor<3>) -> Tensor<3> {
        match &self.model.images.perceiver_resampler {
            Some(resampler) => resampler.forward(to_parameter_device(features, &resampler.latents.val())),
            None => features,
        }
    }

    /// Rejects images whose size does not match the position embeddings, unless these are interpolated.
    ///
    /// # Errors
    /// [`InputError::ImageSize`].
    pub fn check_sizes(&self, images: &ImageBatch<'_>) -> Result<(), InputError> {
        let expected = self.config.vision_config.image_size;
        let is_wrong = |image: &&ImageTile| (image.width(), image.height()) != (expected, expected);
        match images.images.iter().position(is_wrong).filter(|_| !self.interpolates) {
            None => Ok(()),
            Some(wrong) => {
                let (width, height) = (images.images[wrong].width(), images.images[wrong].height());
                Err(InputError::ImageSize { image_idx: images.image_indices[wrong], width, height, expected })
            }
        }
    }

    /// Stores images in the cache's context: the keys and values of every gated layer, and which images the next tokens
    /// may attend to.
    fn read_images(
        &self,
        seen: Option<&SeenImages>,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<(), InputError> {
        let images = image_hidden_states.as_ref().map_or(0, ImageVectors::n_images);
        let Some(seen) = seen else {
            // Without new masks, the tokens attend to the same images as the last cached token.
            return if images == 0 { Ok(()) } else { Err(InputError::ImageCount { shown: 0, images }) };
        };
        let shown: usize = seen.n_images().iter().sum();
        let n_new = seen.n_images().iter().copied().max().unwrap_or(0);
        let view = seen.view();
        let n_known = cache.context().map_or(0, ContextCache::n_parts);
        let kept = view.n_parts() - n_new;
        if shown != images || kept > n_known {
            return Err(InputError::ImageCount { shown: shown + kept.saturating_sub(n_known), images });
        }
        let known_len = cache.context().map(ContextCache::part_len);
        let placed = image_hidden_states.map(|states| place(states, seen.n_images(), n_new, known_len)).transpose()?;
        let new = placed.map(|(vectors, n_vectors)| (self.model.text.context_key_values(&vectors), n_vectors));
        let (known, view, first_slot) = (cache.take_context(), view.clone(), cache.len());
        cache.set_context(match (known, new) {
            (Some(known), new) => Some(known.continued(kept, new.map(|(layers, _)| layers), view, first_slot)),
            (None, Some((layers, n_vectors))) => Some(ContextCache::new(layers, n_vectors, view, first_slot)),
            (None, None) => None,
        });
        Ok(())
    }

    /// Returns the device that the pixels are uploaded to.
    pub fn vision_device(&self) -> Device {
        self.model.images.vision_model.pre_layrnorm.weight.val().device()
    }
}

/// Arranges the image vectors of each row side by side, `[batch, max_images · n_vectors, d_image]`. Also returns
/// `n_vectors`. Rows with fewer images are filled up with the first image of the batch, to which they never attend.
/// `known_len` is the number of vectors per image that is already in the context.
///
/// # Errors
/// [`InputError::VectorCount`] if the images have different numbers of vectors.
fn place(
    image_hidden_states: ImageVectors,
    n_images: &[usize],
    max_images: usize,
    known_len: Option<usize>,
) -> Result<(Tensor<3>, usize), InputError> {
    let counts = image_hidden_states.counts();
    let n_vectors = known_len.or(counts.first().copied()).unwrap_or(0);
    if let Some(image_idx) = counts.iter().position(|&count| count != n_vectors) {
        return Err(InputError::VectorCount { image_idx, vectors: counts[image_idx], expected: n_vectors });
    }
    let batch = n_images.len();
    let mut images = Vec::with_capacity(batch * max_images);
    let mut first = 0;
    for &n_images in n_images {
        images.extend((0..max_images).map(|image| if image < n_images { first + image } else { 0 }));
        first += n_images;
    }
    let rows = image_hidden_states.arrange(&images).into_rows(); // [batch · max_images · n_vectors, d_image]
    let [_, d_image] = rows.dims();
    Ok((rows.reshape([batch, max_images * n_vectors, d_image]), n_vectors))
}
