//! What a model folder holds, read from its configuration and the headers of its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use idefics_nn::Checkpoint;
use serde::Serialize;

use crate::{Error, ModelConfig};

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
    /// Bytes of all weights when loaded, for each precision.
    pub loaded_bytes: BTreeMap<&'static str, usize>,
    /// Bytes of KV cache for each token of a row, for each precision.
    pub cache_bytes_per_token: BTreeMap<&'static str, usize>,
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

/// Looks at a model folder.
///
/// # Errors
/// As [`ModelConfig::from_folder`] and [`Checkpoint::open`].
pub fn inspect(folder: &Path) -> Result<Inspection, Error> {
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
        if let Some(part) = PARTS.iter().position(|(_, prefix)| name.starts_with(prefix)) {
            parts[part].tensors += 1;
            parts[part].parameters += tensor.num_elements();
            parts[part].file_bytes += tensor.len_bytes();
        }
    }
    files.sort();
    let parameters = parts.iter().map(|part| part.parameters).sum();
    let per_precision = |bytes: &dyn Fn(DType) -> usize| {
        [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)]
            .into_iter()
            .map(|(name, dtype)| (name, bytes(dtype)))
            .collect()
    };
    Ok(Inspection {
        folder: folder.to_owned(),
        family,
        parameters,
        file_bytes: parts.iter().map(|part| part.file_bytes).sum(),
        files,
        dtypes,
        parts,
        loaded_bytes: per_precision(&|dtype| parameters * dtype.size()),
        cache_bytes_per_token: per_precision(&|dtype| config.text_config.cache_bytes(1, 1, dtype)),
        image_tokens: config.perceiver_config.resampler_n_latents,
        max_position_embeddings: config.text_config.max_position_embeddings,
    })
}
