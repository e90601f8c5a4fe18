//! `config.json` of an IDEFICS v1 checkpoint. It has the decoder's keys at the top level.

use std::path::Path;

use burn::tensor::DType;
use idefics_nn::{Activation, ConfigError};
use idefics_perceiver::flamingo::{PerceiverConfig, ResamplerConfig};
use idefics_processor::families::Idefics1 as ProcessorRules;
use idefics_processor::image::{ImageConfigError, ImageProcessor, ImageProcessorConfig, ImageSize};
use idefics_processor::{Processor, Tokenizer};
use idefics_text::{AlphaType, CrossAttentionConfig, RopeParameters, TextConfig};
use idefics_vision::clip::VisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sections::fill_section;
use super::{FamilyConfig, ModelFamily, ModelTypes, QuantizationConfig, defaults, from_value};
use crate::bench::FILLER;
use crate::placement::Placement;
use crate::{AssembledModel, Error, Idefics1, ModelShape, Prompts};

/// The family's `model_type`.
const MODEL_TYPE: &str = "idefics";

/// `config.json` of an IDEFICS v1 checkpoint. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Idefics1Config {
    /// Number of rows of the language model's original embedding table, and of its original head.
    pub vocab_size: usize,
    /// Number of added tokens, whose embeddings and head rows are in separate matrices.
    pub additional_vocab_size: usize,
    /// Width of a token's embedding.
    pub hidden_size: usize,
    /// Inner width of the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads, in the decoder's own layers and in the gated cross-attention layers.
    pub num_attention_heads: usize,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Maximum context length in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies (older files).
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies (older files).
    pub rope_scaling: Option<RopeParameters>,
    /// Base and scaling of the rotary frequencies (files written by Transformers 5 and later).
    pub rope_parameters: Option<RopeParameters>,
    /// Context length of the original training in tokens, if it is given outside the rotary parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// A gated cross-attention layer precedes each decoder layer whose index is a multiple of this number.
    pub cross_layer_interval: usize,
    /// Whether queries and keys are normalised in the gated cross-attention layers.
    pub qk_layer_norms: bool,
    /// Shape of the learned parameter of a cross-attention gate.
    pub alpha_type: AlphaType,
    /// Whether a resampler compresses the output of the vision tower for the gated layers. `perceiver_config` has a key
    /// of the same name, which has no effect.
    pub use_resampler: bool,
    /// Whether the head shares the weights of the embedding table.
    pub tie_word_embeddings: bool,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// The resampler.
    pub perceiver_config: PerceiverConfig,
    /// How the weights are quantised, or should be quantised on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<QuantizationConfig>,
}

/// The defaults of `IdeficsConfig` in the reference.
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
            vision_config: defaults::idefics1_vision_config(),
            perceiver_config: defaults::idefics1_perceiver_config(),
            quantization_config: None,
        }
    }
}

impl Idefics1Config {
    /// Returns the configuration of the public 9b checkpoints: LLaMA-7B with a gated layer before every fourth layer.
    pub fn idefics_9b() -> Self {
        Self {
            additional_vocab_size: 2,
            cross_layer_interval: 4,
            qk_layer_norms: true,
            use_resampler: true,
            vision_config: VisionConfig::clip_vit_h_14(),
            perceiver_config: PerceiverConfig::idefics_9b(),
            ..Self::default()
        }
    }

    /// Returns the configuration of the public 80b checkpoints: LLaMA-65B with a gated layer before every fourth layer.
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

    /// Returns the configuration of the decoder.
    pub fn text(&self) -> CrossAttentionConfig {
        CrossAttentionConfig {
            text: TextConfig {
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: self.num_attention_heads,
                num_key_value_heads: None,
                head_dim: None,
                hidden_act: self.hidden_act,
                max_position_embeddings: self.max_position_embeddings,
                rms_norm_eps: self.rms_norm_eps,
                sliding_window: None,
                rope_theta: self.rope_theta,
                rope_scaling: self.rope_scaling.clone(),
                rope_parameters: self.rope_parameters.clone(),
                original_max_position_embeddings: self.original_max_position_embeddings,
            },
            additional_vocab_size: self.additional_vocab_size,
            cross_layer_interval: self.cross_layer_interval,
            qk_layer_norms: self.qk_layer_norms,
            alpha_type: self.alpha_type,
            context_size: self.vision_config.embed_dim,
        }
    }

    /// Returns the configuration of the resampler. It has no effect if `use_resampler` is false.
    pub fn resampler(&self) -> ResamplerConfig {
        ResamplerConfig { vision_embed_dim: self.vision_config.embed_dim, perceiver: self.perceiver_config.clone() }
    }

    /// Returns the number of vectors per image that the gated layers attend to.
    pub fn vectors_per_image(&self) -> usize {
        match self.use_resampler {
            true => self.perceiver_config.resampler_n_latents,
            false => self.vision_config.vectors_per_image(),
        }
    }

