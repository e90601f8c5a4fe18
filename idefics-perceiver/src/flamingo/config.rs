//! `perceiver_config` of a checkpoint of the first Idefics.

use burn::tensor::Device;
use idefics_nn::ConfigError;
use serde::{Deserialize, Serialize};

use super::PerceiverResampler;

/// The shape of Flamingo's resampler; field names are the JSON keys, and keys that are not listed are ignored.
///
/// Whether there is one says the configuration's own `use_resampler`, not this section's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerceiverConfig {
    /// Vectors that each image is compressed to.
    pub resampler_n_latents: usize,
    /// Blocks.
    pub resampler_depth: usize,
    /// Heads.
    pub resampler_n_heads: usize,
    /// Width of a head.
    pub resampler_head_dim: usize,
    /// Whether queries and keys are normalised, head by head.
    pub qk_layer_norms_perceiver: bool,
}

/// Defaults of `IdeficsPerceiverConfig`, which checkpoints may omit from `config.json`.
impl Default for PerceiverConfig {
    fn default() -> Self {
        Self {
            resampler_n_latents: 64,
            resampler_depth: 6,
            resampler_n_heads: 16,
            resampler_head_dim: 96,
            qk_layer_norms_perceiver: false,
        }
    }
}

impl PerceiverConfig {
    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("perceiver_config.resampler_n_latents", self.resampler_n_latents, 1..=4096)?;
        ConfigError::check_range("perceiver_config.resampler_depth", self.resampler_depth, 1..=512)?;
        ConfigError::check_range("perceiver_config.resampler_n_heads", self.resampler_n_heads, 1..=1024)?;
        ConfigError::check_range("perceiver_config.resampler_head_dim", self.resampler_head_dim, 1..=4096)
    }
}

/// Everything that shapes the resampler.
#[derive(Debug, Clone, PartialEq)]
pub struct ResamplerConfig {
    /// Width of the vision tower's vectors, and of the latents.
    pub vision_embed_dim: usize,
    /// The resampler itself.
    pub perceiver: PerceiverConfig,
}

impl ResamplerConfig {
    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.embed_dim", self.vision_embed_dim, 1..=32_768)?;
        self.perceiver.validate()
    }

    /// The resampler, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<PerceiverResampler, ConfigError> {
        self.validate()?;
        Ok(PerceiverResampler::new(self, device))
    }
}
