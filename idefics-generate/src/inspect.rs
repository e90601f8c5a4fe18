//! What a model folder holds, read from its configuration and the headers of its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::checkpoint::WeightMemory;
use idefics_nn::{Checkpoint, PackedFormat, ParameterVisitor, visit_parameters};
use serde::Serialize;

use crate::{DeviceChoice, Error, Idefics2, ModelConfig, WeightFormat, WeightOptions};

/// The parts of a model by their prefix in the checkpoint, in the order in which data meets them.
const PARTS: [(&str, &str); 6] = [
    ("vision_model", "model.vision_model."),
    ("modality_projection", "model.connector.modality_projection."),
    ("perceiver_resampler", "model.connector.perceiver_resampler."),
    ("embed_tokens", "model.text_model.embed_tokens."),
    ("text_model", "model.text_model."),
    ("lm_head", "lm_head."),
];

/// A model folder at a glance. No weight was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The folder.
    pub folder: PathBuf,
    /// `model_type`.
    pub family: &'static str,
    /// Parameters in all.
    pub parameters: usize,
    /// Bytes of weights in the files.
    pub file_bytes: usize,
    /// Files that hold weights.
    pub files: Vec<String>,
    /// Tensors for each element type.
    pub dtypes: BTreeMap<String, usize>,
    /// The parts.
    pub parts: Vec<Part>,
    /// What the model takes, for each way to hold its weights.
    pub precisions: Vec<PrecisionMemory>,
    /// Tokens that an image (or each of its five views, with splitting) takes in the prompt.
    pub image_tokens: usize,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
}

/// One part of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its tensors.
    pub tensors: usize,
    /// Its parameters.
    pub parameters: usize,
    /// Its bytes in the files.
    pub file_bytes: usize,
}

/// What a model takes, its weights held in one of the ways.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrecisionMemory {
    /// As `--dtype` or `--quantize` spells it; `as stored` is the default on the CPU.
    pub name: &'static str,
    /// Memory of the weights.
    pub weights: WeightMemory,
    /// Bytes of KV cache for each token of a row.
    pub cache_bytes_per_token: usize,
}

/// Looks at a model folder, and computes what it would take on `device`; `choice` is its name. Formats of `--quantize`
/// are left out for a checkpoint that is quantised already.
///
/// # Errors
/// As [`ModelConfig::from_folder`] and [`Checkpoint::open`].
pub fn inspect(folder: &Path, choice: DeviceChoice, device: &Device) -> Result<Inspection, Error> {
    if !folder.is_dir() {
        return Err(Error::NoFolder { path: folder.to_owned() });
    }
    let config = ModelConfig::from_folder(folder)?;
    let family = config.family();
    let ModelConfig::Idefics2(config) = config;
    let checkpoint = Checkpoint::open(folder)?;

    let mut parts: Vec<Part> =
        PARTS.iter().map(|&(name, _)| Part { name, tensors: 0, parameters: 0, file_bytes: 0 }).collect();
    let mut dtypes = BTreeMap::new();
    let mut files: Vec<String> = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        *dtypes.entry(format!("{:?}", tensor.dtype)).or_insert(0) += 1;
        if !files.contains(&tensor.file) {
            files.push(tensor.file.clone());
        }
        if let Some(part) = part_of(name) {
            parts[part].tensors += 1;
            parts[part].file_bytes += tensor.len_bytes();
        }
    }
    files.sort();
    let model =
        Idefics2::new(&config, device).map_err(|source| Error::Config { path: folder.join("config.json"), source })?;
    visit_parameters(&model, &mut Parameters { checkpoint: &checkpoint, parts: &mut parts });
    let is_quantized = checkpoint.is_quantized();
    let precisions = ways_to_hold(choice).filter(|(_, options)| !(is_quantized && options.quantization().is_some()));
    let precisions = precisions.map(|(name, options)| {
        // The CPU's activations are f32, and the cache holds activations.
        let activations = options.dtype.filter(|_| choice != DeviceChoice::Cpu).unwrap_or(DType::F32);
        PrecisionMemory {
            name,
            weights: options.load_options(&config).memory(&model, Some(&checkpoint), device),
            cache_bytes_per_token: config.text_config.cache_bytes(1, 1, activations),
        }
    });
    Ok(Inspection {
        folder: folder.to_owned(),
        family,
        parameters: parts.iter().map(|part| part.parameters).sum(),
        file_bytes: parts.iter().map(|part| part.file_bytes).sum(),
        files,
        dtypes,
        parts,
        precisions: precisions.collect(),
        image_tokens: config.perceiver_config.resampler_n_latents,
        max_position_embeddings: config.text_config.max_position_embeddings,
    })
}

/// The index in [`PARTS`] of the part that a tensor belongs to.
fn part_of(name: &str) -> Option<usize> {
    PARTS.iter().position(|(_, prefix)| name.starts_with(prefix))
}

/// Adds up what the model has, in whatever format it is stored; what is tied counts where it is stored.
struct Parameters<'a> {
    checkpoint: &'a Checkpoint,
    parts: &'a mut [Part],
}

impl ParameterVisitor for Parameters<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if let Some(part) = part_of(name).filter(|_| self.checkpoint.tensor(name).is_some()) {
            self.parts[part].parameters += param.lazy_shape().num_elements();
        }
    }
}

/// Every `--dtype` and `--quantize`, on a device.
fn ways_to_hold(choice: DeviceChoice) -> impl Iterator<Item = (&'static str, WeightOptions)> {
    let as_stored = (choice == DeviceChoice::Cpu).then_some(("as stored", WeightOptions::default()));
    let plain = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
    let plain = plain.map(|(name, dtype)| (name, WeightOptions::from(dtype)));
    let packed = PackedFormat::ALL.into_iter().map(|format| {
        (format.name(), WeightOptions { quantize: WeightFormat::Packed(format), ..WeightOptions::default() })
    });
    as_stored.into_iter().chain(plain).chain(packed)
}
