//! What a checkpoint has for one weight: plain numbers, or codes with their scales.
//!
//! Source: bitsandbytes, `QuantState.as_dict(packed=True)` and `Linear8bitLt._save_to_state_dict`.

use burn::tensor::{AllocationProperty, Bytes, DType, Device, TensorData};
use half::bf16;
use safetensors::Dtype;

use super::{Checkpoint, CheckpointError, TensorEntry};
use crate::{PackedFormat, PackedWeight};
use idefics_kernels::formats::{
    Element, FormatError, FourBit, FourBitType, Int8, NestedAbsmax, Q4, QuantState, check_nested_quant_map,
};

/// A weight as the checkpoint has it, and the tensors that belong to it.
pub(super) struct Stored<'a> {
    /// The tensor of the weight's own name.
    pub(super) entry: &'a TensorEntry,
    /// What its bytes are.
    pub(super) kind: StoredKind,
    /// Names of the tensors beside it that explain it.
    pub(super) companions: Vec<String>,
}

/// What the bytes of a weight are.
pub(super) enum StoredKind {
    /// Numbers.
    Dense,
    /// Four-bit codes of bitsandbytes.
    FourBit(FourBitType),
    /// Eight-bit codes of LLM.int8.
    LlmInt8,
    /// Codes of [`Checkpoint::write_quantized`].
    Own(PackedFormat),
}

impl Checkpoint {
    /// What there is for the weight of that name; `None` if nothing is.
    pub(super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let entry = self.tensor(name)?;
        let there = |candidate: String| self.tensors.contains_key(&candidate).then_some(candidate);
        for kind in [FourBitType::Nf4, FourBitType::Fp4] {
            let Some(state) = there(quant_state_name(name, kind)) else { continue };
            let others = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
            let mut companions: Vec<String> =
                others.iter().filter_map(|part| there(format!("{name}.{part}"))).collect();
            companions.push(state);
            return Some(Stored { entry, kind: StoredKind::FourBit(kind), companions });
        }
        if let Some(scales) = there(scales_name(name)) {
            let format = if entry.dtype == Dtype::I8 { PackedFormat::Int8 } else { PackedFormat::Q4 };
            return Some(Stored { entry, kind: StoredKind::Own(format), companions: vec![scales] });
        }
        if entry.dtype == Dtype::I8 {
            let layer = layer_prefix(name);
            let others = ["SCB", "weight_format"];
            let companions = others.iter().filter_map(|part| there(format!("{layer}{part}"))).collect();
            return Some(Stored { entry, kind: StoredKind::LlmInt8, companions });
        }
        Some(Stored { entry, kind: StoredKind::Dense, companions: Vec::new() })
    }

    /// The codes and scales of a weight, `[d_out, d_in]`, that the file has quantised.
    pub(super) fn read_packed(
        &self,
        name: &str,
        stored: &Stored<'_>,
        dims: [usize; 2],
        device: &Device,
    ) -> Result<PackedWeight, CheckpointError> {
        let error = |source| stored.error(name, source);
        match stored.kind {
            StoredKind::FourBit(kind) => {
                let weight = self.four_bit(name, stored.entry, kind, dims).map_err(error)?;
                let scales = TensorData::from(weight.absmax());
                Ok(PackedWeight::new(stored.entry.codes(DType::U8), scales, PackedFormat::FourBit(kind), dims, device))
            }
            StoredKind::LlmInt8 => {
                let layer = layer_prefix(name);
                self.check_row_by_row(&format!("{layer}weight_format")).map_err(error)?;
                let scb = self.floats(&format!("{layer}SCB")).map_err(error)?;
                let weight = Int8::from_llm_int8(stored.entry.signed_bytes(), &scb, dims[0], dims[1]).map_err(error)?;
                let scales = TensorData::from(weight.scales());
                Ok(PackedWeight::new(stored.entry.codes(DType::I8), scales, PackedFormat::Int8, dims, device))
            }
            StoredKind::Own(PackedFormat::Q4) => {
                let scales: Vec<bf16> = self.elements(&scales_name(name), Dtype::BF16, "BF16").map_err(error)?;
                Q4::new(stored.entry.bytes(), scales.as_slice(), dims[0], dims[1]).map_err(error)?;
                let scales = TensorData::from(scales.as_slice());
                Ok(PackedWeight::new(stored.entry.codes(DType::U8), scales, PackedFormat::Q4, dims, device))
            }
            StoredKind::Own(_) => {
                let scales = self.floats(&scales_name(name)).map_err(error)?;
                Int8::new(stored.entry.signed_bytes(), scales.as_slice(), dims[0], dims[1]).map_err(error)?;
                let scales = TensorData::from(scales.as_slice());
                Ok(PackedWeight::new(stored.entry.codes(DType::I8), scales, PackedFormat::Int8, dims, device))
            }
            StoredKind::Dense => unreachable!("only quantised weights are read so"),
        }
    }

