//! `text_config` of a checkpoint's `config.json`.

use burn::tensor::{DType, Device};
use idefics_nn::{Activation, ConfigError, KvCache};
use serde::{Deserialize, Serialize};

use crate::{Decoder, RopeParameters};

/// The shape of a Mistral decoder; field names are the JSON keys, and keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Rows of the embedding table and of the head.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; `None` for as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `None` for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in each RMS norm.
    pub rms_norm_eps: f64,
    /// Tokens that a token sees, itself included; `None` for all before it.
    pub sliding_window: Option<usize>,
    /// Base of the rotary frequencies, as older files spell it.
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies, as older files spell it.
    pub rope_scaling: Option<RopeParameters>,
    /// Base and scaling together, as files written since Transformers 5 spell it.
    pub rope_parameters: Option<RopeParameters>,
    /// The context that the model was first trained on, in tokens, where it stands beside the rotary parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
}

/// Defaults of `MistralConfig`, which checkpoints may omit from a `text_config` that they have.
impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(8),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 131_072, // 4096 · 32
            rms_norm_eps: 1e-6,
            sliding_window: Some(4096),
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            original_max_position_embeddings: None,
        }
    }
}

impl TextConfig {
    /// Defaults of `LlamaConfig`, for a `text_config` of `model_type` `llama`.
    pub fn llama_defaults() -> Self {
        Self {
            intermediate_size: 11_008,
            num_key_value_heads: None,
            max_position_embeddings: 2048,
            sliding_window: None,
            ..Self::default()
        }
    }

    /// What `Idefics2Config` takes when `text_config` is absent altogether.
    pub fn idefics2_preset() -> Self {
        Self { max_position_embeddings: 32_768, rms_norm_eps: 1e-5, ..Self::default() }
    }

    /// Key and value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head; 0 if neither it nor the number of heads is given.
    pub fn head_dim(&self) -> usize {
        self.head_dim.or(self.hidden_size.checked_div(self.num_attention_heads)).unwrap_or(0)
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
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
        // Half of a head turns against the other half.
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

    /// The decoder, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] as [`TextConfig::validate`].
    pub fn init(&self, device: &Device) -> Result<Decoder, ConfigError> {
        self.validate()?;
        Decoder::new(self, device)
    }

    /// A cache of at most `capacity` tokens a row. `left_padding` is the number of padded slots on the left of each row.
    pub fn cache(&self, left_padding: Vec<usize>, capacity: usize) -> KvCache {
        KvCache::new(self.num_hidden_layers, left_padding, capacity)
    }

    /// The memory of such a cache, in bytes.
    pub fn cache_bytes(&self, batch: usize, capacity: usize, dtype: DType) -> usize {
        KvCache::bytes(self.num_hidden_layers, batch, self.n_kv_heads(), capacity, self.head_dim(), dtype)
    }
}
