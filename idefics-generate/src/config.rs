//! `config.json` of a model folder.

mod idefics1;
mod quantization;

use std::path::{Path, PathBuf};

use idefics_checkpoint::Checkpoint;
use idefics_nn::{ConfigError, Quantization};
use idefics_perceiver::{ConnectorConfig, PerceiverConfig};
use idefics_processor::{is_git_lfs_pointer, json_words, without_byte_order_mark};
use idefics_text::TextConfig;
use idefics_vision::VisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, folder};

pub use idefics1::Idefics1Config;
pub use quantization::QuantizationConfig;
pub(crate) use quantization::{HEAD, QUANT_METHOD};

/// Real files take a few kilobytes.
const MAX_BYTES: u64 = 2 << 20;

/// What `config.json` describes: the one place where `model_type` is looked at.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// `idefics`: the first generation.
    Idefics1(Idefics1Config),
    /// `idefics2`.
    Idefics2(Idefics2Config),
}

impl ModelConfig {
    /// Reads and checks `folder/config.json`.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Gguf`] and [`Error::Adapter`] for what is no model folder; [`Error::Read`],
    /// [`Error::ModelFile`] for what is not a configuration, [`Error::UnknownFamily`], or [`Error::Config`] naming the
    /// key whose value describes no model.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        folder::check(folder)?;
        Self::from_file(&folder.join("config.json"))
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// As [`ModelConfig::from_folder`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        let file = read_json(&path)?;
        match file.get("model_type").and_then(|family| family.as_str()) {
            Some("idefics") => {
                let config: Idefics1Config = from_value(&path, idefics1::with_known_names(file))?;
                config.validate().map_err(|source| Error::Config { path, source })?;
                Ok(Self::Idefics1(config))
            }
            Some("idefics2") => {
                let file = with_text_defaults(file).map_err(|source| Error::Config { path: path.clone(), source })?;
                let config: Idefics2Config = from_value(&path, file)?;
                let config = config.resolved();
                config.validate().map_err(|source| Error::Config { path, source })?;
                Ok(Self::Idefics2(config))
            }
            other => {
                let family = other.unwrap_or("missing").to_owned();
                Err(Error::UnknownFamily { path, family, supported: "idefics, idefics2" })
            }
        }
    }

    /// Pairs (tensor, source) of which the first is the second and may be missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Idefics1(config) => config.tied(),
            Self::Idefics2(config) => config.tied(),
        }
    }

    /// Tokens that the model has an embedding and a logit for.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Idefics1(config) => config.text().total_vocab_size(),
            Self::Idefics2(config) => config.text_config.vocab_size,
        }
    }

    /// What the file's `quantization_config` has plain weights quantised to while they are loaded.
    pub fn quantization_on_load(&self, checkpoint: Option<&Checkpoint>) -> Option<Quantization> {
        match self {
            Self::Idefics1(config) => config.quantization_on_load(checkpoint),
            Self::Idefics2(config) => config.quantization_config.as_ref()?.on_load(checkpoint?),
        }
    }

    /// What shapes the decoder.
    pub fn text_config(&self) -> TextConfig {
        match self {
            Self::Idefics1(config) => config.text().text,
            Self::Idefics2(config) => config.text_config.clone(),
        }
    }

    /// `model_type` as the file spells it.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Idefics1(_) => "idefics",
            Self::Idefics2(_) => "idefics2",
        }
    }
}

/// `config.json` of an Idefics2 checkpoint; keys that are not listed are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Idefics2Config {
    /// The token whose embeddings are replaced by image vectors.
    pub image_token_id: u32,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The decoder.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// The resampler.
    pub perceiver_config: PerceiverConfig,
    /// How the weights are quantised, or are to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<QuantizationConfig>,
}

/// Defaults of `Idefics2Config`.
impl Default for Idefics2Config {
    fn default() -> Self {
        Self {
            image_token_id: 32_001,
            tie_word_embeddings: false,
            text_config: TextConfig::idefics2_preset(),
            vision_config: VisionConfig::default(),
            perceiver_config: PerceiverConfig::default(),
            quantization_config: None,
        }
    }
}

