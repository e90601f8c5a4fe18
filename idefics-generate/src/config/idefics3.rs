//! `config.json` of an Idefics3, SmolVLM or SmolVLM2 checkpoint.

use std::path::Path;

use idefics_nn::ConfigError;
use idefics_perceiver::PixelShuffleConfig;
use idefics_processor::Processor;
use idefics_processor::families::Idefics3 as ProcessorRules;
use idefics_processor::image::{ImageConfigError, ImageProcessor, ImageProcessorConfig, ImageSize};
use idefics_text::TextConfig;
use idefics_vision::VisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sections::{fill_section, fill_text_config};
use super::{FamilyConfig, ModelFamily, ModelTypes, QuantizationConfig, defaults, from_value};
use crate::models::idefics3_text::Idefics3Text;
use crate::placement::Placement;
use crate::{AssembledModel, Error, Idefics3, ModelShape};

/// `config.json` of an Idefics3, SmolVLM or SmolVLM2 checkpoint. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Idefics3Config {
    /// `idefics3`, or `smolvlm` for SmolVLM2. Both have the same architecture.
    pub model_type: Idefics3ModelType,
    /// The token whose embeddings are replaced by image vectors.
    pub image_token_id: u32,
    /// Side length, in patches, of the square of patches that becomes one image vector.
    pub scale_factor: usize,
    /// Whether the head shares the weights of the embedding table. The key of the same name in `text_config` has
    /// no effect.
    pub tie_word_embeddings: bool,
    /// The decoder.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// Whether the model has no vision tower, as in a GGUF file with only the text model. The public checkpoints do not
    /// have this key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub text_only: bool,
    /// How the weights are quantised, or should be quantised on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<QuantizationConfig>,
}

/// The values of `model_type` for this family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idefics3ModelType {
    /// Idefics3 and SmolVLM.
    #[default]
    Idefics3,
    /// SmolVLM2.
    SmolVlm,
}

impl Idefics3ModelType {
    /// The value of `model_type` in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idefics3 => "idefics3",
            Self::SmolVlm => "smolvlm",
        }
    }
}

/// The defaults of `Idefics3Config` in the reference. Their vision tower has 7 x 7 patches, and 7 is not a multiple of
/// the default `scale_factor`. The reference fails with these defaults, and [`Idefics3Config::validate`] returns an
/// error.
impl Default for Idefics3Config {
    fn default() -> Self {
        Self {
            model_type: Idefics3ModelType::default(),
            image_token_id: 128_257,
            scale_factor: 2,
            tie_word_embeddings: false,
            text_config: defaults::idefics3_text_config(),
            vision_config: defaults::idefics3_vision_config(),
            text_only: false,
            quantization_config: None,
        }
    }
}

impl Idefics3Config {
    /// Returns the configuration of Idefics3-8B-Llama3.
    pub fn idefics3_8b() -> Self {
        Self {
            text_config: TextConfig {
                vocab_size: 128_259,
                intermediate_size: 14_336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                rms_norm_eps: 1e-5,
                rope_theta: Some(500_000.0),
                ..defaults::llama_config()
            },
            vision_config: VisionConfig { image_size: 364, ..VisionConfig::siglip_so400m_980() },
            ..Self::default()
        }
    }

    /// Returns the configuration of SmolVLM with 2.2B parameters.
    pub fn smolvlm_2b() -> Self {
        Self {
            image_token_id: 49_153,
            scale_factor: 3,
            text_config: TextConfig {
                max_position_embeddings: 16_384,
                ..smollm2([49_155, 2048, 8192, 24], [32, 32], 273_768.0)
            },
            vision_config: VisionConfig { image_size: 384, ..VisionConfig::siglip_so400m_980() },
            ..Self::default()
        }
    }

    /// Returns the configuration of SmolVLM2 with 2.2B parameters. It has the layers of SmolVLM with 2.2B parameters,
    /// and the tokenizer of the smaller models.
    pub fn smolvlm2_2b() -> Self {
        Self {
            image_token_id: 49_190,
            text_config: smollm2([49_280, 2048, 8192, 24], [32, 32], 130_000.0),
            ..Self::smolvlm_2b()
        }
    }

    /// Returns the configuration of SmolVLM and SmolVLM2 with 500M parameters.
    pub fn smolvlm_500m() -> Self {
        Self { text_config: smollm2([49_280, 960, 2560, 32], [15, 5], 100_000.0), ..Self::smolvlm_256m() }
    }

    /// Returns the configuration of SmolVLM and SmolVLM2 with 256M parameters.
    pub fn smolvlm_256m() -> Self {
        Self {
            image_token_id: 49_190,
            scale_factor: 4,
            text_config: smollm2([49_280, 576, 1536, 30], [9, 3], 100_000.0),
            vision_config: VisionConfig {
                hidden_size: 768,
                num_attention_heads: 12,
                image_size: 512,
                patch_size: 16,
                ..defaults::idefics3_vision_config()
            },
            ..Self::default()
        }
    }

