//! Writing a checkpoint again, its linear layers quantised.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::DType;
use half::bf16;
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::json;

use super::convert::read_as;
use super::save::write_atomically;
use super::stored::{StoredKind, dense_dtype, quant_state_name, scales_name};
use super::{Checkpoint, CheckpointError, LoadOptions, LoadProgress, Quantization, TensorEntry};
use crate::PackedFormat;
use crate::parameters::{Matrix, matrices};
use idefics_kernels::formats::{FormatError, FourBit, Int8, NestedAbsmax, Q4, QuantDtype, QuantState, dynamic_map};

/// A shard is written when it has as many bytes; they are held in memory until then.
const SHARD_BYTES: usize = 1 << 29;

impl Checkpoint {
    /// Whether any of its weights is quantised.
    pub fn is_quantized(&self) -> bool {
        self.packed_formats().next().is_some()
    }

    /// The format of each weight that is quantised.
    pub fn packed_formats(&self) -> impl Iterator<Item = PackedFormat> {
        let kinds = self.tensors.keys().filter_map(|name| self.stored(name)).map(|stored| stored.kind);
        kinds.filter_map(|kind| kind.packed_format())
    }

    /// Writes every tensor into `folder`, which is there, the linear layers of `module` quantised as `options` say and
    /// all else as it is.
    ///
    /// NF4 and FP4 have the layout of bitsandbytes. Int8 and Q4 have a layout of their own: `X.weight` is the codes and
    /// `X.weight.scales` the scales, as [`Int8`] and [`Q4`] have them. One file, or shards of about half a gibibyte
    /// with their index.
    ///
    /// # Errors
    /// [`CheckpointError::AlreadyQuantized`], what [`Checkpoint::load`] refuses, [`CheckpointError::Write`], and what
    /// `progress` returns after a tensor.
    ///
    /// # Panics
    /// If `options` quantise nothing.
    pub fn write_quantized<M: Module, E: From<CheckpointError>>(
        &self,
        module: &M,
        options: &LoadOptions<'_>,
        folder: &Path,
        mut progress: impl FnMut(LoadProgress) -> Result<(), E>,
    ) -> Result<(), E> {
        let quantization = options.quantize.as_ref().expect("a format is given");
        let matrices = matrices(module);
        let linear = |name: &str| {
            name.strip_prefix(options.prefix).is_some_and(|path| matrices.get(path) == Some(&Matrix::Linear))
        };
        for name in self.tensors.keys().filter(|name| linear(name)) {
            let stored = self.stored(name).expect("it is in the list");
            if let Some(found) = stored.kind.packed_format() {
                Err(CheckpointError::AlreadyQuantized {
                    file: stored.entry.file.clone(),
                    name: name.clone(),
                    found: found.name(),
                    asked: quantization.format.name(),
                })?;
            }
        }
        self.account(module, &matrices, options).check()?;
        let bytes_total = self.tensors.values().map(|entry| entry.len_bytes() as u64).sum();
        let mut state = LoadProgress { bytes_done: 0, bytes_total };
        let mut shards = Shards { folder, current: Vec::new(), current_bytes: 0, names: Vec::new(), total_bytes: 0 };
        for (name, entry) in &self.tensors {
            if linear(name) && quantization.covers(name) {
                let parts = quantized(name, entry, quantization)?;
                parts.into_iter().try_for_each(|part| shards.push(part))?;
            } else {
                let bytes = Cow::Borrowed(entry.bytes());
                shards.push(Part { name: name.clone(), dtype: entry.dtype, shape: entry.shape.clone(), bytes })?;
            }
            state.bytes_done += entry.len_bytes() as u64;
            progress(state)?;
        }
        Ok(shards.finish()?)
    }
}

impl StoredKind {
    /// The format of a weight that the file has quantised.
    pub(super) fn packed_format(&self) -> Option<PackedFormat> {
        match *self {
            Self::Dense => None,
            Self::FourBit(kind) => Some(PackedFormat::FourBit(kind)),
            Self::LlmInt8 => Some(PackedFormat::Int8),
            Self::Own(format) => Some(format),
        }
    }
}

/// A tensor to be written.
struct Part<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl Part<'_> {
    fn new(name: String, dtype: Dtype, shape: impl Into<Vec<usize>>, bytes: Vec<u8>) -> Self {
        Self { name, dtype, shape: shape.into(), bytes: bytes.into() }
    }

    fn floats(name: String, values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, [values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

impl View for &Part<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A linear layer's weight as the tensors that stand for it.
fn quantized(
    name: &str,
    entry: &TensorEntry,
    quantization: &Quantization,
) -> Result<Vec<Part<'static>>, CheckpointError> {
    let data = read_as(name, entry, DType::F32)?;
    entry.release();
    let weights = data.as_slice::<f32>().expect("it was read as f32");
    let dims: [usize; 2] = entry.shape.as_slice().try_into().expect("its shape is the module's");
    let parts = match quantization.format {
        PackedFormat::Int8 => int8_parts(name, weights, dims),
        PackedFormat::Q4 => q4_parts(name, weights, dims),
        PackedFormat::FourBit(kind) => {
            let dtype = match dense_dtype(entry.dtype) {
                Some(DType::BF16) => QuantDtype::Bfloat16,
                Some(DType::F16) => QuantDtype::Float16,
                _ => QuantDtype::Float32,
            };
            FourBit::quantize(kind, weights, dims[0], dims[1])
                .and_then(|weight| four_bit_parts(name, weight, dtype, quantization.double_quant))
        }
    };
    parts.map_err(|source| CheckpointError::Quantized {
        file: entry.file.clone(),
        name: name.to_owned(),
        source: Box::new(source),
    })
}

fn int8_parts(name: &str, weights: &[f32], [d_out, d_in]: [usize; 2]) -> Result<Vec<Part<'static>>, FormatError> {
    let (codes, scales) = Int8::quantize(weights, d_out, d_in)?.into_parts();
    let codes = codes.into_iter().map(|code| code as u8).collect();
    Ok(vec![Part::new(name.to_owned(), Dtype::I8, [d_out, d_in], codes), Part::floats(scales_name(name), &scales)])
}

