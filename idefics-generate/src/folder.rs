//! Finds out what a model path or folder contains, from the names of its files.

use std::path::{Path, PathBuf};

use idefics_checkpoint::CheckpointError;
use idefics_checkpoint::gguf::{GgufModel, ModelFile};
use idefics_processor::{ExtraFiles, Processor};
use serde_json::Value;

use crate::config::read_json;
use crate::{Error, ModelWarning};

/// Files that contain or list the weights; a model has one of them.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Files that contain the weights of an adapter; an adapter has one of them.
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Opens the GGUF model at `path`. Returns `None` if `path` is a folder with another kind of model. Rejects PEFT
/// adapters.
///
/// # Errors
/// [`Error::NoFolder`] if `path` is neither a folder nor a GGUF file, [`Error::Adapter`] if the folder has an adapter
/// but no model, [`Error::Checkpoint`] if a GGUF file is rejected.
pub(crate) fn gguf(path: &Path) -> Result<Option<GgufModel>, Error> {
    if path.is_dir() {
        let there = |name: &str| path.join(name).exists();
        if there("config.json") && WEIGHTS.into_iter().any(there) {
            return Ok(None);
        }
        if there(ADAPTER_CONFIG) || ADAPTER_WEIGHTS.into_iter().any(there) {
            let base = adapter_base(path).unwrap_or_else(|| "an unnamed base model".to_owned());
            return Err(Error::Adapter { folder: path.to_owned(), base });
        }
        return Ok(GgufModel::find(path)?);
    }
    match GgufModel::find(path)? {
        Some(model) => Ok(Some(model)),
        None => Err(Error::NoFolder { path: path.to_owned() }),
    }
}

/// Builds the content of a JSON file from the metadata of a GGUF model. Also returns the path of the GGUF file, for
/// error messages. Returns `None` if the model is not a GGUF model, or the JSON file exists and takes precedence.
///
/// # Errors
/// Those of [`gguf`].
pub(crate) fn in_metadata(path: &Path, file: ModelFile) -> Result<Option<(PathBuf, Value)>, Error> {
    let Some(model) = gguf(path)? else { return Ok(None) };
    let content = model.file_unless_present(file).map_err(CheckpointError::from)?;
    Ok(content.map(|content| (model.paths().text.clone(), content)))
}

/// Returns the path of a file of the model: in its folder, or next to its GGUF file.
pub(crate) fn sibling_path(path: &Path, name: &str) -> PathBuf {
    match path.is_file() {
        true => path.with_file_name(name),
        false => path.join(name),
    }
}

/// Returns the path of the file with the model's configuration, for error messages.
pub(crate) fn config_path(path: &Path) -> PathBuf {
    match path.is_file() {
        true => path.to_owned(),
        false => path.join("config.json"),
    }
}

/// Loads the processor of a model folder, or of a GGUF file with the files next to it.
///
/// # Errors
/// [`Error::Processor`] if a file of the processor is invalid; [`Error::NoFolder`] or [`Error::Adapter`] if `path` is
/// not a model; [`Error::Checkpoint`] if a GGUF file is rejected.
pub fn load_processor(path: &Path) -> Result<Processor, Error> {
    let Some(model) = gguf(path)? else { return Ok(Processor::from_folder(path)?) };
    let mut others = ExtraFiles { source: model.paths().text.clone(), ..ExtraFiles::default() };
    for file in ModelFile::ALL {
        if let Some(content) = model.file_unless_present(file).map_err(CheckpointError::from)? {
            others.files.insert(file.name().to_owned(), content.to_string().into_bytes());
        }
    }
    Ok(Processor::from_folder_with_files(model.paths().folder(), others)?)
}

/// Returns a warning if a PEFT adapter lies next to the model's own weights.
pub(crate) fn adapter_beside(folder: &Path) -> Option<ModelWarning> {
    let there = |name: &&str| folder.join(name).exists();
    let file = [ADAPTER_CONFIG].into_iter().chain(ADAPTER_WEIGHTS).find(there)?;
    Some(ModelWarning::AdapterBeside { path: folder.join(file), base: adapter_base(folder) })
}

/// Returns the name of the base model from the configuration of an adapter, if it has one.
fn adapter_base(folder: &Path) -> Option<String> {
    let config = read_json(&folder.join(ADAPTER_CONFIG)).ok()?;
    config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned)
}
