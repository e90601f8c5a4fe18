//! What a model folder holds, read from its configuration and the headers of its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use idefics_checkpoint::{Checkpoint, CheckpointError, Pickles};
use idefics_nn::checkpoint::WeightMemory;
use idefics_nn::{PackedFormat, can_record, kept_bytes};
use idefics_text::TextConfig;
use serde::Serialize;

use crate::loading::weight_warnings;
use crate::{AssembledModel, DeviceChoice, Error, ModelConfig, ModelWarning, WeightFormat, WeightOptions};

/// A model at a glance. No weight was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The folder, or the configuration file.
    pub folder: PathBuf,
    /// `model_type`.
    pub family: &'static str,
    /// Parameters in all.
    pub parameters: usize,
    /// Bytes of weights in the files; 0 where there are none.
    pub file_bytes: usize,
    /// Files that hold weights; none where there is only a configuration.
    pub files: Vec<String>,
    /// Tensors for each element type.
    pub dtypes: BTreeMap<String, usize>,
    /// The parts.
    pub parts: Vec<Part>,
    /// What the model takes, for each way to hold its weights.
    pub precisions: Vec<PrecisionMemory>,
    /// Bytes of buffers that are kept for reuse, at most.
    pub kept_bytes: u64,
    /// Vectors of an image (or of each of its five views, with splitting): for Idefics2, tokens of the prompt.
    pub image_tokens: usize,
    /// The context that the model was trained on, in tokens.
    pub max_position_embeddings: usize,
    /// Warnings about the files.
    #[serde(skip)]
    pub warnings: Vec<ModelWarning>,
}

/// One part of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its tensors, as the files or else the configuration have them.
    pub tensors: usize,
    /// Its parameters, in whatever format they are held.
    pub parameters: usize,
    /// Its bytes in the files.
    pub file_bytes: usize,
}

/// What a model takes, its weights held in one of the ways.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PrecisionMemory {
    /// As `--dtype` or `--quantize` spells it; `as stored` is the default on the CPU.
    pub name: &'static str,
    /// The same as options.
    #[serde(skip)]
    pub options: WeightOptions,
    /// Memory of the weights.
    pub weights: WeightMemory,
    /// Bytes of KV cache for each token of a row.
    pub cache_bytes_per_token: usize,
    /// Bytes of the second KV cache that is there for each token of a row while a decode step is recorded; 0 where none is.
    pub recording_bytes_per_token: usize,
}

/// Looks at a model folder, or at a `config.json` alone, and computes what the model would take on `device`; `choice`
/// is its name. Formats of `--quantize` are left out for a checkpoint that is quantised already. Without weights they
/// are taken to be in BF16.
///
/// # Errors
/// As [`ModelConfig::from_folder`] and [`Checkpoint::open_with`].
pub fn inspect(path: &Path, pickles: Pickles, choice: DeviceChoice, device: &Device) -> Result<Inspection, Error> {
    let is_config = path.extension().is_some_and(|extension| extension == "json") && path.is_file();
    let config = if is_config { ModelConfig::from_file(path)? } else { ModelConfig::from_folder(path)? };
    let checkpoint = match is_config {
        true => None,
        false => match Checkpoint::open_with(path, pickles) {
            Err(CheckpointError::NotFound { .. }) => None,
            checkpoint => Some(checkpoint?),
        },
    };
    let model = config.assemble(device).map_err(|source| Error::Config { path: path.to_owned(), source })?;
    let mut parts = Parts::of(config.family().parts());
    parts.count_shape(&*model, config.family().tied(), checkpoint.is_none());
    let mut dtypes = BTreeMap::new();
    let mut files: Vec<String> = Vec::new();
    for (name, tensor) in checkpoint.iter().flat_map(Checkpoint::tensors) {
        *dtypes.entry(tensor.type_name()).or_insert(0) += 1;
        if !files.contains(&tensor.file) {
            files.push(tensor.file.clone());
        }
        if let Some(part) = parts.named(name) {
            part.tensors += 1;
            part.file_bytes += tensor.len_bytes();
        }
    }
    files.sort();
    let parts: Vec<Part> = parts.found();
    let text = config.family().shape().text;
    let options = WeightOptions::DEFAULT.load_options(config.family().tied(), None);
    let of_checkpoint = |checkpoint| weight_warnings(&*model, path, checkpoint, &options);
    let warnings = checkpoint.as_ref().map_or_else(Vec::new, of_checkpoint);
    let records = records_steps(&text, device);
    let precisions = ways_to_hold(choice, checkpoint.as_ref()).map(|(name, options)| {
        let options = WeightOptions { pickles, ..options };
        // The CPU's activations are f32, and the cache holds activations.
        let activations = options.dtype.filter(|_| choice != DeviceChoice::Cpu).unwrap_or(DType::F32);
        PrecisionMemory {
            name,
            options,
            weights: config.memory_of(&*model, checkpoint.as_ref(), device, &options),
            cache_bytes_per_token: text.cache_bytes(1, 1, activations),
            recording_bytes_per_token: if records { text.cache_bytes(1, 1, activations) } else { 0 },
        }
    });
    Ok(Inspection {
        folder: path.to_owned(),
        family: config.family().model_type(),
        parameters: parts.iter().map(|part| part.parameters).sum(),
        file_bytes: parts.iter().map(|part| part.file_bytes).sum(),
        files,
        dtypes,
        parts,
        precisions: precisions.collect(),
        kept_bytes: kept_bytes(device),
        image_tokens: config.family().vectors_per_image(),
        max_position_embeddings: text.max_position_embeddings,
        warnings,
    })
}