fn q4_parts(name: &str, weights: &[f32], [d_out, d_in]: [usize; 2]) -> Result<Vec<Part<'static>>, FormatError> {
    let (codes, scales) = Q4::quantize(weights, d_out, d_in)?.into_parts();
    let scale_bytes = scales.iter().flat_map(|scale: &bf16| scale.to_le_bytes()).collect();
    Ok(vec![
        Part::new(name.to_owned(), Dtype::U8, [codes.len()], codes),
        Part::new(scales_name(name), Dtype::BF16, [scales.len()], scale_bytes),
    ])
}

/// Source: bitsandbytes 0.50.2, `QuantState.as_dict(packed=True)`.
fn four_bit_parts(
    name: &str,
    weight: FourBit<'_>,
    dtype: QuantDtype,
    double_quant: bool,
) -> Result<Vec<Part<'static>>, FormatError> {
    let (kind, dims) = (weight.kind(), weight.dims());
    let (codes, absmax) = weight.into_parts();
    let named = |part: &str| format!("{name}.{part}");
    let mut parts = vec![
        Part::new(name.to_owned(), Dtype::U8, [codes.len(), 1], codes),
        Part::floats(named("quant_map"), kind.table()),
    ];
    let mut state = QuantState { kind, dims, dtype, nested_offset: None };
    if double_quant {
        let nested = NestedAbsmax::quantize(&absmax)?;
        state.nested_offset = Some(nested.offset);
        parts.push(Part::floats(named("nested_absmax"), &nested.nested_absmax));
        parts.push(Part::floats(named("nested_quant_map"), &dynamic_map()));
        parts.push(Part::new(named("absmax"), Dtype::U8, [nested.codes.len()], nested.codes));
    } else {
        parts.push(Part::floats(named("absmax"), &absmax));
    }
    let state = state.to_bytes();
    parts.push(Part::new(quant_state_name(name, kind), Dtype::U8, [state.len()], state));
    Ok(parts)
}

/// The files of a checkpoint, one after the other.
struct Shards<'a, 'b> {
    folder: &'a Path,
    current: Vec<Part<'b>>,
    current_bytes: usize,
    /// Names of the tensors of each shard that is written.
    names: Vec<Vec<String>>,
    total_bytes: usize,
}

impl<'b> Shards<'_, 'b> {
    fn push(&mut self, part: Part<'b>) -> Result<(), CheckpointError> {
        self.current_bytes += part.bytes.len();
        self.current.push(part);
        if self.current_bytes >= SHARD_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        let path = self.folder.join(format!("shard-{}", self.names.len()));
        write_parts(&path, &self.current)?;
        self.names.push(self.current.drain(..).map(|part| part.name).collect());
        self.total_bytes += std::mem::take(&mut self.current_bytes);
        Ok(())
    }

    /// Gives the files their names, which say how many there are, and writes the index.
    fn finish(mut self) -> Result<(), CheckpointError> {
        if !self.current.is_empty() {
            self.flush()?;
        }
        let n_shards = self.names.len();
        let name_of = |shard: usize| match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1),
        };
        for shard in 0..n_shards {
            let path: PathBuf = self.folder.join(name_of(shard));
            std::fs::rename(self.folder.join(format!("shard-{shard}")), &path)
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
        if n_shards == 1 {
            return Ok(());
        }
        let shards = self.names.iter().enumerate();
        let weight_map: BTreeMap<&str, String> =
            shards.flat_map(|(shard, names)| names.iter().map(move |name| (name.as_str(), name_of(shard)))).collect();
        let index = json!({"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map});
        write_atomically(&self.folder.join("model.safetensors.index.json"), |file| {
            serde_json::to_writer_pretty(file, &index).map_err(Into::into)
        })
    }
}

/// Writes a file that nobody looks for yet: it is renamed, or its folder is, once all are there.
fn write_parts(path: &Path, parts: &[Part<'_>]) -> Result<(), CheckpointError> {
    let views = parts.iter().map(|part| (part.name.as_str(), part));
    // Readers that look for it treat a file without the format as not theirs.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let written = safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(source) => source,
        other => io::Error::other(other),
    });
    let synced = written.and_then(|()| File::open(path)?.sync_all());
    synced.map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}
