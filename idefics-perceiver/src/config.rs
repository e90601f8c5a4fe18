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

/// Everything that shapes Idefics2's connector.
#[derive(Debug, Clone, PartialEq)]
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