    /// Returns the pairs (tensor, source) of tied tensors. The tensor shares the weights of the source and may be
    /// missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self.tie_word_embeddings {
            true => &[("lm_head.weight", "model.text_model.embed_tokens.weight")],
            false => &[],
        }
    }

    /// Returns the configuration of the connector.
    pub fn connector(&self) -> PixelShuffleConfig {
        PixelShuffleConfig {
            vision_hidden_size: self.vision_config.hidden_size,
            text_hidden_size: self.text_config.hidden_size,
            scale_factor: self.scale_factor,
        }
    }

    /// Returns the side of a tile in pixels. A size that is too large is not an error here: preparing a picture fails
    /// later.
    fn tile_side(&self) -> u32 {
        u32::try_from(self.vision_config.image_size).unwrap_or(u32::MAX)
    }

    /// Returns the number of image vectors of a tile whose side has `vision_config.image_size` pixels.
    pub fn vectors_per_tile(&self) -> usize {
        (self.vision_config.positions_per_side() / self.scale_factor).pow(2)
    }

    /// Checks every value that determines sizes or is used as a divisor.
    ///
    /// # Errors
    /// [`ConfigError`] with the name of the invalid key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text_config.validate()?;
        self.quantization_config.iter().try_for_each(QuantizationConfig::validate)?;
        if self.text_only {
            return Ok(());
        }
        self.vision_config.validate()?;
        self.connector().validate()?;
        let side = self.vision_config.positions_per_side();
        ConfigError::check_multiple(
            "vision_config.image_size / vision_config.patch_size",
            side,
            "scale_factor",
            self.scale_factor,
        )?;
        ConfigError::check_range("image_token_id", self.image_token_id as usize, 0..=self.text_config.vocab_size - 1)
    }
}

/// Returns the configuration of a SmolLM2 decoder. `sizes` is `[vocab_size, hidden_size, intermediate_size,
/// num_hidden_layers]`. The second argument has the numbers of query heads and of key/value heads.
fn smollm2(sizes: [usize; 4], [heads, kv_heads]: [usize; 2], rope_theta: f64) -> TextConfig {
    let [vocab_size, hidden_size, intermediate_size, num_hidden_layers] = sizes;
    TextConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: Some(kv_heads),
        head_dim: Some(64),
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: Some(rope_theta),
        ..defaults::llama_config()
    }
}

impl ModelTypes for Idefics3Config {
    const MODEL_TYPES: &'static [&'static str] =
        &[Idefics3ModelType::Idefics3.name(), Idefics3ModelType::SmolVlm.name()];
}

impl FamilyConfig for Idefics3Config {
    fn model_type(&self) -> &'static str {
        self.model_type.name()
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            vocab_size: self.text_config.vocab_size,
            text: self.text_config.clone(),
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
        match self.text_only {
            true => Ok(Box::new(Idefics3Text::placed(self, placement)?)),
            false => Ok(Box::new(Idefics3::placed(self, placement)?)),
        }
    }

    fn parts(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("vision_model", "model.vision_model."),
            ("connector", "model.connector."),
            ("embed_tokens", "model.text_model.embed_tokens."),
            ("text_model", "model.text_model."),
            ("lm_head", "lm_head."),
        ]
    }

    fn vectors_per_image(&self) -> usize {
        if self.text_only { 0 } else { self.vectors_per_tile() }
    }

    fn image_placeholder(&self) -> Vec<u32> {
        vec![self.image_token_id; self.vectors_per_image()]
    }

    fn has_vision(&self) -> bool {
        !self.text_only
    }

    fn is_read_by_step(&self, name: &str, _sees_images: bool) -> bool {
        let is_decoder = name.starts_with("model.text_model.") && !name.starts_with("model.text_model.embed_tokens.");
        is_decoder || name.starts_with("lm_head.")
    }

    fn check_processor(&self, folder: &Path, processor: &Processor) -> Result<(), Error> {
        if self.text_only {
            return Ok(());
        }
        super::check_image_tokens(folder, processor, self.vectors_per_tile(), self.image_token_id)
    }

    fn image_processor(&self) -> Result<ImageProcessor, ImageConfigError> {
        let tile = self.tile_side();
        let config = ImageProcessorConfig {
            size: ImageSize::LongestEdge { longest_edge: tile.saturating_mul(4) },
            max_image_size: Some(tile),
            ..ImageProcessorConfig::idefics3()
        };
        ImageProcessor::new(&ProcessorRules::IDEFICS3, config)
    }

    fn frame_processor(&self) -> Result<Option<ImageProcessor>, ImageConfigError> {
        if self.model_type == Idefics3ModelType::Idefics3 {
            return Ok(None);
        }
        let tile = self.tile_side();
        let config = ImageProcessorConfig {
            size: ImageSize::LongestEdge { longest_edge: tile },
            max_image_size: Some(tile),
            do_image_splitting: false,
            ..ImageProcessorConfig::idefics3()
        };
        ImageProcessor::new(&ProcessorRules::SMOLVLM, config).map(Some)
    }

    fn with_text_layers(&self, layers: usize) -> Box<dyn FamilyConfig> {
        let mut config = self.clone();
        config.text_config.num_hidden_layers = layers.min(config.text_config.num_hidden_layers);
        Box::new(config)
    }
}

/// The family with one of its two `model_type` values: `idefics3` for Idefics3 and SmolVLM, `smolvlm` for SmolVLM2.
#[derive(Debug)]
pub(super) struct Family(pub(super) Idefics3ModelType);

impl ModelFamily for Family {
    fn model_type(&self) -> &'static str {
        self.0.name()
    }

    fn read(&self, path: &Path, mut file: Value) -> Result<Box<dyn FamilyConfig>, Error> {
        let in_file = |source| Error::Config { path: path.to_owned(), source };
        fill_text_config(&mut file, "llama").map_err(in_file)?;
        fill_section(&mut file, "vision_config", &defaults::idefics3_vision_config());
        let config: Idefics3Config = from_value(path, file)?;
        config.validate().map_err(in_file)?;
        Ok(Box::new(config))
    }
}
