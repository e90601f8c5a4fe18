//! Configuration of Idefics2's connector: `perceiver_config` in `config.json`, and values from other sections.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};

use crate::Connector;

/// Configuration of Idefics2's resampler. Field names are the JSON keys; other keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerceiverConfig {
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Width of the latents. Equal to the width of the decoder.
    pub hidden_size: usize,
    /// Epsilon of the RMS norms, added to the mean square.
    pub rms_norm_eps: f64,
    /// Number of latent vectors per image. Equal to the number of image tokens per image in the prompt.
    pub resampler_n_latents: usize,
    /// Number of layers.
    pub resampler_depth: usize,
    /// Number of query heads.
    pub resampler_n_heads: usize,
    /// Width of a head.
    pub resampler_head_dim: usize,
    /// Number of key and value heads. Must divide `resampler_n_heads`.
    pub num_key_value_heads: usize,
}

/// Defaults of `Idefics2PerceiverConfig`, which checkpoints may omit from `config.json`.
impl Default for PerceiverConfig {
    fn default() -> Self {
        Self {
            hidden_act: Activation::Silu,
            hidden_size: 4096,
            rms_norm_eps: 1e-6,
            resampler_n_latents: 64,
            resampler_depth: 3,
            resampler_n_heads: 16,
            resampler_head_dim: 96,
            num_key_value_heads: 4,
        }
    }
}

impl PerceiverConfig {
    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("perceiver_config.hidden_size", self.hidden_size, 1..=32_768)?;
        ConfigError::check_range("perceiver_config.resampler_n_latents", self.resampler_n_latents, 1..=4096)?;
        ConfigError::check_range("perceiver_config.resampler_depth", self.resampler_depth, 1..=512)?;
        ConfigError::check_range("perceiver_config.resampler_n_heads", self.resampler_n_heads, 1..=1024)?;
        ConfigError::check_range("perceiver_config.resampler_head_dim", self.resampler_head_dim, 1..=4096)?;
        ConfigError::check_range("perceiver_config.num_key_value_heads", self.num_key_value_heads, 1..=1024)?;
        ConfigError::check_positive("perceiver_config.rms_norm_eps", self.rms_norm_eps)?;
        ConfigError::check_multiple(
            "perceiver_config.resampler_n_heads",
            self.resampler_n_heads,
            "perceiver_config.num_key_value_heads",
            self.num_key_value_heads,
        )
    }
}

/// Configuration of Idefics2's connector. It is deserialised from a whole `config.json`, of which it uses the sections
/// `text_config`, `vision_config` and `perceiver_config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Sections")]
pub struct ConnectorConfig {
    /// Width of the vision tower's output.
    pub vision_hidden_size: usize,
    /// Width of the decoder.
    pub text_hidden_size: usize,
    /// Inner width of the modality projection. Equal to the inner width of the decoder's feed-forward blocks.
    pub text_intermediate_size: usize,
    /// Activation of the modality projection. Equal to the activation of the decoder.
    pub text_hidden_act: Activation,
    /// Configuration of the resampler.
    pub perceiver: PerceiverConfig,
}

/// The sections of `config.json` that determine the connector.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Sections {
    text_config: TextSection,
    vision_config: VisionSection,
    perceiver_config: PerceiverConfig,
}

#[derive(Deserialize)]
#[serde(default)]
struct TextSection {
    hidden_size: usize,
    intermediate_size: usize,
    hidden_act: Activation,
    rms_norm_eps: f64,
}

/// Defaults of `MistralConfig`.
impl Default for TextSection {
    fn default() -> Self {
        Self { hidden_size: 4096, intermediate_size: 14_336, hidden_act: Activation::Silu, rms_norm_eps: 1e-6 }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionSection {
    hidden_size: usize,
}

/// Defaults of `Idefics2VisionConfig`.
impl Default for VisionSection {
    fn default() -> Self {
        Self { hidden_size: 768 }
    }
}

impl From<Sections> for ConnectorConfig {
    fn from(Sections { text_config: text, vision_config: vision, perceiver_config: mut perceiver }: Sections) -> Self {
        // As in Transformers, the resampler takes width and epsilon from the decoder if the widths differ.
        if perceiver.hidden_size != text.hidden_size {
            perceiver.hidden_size = text.hidden_size;
            perceiver.rms_norm_eps = text.rms_norm_eps;
        }
        Self {
            vision_hidden_size: vision.hidden_size,
            text_hidden_size: text.hidden_size,
            text_intermediate_size: text.intermediate_size,
            text_hidden_act: text.hidden_act,
            perceiver,
        }
    }
}

impl ConnectorConfig {
    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.hidden_size", self.vision_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.hidden_size", self.text_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.intermediate_size", self.text_intermediate_size, 1..=262_144)?;
        self.perceiver.validate()?;
        if self.perceiver.hidden_size != self.text_hidden_size {
            return Err(ConfigError::Range {
                field: "perceiver_config.hidden_size",
                value: self.perceiver.hidden_size.to_string(),
                expected: format!("{}, which is `text_config.hidden_size`", self.text_hidden_size),
            });
        }
        Ok(())
    }

    /// Creates the connector with random weights. They are allocated when they are first used, so loading a checkpoint
    /// does not allocate them.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<Connector, ConfigError> {
        self.validate()?;
        Ok(Connector::new(self, device))
    }
}
