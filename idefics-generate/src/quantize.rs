//! Rewrites a model folder with quantised linear layers.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use burn::tensor::Device;
use idefics_checkpoint::gguf::{GgufModel, ModelFile};
use idefics_checkpoint::{Checkpoint, CheckpointError, write_atomically};
use idefics_nn::checkpoint::LoadProgress;
use idefics_nn::{PackedFormat, Quantization};
use serde_json::{Map, Value, json};

use crate::config::{HEAD, QUANT_METHOD, read_json};
use crate::{Error, ModelConfig, WeightOptions, folder, load_model};

/// Writes the model of the folder `source` to the folder `target`, with linear layers in the format of `options`.
///
/// `target` appears only when it is complete and has been loaded on `device` as a check. Until then, the data is in a
/// folder `.NAME.unfinished-…` next to it. Such folders are removed if an earlier run that was killed has left them.
/// `source` is not changed. Its other files are copied, except those whose names begin with a dot. Folders in it are
/// not copied. NF4 and FP4 use the layout of bitsandbytes, which Transformers can load. `progress` is called after each
/// tensor. If `progress` returns an error, the work stops.
///
/// # Errors
/// [`Error::Write`] if `target` already exists or cannot be written, and the errors of [`load_model`] and
/// [`write_quantized`](idefics_nn::checkpoint::write_quantized).
///
/// # Panics
/// If `options` does not quantise anything.
pub fn quantize_folder(
    source: &Path,
    target: &Path,
    options: &WeightOptions,
    device: &Device,
    mut progress: impl FnMut(LoadProgress) -> Result<(), Error>,
) -> Result<(), Error> {
    let quantization = options.quantization().expect("`options.quantize` must be set");
    let config = ModelConfig::from_folder(source)?;
    // The model is only needed to know which layers exist. Its weights are not allocated.
    let model =
        config.assemble(device).map_err(|error| Error::Config { path: folder::config_path(source), source: error })?;
    let checkpoint = Checkpoint::open_with(source, options.pickles)?;
    write_folder(target, |folder| {
        let load_options = options.load_options(config.family().tied(), None);
        model.write_quantized(&checkpoint, &load_options, folder, &mut progress)?;
        match folder::gguf(source)? {
            None => copy_other_files(source, folder)?,
            Some(model) => write_files(&model, folder)?,
        }
        write_config(folder, &quantization)?;
        load_model(folder, device, None, |_| ()).map(|_| ())
    })
}

/// Creates the folder `target`. `write` is called with the path of a temporary folder, and writes the files into it.
/// `target` appears only when `write` has succeeded.
pub(crate) fn write_folder(target: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Write { path: target.to_owned(), source };
    if target.symlink_metadata().is_ok() {
        let advice = "it already exists; remove it or give another name";
        return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, advice)));
    }
    let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!(".{}.unfinished-", name.display());
    remove_stale(parent, &prefix);
    let unfinished = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(failed)?;
    let lock = File::open(unfinished.path()).map_err(failed)?;
    // The lock is held until the function returns. On a file system without locks, `remove_stale` cannot lock the
    // folders of interrupted runs, so they are not removed.
    let _ = lock.try_lock();
    write(unfinished.path())?;
    publish(unfinished, target, parent).map_err(failed)
}

/// Removes the folders of runs that were killed, whose locks are no longer held. Folders that cannot be removed are
/// left there.
fn remove_stale(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_stale = || File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok());
        if entry.file_name().to_string_lossy().starts_with(prefix) && is_stale() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies all files that are not weights. Leaves out folders, and files whose names begin with a dot.
pub(crate) fn copy_other_files(source: &Path, target: &Path) -> Result<(), Error> {
    let unread = |error| Error::Read { path: source.to_owned(), source: error };
    for entry in fs::read_dir(source).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_weights = [".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf"];
        if name.starts_with('.') || !path.is_file() || is_weights.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        copy(&path, &target.join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut file = File::open(from).map_err(|source| Error::Read { path: from.to_owned(), source })?;
    let copied = File::create(to).and_then(|mut to| io::copy(&mut file, &mut to).and_then(|_| to.sync_all()));
    copied.map_err(|source| Error::Write { path: to.to_owned(), source })
}

/// Writes the JSON files of a GGUF model. Files in the model's folder are copied; missing ones are made from the
/// metadata.
fn write_files(model: &GgufModel, target: &Path) -> Result<(), Error> {
    for file in ModelFile::ALL {
        if let Some(content) = model.file_unless_present(file).map_err(CheckpointError::from)? {
            write_atomically(&target.join(file.name()), |to| {
                serde_json::to_writer_pretty(to, &content).map_err(Into::into)
            })?;
        }
    }
    copy_files_beside(model, target)
}

/// Copies the files next to a GGUF file that take precedence over its metadata.
pub(crate) fn copy_files_beside(model: &GgufModel, target: &Path) -> Result<(), Error> {
    let beside = ModelFile::ALL.into_iter().filter(|file| *file != ModelFile::Config).map(ModelFile::name);
    for name in beside.chain(["special_tokens_map.json", "chat_template.json", "chat_template.jinja"]) {
        let path = model.paths().folder().join(name);
        if path.is_file() {
            copy(&path, &target.join(name))?;
        }
    }
    Ok(())
}

/// Adds the section to `config.json` that describes the quantisation.
fn write_config(target: &Path, quantization: &Quantization) -> Result<(), Error> {
    let mut config = read_json(&target.join("config.json"))?;
    let compute_dtype = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(key)?.as_str());
    let section = section(quantization, compute_dtype.unwrap_or("float32"));
    if let Some(config) = config.as_object_mut() {
        config.insert("quantization_config".to_owned(), Value::Object(section));
    }
    Ok(write_atomically(&target.join("config.json"), |file| {
        serde_json::to_writer_pretty(file, &config).map_err(Into::into)
    })?)
}

/// Returns the section `quantization_config`. Source: `BitsAndBytesConfig.to_dict`, Transformers 5.23.0.
fn section(quantization: &Quantization, compute_dtype: &str) -> Map<String, Value> {
    let kept: Vec<&str> = quantization.modules_to_not_convert.iter().map(String::as_str).collect();
    let section = match quantization.format {
        PackedFormat::FourBit(kind) => json!({
            "quant_method": "bitsandbytes",
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_compute_dtype": compute_dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": kind.name(),
            "bnb_4bit_use_double_quant": quantization.double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            // This list replaces the default list, which contains only the head.
            "llm_int8_skip_modules": (kept != [HEAD]).then_some(kept),
            "llm_int8_threshold": 6.0
        }),
        format => json!({
            "quant_method": QUANT_METHOD,
            "format": format.name(),
            "modules_to_not_convert": kept
        }),
    };
    let Value::Object(section) = section else { unreachable!("`json!` creates an object") };
    section
}

/// Renames the folder to its final name.
fn publish(unfinished: tempfile::TempDir, target: &Path, parent: &Path) -> io::Result<()> {
    File::open(unfinished.path())?.sync_all()?;
    fs::rename(unfinished.path(), target)?;
    let _ = unfinished.keep(); // the temporary name no longer exists, so nothing must be deleted
    File::open(parent)?.sync_all()
}
