//! Configuration of the Flamingo resampler: `perceiver_config` in the `config.json` of IDEFICS v1.

use burn::tensor::Device;
use idefics_nn::ConfigError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PerceiverResampler;

/// Configuration of the Flamingo resampler. Field names are the JSON keys; other keys are ignored.
///
/// Whether the model has a resampler is set by the top-level `use_resampler` of `config.json`, not by the key of the
/// same name in this section.
///
/// Every key is required. Use [`Self::from_section`] for files that omit keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerceiverConfig {
    /// Number of latent vectors per image.
    pub resampler_n_latents: usize,
    /// Number of blocks.
    pub resampler_depth: usize,
    /// Number of attention heads.
    pub resampler_n_heads: usize,
    /// Width of a head.
    pub resampler_head_dim: usize,
    /// Whether a layer norm is applied to the queries and keys of each head.
    pub qk_layer_norms_perceiver: bool,
}

impl PerceiverConfig {
    /// Returns the configuration of the resampler of the 9b and 80b models.
    pub fn idefics_9b() -> Self {
        Self {
            resampler_n_latents: 64,
            resampler_depth: 6,
            resampler_n_heads: 16,
            resampler_head_dim: 96,
            qk_layer_norms_perceiver: true,
        }
    }

    /// Reads the section `perceiver_config`. Keys that the section omits get their values from `defaults`.
    ///
    /// # Errors
    /// The error of `serde_json` if a value has the wrong type.
    pub fn from_section(section: Value, defaults: &Self) -> Result<Self, serde_json::Error> {
        idefics_nn::from_section(section, defaults)
    }

    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("perceiver_config.resampler_n_latents", self.resampler_n_latents, 1..=4096)?;
        ConfigError::check_range("perceiver_config.resampler_depth", self.resampler_depth, 1..=512)?;
        ConfigError::check_range("perceiver_config.resampler_n_heads", self.resampler_n_heads, 1..=1024)?;
        ConfigError::check_range("perceiver_config.resampler_head_dim", self.resampler_head_dim, 1..=4096)
    }
}

/// Configuration of the resampler, including the width of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct ResamplerConfig {
    /// Width of the vision tower's output and of the latents.
    pub vision_embed_dim: usize,
    /// The section `perceiver_config`.
    pub perceiver: PerceiverConfig,
}

impl ResamplerConfig {
    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.embed_dim", self.vision_embed_dim, 1..=32_768)?;
        self.perceiver.validate()
    }

    /// Creates the resampler with random weights. They are allocated when they are first used, so loading a checkpoint
    /// does not allocate them.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<PerceiverResampler, ConfigError> {
        self.validate()?;
        Ok(PerceiverResampler::new(self, device))
    }
}
