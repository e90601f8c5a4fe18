//! `config.json` of a model folder. Its `model_type` selects the family that parses it.

mod defaults;
mod idefics1;
mod idefics2;
mod idefics3;
mod public;
mod quantization;
mod sections;

use std::any::Any;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use idefics_checkpoint::gguf::{GgufPaths, ModelFile};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_nn::checkpoint::{LoadProgress, WeightMemory};
use idefics_nn::{ConfigError, Quantization};
use idefics_processor::image::{ImageConfigError, ImageProcessor};
use idefics_processor::{Processor, Tokenizer, describe_json_error, is_git_lfs_pointer, without_byte_order_mark};
use serde_json::Value;

use crate::placement::{Block, Placement};
use crate::{AssembledModel, DeviceChoice, Error, ModelShape, Prompts, WeightOptions, folder};

pub use idefics1::Idefics1Config;
pub use idefics2::Idefics2Config;
pub use idefics3::{Idefics3Config, Idefics3ModelType};
pub use public::PublicModel;
pub use quantization::QuantizationConfig;
pub(crate) use quantization::{HEAD, QUANT_METHOD};

/// Maximum size of a configuration file in bytes. Real files have a few kilobytes.
const MAX_BYTES: u64 = 2 << 20;

/// The supported families. This is the only list of families in this crate.
pub const FAMILIES: &[&dyn ModelFamily] = &[
    &idefics1::Family,
    &idefics2::Family,
    &idefics3::Family(Idefics3ModelType::Idefics3),
    &idefics3::Family(Idefics3ModelType::SmolVlm),
];

/// A configuration type that is read from `config.json` files with certain values of `model_type`.
pub(crate) trait ModelTypes {
    /// The values of `model_type`.
    const MODEL_TYPES: &'static [&'static str];
}

/// A model family, which parses its own `config.json`.
pub trait ModelFamily: Debug + Sync {
    /// The `model_type` in the family's `config.json`.
    fn model_type(&self) -> &'static str;

    /// Parses and validates the JSON object of the file `path`.
    ///
    /// # Errors
    /// [`Error::ModelFile`] or [`Error::Config`] with the name of the invalid key.
    fn read(&self, path: &Path, file: Value) -> Result<Box<dyn FamilyConfig>, Error>;
}

/// The configuration of a family, and the properties of a model that are needed before its weights are loaded.
pub trait FamilyConfig: Any + Debug + Send + Sync {
    /// The `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;

    /// The model's sizes.
    fn shape(&self) -> ModelShape;

    /// Returns the pairs (tensor, source) of tied tensors. The tensor shares the weights of the source and may be
    /// missing from a checkpoint.
    fn tied(&self) -> &'static [(&'static str, &'static str)];

    /// How the weights are quantised, or should be quantised on load.
    fn quantization_config(&self) -> Option<&QuantizationConfig>;

    /// Builds the model with each part on the device given by `placement`. No weights are allocated until a
    /// checkpoint is loaded.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid.
    fn assemble(&self, placement: &Placement) -> Result<Box<dyn AssembledModel>, ConfigError>;

    /// Pairs (name, prefix) of the parts of the model, for display. A tensor belongs to the first part whose prefix
    /// matches its name.
    fn parts(&self) -> &'static [(&'static str, &'static str)];

    /// Names of the parts that can be placed on separate devices, in the order in which data passes through them. Empty
    /// if the model cannot be split.
    fn blocks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Number of vectors that represent an image, or a tile of a split image.
    fn vectors_per_image(&self) -> usize;

    /// The tokens that represent an image, or a tile of a split image, in a prompt.
    fn image_placeholder(&self) -> Vec<u32>;

    /// Number of bytes that the cross-attention keys and values of `n_images` images in one row take.
    fn context_bytes(&self, _n_images: usize, _dtype: DType) -> usize {
        0
    }

    /// Whether a decode step reads the weight `name`. `sees_images` says whether the step attends to images by
    /// cross-attention. The keys and values of these images are already cached.
    fn is_read_by_step(&self, name: &str, sees_images: bool) -> bool;

    /// Checks that the processor and the model agree about image tokens.
    ///
    /// # Errors
    /// [`Error::ImageTokens`] or [`Error::ImageToken`] if they do not agree.
    fn check_processor(&self, folder: &Path, processor: &Processor) -> Result<(), Error>;

    /// Whether the model has a vision tower.
    fn has_vision(&self) -> bool {
        true
    }

    /// Determines for each token of the prompts which images it may attend to, in families with cross-attention. Does
    /// nothing in other families.
    fn see_images(&self, prompts: Prompts, _tokenizer: &Tokenizer) -> Prompts {
        prompts
    }

    /// Returns an image processor with the settings of the family's public checkpoints.
    ///
    /// # Errors
    /// [`ImageConfigError`] if the image size is invalid.
    fn image_processor(&self) -> Result<ImageProcessor, ImageConfigError>;

