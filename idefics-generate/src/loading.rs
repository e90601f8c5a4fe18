//! Loads models from folders.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use idefics_checkpoint::{Checkpoint, CheckpointWarning};
use idefics_nn::checkpoint::LoadProgress;
use idefics_nn::{ConfigError, LoadModule, LoadOptions, Quantization};

use crate::config::{FamilyConfig, ModelTypes};
use crate::placement::Placement;
use crate::{
    AssembledModel, Error, Idefics1, Idefics2, Idefics3, ModelConfig, ModelWarning, WeightFormat, WeightOptions, folder,
};

/// Loads a model of any family from a folder in the Hugging Face layout onto `device`. `weights` is a set of options,
/// or just a dtype: F32, BF16 or F16.
///
/// # Errors
/// [`Error`] that names the invalid file, key or tensor.
pub fn load_model(
    folder: &Path,
    device: &Device,
    weights: impl Into<WeightOptions>,
    progress: impl FnMut(LoadProgress),
) -> Result<Box<dyn AssembledModel>, Error> {
    let config = ModelConfig::from_folder(folder)?;
    load_placed(&config, folder, &Placement::single_device(device), weights.into(), progress).map(|(model, _)| model)
}

/// Loads the model of a folder with the given configuration, and puts each part on the device that `placement` gives.
/// Also returns warnings about the weights.
pub(crate) fn load_placed(
    config: &ModelConfig,
    folder: &Path,
    placement: &Placement,
    weights: WeightOptions,
    mut progress: impl FnMut(LoadProgress),
) -> Result<(Box<dyn AssembledModel>, Vec<ModelWarning>), Error> {
    let model = with_config_path(folder, config.family().assemble(placement))?;
    let files = Files::open(folder, config, weights)?;
    let options = files.load_options(config, placement);
    let mut warnings = weight_warnings(&*model, folder, &files.checkpoint, &options);
    if let Some(quantization) = files.from_config.as_ref().filter(|_| weights.quantize == WeightFormat::None) {
        let (path, format) = (folder::config_path(folder), quantization.format.name());
        warnings.push(ModelWarning::QuantizedOnLoad { path, format });
    }
    Ok((model.load(&files.checkpoint, &options, &mut progress)?, warnings))
}

/// The weights of a folder, and the format to load them in.
struct Files {
    checkpoint: Checkpoint,
    from_config: Option<Quantization>,
    weights: WeightOptions,
}

impl Files {
    fn open(folder: &Path, config: &ModelConfig, weights: WeightOptions) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open_with(folder, weights.pickles)?;
        let from_config = config.quantization_on_load(Some(&checkpoint));
        Ok(Self { checkpoint, from_config, weights })
    }

    fn load_options<'a>(&self, config: &'a ModelConfig, placement: &'a Placement) -> LoadOptions<'a> {
        let options = self.weights.load_options(config.family().tied(), self.from_config.clone());
        LoadOptions { as_stored: placement.in_files(), ..options }
    }
}

/// Reads the configuration of a folder. Returns it both as a [`ModelConfig`] and as the type `C` of one family.
fn config_as<C: FamilyConfig + ModelTypes + Clone>(folder: &Path) -> Result<(ModelConfig, C), Error> {
    let config = ModelConfig::from_folder(folder)?;
    let other_family =
        || Error::OtherFamily { path: folder::config_path(folder), expected: C::MODEL_TYPES.join(" or ") };
    let family_config = config.downcast_ref::<C>().cloned().ok_or_else(other_family)?;
    Ok((config, family_config))
}

/// Loads the model of a folder as the type `M` of one family. `assemble` creates the model from its configuration.
fn load_own<C: FamilyConfig + ModelTypes + Clone, M: Module>(
    folder: &Path,
    placement: &Placement,
    weights: WeightOptions,
    assemble: fn(&C, &Placement) -> Result<M, ConfigError>,
    progress: impl FnMut(LoadProgress),
) -> Result<M, Error> {
    let (config, own) = config_as::<C>(folder)?;
    let model = with_config_path(folder, assemble(&own, placement))?;
    let files = Files::open(folder, &config, weights)?;
    Ok(files.checkpoint.load(model, &files.load_options(&config, placement), progress)?)
}

impl Idefics2 {
    /// Loads the model from a folder in the Hugging Face layout onto `device`. `weights` is a set of options, or just a
    /// dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] that names the invalid file, key or tensor.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        load_own(folder, &Placement::single_device(device), weights.into(), Self::placed, progress)
    }
}

impl Idefics3 {
    /// Loads the model from a folder in the Hugging Face layout onto `device`. `weights` is a set of options, or just a
    /// dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] that names the invalid file, key or tensor.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        load_own(folder, &Placement::single_device(device), weights.into(), Self::placed, progress)
    }
}

impl Idefics1 {
    /// Loads the model from a folder in the Hugging Face layout onto `device`. `weights` is a set of options, or just a
    /// dtype: F32, BF16 or F16.
    ///
    /// # Errors
    /// [`Error`] that names the invalid file, key or tensor.
    pub fn from_folder(
        folder: &Path,
        device: &Device,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        Self::from_folder_placed(folder, &Placement::single_device(device), weights, progress)
    }

    /// Loads the model like [`Self::from_folder`], with each part on the device that `placement` gives. Parts that are
    /// computed from the mapped files keep the format of the files.
    ///
    /// # Errors
    /// [`Error`] that names the invalid file, key or tensor.
    pub fn from_folder_placed(
        folder: &Path,
        placement: &Placement,
        weights: impl Into<WeightOptions>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<Self, Error> {
        load_own(folder, placement, weights.into(), Self::placed, progress)
    }
}

/// Adds the path of the configuration file to an error.
fn with_config_path<M>(folder: &Path, model: Result<M, ConfigError>) -> Result<M, Error> {
    model.map_err(|source| Error::Config { path: folder::config_path(folder), source })
}

/// Returns warnings about the weights of a folder and about other files in it. No weight is read.
pub(crate) fn weight_warnings(
    model: &dyn AssembledModel,
    folder: &Path,
    checkpoint: &Checkpoint,
    options: &LoadOptions<'_>,
) -> Vec<ModelWarning> {
    let mut warnings: Vec<ModelWarning> = checkpoint.warnings().iter().cloned().map(ModelWarning::from).collect();
    let names = model.unused(checkpoint, options);
    if !names.is_empty() {
        warnings.push(CheckpointWarning::Unused { folder: folder.to_owned(), names }.into());
    }
    warnings.extend(folder::adapter_beside(folder));
    warnings
}
