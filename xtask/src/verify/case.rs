//! Reads a reference case: a folder with samples, options and the tensors that the reference computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::DType;
use idefics_checkpoint::PicklePolicy;
use idefics_generate::processor::image::Alpha;
use idefics_generate::processor::{Sample, describe_io_error};
use idefics_generate::{FAMILIES, GenerationConfig, WeightFormat, WeightOptions};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::training::TrainSettings;

/// The contents of `case.json` and `expected.safetensors`.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) file: CaseFile,
    /// The model folder.
    pub(super) checkpoint: PathBuf,
    /// Expected tensors by name.
    pub(super) expected: BTreeMap<String, Expected>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CaseFile {
    format: u32,
    pub(super) family: String,
    checkpoint: PathBuf,
    #[serde(default)]
    pub(super) reference: Reference,
    pub(super) samples: Vec<Sample>,
    #[serde(default)]
    pub(super) processor: ProcessorOptions,
    #[serde(default)]
    pub(super) generate: BTreeMap<String, GenerationConfig>,
    #[serde(default)]
    load: Load,
    #[serde(default)]
    tolerance: BTreeMap<String, f64>,
    /// Settings of the training run whose results the `train.` stages compare.
    pub(super) train: Option<TrainSettings>,
    #[serde(default)]
    pub(super) texts: BTreeMap<String, Vec<String>>,
}

/// Versions of the reference that produced the case.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Reference {
    pub(super) transformers: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ProcessorOptions {
    pub(super) do_image_splitting: Option<bool>,
    /// How transparency was removed. `drop` is the default and what the reference's file loader does; `white` is the
    /// alternative.
    pub(super) alpha: Option<AlphaName>,
    /// Option of the processor of IDEFICS v1.
    pub(super) add_end_of_utterance_token: Option<bool>,
    /// Option of the processor of IDEFICS v1.
    #[serde(default)]
    pub(super) add_eos_token: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AlphaName {
    White,
    Drop,
}

impl From<AlphaName> for Alpha {
    fn from(name: AlphaName) -> Self {
        match name {
            AlphaName::White => Self::White,
            AlphaName::Drop => Self::Drop,
        }
    }
}

/// How the reference quantised the weights at load.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    quantize: Option<String>,
    #[serde(default)]
    double_quant: bool,
}

/// One expected tensor.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// The elements of a tensor, row-major.
#[derive(Debug, Clone)]
pub(super) enum Values {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

impl Expected {
    pub(super) fn floats(&self) -> Result<&[f32]> {
        match &self.values {
            Values::Float(values) => Ok(values),
            Values::Int(_) => bail!("expected F32, found I64"),
        }
    }

    pub(super) fn ints(&self) -> Result<&[i64]> {
        match &self.values {
            Values::Int(values) => Ok(values),
            Values::Float(_) => bail!("expected I64, found F32"),
        }
    }
}

impl Case {
    /// Returns the options for loading the weights. Weights that are not quantised are stored in `dtype`. Pickles are
    /// allowed, because some cases use the layout of old repositories.
    pub(super) fn weights(&self, dtype: DType) -> Result<WeightOptions> {
        let Load { quantize, double_quant } = &self.file.load;
        let quantize = quantize.as_deref().map_or(Ok(WeightFormat::None), str::parse)?;
        Ok(WeightOptions { quantize, double_quant: *double_quant, pickles: PicklePolicy::Allowed, ..dtype.into() })
    }

    /// Whether the case expects results of the model, and not only of the processor.
    pub(super) fn runs_model(&self) -> bool {
        !self.file.generate.is_empty() || self.expected.keys().any(|name| !name.starts_with("processor."))
    }

