//! Models from folders or of random weights, and the memory that they take.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use idefics_checkpoint::{Checkpoint, CheckpointWarning};
use idefics_nn::checkpoint::{LoadProgress, WeightMemory, fill_random};
use idefics_nn::{ConfigError, LoadModule, LoadOptions, flat_module};

use crate::placement::Placement;
use crate::{Error, Idefics1, Idefics2, Model, ModelConfig, ModelWarning, WeightFormat, WeightOptions, folder};

/// Pairs (tensor, source): see [`ModelConfig::tied`].
type Tied = &'static [(&'static str, &'static str)];

/// A model of whichever family a folder or a configuration is of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AnyModel {
    /// The first generation.
    Idefics1(Idefics1),
    /// The second.
    Idefics2(Idefics2),
}
flat_module!(
    enum AnyModel {
        Idefics1,
        Idefics2,
    }
);

impl AnyModel {
    /// The model, random until a checkpoint is loaded; nothing is allocated before.
    ///
    /// # Errors
    /// [`ConfigError`] for a configuration that describes no model.
    pub fn new(config: &ModelConfig, device: &Device) -> Result<Self, ConfigError> {
        Ok(match config {
            ModelConfig::Idefics1(config) => Self::Idefics1(Idefics1::new(config, device)?),
            ModelConfig::Idefics2(config) => Self::Idefics2(Idefics2::new(config, device)?),
        })
    }

    /// The same with each part where `placement` says.
    fn placed(config: &ModelConfig, placement: &Placement, folder: &Path) -> Result<Self, Error> {
        match config {
            ModelConfig::Idefics1(config) => in_folder(folder, Idefics1::placed(config, placement)).map(Self::Idefics1),
            ModelConfig::Idefics2(_) => Err(Error::NotPlaceable { folder: folder.to_owned() }),
        }
    }

    /// Loads the model of a folder in the public layout on `device`; `weights` may be a dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] naming the file, key or tensor at fault.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        let config = ModelConfig::from_folder(folder)?;
        let model = in_folder(folder, Self::new(&config, device))?;
        read(model, folder, &config, weights.into(), &[], progress).map(|(model, _)| model)
    }

    /// As [`Self::from_folder`], or where there is a `placement` as that says, with what is odd about the weights.
    pub(crate) fn from_config(
        config: &ModelConfig,
        folder: &Path,
        device: &Device,
        placement: Option<&Placement>,
        weights: WeightOptions,
        progress: impl FnMut(LoadProgress),
    ) -> Result<(Self, Vec<ModelWarning>), Error> {
        let model = match placement {
            None => in_folder(folder, Self::new(config, device))?,
            Some(placement) => Self::placed(config, placement, folder)?,
        };
        read(model, folder, config, weights, placement.map_or(&[][..], Placement::in_files), progress)
    }

    /// A model of that shape with random weights, held as `weights` says: to measure speed and memory.
    ///
    /// # Errors
    /// [`Error::Shape`] for a configuration that describes no model.
    pub fn random(
        config: &ModelConfig,
        device: &Device,
        weights: impl Into<WeightOptions>,
        seed: u64,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        fill(Self::new(config, device)?, weights.into(), config.tied(), seed, progress)
    }

    /// The memory that the weights of a model of that shape will take on `device`: those of `checkpoint`, or random
    /// ones.
    ///
    /// # Errors
    /// [`Error::Shape`] for a configuration that describes no model.
    pub fn memory(
        config: &ModelConfig,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        weights: impl Into<WeightOptions>,
    ) -> Result<WeightMemory, Error> {
        let model = Self::new(config, device)?;
        let options = weights.into().load_options(config.tied(), config.quantization_on_load(checkpoint));
        Ok(options.memory(&model, checkpoint, device))
    }

    /// What generation asks.
    pub fn as_model(&self) -> &dyn Model {
        match self {
            Self::Idefics1(model) => model,
            Self::Idefics2(model) => model,
        }
    }

    /// The same, to change how it computes.
    pub fn as_model_mut(&mut self) -> &mut dyn Model {
        match self {
            Self::Idefics1(model) => model,
            Self::Idefics2(model) => model,
        }
    }

    pub(crate) fn into_model(self) -> Box<dyn Model> {
        match self {
            Self::Idefics1(model) => Box::new(model),
            Self::Idefics2(model) => Box::new(model),
        }
    }
}

