//! Finds a model, chooses a device for it and loads it with a progress bar.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use idefics_checkpoint::gguf::GgufPaths;
use idefics_checkpoint::{Checkpoint, CheckpointError, PicklePolicy};
use idefics_generate::nn::checkpoint::WeightMemory;
use idefics_generate::nn::{Activations, PackedFormat, rounds_activations};
use idefics_generate::placement::Plan;
use idefics_generate::{Device, DeviceChoice, Error, Idefics, LoadStage, ModelConfig, WeightFormat, WeightOptions};
use idefics_hub::{HubError, HubOptions, HubProgress, ModelSource};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::{available_memory_bytes, usable_memory_bytes};
use crate::output::format_bytes;
use crate::scratch::Scratch;
use crate::{placing, scratch, signals};

/// The folder of a model.
pub(crate) enum ModelFolder {
    /// A folder or file that the user gave, or a folder or file in the hub cache.
    Kept(PathBuf),
    /// A temporary folder with the files of the built-in model.
    Embedded(Scratch),
    /// A temporary folder with links to the GGUF files of a model, which are in different folders.
    Linked(Scratch),
}

impl ModelFolder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(folder) => folder,
            Self::Embedded(folder) | Self::Linked(folder) => folder.path(),
        }
    }
}

/// Returns the model folder for `--model`. If it is a hub id, the model is first downloaded to the standard cache.
/// Without `--model`, the built-in model is unpacked.
pub(crate) fn folder(global: &Global) -> Result<ModelFolder, Failure> {
    // An empty IDEFICS_MODEL counts as unset.
    let Some(model) = global.model.as_deref().filter(|model| !model.is_empty()) else {
        return match &global.mmproj {
            None => embedded(),
            Some(_) => Err(Failure::usage("--mmproj needs a GGUF file as --model".to_owned())),
        };
    };
    // Hub ids are UTF-8, but folder names need not be.
    match model.to_str().map_or_else(|| ModelSource::Folder(model.into()), ModelSource::parse) {
        ModelSource::Folder(folder) => match &global.mmproj {
            None => Ok(ModelFolder::Kept(folder)),
            Some(mmproj) => linked(&folder, mmproj),
        },
        ModelSource::Hub { .. } if global.mmproj.is_some() => {
            Err(Failure::usage("--mmproj needs a GGUF file as --model, such as ORG/NAME:FILE.gguf".to_owned()))
        }
        ModelSource::HubFile { repo, revision, file } => {
            // `--mmproj` is a local file, or the name of a file in the repository.
            let (local, name) = match &global.mmproj {
                Some(path) if path.is_file() => (Some(path.clone()), None),
                Some(path) => (None, Some(path.to_string_lossy().into_owned())),
                None => (None, None),
            };
            let fetched = fetch(global, |options, progress| {
                idefics_hub::fetch_gguf(options, &repo, revision.as_deref(), &file, name.as_deref(), progress)
            })?;
            match local.or(name.map(|name| fetched.with_file_name(name))) {
                None => Ok(ModelFolder::Kept(fetched)),
                Some(mmproj) => linked(&fetched, &mmproj),
            }
        }
        ModelSource::Hub { repo, revision } => {
            fetch(global, |options, progress| idefics_hub::fetch_with(options, &repo, revision.as_deref(), progress))
                .map(ModelFolder::Kept)
        }
    }
}

/// Calls `fetch` with the download options, and shows its progress.
fn fetch(
    global: &Global,
    fetch: impl FnOnce(&HubOptions, &mut dyn FnMut(HubProgress)) -> Result<PathBuf, HubError>,
) -> Result<PathBuf, Failure> {
    let bar = byte_bar();
    let mut options = HubOptions::from_env().map_err(Error::from)?;
    options.allow_pickles = global.pickles() == PicklePolicy::Allowed;
    options.cancel = signals::cancel().flag();
    let fetched = fetch(&options, &mut |state| {
        bar.set_length(state.total);
        bar.set_position(state.done);
        bar.set_message(state.file);
    });
    bar.finish_and_clear();
    Ok(fetched.map_err(Error::from)?)
}

fn embedded() -> Result<ModelFolder, Failure> {
    Scratch::new("the built-in model cannot be unpacked into", "the built-in model", idefics_demo::write_model)
        .map(ModelFolder::Embedded)
}

/// Name of the link to the vision tower.
const LINKED_MMPROJ: &str = "mmproj.gguf";

/// Creates a folder with links to a GGUF model and to the vision tower that `--mmproj` names.
fn linked(model: &Path, mmproj: &Path) -> Result<ModelFolder, Failure> {
    let paths = GgufPaths::with_mmproj(model, mmproj).map_err(|error| Error::from(CheckpointError::from(error)))?;
    let Some(paths) = paths else {
        return Err(Failure::usage(format!(
            "--mmproj needs a GGUF file as --model; {} is not a GGUF file",
            model.display()
        )));
    };
    let name = paths.folder().display().to_string();
    let linked = Scratch::new("the files of the model cannot be linked from", &name, |folder| {
        for file in paths.files() {
            let name = file.file_name().unwrap_or_default();
            // This name marks the file as the vision tower.
            let name = if file == mmproj { LINKED_MMPROJ.as_ref() } else { name };
            link(&fs::canonicalize(&file)?, &folder.join(name))?;
        }
        Ok(())
    });
    let linked = linked?;
    linked.name_file(LINKED_MMPROJ, mmproj);
    Ok(ModelFolder::Linked(linked))
}