    /// Like [`Self::image_processor`], but for the frames of videos, which are not split into tiles. The default is
    /// `None`, for families without videos.
    ///
    /// # Errors
    /// [`ImageConfigError`] if the image size is invalid.
    fn frame_processor(&self) -> Result<Option<ImageProcessor>, ImageConfigError> {
        Ok(None)
    }

    /// Returns the same configuration with at most `layers` decoder layers.
    fn with_text_layers(&self, layers: usize) -> Box<dyn FamilyConfig>;
}

/// The configuration of a model of any family.
#[derive(Debug, Clone)]
pub struct ModelConfig(Arc<dyn FamilyConfig>);

impl<C: FamilyConfig> From<C> for ModelConfig {
    fn from(config: C) -> Self {
        Self(Arc::new(config))
    }
}

impl ModelConfig {
    /// Parses and validates `folder/config.json`. If `folder` is a GGUF file, or a folder with a GGUF model, uses the
    /// metadata of that file instead.
    ///
    /// # Errors
    /// - [`Error::NoFolder`], [`Error::NoConfig`] or [`Error::Adapter`] if this is not a model folder
    /// - [`Error::Checkpoint`] if a GGUF file is rejected
    /// - [`Error::Read`] if the file cannot be read
    /// - [`Error::GitLfsPointer`] or [`Error::ModelFile`] if the file is not a configuration
    /// - [`Error::UnknownFamily`] if its `model_type` is not supported
    /// - [`Error::Config`] with the name of the key if a value is invalid
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        match folder::in_metadata(folder, ModelFile::Config)? {
            Some((path, config)) => Self::from_json_with(&path, config, FAMILIES),
            None => Self::from_file(&config_file(folder)?),
        }
    }

    /// Parses and validates a configuration file, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// See [`ModelConfig::from_folder`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let is_gguf = path.is_file() && GgufPaths::find(path).map_err(CheckpointError::from)?.is_some();
        if is_gguf { Self::from_folder(path) } else { Self::from_file_with(path, FAMILIES) }
    }

    /// Parses and validates a configuration file in JSON. Its `model_type` must be that of one of `families`.
    ///
    /// # Errors
    /// See [`ModelConfig::from_folder`].
    pub fn from_file_with(path: &Path, families: &[&dyn ModelFamily]) -> Result<Self, Error> {
        Self::from_json_with(path, read_json(path)?, families)
    }

    fn from_json_with(path: &Path, file: Value, families: &[&dyn ModelFamily]) -> Result<Self, Error> {
        let model_type = file.get("model_type").and_then(Value::as_str);
        let family = families.iter().find(|family| Some(family.model_type()) == model_type).ok_or_else(|| {
            let supported: Vec<&str> = families.iter().map(|family| family.model_type()).collect();
            let family = model_type.unwrap_or("missing").to_owned();
            Error::UnknownFamily { path: path.to_owned(), family, supported: supported.join(", ") }
        })?;
        Ok(Self(family.read(path, file)?.into()))
    }

    /// Returns the configuration of the model's family.
    pub fn family(&self) -> &dyn FamilyConfig {
        &*self.0
    }

    /// Returns the configuration as the type `C`, or `None` if it has another type.
    pub fn downcast_ref<C: FamilyConfig>(&self) -> Option<&C> {
        let config: &dyn Any = &*self.0;
        config.downcast_ref()
    }

    /// Returns the same configuration with at most `layers` decoder layers.
    #[must_use]
    pub fn with_text_layers(&self, layers: usize) -> Self {
        Self(self.0.with_text_layers(layers).into())
    }

    /// Returns the quantisation on load that `quantization_config` requests. `None` if it requests none, or if the
    /// weights are quantised already.
    pub fn quantization_on_load(&self, checkpoint: Option<&Checkpoint>) -> Option<Quantization> {
        self.0.quantization_config()?.on_load(checkpoint?)
    }

    /// Builds the model on one device. The weights are allocated when a checkpoint is loaded. If the model runs without
    /// a checkpoint, its weights are random.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid.
    pub fn assemble(&self, device: &Device) -> Result<Box<dyn AssembledModel>, ConfigError> {
        self.0.assemble(&Placement::single_device(device))
    }

    /// Builds a model with random weights in the formats of `weights`, to measure speed and memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if the configuration is invalid.
    pub fn random_model(
        &self,
        device: &Device,
        weights: impl Into<WeightOptions>,
        seed: u64,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<Box<dyn AssembledModel>, Error> {
        let options = weights.into().load_options(self.0.tied(), None);
        let filled = self.assemble(device)?.fill_random(&options, seed, &mut progress);
        filled.map_err(|error| Error::Execution { reason: error.to_string() })
    }

    /// Returns the memory that the model's weights need on `device`. Without a checkpoint, BF16 weights are assumed.
    /// Nothing is loaded.
    ///
    /// # Errors
    /// [`Error::Shape`] if the configuration is invalid.
    pub fn memory(
        &self,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        weights: impl Into<WeightOptions>,
    ) -> Result<WeightMemory, Error> {
        Ok(self.memory_of_model(&*self.assemble(device)?, checkpoint, device, &weights.into()))
    }

    /// Like [`Self::memory`], for a model that is already assembled.
    pub(crate) fn memory_of_model(
        &self,
        model: &dyn AssembledModel,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        weights: &WeightOptions,
    ) -> WeightMemory {
        let options = weights.load_options(self.0.tied(), self.quantization_on_load(checkpoint));
        let mut sum = WeightMemory::default();
        model.memory_per_tensor(&options, checkpoint, device, &mut |_, memory| sum += memory);
        sum
    }

    /// Returns the parts of a model that can be placed on separate devices, in the order in which data passes through
    /// them. The list is empty if the model cannot be split.
    ///
    /// Each part has the size of its weights on `device`. Without a checkpoint, BF16 weights are assumed. Nothing is
    /// loaded.
    ///
    /// # Errors
    /// [`Error::Shape`] if the configuration is invalid.
    pub fn blocks(
        &self,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        weights: impl Into<WeightOptions>,
    ) -> Result<Vec<Block>, Error> {
        let names = self.0.blocks().into_iter();
        let mut blocks: Vec<Block> = names.map(|name| Block { name, bytes: 0, stored_bytes: 0 }).collect();
        let model = self.assemble(device)?;
        let mut add = |device: &Device, weights: WeightOptions, bytes_of: fn(&mut Block) -> &mut u64| {
            let options = weights.load_options(self.0.tied(), self.quantization_on_load(checkpoint));
            model.memory_per_tensor(&options, checkpoint, device, &mut |tensor, memory| {
                let is_in =
                    |block: &&mut Block| tensor.strip_prefix(&block.name).is_some_and(|rest| rest.starts_with('.'));
                if let Some(block) = blocks.iter_mut().find(is_in) {
                    *bytes_of(block) += memory.total();
                }
            });
        };
        add(device, weights.into(), |block| &mut block.bytes);
        add(&DeviceChoice::Cpu.open()?.1, WeightOptions::default(), |block| &mut block.stored_bytes);
        Ok(blocks)
    }
}

