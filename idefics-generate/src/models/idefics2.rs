//! Idefics2: SigLIP → gated projection → perceiver resampler → Mistral. New readers start here.
//!
//! Paper: <https://arxiv.org/abs/2405.02246>. Reference: `Idefics2ForConditionalGeneration`, `modeling_idefics2.py`,
//! Transformers 5.23.0. Field paths are the tensor names of the checkpoint.
//!
//! Axes: `n_images` images of the whole batch, `patches` per image, `n_latents` vectors per image, `batch` rows,
//! `seq` tokens, `d` = `text_config.hidden_size`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{ConfigError, KvCache, Linear};
use idefics_perceiver::Connector;
use idefics_text::{Decoder, DecoderStack};
use idefics_vision::{PatchLayout, VisionTransformer, patch_mask};

use super::{Capturable, Model, ModelShape, StepwiseEncoder, TowerEncoder, merge};
use crate::config::FamilyConfig;
use crate::features::ImageBatch;
use crate::inputs::{InputError, Prompts};
use crate::{Idefics2Config, ImageVectors, Placement};

/// The whole model: vision tower, connector, decoder and head.
#[derive(Module, Debug)]
pub struct Idefics2 {
    /// All parts except the head.
    pub model: Idefics2Model,
    /// Maps hidden states to logits.
    pub lm_head: Linear,
    #[module(skip)]
    config: Idefics2Config,
    #[module(skip)]
    shape: ModelShape,
}

/// The three parts before the head.
#[derive(Module, Debug)]
pub struct Idefics2Model {
    /// Maps pixels to patch features.
    pub vision_model: VisionTransformer,
    /// Maps patch features to image vectors.
    pub connector: Connector,
    /// Maps embeddings to hidden states.
    pub text_model: Decoder,
}

impl Model for Idefics2 {
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        let Idefics2Model { vision_model, connector, .. } = &self.model;
        let layout = self.layout(images);
        let pixel_values = images.upload(&self.device()); // [n_images, 3, height, width]
        let mask = patch_mask(&layout, &self.device());
        let patch_embeds = vision_model.embeddings.forward(pixel_values, &layout); // [n_images, patches, d_vision]
        Ok(Box::new(TowerEncoder::new(patch_embeds, &vision_model.encoder.layers, mask, |hidden_states| {
            connector.forward(vision_model.post_layernorm.forward(hidden_states), None) // [n_images, n_latents, d]
        })))
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        _cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        self.inputs_embeds(prompts, image_hidden_states)
    }

    fn decoder(&self) -> &dyn DecoderStack {
        &self.model.text_model
    }

    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.lm_head.forward(hidden_states).cast(DType::F32)
    }

    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn capturable(&self) -> Option<&dyn Capturable> {
        Some(self)
    }
}

// SAFETY: the decoder and the head consist of layers of this workspace, which hold their weights in fields and have no
// mutable state. The operations of a forward pass depend only on the shapes of the arguments, and none of them uploads
// or reads back data.
#[allow(unsafe_code, reason = "the promise of `Capturable`")]
unsafe impl Capturable for Idefics2 {}

impl Idefics2 {
    /// Creates the model. The weights are random until a checkpoint is loaded. They are allocated only when they are
    /// loaded or first used.
    ///
    /// # Errors
    /// Those of [`Idefics2Config::validate`].
    pub fn new(config: &Idefics2Config, device: &Device) -> Result<Self, ConfigError> {
        Self::placed(config, &Placement::single_device(device))
    }

    /// Creates the model like [`Self::new`], on the single device of `placement`. This model cannot be split over
    /// devices.
    pub(crate) fn placed(config: &Idefics2Config, placement: &Placement) -> Result<Self, ConfigError> {
        config.validate()?;
        let (text, device) = (&config.text_config, &placement.device("model"));
        Ok(Self {
            model: Idefics2Model {
                vision_model: config.vision_config.init(device)?,
                connector: config.connector().init(device)?,
                text_model: text.init(device)?,
            },
            lm_head: Linear::new_without_bias(text.hidden_size, text.vocab_size, device),
            config: config.clone(),
            shape: config.shape(),
        })
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> &Idefics2Config {
        &self.config
    }

    /// Computes the decoder's input, `[batch, seq, d]`: token embeddings, with image vectors at the image tokens.
    /// `image_hidden_states` are the vectors of all images of the batch, row by row.
    ///
    /// # Errors
    /// [`InputError`] if an id is outside the vocabulary, or if there are not as many image tokens as image vectors.
    pub fn inputs_embeds(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
    ) -> Result<Tensor<3>, InputError> {
        let Self { config, shape, .. } = self;
        merge::inputs_embeds(self.decoder(), prompts, image_hidden_states, config.image_token_id, shape.vocab_size)
    }

    /// Computes the patch features of a batch, `[n_images, patches, d_vision]`.
    pub fn vision_features(&self, images: &ImageBatch<'_>) -> Tensor<3> {
        let pixel_values = images.upload(&self.device()); // [n_images, 3, height, width]
        self.model.vision_model.forward(pixel_values, &self.layout(images))
    }

    /// Returns the patch grids of a batch, with the position of each patch.
    pub fn layout(&self, images: &ImageBatch<'_>) -> PatchLayout {
        let positions = self.config.vision_config.positions_per_side();
        PatchLayout::new(&vec![images.grid; images.images.len()], positions)
    }
}