    /// A four-bit weight, its scales in full.
    fn four_bit<'a>(
        &self,
        name: &str,
        entry: &'a TensorEntry,
        kind: FourBitType,
        dims: [usize; 2],
    ) -> Result<FourBit<'a>, FormatError> {
        let state = QuantState::parse(self.part(&quant_state_name(name, kind))?.bytes())?;
        if state.kind != kind {
            let (found, expected) = (state.kind.name().to_owned(), "the type at the end of the tensor's name");
            return Err(FormatError::QuantStateField { field: "quant_type", found, expected });
        }
        if state.dims != dims {
            let (found, expected) = (format!("{:?}", state.dims), "the shape that config.json implies");
            return Err(FormatError::QuantStateField { field: "shape", found, expected });
        }
        kind.check_quant_map(&self.floats(&format!("{name}.quant_map"))?)?;
        let absmax = format!("{name}.absmax");
        let Some(offset) = state.nested_offset else {
            return FourBit::new(kind, entry.bytes(), self.floats(&absmax)?, dims[0], dims[1]);
        };
        check_nested_quant_map(&self.floats(&format!("{name}.nested_quant_map"))?)?;
        let absmax = NestedAbsmax {
            codes: self.part(&absmax)?.bytes().to_vec(),
            nested_absmax: self.floats(&format!("{name}.nested_absmax"))?,
            offset,
        };
        FourBit::from_nested(kind, entry.bytes(), &absmax, dims[0], dims[1])
    }

    /// Refuses the tiles that LLM.int8 once had for other GPUs; a file that does not say has rows.
    fn check_row_by_row(&self, name: &str) -> Result<(), FormatError> {
        let bytes = self.tensor(name).map_or(&[][..], TensorEntry::bytes);
        match bytes.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(found) => Err(FormatError::Tiled { name: name.to_owned(), found: *found }),
        }
    }
}

/// `X.` of `X.weight`.
fn layer_prefix(name: &str) -> &str {
    name.strip_suffix("weight").unwrap_or(name)
}

/// The scales that [`Checkpoint::write_quantized`] puts beside a weight.
pub(super) fn scales_name(name: &str) -> String {
    format!("{name}.scales")
}

pub(super) fn quant_state_name(name: &str, kind: FourBitType) -> String {
    format!("{name}.quant_state.bitsandbytes__{}", kind.name())
}

impl Checkpoint {
    /// A tensor beside a quantised weight.
    fn part(&self, name: &str) -> Result<&TensorEntry, FormatError> {
        self.tensor(name).ok_or_else(|| FormatError::PartMissing { name: name.to_owned() })
    }

    /// A tensor of F32 beside a quantised weight.
    fn floats(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        self.elements(name, Dtype::F32, "F32")
    }

    /// A tensor of one type beside a quantised weight.
    fn elements<E: Element>(&self, name: &str, dtype: Dtype, expected: &'static str) -> Result<Vec<E>, FormatError> {
        let entry = self.part(name)?;
        if entry.dtype != dtype {
            let found = format!("{:?}", entry.dtype);
            return Err(FormatError::PartDtype { name: name.to_owned(), found, expected });
        }
        Ok(entry.bytes().chunks_exact(size_of::<E>()).map(E::from_le_bytes).collect())
    }
}

impl Stored<'_> {
    /// Names the tensor that a format refuses.
    pub(super) fn error(&self, name: &str, source: FormatError) -> CheckpointError {
        CheckpointError::Quantized { file: self.entry.file.clone(), name: name.to_owned(), source: Box::new(source) }
    }
}

impl TensorEntry {
    /// The tensor where it lies in the memory map, if it has that dtype and the device computes in this machine's
    /// memory. Nothing is read, so values are not checked.
    pub(super) fn in_place(&self, dtype: DType, device: &Device) -> Option<TensorData> {
        self.lies_ready(dtype, device).then(|| TensorData::from_bytes(self.shared(), self.shape.clone(), dtype))
    }

    /// Whether the tensor can be used where it lies.
    pub(super) fn lies_ready(&self, dtype: DType, device: &Device) -> bool {
        let same = dense_dtype(self.dtype) == Some(dtype);
        let aligned = self.bytes().as_ptr().addr().is_multiple_of(dtype.size());
        same && aligned && cfg!(target_endian = "little") && crate::ops::computes_on(device)
    }

    /// Codes of one byte each, flat, where they lie.
    fn codes(&self, dtype: DType) -> TensorData {
        TensorData::from_bytes(self.shared(), [self.len_bytes()], dtype)
    }

    /// The bytes as signed numbers.
    fn signed_bytes(&self) -> &[i8] {
        bytemuck::cast_slice(self.bytes())
    }

    /// The bytes, which keep the map alive.
    pub(super) fn shared(&self) -> Bytes {
        struct Map(std::sync::Arc<memmap2::Mmap>);
        impl AsRef<[u8]> for Map {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let map = bytes::Bytes::from_owner(Map(self.map.clone()));
        Bytes::from_shared(map.slice(self.start..self.end), AllocationProperty::File)
    }
}

/// The tensor library's name of an element type that weights have.
pub(super) fn dense_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