impl Idefics2 {
    /// Loads the model of a folder in the public layout on `device`; `weights` may be a dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] naming the file, key or tensor at fault.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        let config = ModelConfig::from_folder(folder)?;
        let ModelConfig::Idefics2(shape) = &config else {
            return Err(Error::OtherFamily { path: folder.join("config.json"), expected: "idefics2" });
        };
        let model = in_folder(folder, Self::new(shape, device))?;
        read(model, folder, &config, weights.into(), &[], progress).map(|(model, _)| model)
    }
}

impl Idefics1 {
    /// Loads the model of a folder in the public layout on `device`; `weights` may be a dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] naming the file, key or tensor at fault.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        Self::from_folder_placed(folder, &Placement::on(device), weights, progress)
    }

    /// As [`Self::from_folder`], each part on its own device; those that stay in the files are held as the files have
    /// them.
    ///
    /// # Errors
    /// [`Error`] naming the file, key or tensor at fault.
    pub fn from_folder_placed(
        folder: &Path,
        placement: &Placement,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        let config = ModelConfig::from_folder(folder)?;
        let ModelConfig::Idefics1(shape) = &config else {
            return Err(Error::OtherFamily { path: folder.join("config.json"), expected: "idefics" });
        };
        let model = in_folder(folder, Self::placed(shape, placement))?;
        read(model, folder, &config, weights.into(), placement.in_files(), progress).map(|(model, _)| model)
    }
}

/// Names the file whose values describe no model.
fn in_folder<M>(folder: &Path, model: Result<M, ConfigError>) -> Result<M, Error> {
    model.map_err(|source| Error::Config { path: folder.join("config.json"), source })
}

/// Fills a model from the files of a folder, and says what is odd about them.
fn read<M: Module>(
    model: M,
    folder: &Path,
    config: &ModelConfig,
    weights: WeightOptions,
    as_stored: &[String],
    progress: impl FnMut(LoadProgress),
) -> Result<(M, Vec<ModelWarning>), Error> {
    let checkpoint = Checkpoint::open_with(folder, weights.pickles)?;
    let of_folder = config.quantization_on_load(Some(&checkpoint));
    let options = LoadOptions { as_stored, ..weights.load_options(config.tied(), of_folder.clone()) };

    let mut warnings = weight_warnings(&model, folder, &checkpoint, &options);
    if let Some(quantization) = of_folder.filter(|_| weights.quantize == WeightFormat::None) {
        let (path, format) = (folder.join("config.json"), quantization.format.name());
        warnings.push(ModelWarning::QuantizedOnLoad { path, format });
    }
    Ok((checkpoint.load(model, &options, progress)?, warnings))
}

/// Warnings about the weights of a folder and what lies beside them. No weight is read.
pub(crate) fn weight_warnings<M: Module>(
    model: &M,
    folder: &Path,
    checkpoint: &Checkpoint,
    options: &LoadOptions<'_>,
) -> Vec<ModelWarning> {
    let mut warnings: Vec<ModelWarning> = checkpoint.warnings().iter().cloned().map(ModelWarning::from).collect();
    let names = checkpoint.unused(model, options);
    if !names.is_empty() {
        warnings.push(CheckpointWarning::Unused { folder: folder.to_owned(), names }.into());
    }
    warnings.extend(folder::adapter_beside(folder));
    warnings
}

fn fill<M: Module>(
    model: M,
    weights: WeightOptions,
    tied: Tied,
    seed: u64,
    progress: impl FnMut(LoadProgress),
) -> Result<M, Error> {
    fill_random(model, &weights.load_options(tied, None), seed, progress)
        .map_err(|error| Error::Execution { reason: error.to_string() })
}