    /// Reads a case folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let kind = if folder.exists() { "not a folder" } else { "no such folder" };
        ensure!(
            folder.is_dir(),
            "{}: {kind}; give a folder with a case.json, such as xtask/cases/two-images",
            folder.display()
        );
        let path = folder.join("case.json");
        let text = read_file(&path)?;
        let mut file: CaseFile = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        ensure!(file.format == 1, "{}: format {} is not supported; expected 1", path.display(), file.format);
        let families: Vec<&str> = FAMILIES.iter().map(|family| family.model_type()).collect();
        ensure!(
            families.contains(&file.family.as_str()),
            "{}: family {:?} is not supported; expected one of {}",
            path.display(),
            file.family,
            families.join(", ")
        );
        for sample in &mut file.samples {
            sample.resolve_paths(folder);
        }
        let checkpoint = folder.join(&file.checkpoint);
        ensure!(checkpoint.is_dir(), "{}: checkpoint folder not found", checkpoint.display());
        let expected = read_tensors(&folder.join("expected.safetensors"))?;
        let case = Self { file, checkpoint, expected };
        case.check_names()?;
        Ok(case)
    }

    /// Checks that every expected tensor belongs to a known stage, so that none is ignored.
    fn check_names(&self) -> Result<()> {
        const NAMES: [&str; 16] = [
            "processor.input_ids",
            "processor.attention_mask",
            "processor.pixel_values",
            "processor.pixel_attention_mask",
            "processor.image_attention_mask",
            "processor.rows",
            "processor.cols",
            "processor.frames_indices",
            "vision.last_hidden_state",
            "image_hidden_states",
            "logits",
            "labels",
            "loss",
            "train.losses",
            "train.grad_norms",
            "train.lrs",
        ];
        for name in self.expected.keys() {
            let indexed = ["hidden_states.", "attentions."]
                .iter()
                .any(|prefix| name.strip_prefix(prefix).is_some_and(|index| index.parse::<usize>().is_ok()));
            let generated = name
                .strip_prefix("generate.")
                .and_then(|rest| rest.rsplit_once('.'))
                .filter(|(_, what)| ["sequences", "sequences_scores", "filtered_scores"].contains(what))
                .map(|(run, _)| run);
            let known_run = generated.is_some_and(|run| self.file.generate.contains_key(run));
            ensure!(
                indexed || known_run || name.starts_with("grad.") || NAMES.contains(&name.as_str()),
                "expected.safetensors: tensor `{name}` is not a known stage, or its run is missing from case.json"
            );
        }
        let unknown = self.file.texts.keys().find(|run| !self.file.generate.contains_key(*run));
        ensure!(unknown.is_none(), "case.json: `texts` names a run that is missing from `generate`: {unknown:?}");
        ensure!(
            self.expected("labels").is_some() == self.expected("loss").is_some(),
            "expected.safetensors: `labels` and `loss` must both be present or both be absent"
        );
        Ok(())
    }

    /// Returns the expected tensor with this name, if the case has it.
    pub(super) fn expected(&self, name: &str) -> Option<&Expected> {
        self.expected.get(name)
    }

    /// Returns the tolerance of a stage in f32, as a maximum absolute difference.
    pub(super) fn tolerance(&self, stage: &str) -> f64 {
        let default = match stage {
            "processor.pixel_values" => 1e-6,
            "loss" => 1e-5,
            _ if stage.ends_with(".filtered_scores") => 1e-5,
            "train.losses" | "train.grad_norms" => 1e-3,
            _ => 1e-4,
        };
        let tolerance = &self.file.tolerance;
        tolerance.get(stage).or_else(|| tolerance.get("*")).copied().unwrap_or(default)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| anyhow!("{}: {}", path.display(), describe_io_error(&error)))
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Expected>> {
    let bytes = read_file(path)?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let values = match view.dtype() {
            Dtype::F32 => Values::Float(chunks(view.data(), f32::from_le_bytes)),
            Dtype::I64 => Values::Int(chunks(view.data(), i64::from_le_bytes)),
            other => bail!("{}: tensor `{name}` is {other:?}; expected F32 or I64", path.display()),
        };
        tensors.insert(name.to_owned(), Expected { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

fn chunks<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
}
