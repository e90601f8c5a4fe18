//! `perceiver_config` of a checkpoint's `config.json`, and what the connector takes from the other sections.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};

use crate::Connector;

/// The shape of Idefics2's resampler; field names are the JSON keys, and keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerceiverConfig {
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Width of the latents: the text model's.
    pub hidden_size: usize,
    /// Added to the mean square in each RMS norm.
    pub rms_norm_eps: f64,
    /// Vectors that each image is compressed to: image tokens in the prompt.
    pub resampler_n_latents: usize,
    /// Layers.
    pub resampler_depth: usize,
    /// Query heads.
    pub resampler_n_heads: usize,
    /// Width of a head.
    pub resampler_head_dim: usize,
    /// Key and value heads.
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
    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
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

/// Everything that shapes Idefics2's connector. It deserializes from the whole of `config.json`, of whose `text_config`,
/// `vision_config` and `perceiver_config` it takes what it needs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Sections")]
pub struct ConnectorConfig {
    /// Width of the vision tower's vectors.
    pub vision_hidden_size: usize,
    /// Width of the decoder's vectors.
    pub text_hidden_size: usize,
    /// Width inside the modality projection: the decoder's feed-forward width.
    pub text_intermediate_size: usize,
    /// Activation of the modality projection: the decoder's.
    pub text_hidden_act: Activation,
    /// The resampler.
    pub perceiver: PerceiverConfig,
}

/// `config.json`, as far as it shapes the connector.
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
        // As in the reference, the resampler then takes both from the decoder.
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
    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.hidden_size", self.vision_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.hidden_size", self.text_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.intermediate_size", self.text_intermediate_size, 1..=262_144)?;
        self.perceiver.validate()?;
        if self.perceiver.hidden_size != self.text_hidden_size {
            return Err(ConfigError::Range {
                field: "perceiver_config.hidden_size",
                value: self.perceiver.hidden_size.to_string(),
                expected: format!("{}, the decoder's width", self.text_hidden_size),
            });
        }
        Ok(())
    }

    /// The connector, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<Connector, ConfigError> {
        self.validate()?;
        Ok(Connector::new(self, device))
    }
}
