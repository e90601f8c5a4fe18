//! Models from folders.

use std::path::Path;

use burn::tensor::Device;
use idefics_checkpoint::{Checkpoint, CheckpointWarning};
use idefics_nn::checkpoint::LoadProgress;
use idefics_nn::{ConfigError, LoadModule, LoadOptions, Quantization};

use crate::config::FamilyConfig;
use crate::placement::Placement;
use crate::{
    AssembledModel, Error, Idefics1, Idefics1Config, Idefics2, Idefics2Config, Idefics3, Idefics3Config, ModelConfig,
    ModelWarning, WeightFormat, WeightOptions, folder,
};

/// Loads the model of a folder in the public layout on `device`, whatever its family; `weights` may be a dtype: F32, BF16
/// or F16.
///
/// # Errors
/// [`Error`] naming the file, key or tensor at fault.
pub fn load_model(
    folder: &Path,
    device: &Device,
    weights: impl Into<WeightOptions>,
    progress: impl FnMut(LoadProgress),
) -> Result<Box<dyn AssembledModel>, Error> {
    let config = ModelConfig::from_folder(folder)?;
    load_placed(&config, folder, &Placement::on(device), weights.into(), progress).map(|(model, _)| model)
}

/// Loads the model of a folder with this configuration, each part where `placement` says, and says what is odd about the
/// weights.
pub(crate) fn load_placed(
    config: &ModelConfig,
    folder: &Path,
    placement: &Placement,
    weights: WeightOptions,
    mut progress: impl FnMut(LoadProgress),
) -> Result<(Box<dyn AssembledModel>, Vec<ModelWarning>), Error> {
    let model = in_folder(folder, config.family().assemble(placement))?;
    let files = Files::open(folder, config, weights)?;
    let options = files.load_options(config, placement);
    let mut warnings = weight_warnings(&*model, folder, &files.checkpoint, &options);
    if let Some(quantization) = files.of_folder.as_ref().filter(|_| weights.quantize == WeightFormat::None) {
        let (path, format) = (folder::config_path(folder), quantization.format.name());
        warnings.push(ModelWarning::QuantizedOnLoad { path, format });
    }
    Ok((model.load(&files.checkpoint, &options, &mut progress)?, warnings))
}

/// The weights of a folder, and how they are to be held.
struct Files {
    checkpoint: Checkpoint,
    of_folder: Option<Quantization>,
    weights: WeightOptions,
}

impl Files {
    fn open(folder: &Path, config: &ModelConfig, weights: WeightOptions) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open_with(folder, weights.pickles)?;
        let of_folder = config.quantization_on_load(Some(&checkpoint));
        Ok(Self { checkpoint, of_folder, weights })
    }

    fn load_options<'a>(&self, config: &'a ModelConfig, placement: &'a Placement) -> LoadOptions<'a> {
        let options = self.weights.load_options(config.family().tied(), self.of_folder.clone());
        LoadOptions { as_stored: placement.in_files(), ..options }
    }
}

/// The configuration of a folder of the family `expected`, and that family's own.
fn config_of<C: FamilyConfig + Clone>(folder: &Path, expected: &'static str) -> Result<(ModelConfig, C), Error> {
    let config = ModelConfig::from_folder(folder)?;
    let of_family = config.downcast_ref::<C>().cloned();
    let of_family = of_family.ok_or_else(|| Error::OtherFamily { path: folder::config_path(folder), expected })?;
    Ok((config, of_family))
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
        let (config, own) = config_of::<Idefics2Config>(folder, "idefics2")?;
        let (model, placement) = (in_folder(folder, Self::new(&own, device))?, Placement::on(device));
        let files = Files::open(folder, &config, weights.into())?;
        Ok(files.checkpoint.load(model, &files.load_options(&config, &placement), progress)?)
    }
}

impl Idefics3 {
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
        let (config, own) = config_of::<Idefics3Config>(folder, "idefics3 or smolvlm")?;
        let (model, placement) = (in_folder(folder, Self::new(&own, device))?, Placement::on(device));
        let files = Files::open(folder, &config, weights.into())?;
        Ok(files.checkpoint.load(model, &files.load_options(&config, &placement), progress)?)
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
        let (config, own) = config_of::<Idefics1Config>(folder, "idefics")?;
        let model = in_folder(folder, Self::placed(&own, placement))?;
        let files = Files::open(folder, &config, weights.into())?;
        Ok(files.checkpoint.load(model, &files.load_options(&config, placement), progress)?)
    }
}

/// Names the file whose values describe no model.
fn in_folder<M>(folder: &Path, model: Result<M, ConfigError>) -> Result<M, Error> {
    model.map_err(|source| Error::Config { path: folder::config_path(folder), source })
}

/// Warnings about the weights of a folder and what lies beside them. No weight is read.
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
