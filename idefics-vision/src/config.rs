//! Configuration of the SigLIP tower: `vision_config` in `config.json`.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::VisionTransformer;

/// Configuration of a SigLIP tower. Field names are the JSON keys; other keys are ignored.
///
/// Every key is required, because the defaults for missing keys depend on the model family. Use
/// [`Self::from_section`] for files that omit keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Inner width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads. Each has the width `hidden_size / num_attention_heads`.
    pub num_attention_heads: usize,
    /// Number of colour channels. Must be 3.
    pub num_channels: usize,
    /// Side of the square images that the position table was trained on, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms, added to the variance.
    pub layer_norm_eps: f64,
}

impl VisionConfig {
    /// Returns the configuration of the tower of idefics2-8b: SigLIP-So400m with a position table for 980-pixel
    /// squares.
    pub fn siglip_so400m_980() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16, // heads have width 1152 / 16 = 72
            num_channels: 3,
            image_size: 980, // 980 / 14 = 70 positions per side, 4900 in total
            patch_size: 14,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
        }
    }

    /// Reads the section `vision_config`. Keys that the section omits get their values from `defaults`.
    ///
    /// # Errors
    /// The error of `serde_json` if a value has the wrong type.
    pub fn from_section(section: Value, defaults: &Self) -> Result<Self, serde_json::Error> {
        idefics_nn::from_section(section, defaults)
    }

    /// Returns the number of positions along each side of the position table, or 0 if `patch_size` is 0.
    pub fn positions_per_side(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Computes the peak size of the f32 activations per patch, in bytes.
    pub fn activation_bytes_per_patch(&self) -> usize {
        let pixels = self.num_channels * self.patch_size * self.patch_size;
        activation_bytes(self.hidden_size, self.intermediate_size) + 2 * size_of::<f32>() * pixels
    }

    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.hidden_size", self.hidden_size, 1..=32_768)?;
        ConfigError::check_range("vision_config.intermediate_size", self.intermediate_size, 1..=262_144)?;
        ConfigError::check_range("vision_config.num_hidden_layers", self.num_hidden_layers, 1..=512)?;
        ConfigError::check_range("vision_config.num_attention_heads", self.num_attention_heads, 1..=1024)?;
        ConfigError::check_range("vision_config.num_channels", self.num_channels, 3..=3)?;
        ConfigError::check_range("vision_config.patch_size", self.patch_size, 1..=1024)?;
        ConfigError::check_range("vision_config.image_size", self.image_size, self.patch_size..=16_384)?;
        ConfigError::check_positive("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        ConfigError::check_multiple(
            "vision_config.hidden_size",
            self.hidden_size,
            "vision_config.num_attention_heads",
            self.num_attention_heads,
        )
    }

    /// Creates the tower with random weights. They are allocated when they are first used, so loading a checkpoint
    /// does not allocate them.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<VisionTransformer, ConfigError> {
        self.validate()?;
        Ok(VisionTransformer::new(self, device))
    }
}

/// Computes the peak size of the f32 activations per patch in an encoder layer, in bytes. Attention holds the residual,
/// its norm, and the queries, keys, values and attention outputs. The feed-forward block holds the residual, its norm
/// and the inner activations.
pub(crate) fn activation_bytes(hidden_size: usize, intermediate_size: usize) -> usize {
    size_of::<f32>() * (6 * hidden_size).max(2 * hidden_size + intermediate_size)
}
