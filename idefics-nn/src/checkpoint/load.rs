//! Fills a module from a checkpoint and accounts for every tensor.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_checkpoint::{Checkpoint, CheckpointError, StoredFormat, StoredWeight, TensorEntry};
use idefics_kernels::Activations;
use idefics_kernels::formats::PackedFormat;

use super::Quantization;
use super::convert::{read_as, upload_as};
use super::in_place::{blocks, in_place, read_packed};
use crate::parameters::{Matrix, ParameterMapper, ParameterVisitor, map_parameters, matrices, visit_parameters};
use crate::{PackedWeight, init, ops};

/// Suffixes of the names of tensors that old checkpoints contain, although the models compute these tensors.
const COMPUTED_TENSORS: [&str; 3] =
    ["rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "vision_model.embeddings.position_ids"];

/// How a module is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions<'a> {
    /// Prefix of the module's tensors in the checkpoint, including the dot. A component loads only the tensors
    /// under its prefix.
    pub prefix: &'a str,
    /// The dtype of the weights: F32, F16 or BF16. `None` keeps matrices in the dtype of the file on the CPU (outside
    /// autodiff graphs), and means F32 elsewhere.
    ///
    /// On the CPU, the dtype applies only to matrices, because the kernels accept matrices of any of these dtypes. A
    /// matrix that already has the dtype is used directly in the memory map. Activations and all other parameters are
    /// F32. On other devices, everything has this dtype.
    ///
    /// Matrices in GGUF blocks stay in blocks on the CPU, whatever the dtype. On other devices, they are dequantised.
    pub dtype: Option<DType>,
    /// How linear layers are quantised. Layers that the file stores in this quantised format stay as they are. Layers
    /// that it stores in another quantised format are an error.
    pub quantize: Option<Quantization>,
    /// Element type in which the activations of quantised layers are multiplied.
    pub activations: Activations,
    /// Pairs of names (tensor, source). If the tensor is missing, it shares the memory of its source
    /// (`tie_word_embeddings`). The source must come before the tensor in the module.
    pub tied: &'a [(&'a str, &'a str)],
    /// Tensors whose names begin with one of these prefixes keep the dtype of the file, regardless of `dtype` and
    /// `quantize`. The empty prefix selects all tensors. On the CPU, the matrices among them stay in the memory map.
    pub as_stored: &'a [String],
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        let activations = Activations::F32;
        Self { prefix: "", dtype: Some(DType::F32), quantize: None, activations, tied: &[], as_stored: &[] }
    }
}

/// Progress of loading.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Number of bytes of the checkpoint that have been read so far.
    pub bytes_done: u64,
    /// Total number of bytes that will be read.
    pub bytes_total: u64,
}

/// Loads modules from a checkpoint.
pub trait LoadModule {
    /// Fills every parameter of `module` from the tensor whose name is `options.prefix` followed by the parameter's
    /// path.
    ///
    /// Names and shapes are compared before any weight is read. Tensors that the module does not use are ignored;
    /// [`Self::unused`] lists them. Weights of `module` that are already quantised are replaced like all others.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Shape`], [`CheckpointError::Dtype`] and
    /// [`CheckpointError::NonFinite`]; for quantised tensors also [`CheckpointError::NotLinear`],
    /// [`CheckpointError::Quantized`] and [`CheckpointError::AlreadyQuantized`]. All of them name the tensors.
    fn load<M: Module>(
        &self,
        module: M,
        options: &LoadOptions<'_>,
        progress: impl FnMut(LoadProgress),
    ) -> Result<M, CheckpointError>;

    /// Lists the tensors under the prefix that `module` does not use. Two kinds are left out: tensors that old
    /// checkpoints contain although the models compute them, and biases of zeros that GPTQ adds. No weight is read.
    fn unused<M: Module>(&self, module: &M, options: &LoadOptions<'_>) -> Vec<String>;
}

impl LoadModule for Checkpoint {
    fn load<M: Module>(
        &self,
        module: M,
        options: &LoadOptions<'_>,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<M, CheckpointError> {
        let matrices = matrices(&module);
        let bytes_total = account(self, &module, &matrices, options).check()?;
        let mut loader = Loader {
            checkpoint: self,
            options,
            matrices,
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

    fn unused<M: Module>(&self, module: &M, options: &LoadOptions<'_>) -> Vec<String> {
        let matrices = matrices(module);
        let Account { taken, .. } = account(self, module, &matrices, options);
        let under_prefix = self.tensors().map(|(name, _)| name).filter(|name| name.starts_with(options.prefix));
        let is_computed = |name: &str| COMPUTED_TENSORS.iter().any(|stray| name.ends_with(stray));
        let is_unused = |name: &&str| !taken.contains(*name) && !is_computed(name) && !self.is_empty_bias(name);
        under_prefix.filter(is_unused).map(str::to_owned).collect()
    }
}

/// Compares the tensors that the module needs with those of the checkpoint.
pub(super) fn account<'a, M: Module>(
    checkpoint: &'a Checkpoint,
    module: &M,
    matrices: &'a HashMap<String, Matrix>,
    options: &'a LoadOptions<'a>,
) -> Account<'a> {
    let (taken, missing) = (BTreeSet::new(), Vec::new());
    let mut account = Account { checkpoint, options, matrices, taken, missing, wrong: None };
    visit_parameters(module, &mut account);
    account
}

/// Returns a dense parameter to replace the quantised weight that is attached to `param`. Nothing is allocated.
pub(super) fn unpacked<const D: usize>(param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    init::normal(param.lazy_shape().dims(), 0.0, 0.02, &param.lazy_device())
}

impl LoadOptions<'_> {
    /// Returns the source that `name` is tied to, if any.
    pub(super) fn tied_source(&self, name: &str) -> Option<&str> {
        self.tied.iter().find(|(tied, _)| *tied == name).map(|(_, source)| *source)
    }

