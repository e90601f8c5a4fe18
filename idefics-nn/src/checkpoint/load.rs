//! Filling a module from a checkpoint, with an account of every tensor.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use super::convert::read_as;
use super::{Checkpoint, CheckpointError};
use crate::parameters::{ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};

/// Tensors that old checkpoints carry and the models compute themselves: names that end in one of these are skipped.
const STRAYS: [&str; 3] =
    ["rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "vision_model.embeddings.position_ids"];

/// How a module is filled.
#[derive(Debug, Clone)]
pub struct LoadOptions<'a> {
    /// What the module's names are prefixed with in the checkpoint, with the dot: a component takes only its part.
    pub prefix: &'a str,
    /// The dtype to hold the weights in: F32, F16 or BF16, whatever the file has.
    pub dtype: DType,
    /// Pairs (tensor, source): a tensor that may be absent, and is then the very same memory as its source
    /// (`tie_word_embeddings`). The source comes first in the module.
    pub tied: &'a [(&'a str, &'a str)],
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        Self { prefix: "", dtype: DType::F32, tied: &[] }
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// Bytes of the checkpoint read so far.
    pub bytes_done: u64,
    /// Bytes that will be read.
    pub bytes_total: u64,
}

impl Checkpoint {
    /// Fills every parameter of `module` from the tensor whose name is the prefix and the parameter's path.
    ///
    /// Names and shapes are compared before the first byte of weights is read.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Unexpected`], [`CheckpointError::Shape`],
    /// [`CheckpointError::Dtype`] or [`CheckpointError::NonFinite`], naming the tensors.
    pub fn load<M: Module>(
        &self,
        module: M,
        options: &LoadOptions<'_>,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<M, CheckpointError> {
        let mut account =
            Account { checkpoint: self, options, taken: BTreeSet::new(), missing: Vec::new(), wrong: None };
        visit_parameters(&module, &mut account);
        let bytes_total = account.check()?;

        let mut loader = Loader {
            checkpoint: self,
            options,
            sources: HashMap::new(),
            state: LoadProgress { bytes_done: 0, bytes_total },
            progress: &mut progress,
            error: None,
        };
        let module = map_parameters(module, &mut loader);
        match loader.error {
            None => Ok(module),
            Some(error) => Err(error),
        }
    }
}

impl LoadOptions<'_> {
    fn tied_source(&self, name: &str) -> Option<&str> {
        self.tied.iter().find(|(tied, _)| *tied == name).map(|(_, source)| *source)
    }
}

/// First pass: which tensors the module asks for, and whether they are what it asks for.
struct Account<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions<'a>,
    taken: BTreeSet<String>,
    missing: Vec<String>,
    wrong: Option<CheckpointError>,
}

impl Account<'_> {
    /// The bytes that will be read, if everything is accounted for.
    fn check(self) -> Result<u64, CheckpointError> {
        let folder = || self.checkpoint.folder.clone();
        if !self.missing.is_empty() {
            return Err(CheckpointError::Missing { folder: folder(), names: self.missing });
        }
        if let Some(error) = self.wrong {
            return Err(error);
        }
        let unexpected: Vec<String> = self
            .checkpoint
            .tensors
            .keys()
            .filter(|name| name.starts_with(self.options.prefix) && !self.taken.contains(*name))
            .filter(|name| !STRAYS.iter().any(|stray| name.ends_with(stray)))
            .cloned()
            .collect();
        if !unexpected.is_empty() {
            return Err(CheckpointError::Unexpected { folder: folder(), names: unexpected });
        }
        Ok(self.taken.iter().map(|name| self.checkpoint.tensors[name].len_bytes() as u64).sum())
    }
}

impl ParameterVisitor for Account<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let name = format!("{}{name}", self.options.prefix);
        let Some(entry) = self.checkpoint.tensor(&name) else {
            if self.options.tied_source(&name).is_none() {
                self.missing.push(name);
            }
            return;
        };
        let expected = param.lazy_shape().to_vec();
        if entry.shape != expected {
            self.wrong.get_or_insert(CheckpointError::Shape {
                file: entry.file.clone(),
                name: name.clone(),
                expected,
                found: entry.shape.clone(),
            });
        }
        self.taken.insert(name);
    }
}

/// Second pass: one tensor at a time from the map to the device.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions<'a>,
    /// Tensors that others are tied to.
    sources: HashMap<String, Box<dyn Any>>,
    state: LoadProgress,
    progress: &'a mut dyn FnMut(LoadProgress),
    error: Option<CheckpointError>,
}

impl ParameterMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = format!("{}{name}", self.options.prefix);
        let tensor = match self.checkpoint.tensor(&name) {
            Some(entry) => match read_as(&name, entry, self.options.dtype) {
                Ok(data) => {
                    self.state.bytes_done += entry.len_bytes() as u64;
                    (self.progress)(self.state);
                    Tensor::<D>::from_data(data, (&param.lazy_device(), self.options.dtype))
                }
                Err(error) => {
                    self.error = Some(error);
                    return param;
                }
            },
            None => {
                let source = self.options.tied_source(&name).and_then(|source| self.sources.get(source));
                let tensor = source.and_then(|source| source.downcast_ref::<Tensor<D>>());
                match tensor {
                    Some(tensor) => tensor.clone(),
                    None => {
                        self.error = Some(CheckpointError::Missing {
                            folder: self.checkpoint.folder.clone(),
                            names: vec![name],
                        });
                        return param;
                    }
                }
            }
        };
        if self.options.tied.iter().any(|(_, source)| *source == name) {
            self.sources.insert(name, Box::new(tensor.clone()));
        }
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}