#[cfg(unix)]
fn link(file: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(file, link)
}

/// Makes a hard link or a copy, because symbolic links need special rights on systems other than Unix.
#[cfg(not(unix))]
fn link(file: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(file, link).or_else(|_| fs::copy(file, link).map(|_| ()))
}

/// Tells the user that the built-in model is used, and how to choose another.
fn introduce_embedded() {
    say!(
        "using the built-in model, which was trained only on drawings of coloured shapes; for photographs, give \
         --model HuggingFaceTB/SmolVLM-256M-Instruct (a 513 MB download) or a model folder"
    );
}

/// Loads the model for `--model`, `--device`, `--dtype` and related options.
pub(crate) fn load(global: &Global) -> Result<Idefics, Failure> {
    load_from(global, folder(global)?)
}

/// Loads the model from a folder returned by [`folder`].
pub(crate) fn load_from(global: &Global, source: ModelFolder) -> Result<Idefics, Failure> {
    let folder = source.path();
    if matches!(source, ModelFolder::Embedded(_)) {
        introduce_embedded();
    }
    let config = ModelConfig::from_folder(folder).ok();
    let checkpoint = config.as_ref().and_then(|_| Checkpoint::open_with(folder, global.pickles()).ok());
    let known = config.as_ref().zip(checkpoint.as_ref()); // loading reports errors in the files
    let needed = |device: &Device, weights: WeightOptions| match known {
        Some((config, checkpoint)) => config.memory(Some(checkpoint), device, weights),
        None => Ok(WeightMemory::default()),
    };
    let (choice, device, weights) = device_for(global, 0, needed)?;
    if let Some((config, checkpoint)) = known {
        check_activations(global, choice, config, Some(checkpoint))?;
    }
    if global.verbose {
        let name = scratch::with_names(&folder.display().to_string());
        say!("loading {name} on {choice}, weights {weights}");
    }
    let plan = match global.device_map {
        None => {
            let available = usable_memory_bytes(choice, &device);
            check_memory(choice, |weights| needed(&device, weights), weights, None, available)?;
            None
        }
        Some(_) => Some(Plan::for_model(folder, weights, &device, placing::places(global, choice, &device)?)?),
    };
    drop(checkpoint);
    let bar = byte_bar();
    bar.set_message("loading weights");
    let progress = |stage| {
        if let LoadStage::Weights(loaded) = stage {
            bar.set_length(loaded.bytes_total);
            bar.set_position(loaded.bytes_done);
        }
    };
    let model = match plan {
        None => Idefics::from_folder(folder, &device, weights, progress),
        Some(plan) => {
            bar.suspend(|| {
                let _ = write!(io::stderr(), "{plan}");
            });
            Idefics::from_folder_placed(folder, &plan, weights, progress)
        }
    };
    bar.finish_and_clear();
    let mut model = model?;
    for warning in model.warnings() {
        say!("warning: {}", scratch::with_names(&warning.to_string()));
    }
    model.set_vision_batch(global.vision_batch(available_memory_bytes(choice, &device)));
    Ok(model)
}

/// Rejects `--activations int8` if it has no effect.
///
/// # Errors
/// A usage failure if the device is not a CPU, or if no weight has a format whose products round activations.
pub(crate) fn check_activations(
    global: &Global,
    choice: DeviceChoice,
    config: &ModelConfig,
    checkpoint: Option<&Checkpoint>,
) -> Result<(), Failure> {
    if global.activations != Activations::Int8 {
        return Ok(());
    }
    if choice != DeviceChoice::Cpu && global.device_map.is_none() {
        let reason = format!("--activations int8 is for the CPU and has no effect on {choice}; omit it");
        return Err(Failure::usage(reason));
    }
    let folder_format = config.quantization_on_load(checkpoint).map(|quantization| quantization.format);
    let loaded = match global.quantize {
        WeightFormat::Packed(format) => Some(format),
        _ => folder_format,
    };
    let tensors = checkpoint.into_iter().flat_map(Checkpoint::tensors);
    let blocks = tensors.filter_map(|(_, tensor)| tensor.block_type()).map(PackedFormat::Blocks);
    let mut formats = checkpoint.into_iter().flat_map(Checkpoint::packed_formats).chain(blocks).chain(loaded);
    match formats.any(rounds_activations) {
        true => Ok(()),
        false => Err(Failure::usage(
            "--activations int8 has no effect: no weight of this model is in int8, in q4 or in GGUF blocks of four \
             to eight bits; add --quantize int8 or --quantize q4, or omit --activations int8"
                .to_owned(),
        )),
    }
}

