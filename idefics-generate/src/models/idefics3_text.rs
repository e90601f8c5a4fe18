//! The text model of Idefics3 without a vision tower, for GGUF files that contain only the text model.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use idefics_nn::{ConfigError, KvCache, Linear};
use idefics_text::{Decoder, DecoderStack};

use super::{Capturable, Model, ModelShape, StepwiseEncoder};
use crate::config::FamilyConfig;
use crate::features::ImageBatch;
use crate::inputs::{InputError, Prompts};
use crate::{Idefics3Config, ImageVectors, Placement};

/// A Llama model whose tensors are named as in Idefics3.
#[derive(Module, Debug)]
pub struct Idefics3Text {
    /// The decoder, under its name in the checkpoint.
    pub model: Idefics3TextModel,
    /// Maps hidden states to logits.
    pub lm_head: Linear,
    #[module(skip)]
    shape: ModelShape,
}

/// The only part before the head.
#[derive(Module, Debug)]
pub struct Idefics3TextModel {
    /// Maps embeddings to hidden states.
    pub text_model: Decoder,
}

impl Idefics3Text {
    /// Creates the model. The weights are random until a checkpoint is loaded. They are allocated only when they are
    /// loaded or first used.
    ///
    /// # Errors
    /// Those of [`Idefics3Config::validate`].
    pub(crate) fn placed(config: &Idefics3Config, placement: &Placement) -> Result<Self, ConfigError> {
        config.validate()?;
        let (text, device) = (&config.text_config, &placement.device("model"));
        Ok(Self {
            model: Idefics3TextModel { text_model: text.init(device)? },
            lm_head: Linear::new_without_bias(text.hidden_size, text.vocab_size, device),
            shape: config.shape(),
        })
    }
}

impl Model for Idefics3Text {
    fn vision(&self, _images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        Err(InputError::TextOnly)
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        _cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        if image_hidden_states.is_some() {
            return Err(InputError::TextOnly);
        }
        let input_ids = prompts.upload(self.shape.vocab_size, &self.device())?;
        Ok(self.decoder().embed(input_ids)) // [batch, seq, d]
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
unsafe impl Capturable for Idefics3Text {}
