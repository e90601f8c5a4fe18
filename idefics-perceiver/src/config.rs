//! Configuration of Idefics2's connector: `perceiver_config` in `config.json`, and values from other sections.

use burn::tensor::Device;
use idefics_nn::{Activation, ConfigError, from_section};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Connector;

/// Configuration of Idefics2's resampler. Field names are the JSON keys; other keys are ignored.
///
/// Every key is required. Use [`Self::from_section`] for files that omit keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerceiverConfig {
    /// Activation of the feed-forward block.
    pub hidden_act: Activation,
    /// Width of the latents. Equal to the width of the decoder.
    pub hidden_size: usize,
    /// Epsilon of the RMS norms, added to the mean square.
    pub rms_norm_eps: f64,
    /// Number of latent vectors per image. Equal to the number of image tokens per image in the prompt.
    pub resampler_n_latents: usize,
    /// Number of layers.
    pub resampler_depth: usize,
    /// Number of query heads.
    pub resampler_n_heads: usize,
    /// Width of a head.
    pub resampler_head_dim: usize,
    /// Number of key and value heads. Must divide `resampler_n_heads`.
    pub num_key_value_heads: usize,
}

impl PerceiverConfig {
    /// Returns the configuration of the resampler of idefics2-8b.
    pub fn idefics2_8b() -> Self {
        Self {
            hidden_act: Activation::Silu,
            hidden_size: 4096,
            rms_norm_eps: 1e-6,
            resampler_n_latents: 64,
            resampler_depth: 3,
            resampler_n_heads: 16,
            resampler_head_dim: 96,
            num_key_value_heads: 4,
        }
    }

    /// Reads the section `perceiver_config`. Keys that the section omits get their values from `defaults`.
    ///
    /// # Errors
    /// The error of `serde_json` if a value has the wrong type.
    pub fn from_section(section: Value, defaults: &Self) -> Result<Self, serde_json::Error> {
        from_section(section, defaults)
    }

    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("perceiver_config.hidden_size", self.hidden_size, 1..=32_768)?;
        ConfigError::check_range("perceiver_config.resampler_n_latents", self.resampler_n_latents, 1..=4096)?;
        ConfigError::check_range("perceiver_config.resampler_depth", self.resampler_depth, 1..=512)?;
        ConfigError::check_range("perceiver_config.resampler_n_heads", self.resampler_n_heads, 1..=1024)?;
        ConfigError::check_range("perceiver_config.resampler_head_dim", self.resampler_head_dim, 1..=4096)?;
        ConfigError::check_range("perceiver_config.num_key_value_heads", self.num_key_value_heads, 1..=1024)?;
        ConfigError::check_positive("perceiver_config.rms_norm_eps", self.rms_norm_eps)?;
        ConfigError::check_multiple(
            "perceiver_config.resampler_n_heads",
            self.resampler_n_heads,
            "perceiver_config.num_key_value_heads",
            self.num_key_value_heads,
        )
    }
}

/// Configuration of Idefics2's connector. [`Self::from_sections`] reads it from a whole `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectorConfig {
    /// Width of the vision tower's output.
    pub vision_hidden_size: usize,
    /// Width of the decoder.
    pub text_hidden_size: usize,
    /// Inner width of the modality projection. Equal to the inner width of the decoder's feed-forward blocks.
    pub text_intermediate_size: usize,
    /// Activation of the modality projection. Equal to the activation of the decoder.
    pub text_hidden_act: Activation,
    /// Configuration of the resampler.
    pub perceiver: PerceiverConfig,
}

/// The keys of `text_config` that determine the connector.
#[derive(Serialize, Deserialize)]
struct TextSection {
    hidden_size: usize,
    intermediate_size: usize,
    hidden_act: Activation,
    rms_norm_eps: f64,
}

/// The key of `vision_config` that determines the connector.
#[derive(Serialize, Deserialize)]
struct VisionSection {
    hidden_size: usize,
}

impl ConnectorConfig {
    /// Returns the configuration of the connector of idefics2-8b.
    pub fn idefics2_8b() -> Self {
        Self {
            vision_hidden_size: 1152,
            text_hidden_size: 4096,
            text_intermediate_size: 14_336,
            text_hidden_act: Activation::Silu,
            perceiver: PerceiverConfig::idefics2_8b(),
        }
    }

    /// Reads the sections `text_config`, `vision_config` and `perceiver_config` of a whole `config.json`. Keys and
    /// sections that the file omits get their values from `defaults`.
    ///
    /// As in Transformers, the resampler takes its width and epsilon from the decoder if the resampler and the decoder
    /// have different widths.
    ///
    /// # Errors
    /// The error of `serde_json` if a value has the wrong type.
    pub fn from_sections(file: &Value, defaults: &Self) -> Result<Self, serde_json::Error> {
        let section = |name: &str| match &file[name] {
            Value::Null => Value::Object(Map::new()),
            section => section.clone(),
        };
        let text = TextSection {
            hidden_size: defaults.text_hidden_size,
            intermediate_size: defaults.text_intermediate_size,
            hidden_act: defaults.text_hidden_act,
            rms_norm_eps: defaults.perceiver.rms_norm_eps,
        };
        let text = from_section(section("text_config"), &text)?;
        let vision = VisionSection { hidden_size: defaults.vision_hidden_size };
        let vision = from_section(section("vision_config"), &vision)?;
        let mut perceiver = PerceiverConfig::from_section(section("perceiver_config"), &defaults.perceiver)?;
        if perceiver.hidden_size != text.hidden_size {
            perceiver.hidden_size = text.hidden_size;
            perceiver.rms_norm_eps = text.rms_norm_eps;
        }
        Ok(Self {
            vision_hidden_size: vision.hidden_size,
            text_hidden_size: text.hidden_size,
            text_intermediate_size: text.intermediate_size,
            text_hidden_act: text.hidden_act,
            perceiver,
        })
    }

    /// Checks the range of every value that determines memory use or is a divisor.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("vision_config.hidden_size", self.vision_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.hidden_size", self.text_hidden_size, 1..=32_768)?;
        ConfigError::check_range("text_config.intermediate_size", self.text_intermediate_size, 1..=262_144)?;
        self.perceiver.validate()?;
        if self.perceiver.hidden_size != self.text_hidden_size {
            return Err(ConfigError::Range {
                field: "perceiver_config.hidden_size",
                value: self.perceiver.hidden_size.to_string(),
                expected: format!("{}, which is `text_config.hidden_size`", self.text_hidden_size),
            });
        }
        Ok(())
    }

    /// Creates the connector with random weights. They are allocated when they are first used, so loading a checkpoint
    /// does not allocate them.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn init(&self, device: &Device) -> Result<Connector, ConfigError> {
        self.validate()?;
        Ok(Connector::new(self, device))
    }
}