    /// Returns whether other tensors are tied to `name`.
    pub(super) fn is_tied_source(&self, name: &str) -> bool {
        self.tied.iter().any(|(_, source)| *source == name)
    }
}

/// First pass: records which tensors the module needs, and whether they exist with the right shape and format.
pub(super) struct Account<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions<'a>,
    matrices: &'a HashMap<String, Matrix>,
    taken: BTreeSet<String>,
    missing: Vec<String>,
    wrong: Option<CheckpointError>,
}

impl Account<'_> {
    /// Returns the number of bytes to read, or an error if a tensor is missing or has the wrong shape or format.
    pub(super) fn check(self) -> Result<u64, CheckpointError> {
        if !self.missing.is_empty() {
            let folder = self.checkpoint.folder().to_owned();
            return Err(match self.prefix_of_missing() {
                Some((prefix, name)) => CheckpointError::Prefixed { folder, prefix, name },
                None => CheckpointError::Missing { folder, names: self.missing },
            });
        }
        if let Some(error) = self.wrong {
            return Err(error);
        }
        Ok(len_bytes(self.checkpoint, self.taken.iter().map(String::as_str)))
    }

    /// Finds an additional prefix that most missing tensors have in the checkpoint, for example `module.`. Returns it
    /// with the name of one such tensor.
    fn prefix_of_missing(&self) -> Option<(String, String)> {
        let (prefix, name) = self.missing.iter().find_map(|name| {
            let names = self.checkpoint.tensors().map(|(name, _)| name);
            let prefixes = names.filter_map(|longer| longer.strip_suffix(name.as_str()));
            let prefix = prefixes.filter(|prefix| prefix.ends_with('.')).min_by_key(|prefix| prefix.len())?;
            Some((prefix.to_owned(), name.clone()))
        })?;
        let is_there = |name: &&String| self.checkpoint.tensor(&format!("{prefix}{name}")).is_some();
        let found = self.missing.iter().filter(is_there).count();
        (2 * found > self.missing.len()).then_some((prefix, name))
    }
}

impl ParameterVisitor for Account<'_> {
    fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
        self.take(path, param.lazy_shape().to_vec());
    }

    fn visit_packed(&mut self, path: &str, weight: &PackedWeight) {
        self.take(path, weight.dims().to_vec());
    }
}

impl Account<'_> {
    /// Records the tensor of the parameter at `path`, which has the shape `expected` in the module.
    fn take(&mut self, path: &str, expected: Vec<usize>) {
        let name = format!("{}{path}", self.options.prefix);
        let Some(stored) = self.checkpoint.stored(&name) else {
            if self.options.tied_source(&name).is_none() {
                self.missing.push(name);
            }
            return;
        };
        if let [d_out, d_in] = expected[..]
            && let Err(error) = self.checkpoint.check_packed(&name, &stored, [d_out, d_in])
        {
            self.wrong.get_or_insert(error);
        }
        let StoredWeight { entry, kind, companions } = stored;
        self.taken.extend(companions);
        if let Some(found) = kind.packed_format().filter(|_| self.matrices.get(path) != Some(&Matrix::Linear)) {
            let (file, found) = (entry.file.clone(), found.name());
            self.wrong.get_or_insert(CheckpointError::NotLinear { file, name: name.clone(), found });
        }
        // The codes of four-bit formats do not have the shape of the weight. Their shape is checked separately.
        let has_own_shape = matches!(
            kind,
            StoredFormat::FourBit(_)
                | StoredFormat::Own(PackedFormat::Q4 | PackedFormat::Int4 { .. })
                | StoredFormat::Int4 { .. }
        );
        if entry.shape != expected && !has_own_shape {
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

/// Second pass: moves one tensor at a time from the memory map to the device.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions<'a>,
    /// The module's matrices by path.
    matrices: HashMap<String, Matrix>,
    /// Loaded values that other tensors are tied to, by name. Each value is a [`Filling`].
    sources: HashMap<String, Box<dyn Any>>,
    state: LoadProgress,
    progress: &'a mut dyn FnMut(LoadProgress),
    error: Option<CheckpointError>,
}

impl ParameterMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = format!("{}{path}", self.options.prefix);
        let filling = self.read(path, &name, &param);
        if self.options.is_tied_source(&name)
            && let Ok(filling) = &filling
        {
            self.sources.insert(name, Box::new(filling.clone()));
        }
        match filling {
            Ok(Filling::Packed(packed)) => packed.with_activations(self.options.activations).carry(param),
            Ok(Filling::Dense(tensor)) => {
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }

    fn map_packed<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.map(path, unpacked(&param))
    }
}

