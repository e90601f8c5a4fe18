//! Configuration of a decoder with gated cross-attention.

use burn::tensor::{DType, Device};
use idefics_nn::ConfigError;
use serde::{Deserialize, Serialize};

use crate::{CrossAttentionDecoder, TextConfig};

/// Shape of a gate, `alpha_type` in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AlphaType {
    /// One number for all elements.
    Float,
    /// One number per element.
    Vector,
}

/// A Llama decoder with gated cross-attention layers between its own layers.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossAttentionConfig {
    /// Configuration of the Llama decoder.
    pub text: TextConfig,
    /// Number of tokens added to the vocabulary.
    pub additional_vocab_size: usize,
    /// A gated layer precedes every decoder layer whose index is a multiple of this number.
    pub cross_layer_interval: usize,
    /// Whether the gated layers normalise queries and keys, separately for each head.
    pub qk_layer_norms: bool,
    /// Shape of the gates.
    pub alpha_type: AlphaType,
    /// Width of the context vectors, `d_context`.
    pub context_size: usize,
}

impl CrossAttentionConfig {
    /// Returns the number of gated layers, or 0 if `cross_layer_interval` is 0.
    pub fn n_gated_layers(&self) -> usize {
        self.text.num_hidden_layers.checked_div(self.cross_layer_interval).unwrap_or(0)
    }

    /// Returns the total number of tokens in the vocabulary, including the added ones.
    pub fn total_vocab_size(&self) -> usize {
        self.text.vocab_size + self.additional_vocab_size
    }

    /// Returns the memory of the keys and values of `n_keys` context vectors in all gated layers, in bytes.
    pub fn context_bytes(&self, n_keys: usize, dtype: DType) -> usize {
        2 * self.n_gated_layers() * n_keys * self.text.hidden_size * dtype.size()
    }

    /// Checks all values that determine memory sizes or are used as divisors.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text.validate()?;
        ConfigError::check_range("vision_config.embed_dim", self.context_size, 1..=32_768)?;
        ConfigError::check_range("additional_vocab_size", self.additional_vocab_size, 0..=1 << 16)?;
        ConfigError::check_range("cross_layer_interval", self.cross_layer_interval, 1..=512)?;
        let layers = self.text.num_hidden_layers;
        ConfigError::check_multiple("num_hidden_layers", layers, "cross_layer_interval", self.cross_layer_interval)
    }

    /// Creates a decoder with lazily initialised random weights: nothing is allocated before they are used or
    /// replaced by those of a checkpoint.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<CrossAttentionDecoder, ConfigError> {
        self.init_on(&|_| device.clone())
    }

    /// Creates a decoder like [`Self::init`]. `device_of` takes the name of a module, such as `embed_tokens`,
    /// `layers.3`, `gated_cross_attn_layers.0` or `norm`, and returns its device.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn init_on(&self, device_of: &dyn Fn(&str) -> Device) -> Result<CrossAttentionDecoder, ConfigError> {
        self.validate()?;
        CrossAttentionDecoder::new(self, device_of)
    }
}
