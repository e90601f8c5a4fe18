//! What a model folder holds, read from its configuration and the headers of its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::checkpoint::{Pickles, TensorEntry};
use idefics_nn::{Checkpoint, CheckpointError, ParameterVisitor, visit_parameters};
use serde::Serialize;

use crate::{Error, Idefics1, Idefics2, ModelConfig};

/// The parts of a model by their prefix in the checkpoint, in the order in which data meets them; the first that fits
/// counts.
type Parts = &'static [(&'static str, &'static str)];

const IDEFICS1_PARTS: Parts = &[
    ("vision_model", "model.vision_model."),
    ("perceiver_resampler", "model.perceiver_resampler."),
    ("embed_tokens", "model.embed_tokens."),
    ("gated_cross_attn_layers", "model.gated_cross_attn_layers."),
    ("layers", "model."),
    ("lm_head", "lm_head."),
];

const IDEFICS2_PARTS: Parts = &[
    ("vision_model", "model.vision_model."),
    ("modality_projection", "model.connector.modality_projection."),
    ("perceiver_resampler", "model.connector.perceiver_resampler."),
    ("embed_tokens", "model.text_model.embed_tokens."),
    ("text_model", "model.text_model."),
    ("lm_head", "lm_head."),
];

/// A model at a glance. No weight was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Bytes of all weights when loaded, for each precision.
    pub loaded_bytes: BTreeMap<&'static str, usize>,
    /// Bytes of KV cache for each token of a row, for each precision.
    pub cache_bytes_per_token: BTreeMap<&'static str, usize>,
    /// Vectors of an image (or of each of its five views, with splitting): for Idefics2, tokens of the prompt.
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

/// Looks at a model folder, or at a `config.json` alone: then the parameters are those that it asks for.
///
/// # Errors
/// As [`ModelConfig::from_folder`] and [`Checkpoint::open_with`].
pub fn inspect(path: &Path, pickles: Pickles) -> Result<Inspection, Error> {
    let is_config = path.extension().is_some_and(|extension| extension == "json") && path.is_file();
    if !path.is_dir() && !is_config {
        return Err(Error::NoFolder { path: path.to_owned() });
    }
    let config = if is_config { ModelConfig::from_file(path)? } else { ModelConfig::from_folder(path)? };
    let tensors = match Checkpoint::open_with(path, pickles) {
        _ if is_config => of_shape(&config, path)?,
        Err(CheckpointError::NotFound { .. }) => of_shape(&config, path)?,
        checkpoint => of_files(&checkpoint?),
    };

    let parts_of = config.parts();
    let mut parts: Vec<Part> =
        parts_of.iter().map(|&(name, _)| Part { name, tensors: 0, parameters: 0, file_bytes: 0 }).collect();
    let mut dtypes = BTreeMap::new();
    let mut files: Vec<String> = Vec::new();
    for tensor in tensors {
        if let Some((dtype, file)) = tensor.stored {
            *dtypes.entry(dtype).or_insert(0) += 1;
            if !files.contains(&file) {
                files.push(file);
            }
        }
        if let Some(part) = parts_of.iter().position(|(_, prefix)| tensor.name.starts_with(prefix)) {
            parts[part].tensors += 1;
            parts[part].parameters += tensor.parameters;
            parts[part].file_bytes += tensor.file_bytes;
        }
    }
    parts.retain(|part| part.tensors > 0);
    files.sort();
    let parameters = parts.iter().map(|part| part.parameters).sum();
    let per_precision = |bytes: &dyn Fn(DType) -> usize| {
        [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)]
            .into_iter()
            .map(|(name, dtype)| (name, bytes(dtype)))
            .collect()
    };
    let (text, image_tokens) = match &config {
        ModelConfig::Idefics1(config) => (config.text().text, config.vectors_per_image()),
        ModelConfig::Idefics2(config) => (config.text_config.clone(), config.perceiver_config.resampler_n_latents),
    };
    Ok(Inspection {
        folder: path.to_owned(),
        family: config.family(),
        parameters,
        file_bytes: parts.iter().map(|part| part.file_bytes).sum(),
        files,
        dtypes,
        parts,
        loaded_bytes: per_precision(&|dtype| parameters * dtype.size()),
        cache_bytes_per_token: per_precision(&|dtype| text.cache_bytes(1, 1, dtype)),
        image_tokens,
        max_position_embeddings: text.max_position_embeddings,
    })
}

/// A tensor of a model.
struct TensorFacts {
    name: String,
    parameters: usize,
    file_bytes: usize,
    /// Its element type and the file that it is in.
    stored: Option<(String, String)>,
}

/// The tensors of weight files.
fn of_files(checkpoint: &Checkpoint) -> Vec<TensorFacts> {
    let facts = |(name, tensor): (&str, &TensorEntry)| TensorFacts {
        name: name.to_owned(),
        parameters: tensor.num_elements(),
        file_bytes: tensor.len_bytes(),
        stored: Some((format!("{:?}", tensor.dtype), tensor.file.clone())),
    };
    checkpoint.tensors().map(facts).collect()
}

/// The tensors that a configuration asks for, tied ones once. Nothing is allocated for them.
fn of_shape(config: &ModelConfig, path: &Path) -> Result<Vec<TensorFacts>, Error> {
    struct Listed {
        tied: &'static [(&'static str, &'static str)],
        tensors: Vec<TensorFacts>,
    }
    impl ParameterVisitor for Listed {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            if !self.tied.iter().any(|(tied, _)| *tied == name) {
                let parameters = param.lazy_shape().num_elements();
                self.tensors.push(TensorFacts { name: name.to_owned(), parameters, file_bytes: 0, stored: None });
            }
        }
    }
    let device = Device::default();
    let failed = |source| Error::Config { path: path.to_owned(), source };
    let mut listed = Listed { tied: config.tied(), tensors: Vec::new() };
    match config {
        ModelConfig::Idefics1(config) => {
            visit_parameters(&Idefics1::new(config, &device).map_err(failed)?, &mut listed);
        }
        ModelConfig::Idefics2(config) => {
            visit_parameters(&Idefics2::new(config, &device).map_err(failed)?, &mut listed);
        }
    }
    Ok(listed.tensors)
}

impl ModelConfig {
    fn parts(&self) -> Parts {
        match self {
            Self::Idefics1(_) => IDEFICS1_PARTS,
            Self::Idefics2(_) => IDEFICS2_PARTS,
        }
    }
}
