//! Finds out how a weight is stored (as plain numbers, or as codes with scales), and reads quantised weights.
//!
//! Source: bitsandbytes, `QuantState.as_dict(packed=True)` and `Linear8bitLt._save_to_state_dict`.

use std::fmt;
use std::num::NonZeroUsize;

use half::bf16;
use idefics_kernels::formats::{
    Element, FourBit, FourBitType, Int8, NestedAbsmax, PackedFormat, Q4, Weight, check_nested_quant_map,
};
use safetensors::Dtype;

use crate::{Checkpoint, CheckpointError, Int4Layout, QuantState, StoredWeightError, TensorEntry};

/// A weight in a checkpoint: its storage format, and the tensors that belong to it.
#[derive(Debug, Clone)]
pub struct StoredWeight<'a> {
    /// The tensor that has the weight's name or, for AWQ, GPTQ and compressed-tensors, the tensor with the packed
    /// codes.
    pub entry: &'a TensorEntry,
    /// How the bytes of `entry` are to be read.
    pub kind: StoredFormat,
    /// Names of the weight's other tensors, such as its scales. For AWQ, GPTQ and compressed-tensors, the names of all
    /// tensors of the weight.
    pub companions: Vec<String>,
}

/// How the bytes of a weight are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFormat {
    /// Numbers of the tensor's element type.
    Dense,
    /// Four-bit codes of bitsandbytes.
    FourBit(FourBitType),
    /// Eight-bit codes of LLM.int8.
    LlmInt8,
    /// Codes with scales in `X.weight.scales`, this project's own layout. [`int8_tensors`](crate::int8_tensors),
    /// [`q4_tensors`](crate::q4_tensors) and [`int4_tensors`](crate::int4_tensors) write it.
    Own(PackedFormat),
    /// Four-bit codes of AWQ, GPTQ or compressed-tensors.
    Int4 {
        /// The layout of the tensors.
        layout: Int4Layout,
        /// Number of inputs per group.
        group: NonZeroUsize,
    },
}

impl StoredFormat {
    /// Returns the quantisation format; `None` if the weight is not quantised.
    pub fn packed_format(self) -> Option<PackedFormat> {
        match self {
            Self::Dense => None,
            Self::FourBit(kind) => Some(PackedFormat::FourBit(kind)),
            Self::LlmInt8 => Some(PackedFormat::Int8),
            Self::Own(format) => Some(format),
            Self::Int4 { group, .. } => Some(PackedFormat::Int4 { group }),
        }
    }
}

/// Shows the name of the format. For [`StoredFormat::Int4`], also shows the layout and the group size.
impl fmt::Display for StoredFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int4 { layout, group } => write!(formatter, "int4 ({}, groups of {group})", layout.name()),
            kind => formatter.write_str(kind.packed_format().map_or("dense", PackedFormat::name)),
        }
    }
}