/// Checks that the processor and the model agree about the id of the image token and the number of tokens per image.
fn check_image_tokens(
    folder: &Path,
    processor: &Processor,
    n_vectors: usize,
    image_token_id: u32,
) -> Result<(), Error> {
    let image_seq_len = processor.image_seq_len();
    if image_seq_len != n_vectors {
        return Err(Error::ImageTokens { folder: folder.to_owned(), image_seq_len, n_vectors });
    }
    let tokenizer_image_id = processor.tokenizer().image_token_id();
    if tokenizer_image_id != image_token_id {
        return Err(Error::ImageToken { folder: folder.to_owned(), tokenizer_image_id, image_token_id });
    }
    Ok(())
}

/// Returns the path of `config.json` in a folder.
///
/// # Errors
/// [`Error::NoConfig`] if there is no such file.
pub(crate) fn config_file(folder: &Path) -> Result<PathBuf, Error> {
    let path = folder.join("config.json");
    if path.exists() { Ok(path) } else { Err(Error::NoConfig { folder: folder.to_owned() }) }
}

/// Reads a JSON object of at most [`MAX_BYTES`].
pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    // Reading a pipe could block for ever.
    if !metadata.is_file() {
        return Err(Error::ModelFile { path: path.to_owned(), reason: "is not a regular file".to_owned() });
    }
    let length = metadata.len();
    if length > MAX_BYTES {
        let reason = format!("the file has {length} bytes; at most {MAX_BYTES} are allowed");
        return Err(Error::ModelFile { path: path.to_owned(), reason });
    }
    let text = std::fs::read(path).map_err(read_error)?;
    if is_git_lfs_pointer(&text) {
        return Err(Error::GitLfsPointer { path: path.to_owned() });
    }
    let value: Value = serde_json::from_slice(without_byte_order_mark(&text))
        .map_err(|error| Error::ModelFile { path: path.to_owned(), reason: describe_json_error(&error) })?;
    if !value.is_object() {
        return Err(Error::ModelFile { path: path.to_owned(), reason: "expected a JSON object".to_owned() });
    }
    Ok(value)
}

/// Deserialises the contents of the file `path`. Errors name the invalid key.
pub(crate) fn from_value<T: serde::de::DeserializeOwned>(path: &Path, value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path: PathBuf = path.to_owned();
        Error::ModelFile { path, reason: format!("`{}`: {}", error.path(), describe_json_error(error.inner())) }
    })
}
