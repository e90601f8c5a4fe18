//! `config.json` of an Idefics2 checkpoint.

use std::path::Path;

use idefics_nn::ConfigError;
use idefics_perceiver::{ConnectorConfig, PerceiverConfig};
use idefics_processor::Processor;
use idefics_processor::families::Idefics2 as ProcessorRules;
use idefics_processor::image::{ImageConfigError, ImageProcessor, ImageProcessorConfig};
use idefics_text::TextConfig;
use idefics_vision::VisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sections::{fill_section, fill_text_config};
use super::{FamilyConfig, ModelFamily, ModelTypes, QuantizationConfig, defaults, from_value};
use crate::placement::Placement;
use crate::{AssembledModel, Error, Idefics2, ModelShape};

/// The family's `model_type`.
const MODEL_TYPE: &str = "idefics2";

/// `config.json` of an Idefics2 checkpoint. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Idefics2Config {
    /// The token whose embeddings are replaced by image vectors.
    pub image_token_id: u32,
    /// Whether the head shares the weights of the embedding table.
    pub tie_word_embeddings: bool,
    /// The decoder.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// The resampler.
    pub perceiver_config: PerceiverConfig,
    /// How the weights are quantised, or should be quantised on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<QuantizationConfig>,
}

/// The defaults of `Idefics2Config` in the reference.
impl Default for Idefics2Config {
    fn default() -> Self {
        Self {
            image_token_id: 32_001,
            tie_word_embeddings: false,
            text_config: defaults::idefics2_text_config(),
            vision_config: defaults::idefics2_vision_config(),
            perceiver_config: defaults::idefics2_perceiver_config(),
            quantization_config: None,
        }
    }
}

impl Idefics2Config {
    /// Returns the configuration of the public 8b checkpoints.
    pub fn idefics2_8b() -> Self {
        Self {
            text_config: TextConfig { vocab_size: 32_003, ..TextConfig::mistral_7b() },
            vision_config: VisionConfig::siglip_so400m_980(),
            perceiver_config: PerceiverConfig::idefics2_8b(),
            ..Self::default()
        }
    }

    /// Gives the resampler the width of the decoder, because the two widths must be equal. If they differ, the
    /// resampler also gets the decoder's `rms_norm_eps`. Source: `Idefics2Config.__post_init__`.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        if self.perceiver_config.hidden_size != self.text_config.hidden_size {
            self.perceiver_config.hidden_size = self.text_config.hidden_size;
            self.perceiver_config.rms_norm_eps = self.text_config.rms_norm_eps;
        }
        self
    }

    /// Returns the pairs (tensor, source) of tied tensors. The tensor shares the weights of the source and may be
    /// missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self.tie_word_embeddings {
            true => &[("lm_head.weight", "model.text_model.embed_tokens.weight")],
            false => &[],
        }
    }

    /// Returns the configuration of the connector.
    pub fn connector(&self) -> ConnectorConfig {
        ConnectorConfig {
            vision_hidden_size: self.vision_config.hidden_size,
            text_hidden_size: self.text_config.hidden_size,
            text_intermediate_size: self.text_config.intermediate_size,
            text_hidden_act: self.text_config.hidden_act,
            perceiver: self.perceiver_config.clone(),
        }
    }

    /// Checks every value that determines sizes or is used as a divisor.
    ///
    /// # Errors
    /// [`ConfigError`] with the name of the invalid key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text_config.validate()?;
        self.vision_config.validate()?;
        self.perceiver_config.validate()?;
        self.quantization_config.iter().try_for_each(QuantizationConfig::validate)?;
        ConfigError::check_range("image_token_id", self.image_token_id as usize, 0..=self.text_config.vocab_size - 1)
    }
}

impl ModelTypes for Idefics2Config {
    const MODEL_TYPES: &'static [&'static str] = &[MODEL_TYPE];
}

impl FamilyConfig for Idefics2Config {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            vocab_size: self.text_config.vocab_size,
            text: self.text_config.clone(),
            patch_size: self.vision_config.patch_size,
            activation_bytes_per_patch: self.vision_config.activation_bytes_per_patch(),
            vision_layers: self.vision_config.num_hidden_layers,
        }
    }

    fn tied(&self) -> &'static [(&'static str, &'static str)] {
        self.tied()
    }

    fn quantization_config(&self) -> Option<&QuantizationConfig> {
        self.quantization_config.as_ref()
    }

    fn assemble(&self, placement: &Placement) -> Result<Box<dyn AssembledModel>, ConfigError> {
        Ok(Box::new(Idefics2::placed(self, placement)?))
    }

    fn parts(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("vision_model", "model.vision_model."),
            ("modality_projection", "model.connector.modality_projection."),
            ("perceiver_resampler", "model.connector.perceiver_resampler."),
            ("embed_tokens", "model.text_model.embed_tokens."),
            ("text_model", "model.text_model."),
            ("lm_head", "lm_head."),
        ]
    }

    fn vectors_per_image(&self) -> usize {
        self.perceiver_config.resampler_n_latents
    }

    fn image_placeholder(&self) -> Vec<u32> {
        vec![self.image_token_id; self.vectors_per_image()]
    }

    fn is_read_by_step(&self, name: &str, _sees_images: bool) -> bool {
        let is_decoder = name.starts_with("model.text_model.") && !name.starts_with("model.text_model.embed_tokens.");
        is_decoder || name.starts_with("lm_head.")
    }

    fn check_processor(&self, folder: &Path, processor: &Processor) -> Result<(), Error> {
        super::check_image_tokens(folder, processor, self.vectors_per_image(), self.image_token_id)
    }

    fn image_processor(&self) -> Result<ImageProcessor, ImageConfigError> {
        ImageProcessor::new(&ProcessorRules, ImageProcessorConfig::default())
    }

    fn with_text_layers(&self, layers: usize) -> Box<dyn FamilyConfig> {
        let mut config = self.clone();
        config.text_config.num_hidden_layers = layers.min(config.text_config.num_hidden_layers);
        Box::new(config)
    }
}

/// The family with this [`MODEL_TYPE`].
#[derive(Debug)]
pub(super) struct Family;

impl ModelFamily for Family {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn read(&self, path: &Path, mut file: Value) -> Result<Box<dyn FamilyConfig>, Error> {
        let in_file = |source| Error::Config { path: path.to_owned(), source };
        fill_text_config(&mut file, "mistral").map_err(in_file)?;
        fill_section(&mut file, "vision_config", &defaults::idefics2_vision_config());
        fill_section(&mut file, "perceiver_config", &defaults::idefics2_perceiver_config());
        let config: Idefics2Config = from_value(path, file)?;
        let config = config.resolved();
        config.validate().map_err(in_file)?;
        Ok(Box::new(config))
    }
}
