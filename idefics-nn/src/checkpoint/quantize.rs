//! Writing a checkpoint again, its linear layers quantised.

use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use idefics_checkpoint::{
    Checkpoint, CheckpointError, NamedTensor, QuantDtype, ShardWriter, TensorEntry, four_bit_tensors, int8_tensors,
    q4_tensors,
};
use idefics_kernels::formats::{FourBit, Int8, PackedFormat, Q4};

use super::convert::read_as;
use super::in_place::dense_dtype;
use super::load::account;
use super::{LoadOptions, LoadProgress, Quantization};
use crate::parameters::{Matrix, matrices};

/// Writes every tensor of a checkpoint into `folder`, which is there, the linear layers of `module` quantised as
/// `options` say and all else as it is.
///
/// NF4 and FP4 have the layout of bitsandbytes. Int8 and Q4 have a layout of their own: `X.weight` is the codes and
/// `X.weight.scales` the scales, as [`Int8`] and [`Q4`] have them. One file, or shards of about half a gibibyte
/// with their index.
///
/// # Errors
/// [`CheckpointError::AlreadyQuantized`], what [`LoadModule::load`](super::LoadModule::load) refuses,
/// [`CheckpointError::Write`], and what `progress` returns after a tensor.
///
/// # Panics
/// If `options` quantise nothing.
pub fn write_quantized<M: Module, E: From<CheckpointError>>(
    checkpoint: &Checkpoint,
    module: &M,
    options: &LoadOptions<'_>,
    folder: &Path,
    mut progress: impl FnMut(LoadProgress) -> Result<(), E>,
) -> Result<(), E> {
    let quantization = options.quantize.as_ref().expect("a format is given");
    let matrices = matrices(module);
    let linear =
        |name: &str| name.strip_prefix(options.prefix).is_some_and(|path| matrices.get(path) == Some(&Matrix::Linear));
    for (name, _) in checkpoint.tensors().filter(|(name, _)| linear(name)) {
        let stored = checkpoint.stored(name).expect("it is in the list");
        if let Some(found) = stored.kind.packed_format() {
            Err(CheckpointError::AlreadyQuantized {
                file: stored.entry.file.clone(),
                name: name.to_owned(),
                found: found.name(),
                asked: quantization.format.name(),
            })?;
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

/// A linear layer's weight as the tensors that stand for it.
fn quantized(
    name: &str,
    entry: &TensorEntry,
    quantization: &Quantization,
) -> Result<Vec<NamedTensor<'static>>, CheckpointError> {
    let data = read_as(name, entry, DType::F32)?;
    entry.release();
    let weights = data.as_slice::<f32>().expect("it was read as f32");
    let [d_out, d_in]: [usize; 2] = entry.shape.as_slice().try_into().expect("its shape is the module's");
    let tensors = match quantization.format {
        PackedFormat::Int8 => Int8::quantize(weights, d_out, d_in).map(|weight| int8_tensors(name, weight)),
        PackedFormat::Q4 => Q4::quantize(weights, d_out, d_in).map(|weight| q4_tensors(name, weight)),
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