impl Idefics2Config {
    /// The public 8b checkpoints.
    pub fn idefics2_8b() -> Self {
        Self {
            text_config: TextConfig { vocab_size: 32_003, ..TextConfig::idefics2_preset() },
            vision_config: VisionConfig::siglip_so400m_980(),
            ..Self::default()
        }
    }

    /// The resampler works in the decoder's space: if their widths differ, the decoder's width and eps are taken.
    /// Source: `Idefics2Config.__post_init__`.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        if self.perceiver_config.hidden_size != self.text_config.hidden_size {
            self.perceiver_config.hidden_size = self.text_config.hidden_size;
            self.perceiver_config.rms_norm_eps = self.text_config.rms_norm_eps;
        }
        self
    }

    /// Pairs (tensor, source) of which the first is the second and may be missing from a checkpoint.
    pub fn tied(&self) -> &'static [(&'static str, &'static str)] {
        match self.tie_word_embeddings {
            true => &[("lm_head.weight", "model.text_model.embed_tokens.weight")],
            false => &[],
        }
    }

    /// What shapes the connector.
    pub fn connector(&self) -> ConnectorConfig {
        ConnectorConfig {
            vision_hidden_size: self.vision_config.hidden_size,
            text_hidden_size: self.text_config.hidden_size,
            text_intermediate_size: self.text_config.intermediate_size,
            text_hidden_act: self.text_config.hidden_act,
            perceiver: self.perceiver_config.clone(),
        }
    }

    /// Checks every value on which memory or a division depends.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text_config.validate()?;
        self.vision_config.validate()?;
        self.perceiver_config.validate()?;
        self.quantization_config.iter().try_for_each(QuantizationConfig::validate)?;
        ConfigError::check_range("image_token_id", self.image_token_id as usize, 0..=self.text_config.vocab_size - 1)
    }
}

/// Fills in what a `text_config` of another class than Mistral's leaves out, and drops sections that are null.
fn with_text_defaults(mut file: Value) -> Result<Value, ConfigError> {
    if let Some(file) = file.as_object_mut() {
        file.retain(|_, section| !section.is_null());
    }
    let Some(text_config) = file.get_mut("text_config").and_then(Value::as_object_mut) else { return Ok(file) };
    match text_config.get("model_type").and_then(Value::as_str) {
        None | Some("mistral") => {}
        Some("llama") => {
            if let Ok(Value::Object(mut filled)) = serde_json::to_value(TextConfig::llama_defaults()) {
                filled.append(text_config);
                *text_config = filled;
            }
        }
        Some(other) => {
            let (field, value) = ("text_config.model_type", other.to_owned());
            return Err(ConfigError::Unsupported { field, value, supported: "mistral, llama" });
        }
    }
    Ok(file)
}

/// Reads a JSON object of at most [`MAX_BYTES`].
pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    // A pipe would be waited for.
    if !metadata.is_file() {
        return Err(Error::ModelFile { path: path.to_owned(), reason: "expected a regular file".to_owned() });
    }
    let length = metadata.len();
    if length > MAX_BYTES {
        let reason = format!("{length} bytes, at most {MAX_BYTES} are accepted");
        return Err(Error::ModelFile { path: path.to_owned(), reason });
    }
    let text = std::fs::read(path).map_err(read_error)?;
    if is_git_lfs_pointer(&text) {
        return Err(Error::GitLfsPointer { path: path.to_owned() });
    }
    let value: Value = serde_json::from_slice(without_byte_order_mark(&text))
        .map_err(|error| Error::ModelFile { path: path.to_owned(), reason: json_words(&error) })?;
    if !value.is_object() {
        return Err(Error::ModelFile { path: path.to_owned(), reason: "expected a JSON object".to_owned() });
    }
    Ok(value)
}

/// Deserializes, naming the key at fault.
pub(crate) fn from_value<T: serde::de::DeserializeOwned>(path: &Path, value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path: PathBuf = path.to_owned();
        Error::ModelFile { path, reason: format!("`{}`: {}", error.path(), json_words(error.inner())) }
    })
}