    /// Returns the pairs (tensor, source) of tied tensors. The tensor shares the weights of the source and may be
    /// missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self.tie_word_embeddings {
            true => &[
                ("lm_head.weight", "model.embed_tokens.weight"),
                ("lm_head.additional_fc.weight", "model.embed_tokens.additional_embedding.weight"),
            ],
            false => &[],
        }
    }

    /// Checks every value that determines sizes or is used as a divisor.
    ///
    /// # Errors
    /// [`ConfigError`] with the name of the invalid key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text().validate().map_err(|error| error.without_section("text_config."))?;
        self.vision_config.validate()?;
        self.perceiver_config.validate()?;
        self.quantization_config.iter().try_for_each(QuantizationConfig::validate)
    }
}

impl ModelTypes for Idefics1Config {
    const MODEL_TYPES: &'static [&'static str] = &[MODEL_TYPE];
}

impl FamilyConfig for Idefics1Config {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            vocab_size: self.vocab_size + self.additional_vocab_size,
            text: self.text().text,
            patch_size: self.vision_config.patch_size,
            activation_bytes_per_patch: self.vision_config.activation_bytes_per_patch(),
            vision_layers: self.vision_config.num_hidden_layers,
        }
    }

    fn tied(&self) -> &'static [(&'static str, &'static str)] {
        self.tied()
    }

    fn quantization_config(&self) -> Option<&QuantizationConfig> {
        self.quantization_config.as_ref()
    }

    fn assemble(&self, placement: &Placement) -> Result<Box<dyn AssembledModel>, ConfigError> {
        Ok(Box::new(Idefics1::placed(self, placement)?))
    }

    fn parts(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("vision_model", "model.vision_model."),
            ("perceiver_resampler", "model.perceiver_resampler."),
            ("embed_tokens", "model.embed_tokens."),
            ("gated_cross_attn_layers", "model.gated_cross_attn_layers."),
            ("layers", "model."),
            ("lm_head", "lm_head."),
        ]
    }

    fn blocks(&self) -> Vec<String> {
        let mut names = vec!["model.vision_model".to_owned()];
        names.extend(self.use_resampler.then(|| "model.perceiver_resampler".to_owned()));
        names.push("model.embed_tokens".to_owned());
        for layer in 0..self.num_hidden_layers {
            if layer.is_multiple_of(self.cross_layer_interval) {
                names.push(format!("model.gated_cross_attn_layers.{}", layer / self.cross_layer_interval));
            }
            names.push(format!("model.layers.{layer}"));
        }
        names.extend(["model.norm", "lm_head"].map(str::to_owned));
        names
    }

    fn vectors_per_image(&self) -> usize {
        self.vectors_per_image()
    }

    /// Returns a single filler token, because the decoder needs no image tokens.
    fn image_placeholder(&self) -> Vec<u32> {
        vec![FILLER]
    }

    fn context_bytes(&self, n_images: usize, dtype: DType) -> usize {
        self.text().context_bytes(n_images * self.vectors_per_image(), dtype)
    }

    fn is_read_by_step(&self, name: &str, sees_images: bool) -> bool {
        if name.starts_with("model.gated_cross_attn_layers.") {
            return match sees_images {
                true => !name.contains(".cross_attn.k_proj.") && !name.contains(".cross_attn.v_proj."),
                false => name.contains(".mlp."),
            };
        }
        ["model.layers.", "model.norm.", "lm_head."].iter().any(|part| name.starts_with(part))
    }

    /// Accepts every processor: image tokens have no meaning for the decoder, so any number of them is valid.
    fn check_processor(&self, _folder: &Path, _processor: &Processor) -> Result<(), Error> {
        Ok(())
    }

    fn see_images(&self, prompts: Prompts, tokenizer: &Tokenizer) -> Prompts {
        prompts.attend_to_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id())
    }

    fn image_processor(&self) -> Result<ImageProcessor, ImageConfigError> {
        // A size that is too large is not an error here: preparing a picture fails later.
        let side = u32::try_from(self.vision_config.image_size).unwrap_or(u32::MAX);
        let size = ImageSize::Exact { height: side, width: side };
        let config = ImageProcessorConfig { size, ..ImageProcessorConfig::idefics1() };
        ImageProcessor::new(&ProcessorRules, config)
    }

    fn with_text_layers(&self, layers: usize) -> Box<dyn FamilyConfig> {
        Box::new(Self { num_hidden_layers: layers.min(self.num_hidden_layers), ..self.clone() })
    }
}

/// The family with this [`MODEL_TYPE`].
#[derive(Debug)]
pub(super) struct Family;

impl ModelFamily for Family {
    fn model_type(&self) -> &'static str {
        MODEL_TYPE
    }

    fn read(&self, path: &Path, file: Value) -> Result<Box<dyn FamilyConfig>, Error> {
        let mut file = with_known_names(file);
        fill_section(&mut file, "vision_config", &defaults::idefics1_vision_config());
        fill_section(&mut file, "perceiver_config", &defaults::idefics1_perceiver_config());
        let config: Idefics1Config = from_value(path, file)?;
        config.validate().map_err(|source| Error::Config { path: path.to_owned(), source })?;
        Ok(Box::new(config))
    }
}

/// Drops keys whose value is null, and renames the vision tower's `hidden_size` to `embed_dim`, as the reference does.
fn with_known_names(mut file: Value) -> Value {
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
