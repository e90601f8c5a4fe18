//! What shapes a decoder with gated cross-attention.

use burn::tensor::{DType, Device};
use idefics_nn::ConfigError;
use serde::{Deserialize, Serialize};

use crate::{CrossAttentionDecoder, TextConfig};

/// `alpha_type`: how many numbers a gate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AlphaType {
    /// One for all of a vector.
    #[default]
    Float,
    /// One for each element.
    Vector,
}

/// A Llama decoder, and the layers between its own that read a context.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossAttentionConfig {
    /// The decoder.
    pub text: TextConfig,
    /// Tokens beside the vocabulary.
    pub additional_vocab_size: usize,
    /// A gated layer stands before each decoder layer whose index is a multiple of this.
    pub cross_layer_interval: usize,
    /// Whether queries and keys are normalised in the gated layers, head by head.
    pub qk_layer_norms: bool,
    /// How many numbers a gate has.
    pub alpha_type: AlphaType,
    /// Width of the context's vectors.
    pub context_size: usize,
}

impl CrossAttentionConfig {
    /// Gated layers; none if no interval is given.
    pub fn n_gated_layers(&self) -> usize {
        self.text.num_hidden_layers.checked_div(self.cross_layer_interval).unwrap_or(0)
    }

    /// Tokens in all.
    pub fn total_vocab_size(&self) -> usize {
        self.text.vocab_size + self.additional_vocab_size
    }

    /// The memory of the keys and values that the gated layers have of `n_keys` vectors, in bytes.
    pub fn context_bytes(&self, n_keys: usize, dtype: DType) -> usize {
        2 * self.n_gated_layers() * n_keys * self.text.hidden_size * dtype.size()
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text.validate()?;
        ConfigError::check_range("vision_config.embed_dim", self.context_size, 1..=32_768)?;
        ConfigError::check_range("additional_vocab_size", self.additional_vocab_size, 0..=1 << 16)?;
        ConfigError::check_range("cross_layer_interval", self.cross_layer_interval, 1..=512)?;
        let layers = self.text.num_hidden_layers;
        ConfigError::check_multiple("num_hidden_layers", layers, "cross_layer_interval", self.cross_layer_interval)
    }

    /// The decoder, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<CrossAttentionDecoder, ConfigError> {
        self.init_on(&|_| device.clone())
    }

    /// As [`Self::init`] with a device for each part: `embed_tokens`, `layers.3`, `gated_cross_attn_layers.0`, `norm`.
    ///
    /// # Errors
    /// [`ConfigError`] as [`Self::validate`].
    pub fn init_on(&self, device_of: &dyn Fn(&str) -> Device) -> Result<CrossAttentionDecoder, ConfigError> {
        self.validate()?;
        CrossAttentionDecoder::new(self, device_of)
    }
}
