//! Idefics3, SmolVLM and SmolVLM2: SigLIP → pixel shuffle and projection → Llama.
//!
//! Papers: <https://arxiv.org/abs/2408.12637>, <https://arxiv.org/abs/2504.05299>. Reference:
//! `Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`, Transformers 5.23.0. Field paths are the
//! tensor names of the checkpoint.
//!
//! Axes: `n_images` tiles of the whole batch, `patches` per tile, `n_vectors` = `patches / scale_factor²` vectors
//! per tile, `batch` rows, `seq` tokens, `d` = `text_config.hidden_size`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{ConfigError, KvCache, Linear};
use idefics_perceiver::PixelShuffleConnector;
use idefics_text::{Decoder, DecoderStack};
use idefics_vision::{PatchLayout, VisionTransformer};

use super::{Capturable, Model, ModelShape, StepwiseEncoder, TowerEncoder, merge};
use crate::config::FamilyConfig;
use crate::features::ImageBatch;
use crate::inputs::{InputError, Prompts};
use crate::{Idefics3Config, ImageVectors, Placement};

/// The whole model: vision tower, connector, decoder and head.
#[derive(Module, Debug)]
pub struct Idefics3 {
    /// All parts except the head.
    pub model: Idefics3Model,
    /// Maps hidden states to logits.
    pub lm_head: Linear,
    #[module(skip)]
    config: Idefics3Config,
    #[module(skip)]
    shape: ModelShape,
}

/// The three parts before the head.
#[derive(Module, Debug)]
pub struct Idefics3Model {
    /// Maps pixels to patch features.
    pub vision_model: VisionTransformer,
    /// Maps patch features to image vectors.
    pub connector: PixelShuffleConnector,
    /// Maps embeddings to hidden states.
    pub text_model: Decoder,
}

impl Model for Idefics3 {
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        let Idefics3Model { vision_model, connector, .. } = &self.model;
        let grid = self.grid(images)?;
        let layout = self.layout(images);
        let pixel_values = images.upload(&self.device()); // [n_images, 3, height, width]
        let patch_embeds = vision_model.embeddings.forward(pixel_values, &layout); // [n_images, patches, d_vision]
        Ok(Box::new(TowerEncoder::new(patch_embeds, &vision_model.encoder.layers, None, move |hidden_states| {
            connector.forward(vision_model.post_layernorm.forward(hidden_states), grid) // [n_images, n_vectors, d]
        })))
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        _cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let Self { config, shape, .. } = self;
        merge::inputs_embeds(self.decoder(), prompts, image_hidden_states, config.image_token_id, shape.vocab_size)
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
unsafe impl Capturable for Idefics3 {}

impl Idefics3 {
    /// Creates the model. The weights are random until a checkpoint is loaded. They are allocated only when they are
    /// loaded or first used.
    ///
    /// # Errors
    /// Those of [`Idefics3Config::validate`].
    pub fn new(config: &Idefics3Config, device: &Device) -> Result<Self, ConfigError> {
        Self::placed(config, &Placement::single_device(device))
    }

    /// Creates the model like [`Self::new`], on the single device of `placement`. This model cannot be split over
    /// devices.
    pub(crate) fn placed(config: &Idefics3Config, placement: &Placement) -> Result<Self, ConfigError> {
        config.validate()?;
        let (text, device) = (&config.text_config, &placement.device("model"));
        Ok(Self {
            model: Idefics3Model {
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
    pub fn config(&self) -> &Idefics3Config {
        &self.config
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

    /// Returns the number of rows and columns of patches in a tile, after checking that they are multiples of
    /// `scale_factor`.
    ///
    /// # Errors
    /// [`InputError::PixelShuffle`].
    pub fn grid(&self, images: &ImageBatch<'_>) -> Result<[usize; 2], InputError> {
        let ([rows, cols], scale_factor) = ([images.grid.rows, images.grid.cols], self.config.scale_factor);
        if rows.is_multiple_of(scale_factor) && cols.is_multiple_of(scale_factor) {
            return Ok([rows, cols]);
        }
        let image_idx = images.image_indices.first().copied().unwrap_or_default();
        Err(InputError::PixelShuffle { image_idx, rows, cols, scale_factor })
    }
}