/// Whether decode steps of such a model may be recorded on a device. While one is, the KV cache is there twice.
pub fn records_steps(text_config: &TextConfig, device: &Device) -> bool {
    can_record(device) && text_config.rotary().is_ok_and(|rotary| !rotary.depends_on_length())
}

/// Every `--dtype` and `--quantize`, on a device.
fn ways_to_hold(
    choice: DeviceChoice,
    checkpoint: Option<&Checkpoint>,
) -> impl Iterator<Item = (&'static str, WeightOptions)> {
    let as_stored =
        (choice == DeviceChoice::Cpu && checkpoint.is_some()).then_some(("as stored", WeightOptions::default()));
    let plain = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
    let plain = plain.map(|(name, dtype)| (name, WeightOptions::from(dtype)));
    let packed = PackedFormat::ALL.into_iter().map(|format| {
        (format.name(), WeightOptions { quantize: WeightFormat::Packed(format), ..WeightOptions::default() })
    });
    let is_quantized = checkpoint.is_some_and(Checkpoint::is_quantized);
    as_stored.into_iter().chain(plain).chain(packed.filter(move |_| !is_quantized))
}

/// The parts of a model, to be filled in.
struct Parts {
    prefixes: Vec<&'static str>,
    parts: Vec<Part>,
}

impl Parts {
    fn of(names: &[(&'static str, &'static str)]) -> Self {
        let part = |&(name, _): &(&'static str, _)| Part { name, tensors: 0, parameters: 0, file_bytes: 0 };
        Self { prefixes: names.iter().map(|(_, prefix)| *prefix).collect(), parts: names.iter().map(part).collect() }
    }

    /// The part that a tensor belongs to.
    fn named(&mut self, tensor: &str) -> Option<&mut Part> {
        let part = self.prefixes.iter().position(|prefix| tensor.starts_with(prefix))?;
        Some(&mut self.parts[part])
    }

    /// Counts the parameters that a configuration asks for, tied ones once, and, with `tensors`, these too.
    fn count_shape(&mut self, model: &dyn AssembledModel, tied: &[(&str, &str)], tensors: bool) {
        model.parameter_shapes(&mut |name, shape| {
            if tied.iter().any(|(tied, _)| *tied == name) {
                return;
            }
            if let Some(part) = self.named(name) {
                part.parameters += shape.num_elements();
                part.tensors += usize::from(tensors);
            }
        });
    }

    /// Those that the model has.
    fn found(self) -> Vec<Part> {
        self.parts.into_iter().filter(|part| part.tensors > 0).collect()
    }
}
