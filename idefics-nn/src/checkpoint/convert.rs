//! Bytes of a file to a tensor's data in the dtype that was asked for.

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::{CheckpointError, TensorEntry};

/// Elements that one task converts.
const CHUNK: usize = 1 << 16;

/// A weight type, on disk or in memory.
trait Weight: Copy + Send + Sync + 'static {
    const BYTES: usize;
    fn read(bytes: &[u8]) -> Self;
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;
}

macro_rules! weight {
    ($type:ty, $bytes:literal, $to_f32:expr, $from_f32:expr) => {
        impl Weight for $type {
            const BYTES: usize = $bytes;
            fn read(bytes: &[u8]) -> Self {
                <$type>::from_le_bytes(bytes.try_into().expect("chunks have the type's size"))
            }
            fn to_f32(self) -> f32 {
                $to_f32(self)
            }
            fn from_f32(value: f32) -> Self {
                $from_f32(value)
            }
        }
    };
}
weight!(f32, 4, |value| value, |value| value);
weight!(f16, 2, f16::to_f32, f16::from_f32);
weight!(bf16, 2, bf16::to_f32, bf16::from_f32);

/// Reads a tensor as `dtype` (F32, F16 or BF16), rounding to nearest.
pub(super) fn read_as(name: &str, entry: &TensorEntry, dtype: DType) -> Result<TensorData, CheckpointError> {
    match dtype {
        DType::F32 => read_to::<f32>(name, entry, dtype),
        DType::F16 => read_to::<f16>(name, entry, dtype),
        DType::BF16 => read_to::<bf16>(name, entry, dtype),
        other => panic!("weights load as F32, F16 or BF16, not {other:?}"),
    }
}

fn read_to<Out: Weight + burn::tensor::Element>(
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
fn convert<In: Weight, Out: Weight>(bytes: &[u8]) -> (Vec<Out>, Option<(usize, usize)>) {
    let mut values = vec![Out::from_f32(0.0); bytes.len() / In::BYTES];
    let bad = values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * In::BYTES))
        .enumerate()
        .map(|(chunk, (values, bytes))| {
            let mut finite = true;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(In::BYTES)) {
                *value = Out::from_f32(In::read(bytes).to_f32());
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
