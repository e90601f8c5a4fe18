//! `vision_config` of a checkpoint of the first Idefics.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};

use super::VisionTransformer;
use crate::VisionConfig as EncoderConfig;
use crate::config::activation_bytes;

/// The shape of a CLIP tower; field names are the JSON keys, and keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of a patch's vector.
    pub embed_dim: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads of `embed_dim / num_attention_heads` each.
    pub num_attention_heads: usize,
    /// Colour channels; the processor makes three.
    pub num_channels: usize,
    /// Side of the images, in pixels.
    pub image_size: usize,
    /// Side of one patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Added to the variance in each layer norm.
    pub layer_norm_eps: f64,
}

/// Defaults of `IdeficsVisionConfig`, which checkpoints may omit from `config.json`.
impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            embed_dim: 768,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// The tower of the 9b and 80b models: CLIP ViT-H/14.
    pub fn clip_vit_h_14() -> Self {
        Self { embed_dim: 1280, ..Self::default() } // 224 / 14 = 16, 16 × 16 + 1 = 257 positions
    }

    /// Positions along one side of the table, in patches; 0 if a patch has no size.
    pub fn positions_per_side(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Vectors of an image: its patches and the class token.
    pub fn vectors_per_image(&self) -> usize {
        self.positions_per_side().pow(2) + 1
    }

    /// Bytes of the activations of one patch in f32, those that are there at the same time.
    pub fn activation_bytes_per_patch(&self) -> usize {
        let pixels = self.num_channels * self.patch_size * self.patch_size;
        activation_bytes(self.embed_dim, self.intermediate_size) + 2 * size_of::<f32>() * pixels
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
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

    /// The tower, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<VisionTransformer, ConfigError> {
        self.validate()?;
        Ok(VisionTransformer::new(self, device))
    }

    /// The same for the layers, which both towers share.
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
