//! Configuration of the CLIP tower: `vision_config` in the `config.json` of IDEFICS v1.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VisionTransformer;
use crate::VisionConfig as EncoderConfig;
use crate::config::activation_bytes;

/// Configuration of a CLIP tower. Field names are the JSON keys; other keys are ignored.
///
/// Every key is required. Use [`Self::from_section`] for files that omit keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Width of the hidden states.
    pub embed_dim: usize,
    /// Inner width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads. Each has the width `embed_dim / num_attention_heads`.
    pub num_attention_heads: usize,
    /// Number of colour channels. Must be 3.
    pub num_channels: usize,
    /// Side of the square images that the model was trained on, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms, added to the variance.
    pub layer_norm_eps: f64,
}

impl VisionConfig {
    /// Returns the configuration of the tower of the 9b and 80b models: CLIP ViT-H/14.
    pub fn clip_vit_h_14() -> Self {
        Self {
            embed_dim: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224, // 224 / 14 = 16 per side, so 16² + 1 = 257 positions
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
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

    /// Returns the number of vectors of an image of the trained size: one for each patch and one for the class token.
    pub fn vectors_per_image(&self) -> usize {
        self.positions_per_side().pow(2) + 1
    }

    /// Computes the peak size of the f32 activations per patch, in bytes.
    pub fn activation_bytes_per_patch(&self) -> usize {
        let pixels = self.num_channels * self.patch_size * self.patch_size;
        activation_bytes(self.embed_dim, self.intermediate_size) + 2 * size_of::<f32>() * pixels
    }

    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.embed_dim", self.embed_dim, 1..=32_768)?;
        ConfigError::check_range("vision_config.intermediate_size", self.intermediate_size, 1..=262_144)?;
        ConfigError::check_range("vision_config.num_hidden_layers", self.num_hidden_layers, 1..=512)?;
        ConfigError::check_range("vision_config.num_attention_heads", self.num_attention_heads, 1..=1024)?;
        ConfigError::check_range("vision_config.num_channels", self.num_channels, 3..=3)?;
        ConfigError::check_range("vision_config.patch_size", self.patch_size, 1..=1024)?;
        ConfigError::check_range("vision_config.image_size", self.image_size, self.patch_size..=16_384)?;
        ConfigError::check_positive("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        ConfigError::check_multiple(
            "vision_config.embed_dim",
            self.embed_dim,
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

    /// Converts this configuration to the form that the shared [`Encoder`](crate::Encoder) takes.
    pub(super) fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            hidden_size: self.embed_dim,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}