impl Checkpoint {
    /// Describes how the weight `name` is stored. Returns `None` if the checkpoint has no such weight.
    pub fn stored(&self, name: &str) -> Option<StoredWeight<'_>> {
        let Some(entry) = self.tensor(name) else { return self.stored_int4(name) };
        let existing = |candidate: String| self.tensors.contains_key(&candidate).then_some(candidate);
        for kind in [FourBitType::Nf4, FourBitType::Fp4] {
            let Some(state) = existing(quant_state_name(name, kind)) else { continue };
            let others = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
            let mut companions: Vec<String> =
                others.iter().filter_map(|suffix| existing(format!("{name}.{suffix}"))).collect();
            companions.push(state);
            return Some(StoredWeight { entry, kind: StoredFormat::FourBit(kind), companions });
        }
        if let Some(group) = existing(group_name(name)) {
            return Some(self.stored_own_int4(name, entry, group));
        }
        if let Some(scales) = existing(scales_name(name)) {
            let format = if entry.dtype == Dtype::I8 { PackedFormat::Int8 } else { PackedFormat::Q4 };
            return Some(StoredWeight { entry, kind: StoredFormat::Own(format), companions: vec![scales] });
        }
        if entry.dtype == Dtype::I8 {
            let layer = layer_prefix(name);
            let others = ["SCB", "weight_format"];
            let companions = others.iter().filter_map(|suffix| existing(format!("{layer}{suffix}"))).collect();
            return Some(StoredWeight { entry, kind: StoredFormat::LlmInt8, companions });
        }
        Some(StoredWeight { entry, kind: StoredFormat::Dense, companions: Vec::new() })
    }

    /// Reads a quantised weight of shape `dims`, `[d_out, d_in]`. The codes are borrowed from the memory map if they
    /// need no conversion. With double quantisation, the scales are quantised too, and are dequantised to f32. The
    /// order of the columns may differ from that of the inputs: see [`Self::input_order`].
    ///
    /// # Errors
    /// [`CheckpointError::Quantized`] if a tensor of the weight is missing or does not fit its format.
    ///
    /// # Panics
    /// If `stored` is [`StoredFormat::Dense`].
    pub fn read_packed<'a>(
        &'a self,
        name: &str,
        stored: &StoredWeight<'a>,
        dims: [usize; 2],
    ) -> Result<Weight<'a>, CheckpointError> {
        self.packed(name, stored, dims).map_err(|source| stored.error(name, source))
    }

    fn packed<'a>(
        &'a self,
        name: &str,
        StoredWeight { entry, kind, .. }: &StoredWeight<'a>,
        dims: [usize; 2],
    ) -> Result<Weight<'a>, StoredWeightError> {
        let [d_out, d_in] = dims;
        Ok(match *kind {
            StoredFormat::FourBit(kind) => self.four_bit(name, entry, kind, dims)?.into(),
            StoredFormat::LlmInt8 => {
                let layer = layer_prefix(name);
                self.check_row_major(&format!("{layer}weight_format"))?;
                let scb = self.floats(&format!("{layer}SCB"))?;
                Int8::from_llm_int8(entry.signed_bytes(), &scb, d_out, d_in)?.into()
            }
            StoredFormat::Int4 { layout, group } => self.int4(name, layout, group, dims)?.into(),
            StoredFormat::Own(PackedFormat::Int4 { group }) => self.own_int4(name, entry, group, dims)?.into(),
            StoredFormat::Own(PackedFormat::Q4) => {
                let scales: Vec<bf16> = self.elements(&scales_name(name), Dtype::BF16, "BF16")?;
                Q4::new(entry.bytes(), scales, d_out, d_in)?.into()
            }
            StoredFormat::Own(_) => {
                let scales = self.floats(&scales_name(name))?;
                Int8::new(entry.signed_bytes(), scales, d_out, d_in)?.into()
            }
            StoredFormat::Dense => unreachable!("`read_packed` is called for quantised weights only"),
        })
    }

    /// Reads a four-bit weight and dequantises its scales.
    fn four_bit<'a>(
        &self,
        name: &str,
        entry: &'a TensorEntry,
        kind: FourBitType,
        dims: [usize; 2],
    ) -> Result<FourBit<'a>, StoredWeightError> {
        let state = QuantState::parse(self.companion(&quant_state_name(name, kind))?.bytes())?;
        if state.kind != kind {
            let (found, expected) = (state.kind.name().to_owned(), "the type at the end of the tensor's name");
            return Err(StoredWeightError::QuantStateField { field: "quant_type", found, expected });
        }
        if state.dims != dims {
            let (found, expected) = (format!("{:?}", state.dims), "the shape that config.json implies");
            return Err(StoredWeightError::QuantStateField { field: "shape", found, expected });
        }
        kind.check_quant_map(&self.floats(&format!("{name}.quant_map"))?)?;
        let absmax = format!("{name}.absmax");
        let Some(offset) = state.nested_offset else {
            return Ok(FourBit::new(kind, entry.bytes(), self.floats(&absmax)?, dims[0], dims[1])?);
        };
        check_nested_quant_map(&self.floats(&format!("{name}.nested_quant_map"))?)?;
        let absmax = NestedAbsmax {
            codes: self.companion(&absmax)?.bytes().to_vec(),
            nested_absmax: self.floats(&format!("{name}.nested_absmax"))?,
            offset,
        };
        Ok(FourBit::from_nested(kind, entry.bytes(), &absmax, dims[0], dims[1])?)
    }

    /// Rejects the tiled layouts that LLM.int8 used on older GPUs. A file without `weight_format` is row-major.
    fn check_row_major(&self, name: &str) -> Result<(), StoredWeightError> {
        let bytes = self.tensor(name).map_or(&[][..], TensorEntry::bytes);
        match bytes.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(found) => Err(StoredWeightError::Tiled { name: name.to_owned(), found: *found }),
        }
    }
}

/// Returns the prefix that the tensors of a weight's layer share: `X.` for `X.weight`.
pub(crate) fn layer_prefix(name: &str) -> &str {
    name.strip_suffix("weight").unwrap_or(name)
}

/// Returns the name of the tensor with the scales of a weight in this project's own layout.
pub(crate) fn scales_name(name: &str) -> String {
    format!("{name}.scales")
}

/// Returns the name of the tensor with the group size of an int4 weight in this project's own layout.
pub(crate) fn group_name(name: &str) -> String {
    format!("{name}.group")
}

/// Returns the name of the tensor with the input order of an int4 weight in this project's own layout.
pub(crate) fn order_name(name: &str) -> String {
    format!("{name}.order")
}

pub(crate) fn quant_state_name(name: &str, kind: FourBitType) -> String {
    format!("{name}.quant_state.bitsandbytes__{}", kind.name())
}

impl Checkpoint {
    /// Looks up a companion tensor of a quantised weight.
    pub(crate) fn companion(&self, name: &str) -> Result<&TensorEntry, StoredWeightError> {
        self.tensor(name).ok_or_else(|| StoredWeightError::PartMissing { name: name.to_owned() })
    }

    /// Reads a companion tensor of type F32.
    pub(crate) fn floats(&self, name: &str) -> Result<Vec<f32>, StoredWeightError> {
        self.elements(name, Dtype::F32, "F32")
    }

    /// Reads a companion tensor of type `dtype`.
    fn elements<E: Element>(
        &self,
        name: &str,
        dtype: Dtype,
        expected: &'static str,
    ) -> Result<Vec<E>, StoredWeightError> {
        let entry = self.companion(name)?;
        if entry.dtype != dtype {
            let found = format!("{:?}", entry.dtype);
            return Err(StoredWeightError::PartDtype { name: name.to_owned(), found, expected });
        }
        Ok(entry.bytes().chunks_exact(size_of::<E>()).map(E::from_le_bytes).collect())
    }
}

impl StoredWeight<'_> {
    /// Creates an error about this weight that names its file and tensor.
    pub fn error(&self, name: &str, source: impl Into<StoredWeightError>) -> CheckpointError {
        let (file, name, source) = (self.entry.file.clone(), name.to_owned(), Box::new(source.into()));
        CheckpointError::Quantized { file, name, source }
    }
}

impl TensorEntry {
    /// Returns the bytes as signed integers.
    fn signed_bytes(&self) -> &[i8] {
        bytemuck::cast_slice(self.bytes())
    }
}
