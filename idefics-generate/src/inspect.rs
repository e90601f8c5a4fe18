//! Describes a model folder from its configuration and the headers of its weight files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use idefics_checkpoint::{Checkpoint, CheckpointError, PicklePolicy};
use idefics_nn::checkpoint::WeightMemory;
use idefics_nn::{PackedFormat, kept_bytes, supports_graph_capture};
use idefics_text::TextConfig;
use serde::Serialize;

use crate::loading::weight_warnings;
use crate::{AssembledModel, DeviceChoice, Error, ModelConfig, ModelWarning, WeightFormat, WeightOptions};

/// Summary of a model. No weights are read for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The model folder, or the configuration file.
    pub folder: PathBuf,
    /// Value of `model_type` in `config.json`.
    pub family: &'static str,
    /// Total number of parameters.
    pub parameters: usize,
    /// Size of the weights in the files, in bytes; 0 if there are no weight files.
    pub file_bytes: usize,
    /// Files that contain weights; empty if there is only a configuration.
    pub files: Vec<String>,
    /// Number of tensors of each element type.
    pub dtypes: BTreeMap<String, usize>,
    /// Number of quantised weights of each format.
    pub quantized: BTreeMap<String, usize>,
    /// The parts of the model.
    pub parts: Vec<Part>,
    /// Memory of the model in each weight format.
    pub precisions: Vec<PrecisionMemory>,
    /// Maximum size of the scratch buffers that are kept for reuse, in bytes.
    pub kept_bytes: u64,
    /// Number of vectors per image, or per tile if images are split. For Idefics2, this is also the number of image
    /// tokens per image in the prompt.
    pub image_tokens: usize,
    /// Context length that the model was trained on, in tokens.
    pub max_position_embeddings: usize,
    /// Warnings about the files.
    #[serde(skip)]
    pub warnings: Vec<ModelWarning>,
}

/// One part of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// Name of the part.
    pub name: &'static str,
    /// Number of tensors in the files. Without weight files, the number that the configuration implies.
    pub tensors: usize,
    /// Number of parameters, whatever their format.
    pub parameters: usize,
    /// Size of the part in the files, in bytes.
    pub file_bytes: usize,
}

/// Memory of a model with its weights in one format.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PrecisionMemory {
    /// Value of `--dtype` or `--quantize` that selects this format, or `as stored`, the default on the CPU.
    pub name: &'static str,
    /// The options that select this format.
    #[serde(skip)]
    pub options: WeightOptions,
    /// Memory of the weights.
    pub weights: WeightMemory,
    /// Size of the KV cache per token and row, in bytes.
    pub cache_bytes_per_token: usize,
    /// Bytes per token and row of the second KV cache, which exists only while a decode step is captured; 0 without
    /// graph capture.
    pub recording_bytes_per_token: usize,
}

/// Describes a model folder or a single `config.json`, and the memory that the model would take on `device`. `choice`
/// is the name of that device. For a quantised checkpoint, the formats of `--quantize` are omitted. Without weight
/// files, BF16 weights are assumed.
///
/// # Errors
/// Those of [`ModelConfig::from_folder`] and [`Checkpoint::open_with`].
pub fn inspect(path: &Path, pickles: PicklePolicy, choice: DeviceChoice, device: &Device) -> Result<Inspection, Error> {
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
    let mut quantized = BTreeMap::new();
    let kinds = checkpoint.iter().flat_map(Checkpoint::stored_kinds).filter(|kind| kind.packed_format().is_some());
    for kind in kinds {
        *quantized.entry(kind.to_string()).or_insert(0) += 1;
    }
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
    let warnings_of = |checkpoint| weight_warnings(&*model, path, checkpoint, &options);
    let warnings = checkpoint.as_ref().map_or_else(Vec::new, warnings_of);
    let records = can_capture_steps(&text, device);
    let precisions = weight_options(choice, checkpoint.as_ref()).map(|(name, options)| {
        let options = WeightOptions { pickles, ..options };
        // The cache holds activations, which are f32 on the CPU.
        let activations = options.dtype.filter(|_| choice != DeviceChoice::Cpu).unwrap_or(DType::F32);
        PrecisionMemory {
            name,
            options,
            weights: config.memory_of_model(&*model, checkpoint.as_ref(), device, &options),
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
        quantized,
        parts,
        precisions: precisions.collect(),
        kept_bytes: kept_bytes(device),
        image_tokens: config.family().vectors_per_image(),
        max_position_embeddings: text.max_position_embeddings,
        warnings,
    })
}

/// Returns whether decode steps of this model may be captured on a device. A capture temporarily needs a second KV
/// cache.
pub fn can_capture_steps(text_config: &TextConfig, device: &Device) -> bool {
    supports_graph_capture(device) && text_config.rotary().is_ok_and(|rotary| !rotary.depends_on_length())
}

/// Returns every value of `--dtype` and `--quantize` that the checkpoint supports, with its options.
fn weight_options(
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

/// The parts of a model, while their tensors are counted.
struct Parts {
    prefixes: Vec<&'static str>,
    parts: Vec<Part>,
}

impl Parts {
    fn of(names: &[(&'static str, &'static str)]) -> Self {
        let part = |&(name, _): &(&'static str, _)| Part { name, tensors: 0, parameters: 0, file_bytes: 0 };
        Self { prefixes: names.iter().map(|(_, prefix)| *prefix).collect(), parts: names.iter().map(part).collect() }
    }

    /// Returns the part to which a tensor belongs.
    fn named(&mut self, tensor: &str) -> Option<&mut Part> {
        let part = self.prefixes.iter().position(|prefix| tensor.starts_with(prefix))?;
        Some(&mut self.parts[part])
    }

    /// Adds to each part the number of parameters that the configuration implies, without tied ones. If `tensors` is
    /// true, also adds the number of tensors.
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

    /// Returns the parts that are present in the model.
    fn found(self) -> Vec<Part> {
        self.parts.into_iter().filter(|part| part.tensors > 0).collect()
    }
}
