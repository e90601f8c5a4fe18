//! Uses checkpoint tensors directly in the memory map, as Burn tensors.

use std::borrow::Cow;

use burn::tensor::{AllocationProperty, Bytes, DType, Device, TensorData};
use idefics_checkpoint::{Checkpoint, CheckpointError, StoredWeight, TensorEntry};
use idefics_kernels::formats::{GgufType, Int4, PackedFormat, Weight};
use safetensors::Dtype;

use crate::PackedWeight;

/// Reads the codes and scales of a weight, `[d_out, d_in]`, that is stored quantised.
pub(super) fn read_packed(
    checkpoint: &Checkpoint,
    name: &str,
    stored: &StoredWeight<'_>,
    dims: [usize; 2],
    device: &Device,
) -> Result<PackedWeight, CheckpointError> {
    let (dtype, scales, format) = match checkpoint.read_packed(name, stored, dims)? {
        Weight::Int4(weight) => return int4(checkpoint, name, stored, weight, device),
        Weight::Int8(weight) => (DType::I8, TensorData::from(weight.scales()), PackedFormat::Int8),
        Weight::FourBit(weight) => (DType::U8, TensorData::from(weight.absmax()), PackedFormat::FourBit(weight.kind())),
        Weight::Q4(weight) => (DType::U8, TensorData::from(weight.scales()), PackedFormat::Q4),
        other => unreachable!("{} is not a packed format", other.name()),
    };
    let codes = TensorData::from_bytes(shared(stored.entry), [stored.entry.len_bytes()], dtype);
    Ok(PackedWeight::new(codes, scales, format, dims, device))
}

/// Converts an int4 weight. Its codes stay in the memory map if they already have the order that the kernels expect.
fn int4(
    checkpoint: &Checkpoint,
    name: &str,
    stored: &StoredWeight<'_>,
    weight: Int4<'_>,
    device: &Device,
) -> Result<PackedWeight, CheckpointError> {
    let (group, dims) = (weight.group(), weight.dims());
    let order = checkpoint.input_order(name, stored, dims)?;
    let (codes, scales) = weight.into_parts();
    let codes = match codes {
        Cow::Borrowed(codes) => TensorData::from_bytes(shared(stored.entry), [codes.len()], DType::U8),
        Cow::Owned(codes) => {
            stored.entry.release();
            let len = codes.len();
            TensorData::new(codes, [len])
        }
    };
    let scales = TensorData::from(&scales[..]);
    Ok(PackedWeight::new(codes, scales, PackedFormat::Int4 { group }, dims, device).with_order(order))
}

/// Returns the weight, `[d_out, d_in]`, of a tensor that is stored in GGUF blocks. The blocks are not copied, unless
/// the rows must be reordered. Returns `None` if the tensor is not in blocks, or if the device does not compute in host
/// memory. The values are not checked.
pub(super) fn blocks(entry: &TensorEntry, device: &Device) -> Option<PackedWeight> {
    let kind = blocks_on(entry, device)?;
    let bytes = match entry.is_in_order() {
        true => shared(entry),
        false => Bytes::from_bytes_vec(entry.bytes_in_order().into_owned()),
    };
    let blocks = TensorData::from_bytes(bytes, [entry.len_bytes()], DType::U8);
    Some(PackedWeight::from_blocks(blocks, kind, [entry.shape[0], entry.shape[1]], device))
}

/// Returns the type of the GGUF blocks in which a matrix is kept on `device`, or `None` if it is not kept in blocks.
pub(super) fn blocks_on(entry: &TensorEntry, device: &Device) -> Option<GgufType> {
    entry.block_type().filter(|_| entry.shape.len() == 2 && crate::ops::reads_bytes(device))
}

/// Returns the tensor in the memory map, without a copy, if it already has `dtype` and the device computes in host
/// memory. Nothing is read, so the values are not checked.
pub(super) fn in_place(entry: &TensorEntry, dtype: DType, device: &Device) -> Option<TensorData> {
    is_usable_in_place(entry, dtype, device).then(|| TensorData::from_bytes(shared(entry), entry.shape.clone(), dtype))
}

/// Returns whether the tensor can be used directly in the memory map.
pub(super) fn is_usable_in_place(entry: &TensorEntry, dtype: DType, device: &Device) -> bool {
    let same = entry.is_plain() && dense_dtype(entry.dtype) == Some(dtype);
    let aligned = entry.bytes().as_ptr().addr().is_multiple_of(dtype.size());
    same && aligned && cfg!(target_endian = "little") && crate::ops::computes_on(device)
}

/// Returns the tensor's bytes, which keep the memory map alive.
pub(super) fn shared(entry: &TensorEntry) -> Bytes {
    struct Entry(TensorEntry);
    impl AsRef<[u8]> for Entry {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes()
        }
    }
    Bytes::from_shared(bytes::Bytes::from_owner(Entry(entry.clone())), AllocationProperty::File)
}

/// Returns Burn's dtype for F32, F16 or BF16 of safetensors, and `None` for any other dtype.
pub(super) fn dense_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
