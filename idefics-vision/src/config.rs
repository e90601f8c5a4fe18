//! `vision_config` of a checkpoint's `config.json`.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError};
use serde::{Deserialize, Serialize};

use crate::VisionTransformer;

/// The shape of a SigLIP tower; field names are the JSON keys, and keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of a patch's vector.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads of `hidden_size / num_attention_heads` each.
    pub num_attention_heads: usize,
    /// Colour channels; the processor makes three.
    pub num_channels: usize,
    /// Side of the square that the position table was trained on, in pixels.
    pub image_size: usize,
    /// Side of one patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Added to the variance in each layer norm.
    pub layer_norm_eps: f64,
}

/// Defaults of `Idefics2VisionConfig`, which checkpoints may omit from `config.json`.
impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
        }
    }
}

impl VisionConfig {
    /// The tower of idefics2-8b: SigLIP-So400m with a position table for 980-pixel squares.
    pub fn siglip_so400m_980() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16, // 1152 / 16 = 72 a head
            image_size: 980,         // 980 / 14 = 70, 70 × 70 = 4900 positions
            patch_size: 14,
            ..Self::default()
        }
    }

    /// Defaults of `Idefics3VisionConfig`, which checkpoints may omit from `config.json`.
    pub fn idefics3_defaults() -> Self {
        Self { hidden_size: 1152, num_attention_heads: 16, ..Self::default() }
    }

    /// Positions along one side of the table, in patches; 0 if a patch has no size.
    pub fn positions_per_side(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Bytes of the activations of one patch in f32, those that are there at the same time.
    pub fn activation_bytes_per_patch(&self) -> usize {
        let pixels = self.num_channels * self.patch_size * self.patch_size;
        activation_bytes(self.hidden_size, self.intermediate_size) + 2 * size_of::<f32>() * pixels
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
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

    /// The tower, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<VisionTransformer, ConfigError> {
        self.validate()?;
        Ok(VisionTransformer::new(self, device))
    }
}

/// Bytes of f32 that a patch has in an encoder layer: in attention what is added to, what is read, queries, keys, values
/// and their mean, in the feed-forward block the first two and what is inside.
pub(crate) fn activation_bytes(hidden_size: usize, intermediate_size: usize) -> usize {
    size_of::<f32>() * (6 * hidden_size).max(2 * hidden_size + intermediate_size)
}