/// Returns the memory in bytes that a model needs on a device, with a KV cache of `cache` bytes. On the CPU, this
/// includes the buffers for converting tensors during loading, which are always in main memory.
fn required_bytes(choice: DeviceChoice, memory: &WeightMemory, cache: u64) -> u64 {
    let loading = if choice == DeviceChoice::Cpu { memory.loading } else { 0 };
    memory.total().saturating_add(cache).saturating_add(loading)
}

/// Opens the device of `--device`. Also returns how to store the weights there. `auto` selects the best device with
/// room for the memory that `needed` returns and a KV cache of `cache` bytes. If no device has room, it selects the
/// last candidate, the CPU.
///
/// # Errors
/// If the device does not exist or does not support `--dtype`.
pub(crate) fn device_for(
    global: &Global,
    cache: u64,
    needed: impl Fn(&Device, WeightOptions) -> Result<WeightMemory, Error>,
) -> Result<(DeviceChoice, Device, WeightOptions), Failure> {
    let held = |choice: DeviceChoice, device: &Device| -> Result<WeightOptions, Error> {
        Ok(global.weights(global.dtype.dtype_on(choice, device)?.into()))
    };
    let mut candidates = global.device.candidates().map_err(Error::from)?;
    let fits = |(choice, device): &(DeviceChoice, Device)| {
        let needed = held(*choice, device).and_then(|weights| needed(device, weights));
        // With `--device-map`, no device has to hold the whole model.
        global.device_map.is_some()
            || needed
                .is_ok_and(|memory| required_bytes(*choice, &memory, cache) <= usable_memory_bytes(*choice, device))
    };
    let chosen = match candidates.len() {
        1 => 0,
        n => candidates.iter().position(fits).unwrap_or(n - 1),
    };
    let (choice, device) = candidates.swap_remove(chosen);
    let weights = held(choice, &device)?;
    Ok((choice, device, weights))
}

/// Checks that the weights fit into `available` bytes, together with a KV cache of `cache` bytes if its size is already
/// known.
///
/// # Errors
/// A limit failure that lists the quantised formats that would fit.
pub(crate) fn check_memory(
    choice: DeviceChoice,
    needed: impl Fn(WeightOptions) -> Result<WeightMemory, Error>,
    weights: WeightOptions,
    cache: Option<u64>,
    available: u64,
) -> Result<(), Failure> {
    let bytes = |bytes: u64| format_bytes(bytes as usize);
    let total = |memory: &WeightMemory| memory.total().saturating_add(cache.unwrap_or(0));
    let fits = |memory: &WeightMemory| required_bytes(choice, memory, cache.unwrap_or(0)) <= available;
    let memory = needed(weights)?;
    if fits(&memory) {
        return Ok(());
    }
    let smaller = PackedFormat::ALL.into_iter().filter_map(|format| {
        let quantize = WeightFormat::Packed(format);
        let memory = needed(WeightOptions { quantize, dtype: None, ..weights }).ok()?;
        fits(&memory).then(|| format!("--quantize {quantize} needs {}", bytes(total(&memory))))
    });
    let advice = smaller.collect::<Vec<_>>().join(", ");
    Err(Failure::limit(format!(
        "{} ({weights}){}, but only {} of memory is available; {}",
        match cache {
            Some(cache) => format!("the weights need {} and the KV cache {}", bytes(memory.total()), bytes(cache)),
            None => format!("the weights alone need {}", bytes(memory.total())),
        },
        match required_bytes(choice, &memory, 0) - memory.total() {
            0 => String::new(),
            loading => format!(" and {} more during loading", bytes(loading)),
        },
        bytes(available),
        if advice.is_empty() { "none of int8, nf4, fp4 and q4 would fit".to_owned() } else { advice },
    )))
}

/// Returns a progress bar for bytes, shown on standard error if that is a terminal.
pub(crate) fn byte_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is valid");
    ProgressBar::no_length().with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_check_suggests_formats_that_fit() {
        let needed = |weights: WeightOptions| {
            let taken = match weights.quantize {
                WeightFormat::None => 1000,
                WeightFormat::Packed(PackedFormat::Int8) => 500,
                _ => 250,
            };
            Ok(WeightMemory { taken, mapped: 0, loading: 100 })
        };
        let check =
            |cache, available| check_memory(DeviceChoice::Cpu, needed, WeightOptions::default(), cache, available);
        assert!(check(None, 1100).is_ok() && check(Some(50), 1150).is_ok());
        let message = |cache, available| check(cache, available).unwrap_err().message();
        assert_eq!(
            message(None, 1099),
            "the weights alone need 1.00 kB (as stored) and 100 B more during loading, but only 1.10 kB of memory is \
             available; --quantize int8 needs 500 B, --quantize nf4 needs 250 B, --quantize fp4 needs 250 B, \
             --quantize q4 needs 250 B"
        );
        let with_cache = message(Some(300), 650);
        assert!(with_cache.starts_with("the weights need 1.00 kB and the KV cache 300 B"), "{with_cache}");
        assert!(!with_cache.contains("int8 needs") && with_cache.contains("--quantize q4 needs 550 B"), "{with_cache}");
        assert!(message(Some(300), 649).ends_with("none of int8, nf4, fp4 and q4 would fit"));
    }
}
