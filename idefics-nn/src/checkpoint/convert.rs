//! Converts a tensor of a file to tensor data of the requested dtype.

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use idefics_checkpoint::{CheckpointError, TensorEntry};
use idefics_kernels::formats::Element;
use rayon::prelude::*;
use safetensors::Dtype;

use super::in_place::{dense_dtype, shared};

/// Number of elements converted by one task.
const CHUNK: usize = 1 << 16;

/// Reads a tensor as `dtype` (F32, F16 or BF16), rounding to nearest.
pub(super) fn read_as(name: &str, entry: &TensorEntry, dtype: DType) -> Result<TensorData, CheckpointError> {
    match dtype {
        DType::F32 => read_to::<f32>(name, entry, dtype),
        DType::F16 => read_to::<f16>(name, entry, dtype),
        DType::BF16 => read_to::<bf16>(name, entry, dtype),
        other => panic!("weights can be loaded as F32, F16 or BF16, not as {other:?}"),
    }
}

/// Reads a tensor like [`read_as`], for a device that makes its own copy. If the file already has `dtype`, the bytes
/// are uploaded straight from the memory map.
pub(super) fn upload_as(name: &str, entry: &TensorEntry, dtype: DType) -> Result<TensorData, CheckpointError> {
    let bad = match entry.dtype {
        _ if !entry.is_plain() || dense_dtype(entry.dtype) != Some(dtype) || cfg!(target_endian = "big") => {
            return read_as(name, entry, dtype);
        }
        Dtype::F32 => find_bad::<f32>(entry.bytes()),
        Dtype::F16 => find_bad::<f16>(entry.bytes()),
        _ => find_bad::<bf16>(entry.bytes()),
    };
    match bad {
        None => Ok(TensorData::from_bytes(shared(entry), entry.shape.clone(), dtype)),
        Some(bad) => Err(non_finite(name, entry, dtype, bad)),
    }
}

/// Number of non-finite values, and the index of the first one.
type Bad = (usize, usize);

fn non_finite(name: &str, entry: &TensorEntry, dtype: DType, (count, first): Bad) -> CheckpointError {
    CheckpointError::NonFinite {
        file: entry.file.clone(),
        name: name.to_owned(),
        dtype: format!("{dtype:?}"),
        count,
        first,
    }
}

/// Combines the results of two parts of a tensor.
fn merge(left: Option<Bad>, right: Option<Bad>) -> Option<Bad> {
    match (left, right) {
        (Some((n, first)), Some((m, second))) => Some((n + m, first.min(second))),
        (one, other) => one.or(other),
    }
}

/// Finds the non-finite values of a chunk that begins at index `start`.
fn bad_among(values: impl Iterator<Item = f32>, start: usize) -> Option<Bad> {
    let bad = values.enumerate().filter(|(_, value)| !value.is_finite());
    bad.fold(None, |bad, (index, _)| merge(bad, Some((1, start + index))))
}

fn find_bad<In: Element>(bytes: &[u8]) -> Option<Bad> {
    let chunks = bytes.par_chunks(CHUNK * size_of::<In>()).enumerate();
    let bad = chunks.map(|(chunk, bytes)| {
        bad_among(bytes.chunks_exact(size_of::<In>()).map(|bytes| In::from_le_bytes(bytes).to_f32()), chunk * CHUNK)
    });
    bad.reduce(|| None, merge)
}

fn read_to<Out: Element + burn::tensor::Element>(
    name: &str,
    entry: &TensorEntry,
    dtype: DType,
) -> Result<TensorData, CheckpointError> {
    let (values, bad) = match entry.dtype {
        _ if !entry.is_plain() => decode::<Out>(entry),
        Dtype::F32 => convert::<f32, Out>(entry.bytes()),
        Dtype::F16 => convert::<f16, Out>(entry.bytes()),
        Dtype::BF16 => convert::<bf16, Out>(entry.bytes()),
        found => return Err(CheckpointError::Dtype { file: entry.file.clone(), name: name.to_owned(), found }),
    };
    match bad {
        None => Ok(TensorData::new(values, entry.shape.clone())),
        Some(bad) => Err(non_finite(name, entry, dtype, bad)),
    }
}

/// Converts values to `Out`, and finds the non-finite ones among the results.
fn convert<In: Element, Out: Element>(bytes: &[u8]) -> (Vec<Out>, Option<Bad>) {
    let mut values = vec![Out::from_f32(0.0); bytes.len() / size_of::<In>()];
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size_of::<In>())).enumerate();
    let bad = chunks.map(|(chunk, (values, bytes))| {
        let mut finite = true;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<In>())) {
            *value = Out::from_f32(In::from_le_bytes(bytes).to_f32());
            finite &= value.to_f32().is_finite();
        }
        if finite { None } else { bad_among(values.iter().map(|value| value.to_f32()), chunk * CHUNK) }
    });
    let bad = bad.reduce(|| None, merge);
    (values, bad)
}

/// Reads a tensor that is not stored as plain elements (see [`TensorEntry::is_plain`]), and finds its non-finite
/// values.
fn decode<Out: Element>(entry: &TensorEntry) -> (Vec<Out>, Option<Bad>) {
    let mut values = vec![Out::from_f32(0.0); entry.num_elements()];
    let row_len = entry.row_len();
    let rows = (CHUNK / row_len).max(1);
    let bad = values.par_chunks_mut(rows * row_len).enumerate().map(|(chunk, values)| {
        let first = chunk * rows;
        let mut floats = vec![0.0; values.len()];
        entry.read_rows(first..first + values.len() / row_len, &mut floats);
        let mut finite = true;
        for (value, float) in values.iter_mut().zip(floats) {
            *value = Out::from_f32(float);
            finite &= value.to_f32().is_finite();
        }
        if finite { None } else { bad_among(values.iter().map(|value| value.to_f32()), first * row_len) }
    });
    let bad = bad.reduce(|| None, merge);
    (values, bad)
}
