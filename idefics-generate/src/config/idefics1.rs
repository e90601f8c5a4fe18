//! `config.json` of a checkpoint of the first Idefics: the decoder's keys stand at the top.

use idefics_checkpoint::Checkpoint;
use idefics_nn::{Activation, ConfigError, Quantization};
use idefics_perceiver::flamingo::{PerceiverConfig, ResamplerConfig};
use idefics_text::{AlphaType, CrossAttentionConfig, RopeParameters, TextConfig};
use idefics_vision::clip::VisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::QuantizationConfig;

/// `config.json` of a checkpoint of the first Idefics; keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Idefics1Config {
    /// Rows of the language model's own embedding table and head.
    pub vocab_size: usize,
    /// Tokens beside those, in matrices of their own.
    pub additional_vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Heads, of the decoder's own and of the gated layers.
    pub num_attention_heads: usize,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in each RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies, as older files spell it.
    pub rope_theta: Option<f64>,
    /// Stretching of the rotary frequencies, as older files spell it.
    pub rope_scaling: Option<RopeParameters>,
    /// Base and stretching together, as files written since Transformers 5 spell it.
    pub rope_parameters: Option<RopeParameters>,
    /// The context that the model was first trained on, in tokens, where it stands beside the rotary parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// A gated layer stands before each decoder layer whose index is a multiple of this.
    pub cross_layer_interval: usize,
    /// Whether queries and keys are normalised in the gated layers.
    pub qk_layer_norms: bool,
    /// How many numbers a gate has.
    pub alpha_type: AlphaType,
    /// Whether the resampler stands between the vision tower and the gated layers; `perceiver_config` has a key of the
    /// same name, which means nothing.
    pub use_resampler: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// The resampler.
    pub perceiver_config: PerceiverConfig,
    /// How the weights are quantised, or are to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<QuantizationConfig>,
}

/// Defaults of `IdeficsConfig`.
impl Default for Idefics1Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            additional_vocab_size: 0,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            original_max_position_embeddings: None,
            cross_layer_interval: 1,
            qk_layer_norms: false,
            alpha_type: AlphaType::Float,
            use_resampler: false,
            tie_word_embeddings: false,
            vision_config: VisionConfig::default(),
            perceiver_config: PerceiverConfig::default(),
            quantization_config: None,
        }
    }
}

impl Idefics1Config {
    /// The public 9b checkpoints: LLaMA-7B with a gated layer before every fourth layer.
    pub fn idefics_9b() -> Self {
        Self {
            additional_vocab_size: 2,
            cross_layer_interval: 4,
            qk_layer_norms: true,
            use_resampler: true,
            vision_config: VisionConfig::clip_vit_h_14(),
            perceiver_config: PerceiverConfig { qk_layer_norms_perceiver: true, ..PerceiverConfig::default() },
            ..Self::default()
        }
    }

    /// The public 80b checkpoints: LLaMA-65B with a gated layer before every fourth layer.
    pub fn idefics_80b() -> Self {
        Self {
            hidden_size: 8192,
            intermediate_size: 22_016,
            num_hidden_layers: 80,
            num_attention_heads: 64,
            rms_norm_eps: 1e-5,
            ..Self::idefics_9b()
        }
    }

    /// What shapes the decoder.
    pub fn text(&self) -> CrossAttentionConfig {
        CrossAttentionConfig {
            text: TextConfig {
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: self.num_attention_heads,
                hidden_act: self.hidden_act,
                max_position_embeddings: self.max_position_embeddings,
                rms_norm_eps: self.rms_norm_eps,
                rope_theta: self.rope_theta,
                rope_scaling: self.rope_scaling.clone(),
                rope_parameters: self.rope_parameters.clone(),
                original_max_position_embeddings: self.original_max_position_embeddings,
                ..TextConfig::llama_defaults()
            },
            additional_vocab_size: self.additional_vocab_size,
            cross_layer_interval: self.cross_layer_interval,
            qk_layer_norms: self.qk_layer_norms,
            alpha_type: self.alpha_type,
            context_size: self.vision_config.embed_dim,
        }
    }

    /// What shapes the resampler, if there is one.
    pub fn resampler(&self) -> ResamplerConfig {
        ResamplerConfig { vision_embed_dim: self.vision_config.embed_dim, perceiver: self.perceiver_config.clone() }
    }

    /// Vectors of an image that the gated layers read.
    pub fn vectors_per_image(&self) -> usize {
        match self.use_resampler {
            true => self.perceiver_config.resampler_n_latents,
            false => self.vision_config.vectors_per_image(),
        }
    }

    /// What the file's `quantization_config` has plain weights quantised to while they are loaded.
    pub(crate) fn quantization_on_load(&self, checkpoint: Option<&Checkpoint>) -> Option<Quantization> {
        self.quantization_config.as_ref()?.on_load(checkpoint?)
    }

    /// Pairs (tensor, source) of which the first is the second and may be missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self.tie_word_embeddings {
            true => &[
                ("lm_head.weight", "model.embed_tokens.weight"),
                ("lm_head.additional_fc.weight", "model.embed_tokens.additional_embedding.weight"),
            ],
            false => &[],
        }
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text().validate().map_err(|error| error.without_section("text_config."))?;
        self.vision_config.validate()?;
        self.perceiver_config.validate()?;
        self.quantization_config.iter().try_for_each(QuantizationConfig::validate)
    }
}

/// Drops keys that are null, and gives the tower's width the name that the reference takes it by.
pub(super) fn with_known_names(mut file: Value) -> Value {
    if let Some(file) = file.as_object_mut() {
        file.retain(|_, value| !value.is_null());
        if let Some(vision) = file.get_mut("vision_config").and_then(Value::as_object_mut)
            && let Some(width) = vision.remove("hidden_size")
            && !vision.contains_key("embed_dim")
        {
            vision.insert("embed_dim".to_owned(), width);
        }
    }
    file
}
