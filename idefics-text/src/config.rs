//! `text_config` in `config.json`.

use burn::tensor::{DType, Device};
use idefics_nn::{Activation, ConfigError, KvCache};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Decoder, RopeParameters};

/// Configuration of a Mistral or Llama decoder. Field names are the JSON keys; other keys are ignored.
///
/// Every key whose type is not an `Option` is required, because the defaults for missing keys depend on the model
/// family. Use [`Self::from_section`] for files that omit keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// Number of rows of the embedding table and of the language-model head.
    pub vocab_size: usize,
    /// Width of the hidden states, `d`.
    pub hidden_size: usize,
    /// Inner width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; `None` for the number of query heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `None` for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Maximum context length, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms, added to the mean square.
    pub rms_norm_eps: f64,
    /// Sliding window: the number of tokens that a token sees, itself included; `None` for all preceding tokens.
    pub sliding_window: Option<usize>,
    /// Base of the rotary frequencies, as written by older versions of Transformers.
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies, as written by older versions of Transformers.
    pub rope_scaling: Option<RopeParameters>,
    /// Base and scaling of the rotary frequencies, as written since Transformers 5.
    pub rope_parameters: Option<RopeParameters>,
    /// Context length of the original training, in tokens. Some files give it here instead of in the rotary parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
}

impl TextConfig {
    /// Returns the configuration of Mistral-7B, the decoder of idefics2-8b.
    pub fn mistral_7b() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(8),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-5,
            sliding_window: Some(4096),
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            original_max_position_embeddings: None,
        }
    }

    /// Returns the configuration of LLaMA-7B, the decoder of idefics-9b.
    pub fn llama_7b() -> Self {
        Self {
            intermediate_size: 11_008,
            num_key_value_heads: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            sliding_window: None,
            ..Self::mistral_7b()
        }
    }

    /// Reads the section `text_config`. Keys that the section omits get their values from `defaults`.
    ///
    /// # Errors
    /// The error of `serde_json` if a value has the wrong type.
    pub fn from_section(section: Value, defaults: &Self) -> Result<Self, serde_json::Error> {
        idefics_nn::from_section(section, defaults)
    }

    /// Returns the number of key/value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns the width of a head, or 0 if there is neither a `head_dim` nor a non-zero number of heads.
    pub fn head_dim(&self) -> usize {
        self.head_dim.or(self.hidden_size.checked_div(self.num_attention_heads)).unwrap_or(0)
    }

    /// Checks all values that determine memory sizes or are used as divisors.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("text_config.vocab_size", self.vocab_size, 1..=1 << 20)?;
        ConfigError::check_range("text_config.hidden_size", self.hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.intermediate_size", self.intermediate_size, 1..=262_144)?;
        ConfigError::check_range("text_config.num_hidden_layers", self.num_hidden_layers, 1..=512)?;
        ConfigError::check_range("text_config.num_attention_heads", self.num_attention_heads, 1..=1024)?;
        ConfigError::check_range("text_config.num_key_value_heads", self.n_kv_heads(), 1..=1024)?;
        ConfigError::check_range("text_config.max_position_embeddings", self.max_position_embeddings, 1..=1 << 24)?;
        ConfigError::check_positive("text_config.rms_norm_eps", self.rms_norm_eps)?;
        if let Some(window) = self.sliding_window {
            ConfigError::check_range("text_config.sliding_window", window, 1..=usize::MAX)?;
        }
        let heads_field = "text_config.num_attention_heads";
        if self.head_dim.is_none() {
            ConfigError::check_multiple(
                "text_config.hidden_size",
                self.hidden_size,
                heads_field,
                self.num_attention_heads,
            )?;
        }
        ConfigError::check_range("text_config.head_dim", self.head_dim(), 2..=4096)?;
        // Rotary embedding pairs the first half of a head with the second.
        if self.head_dim() % 2 == 1 {
            let value = self.head_dim().to_string();
            return Err(ConfigError::Range {
                field: "text_config.head_dim",
                value,
                expected: "an even number".to_owned(),
            });
        }
        ConfigError::check_multiple(
            heads_field,
            self.num_attention_heads,
            "text_config.num_key_value_heads",
            self.n_kv_heads(),
        )?;
        self.rotary().map(|_| ())
    }

    /// Creates a decoder with lazily initialised random weights: nothing is allocated before they are used or
    /// replaced by those of a checkpoint.
    ///
    /// # Errors
    /// As [`TextConfig::validate`].
    pub fn init(&self, device: &Device) -> Result<Decoder, ConfigError> {
        self.validate()?;
        Decoder::new(self, device)
    }

    /// Creates a KV cache with `capacity` slots per row. `left_padding` is the number of padding slots at the start
    /// of each row.
    pub fn cache(&self, left_padding: Vec<usize>, capacity: usize) -> KvCache {
        KvCache::new(self.num_hidden_layers, left_padding, capacity)
    }

    /// Returns the memory of a cache with `batch` rows of `capacity` slots, in bytes.
    pub fn cache_bytes(&self, batch: usize, capacity: usize, dtype: DType) -> usize {
        KvCache::bytes(self.num_hidden_layers, batch, self.n_kv_heads(), capacity, self.head_dim(), dtype)
    }
}