/// The loaded value of a parameter.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "only one value exists at a time")]
enum Filling<const D: usize> {
    Dense(Tensor<D>),
    Packed(PackedWeight),
}

impl Loader<'_> {
    fn read<const D: usize>(
        &mut self,
        path: &str,
        name: &str,
        param: &Param<Tensor<D>>,
    ) -> Result<Filling<D>, CheckpointError> {
        let Some(stored) = self.checkpoint.stored(name) else { return self.tied(name) };
        let device = param.lazy_device();
        let matrix = self.matrices.get(path).copied();
        let quantization = self.options.quantization_of(matrix, name);
        let weight = match (&stored.kind, quantization) {
            (StoredFormat::Dense, None) => match matrix.and_then(|_| blocks(stored.entry, &device)) {
                Some(packed) => Filling::Packed(packed),
                None => Filling::Dense(self.dense(name, stored.entry, matrix, &device)?),
            },
            (StoredFormat::Dense, Some(quantization)) => {
                let weights = read_as(name, stored.entry, DType::F32)?;
                let dims = matrix_dims(&stored.entry.shape);
                let weights = weights.as_slice::<f32>().expect("the data was read as f32");
                let packed = PackedWeight::quantize(weights, dims, quantization, &device);
                stored.entry.release();
                Filling::Packed(packed.map_err(|source| stored.error(name, source))?)
            }
            (_, quantization) => {
                let dims = matrix_dims(&param.lazy_shape().to_vec());
                let packed = read_packed(self.checkpoint, name, &stored, dims, &device)?;
                if let Some(asked) = quantization.filter(|asked| asked.format != packed.format()) {
                    return Err(CheckpointError::AlreadyQuantized {
                        file: stored.entry.file.clone(),
                        name: name.to_owned(),
                        found: packed.format().name(),
                        asked: asked.format.name(),
                    });
                }
                Filling::Packed(packed)
            }
        };
        let read = stored.companions.iter().map(String::as_str).chain([name]);
        self.state.bytes_done += len_bytes(self.checkpoint, read);
        (self.progress)(self.state);
        Ok(weight)
    }

    /// Reads an unquantised tensor. It stays in the memory map if possible.
    fn dense<const D: usize>(
        &self,
        name: &str,
        entry: &TensorEntry,
        matrix: Option<Matrix>,
        device: &Device,
    ) -> Result<Tensor<D>, CheckpointError> {
        let dtype = self.options.dtype_of(name, matrix, Some(entry.dtype), device);
        if let Some(data) = in_place(entry, dtype, device).filter(|_| matrix.is_some()) {
            return Ok(Tensor::from_data(data, (device, dtype)));
        }
        let data = match ops::reads_bytes(device) {
            true => read_as(name, entry, dtype)?,
            false => upload_as(name, entry, dtype)?,
        };
        let weight = Tensor::from_data(data, (device, dtype));
        entry.release();
        Ok(weight)
    }

    /// Returns the value that `name` is tied to. This value was loaded before.
    fn tied<const D: usize>(&self, name: &str) -> Result<Filling<D>, CheckpointError> {
        let source = self.options.tied_source(name).and_then(|source| self.sources.get(source));
        source.and_then(|source| source.downcast_ref::<Filling<D>>()).cloned().ok_or_else(|| CheckpointError::Missing {
            folder: self.checkpoint.folder().to_owned(),
            names: vec![name.to_owned()],
        })
    }
}

/// Computes the total size of tensors in the files, in bytes.
fn len_bytes<'a>(checkpoint: &Checkpoint, names: impl Iterator<Item = &'a str>) -> u64 {
    names.filter_map(|name| checkpoint.tensor(name)).map(|entry| entry.len_bytes() as u64).sum()
}

/// Returns the shape of a linear layer's weight as an array. It was compared with the shape in the module before.
fn matrix_dims(shape: &[usize]) -> [usize; 2] {
    shape.try_into().expect("the weight of a linear layer has two axes")
}
