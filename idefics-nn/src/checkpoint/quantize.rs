//! Rewrites a checkpoint with quantised linear layers.

use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use idefics_checkpoint::{
    Checkpoint, CheckpointError, NamedTensor, QuantDtype, ShardWriter, TensorEntry, four_bit_tensors, int4_tensors,
    int8_tensors, q4_tensors,
};
use idefics_kernels::formats::{FourBit, Int4, Int8, PackedFormat, Q4};

use super::convert::read_as;
use super::in_place::dense_dtype;
use super::load::account;
use super::{LoadOptions, LoadProgress, Quantization};
use crate::parameters::{Matrix, matrices};

/// Writes every tensor of a checkpoint into the existing folder `folder`: the linear layers of `module` quantised
/// according to `options`, everything else unchanged.
///
/// NF4 and FP4 use the layout of bitsandbytes. Int8, Q4 and Int4 use a layout of this project: `X.weight` holds the
/// codes and `X.weight.scales` the scales, as in [`Int8`], [`Q4`] and [`Int4`]. The output is one file, or shards of
/// about 512 MiB with an index.
///
/// # Errors
/// [`CheckpointError::AlreadyQuantized`], the errors of [`LoadModule::load`](super::LoadModule::load),
/// [`CheckpointError::Write`], and any error that `progress` returns. `progress` is called after each tensor.
///
/// # Panics
/// If `options.quantize` is `None`, or asks for GGUF blocks, which this layout cannot hold.
pub fn write_quantized<M: Module, E: From<CheckpointError>>(
    checkpoint: &Checkpoint,
    module: &M,
    options: &LoadOptions<'_>,
    folder: &Path,
    mut progress: impl FnMut(LoadProgress) -> Result<(), E>,
) -> Result<(), E> {
    let quantization = options.quantize.as_ref().expect("`options.quantize` must be set");
    let matrices = matrices(module);
    let linear =
        |name: &str| name.strip_prefix(options.prefix).is_some_and(|path| matrices.get(path) == Some(&Matrix::Linear));
    let layers = matrices.iter().filter(|(_, matrix)| **matrix == Matrix::Linear);
    let mut names: Vec<String> = layers.map(|(path, _)| format!("{}{path}", options.prefix)).collect();
    names.sort();
    for name in names {
        let Some(stored) = checkpoint.stored(&name) else { continue };
        if let Some(found) = stored.kind.packed_format() {
            let (file, found, asked) = (stored.entry.file.clone(), found.name(), quantization.format.name());
            Err(CheckpointError::AlreadyQuantized { file, name, found, asked })?;
        }
    }
    account(checkpoint, module, &matrices, options).check()?;
    let bytes_total = checkpoint.tensors().map(|(_, entry)| entry.len_bytes() as u64).sum();
    let mut state = LoadProgress { bytes_done: 0, bytes_total };
    let mut shards = ShardWriter::new(folder);
    for (name, entry) in checkpoint.tensors() {
        if linear(name) && quantization.covers(name) {
            let tensors = quantized(name, entry, quantization)?;
            tensors.into_iter().try_for_each(|tensor| shards.push(tensor))?;
        } else {
            let bytes = entry.elements();
            let (name, shape) = (name.to_owned(), entry.shape.clone());
            shards.push(NamedTensor { name, dtype: entry.dtype, shape, bytes })?;
        }
        state.bytes_done += entry.len_bytes() as u64;
        progress(state)?;
    }
    Ok(shards.finish()?)
}

/// Returns the tensors that represent a linear layer's quantised weight.
fn quantized(
    name: &str,
    entry: &TensorEntry,
    quantization: &Quantization,
) -> Result<Vec<NamedTensor<'static>>, CheckpointError> {
    let data = read_as(name, entry, DType::F32)?;
    entry.release();
    let weights = data.as_slice::<f32>().expect("the data was read as f32");
    let [d_out, d_in]: [usize; 2] =
        entry.shape.as_slice().try_into().expect("the shape was compared with that of the module");
    let tensors = match quantization.format {
        PackedFormat::Int8 => Int8::quantize(weights, d_out, d_in).map(|weight| int8_tensors(name, weight)),
        PackedFormat::Q4 => Q4::quantize(weights, d_out, d_in).map(|weight| q4_tensors(name, weight)),
        PackedFormat::Int4 { group } => {
            Int4::quantize(weights, group, [d_out, d_in]).map(|weight| int4_tensors(name, weight, None))
        }
        PackedFormat::Blocks(_) => panic!("GGUF blocks cannot be written here; use `idefics_checkpoint::gguf`"),
        PackedFormat::FourBit(kind) => {
            let dtype = match dense_dtype(entry.dtype) {
                Some(DType::BF16) => QuantDtype::Bfloat16,
                Some(DType::F16) => QuantDtype::Float16,
                _ => QuantDtype::Float32,
            };
            FourBit::quantize(kind, weights, d_out, d_in)
                .and_then(|weight| four_bit_tensors(name, weight, dtype, quantization.double_quant))
        }
    };
    tensors.map_err(|source| CheckpointError::Quantized {
        file: entry.file.clone(),
        name: name.to_owned(),
        source: Box::new(source.into()),
    })
}
