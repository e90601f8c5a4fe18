//! Bytes of a file to a tensor's data in the dtype that was asked for.

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::{CheckpointError, TensorEntry};
use crate::formats::Element;

/// Elements that one task converts.
const CHUNK: usize = 1 << 16;

/// Reads a tensor as `dtype` (F32, F16 or BF16), rounding to nearest.
pub(super) fn read_as(name: &str, entry: &TensorEntry, dtype: DType) -> Result<TensorData, CheckpointError> {
    match dtype {
        DType::F32 => read_to::<f32>(name, entry, dtype),
        DType::F16 => read_to::<f16>(name, entry, dtype),
        DType::BF16 => read_to::<bf16>(name, entry, dtype),
        other => panic!("weights load as F32, F16 or BF16, not {other:?}"),
    }
}

fn read_to<Out: Element + burn::tensor::Element>(
    name: &str,
    entry: &TensorEntry,
    dtype: DType,
) -> Result<TensorData, CheckpointError> {
    let (values, bad) = match entry.dtype {
        Dtype::F32 => convert::<f32, Out>(entry.bytes()),
        Dtype::F16 => convert::<f16, Out>(entry.bytes()),
        Dtype::BF16 => convert::<bf16, Out>(entry.bytes()),
        found => return Err(CheckpointError::Dtype { file: entry.file.clone(), name: name.to_owned(), found }),
    };
    match bad {
        None => Ok(TensorData::new(values, entry.shape.clone())),
        Some((count, first)) => Err(CheckpointError::NonFinite {
            file: entry.file.clone(),
            name: name.to_owned(),
            dtype: format!("{dtype:?}"),
            count,
            first,
        }),
    }
}

/// The converted values, and of those that are not finite how many there are and the first one's index.
fn convert<In: Element, Out: Element>(bytes: &[u8]) -> (Vec<Out>, Option<(usize, usize)>) {
    let mut values = vec![Out::from_f32(0.0); bytes.len() / size_of::<In>()];
    let bad = values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * size_of::<In>()))
        .enumerate()
        .map(|(chunk, (values, bytes))| {
            let mut finite = true;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<In>())) {
                *value = Out::from_f32(In::from_le_bytes(bytes).to_f32());
                finite &= value.to_f32().is_finite();
            }
            if finite {
                return None;
            }
            let bad = |value: &Out| !value.to_f32().is_finite();
            let first = values.iter().position(bad).map(|index| chunk * CHUNK + index)?;
            Some((values.iter().filter(|value| bad(value)).count(), first))
        })
        .reduce(
            || None,
            |left, right| match (left, right) {
                (Some((n, first)), Some((m, second))) => Some((n + m, first.min(second))),
                (one, other) => one.or(other),
            },
        );
    (values, bad)
}
