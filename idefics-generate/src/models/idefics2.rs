//! Idefics2: SigLIP → gated projection → perceiver resampler → Mistral. Start reading here.
//!
//! Paper: <https://arxiv.org/abs/2405.02246>. Reference: `Idefics2ForConditionalGeneration`, `modeling_idefics2.py`,
//! Transformers 5.23.0. Field paths are the checkpoint's tensor names.
//!
//! Axes: `n_images` images of the whole batch, `patches`, `n_latents` vectors an image, `batch` rows, `seq` tokens,
//! `d` = `text_config.hidden_size`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{ConfigError, KvCache, Linear};
use idefics_perceiver::Connector;
use idefics_text::{Decoder, DecoderStack};
use idefics_vision::{PatchLayout, VisionTransformer, patch_mask};

use super::{LayerRun, Model, ModelShape, TowerRun, merge};
use crate::config::FamilyConfig;
use crate::features::ImageBatch;
use crate::inputs::{InputError, Prompts};
use crate::{Idefics2Config, Placement};

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
    shape: ModelShape,
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

impl Model for Idefics2 {
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn LayerRun + '_>, InputError> {
        let Idefics2Model { vision_model, connector, .. } = &self.model;
        let layout = self.layout(images);
        let pixel_values = images.upload(&self.device()); // [n_images, 3, height, width]
        let masked_out = patch_mask(&layout, &self.device());
        let patch_embeds = vision_model.embeddings.forward(pixel_values, &layout); // [n_images, patches, d_vision]
        Ok(Box::new(TowerRun::new(patch_embeds, &vision_model.encoder.layers, masked_out, |hidden_states| {
            connector.forward(vision_model.post_layernorm.forward(hidden_states), None) // [n_images, n_latents, d]
        })))
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
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
}

impl Idefics2 {
    /// The model, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Idefics2Config::validate`].
    pub fn new(config: &Idefics2Config, device: &Device) -> Result<Self, ConfigError> {
        Self::placed(config, &Placement::on(device))
    }

    /// As [`Self::new`], on the one device that `placement` has: the parts are not split.
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

    /// The configuration it was built from.
    pub fn config(&self) -> &Idefics2Config {
        &self.config
    }

    /// What the decoder reads: the tokens' vectors, at image tokens the images', `[batch, seq, d]`.
    /// `image_hidden_states` are the vectors of all images of the batch, row after row, `[n_images, n_latents, d]`.
    ///
    /// # Errors
    /// [`InputError`] for ids that do not fit the model, or another number of image tokens than image vectors.
    pub fn inputs_embeds(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
    ) -> Result<Tensor<3>, InputError> {
        let Self { config, shape, .. } = self;
        merge::inputs_embeds(self.decoder(), prompts, image_hidden_states, config.image_token_id, shape.vocab_size)
    }

    /// Patch features of one batch, `[n_images, patches, d_vision]`.
    pub fn vision_features(&self, images: &ImageBatch<'_>) -> Tensor<3> {
        let pixel_values = images.upload(&self.device()); // [n_images, 3, height, width]
        self.model.vision_model.forward(pixel_values, &self.layout(images))
    }

    /// The patches of a batch, with their positions.
    pub fn layout(&self, images: &ImageBatch<'_>) -> PatchLayout {
        let positions = self.config.vision_config.positions_per_side();
        PatchLayout::new(&vec![images.grid; images.images.len()], positions)
    }
}
