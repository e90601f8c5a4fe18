//! Reads four-bit weights with scales and zero points per group: AWQ, GPTQ and compressed-tensors.
//!
//! The codes of a weight `X.weight` are in the tensor `X.qweight` or `X.weight_packed`. A layer that is not quantised
//! has a plain tensor `X.weight`.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use idefics_kernels::formats::{Element, Int4, PackedFormat};
use safetensors::Dtype;

use crate::int4_config::Int4Layout;
use crate::stored::{layer_prefix, order_name, scales_name};
use crate::{Checkpoint, CheckpointError, StoredFormat, StoredWeight, StoredWeightError, TensorEntry};

/// Number of four-bit codes in a 32-bit word.
const PER_WORD: usize = 8;

impl Int4Layout {
    /// Returns the name of the quantisation method, as in `quantization_config.quant_method`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awq => "awq",
            Self::Gptq { .. } => "gptq",
            Self::CompressedTensors => "compressed-tensors",
        }
    }

    /// Returns the names of a layer's tensors, without the layer's name. The first tensor holds the codes.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Awq => &["qweight", "qzeros", "scales"],
            Self::Gptq { .. } => &["qweight", "qzeros", "scales", "g_idx"],
            Self::CompressedTensors => {
                &["weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"]
            }
        }
    }

    /// Returns the maximum number of inputs of a weight whose codes have this shape, or 0 if the shape is not that of a
    /// matrix.
    fn inputs(self, shape: &[usize]) -> usize {
        match (self, shape) {
            (Self::Awq, [inputs, _]) => *inputs,
            (Self::Gptq { .. }, [words, _]) | (Self::CompressedTensors, [_, words]) => words.saturating_mul(PER_WORD),
            _ => 0,
        }
    }
}

/// The tensors of a weight after a check of their types and shapes, and the order of the weight's inputs.
struct Parts<'a> {
    codes: &'a TensorEntry,
    zeros: Option<&'a TensorEntry>,
    scales: &'a TensorEntry,
    /// For each column of the weight in memory, the input that it belongs to. `None` if the columns are in the order of
    /// the inputs.
    order: Option<Vec<u32>>,
}

impl Checkpoint {
    /// Describes the weight `name` if it is packed by AWQ, GPTQ or compressed-tensors. The tensor with the codes of
    /// such a weight has another name.
    pub(crate) fn stored_int4(&self, name: &str) -> Option<StoredWeight<'_>> {
        let packing = self.int4?;
        let layer = name.strip_suffix(".weight")?;
        let named = packing.layout.parts().iter().map(|part| format!("{layer}.{part}"));
        let companions: Vec<String> = named.filter(|name| self.tensors.contains_key(name)).collect();
        let entry = self.tensor(&format!("{layer}.{}", packing.layout.parts()[0]))?;
        let row = NonZeroUsize::new(packing.layout.inputs(&entry.shape)).unwrap_or(NonZeroUsize::MIN);
        let kind = StoredFormat::Int4 { layout: packing.layout, group: packing.group.unwrap_or(row) };
        Some(StoredWeight { entry, kind, companions })
    }

    /// Returns the name of the weight whose packed codes are in the tensor `name`: `X.weight` for `X.qweight`. Returns
    /// `None` if the tensor does not hold such codes.
    pub(crate) fn weight_of_codes(&self, name: &str) -> Option<String> {
        let codes = self.int4?.layout.parts()[0];
        let layer = name.strip_suffix(codes)?.strip_suffix('.')?;
        Some(format!("{layer}.weight"))
    }

    /// Returns whether `name` is a bias of zeros in a layer with packed codes. GPTQ stores such a bias for layers that
    /// have no bias.
    pub fn is_empty_bias(&self, name: &str) -> bool {
        let layer = name.strip_suffix(".bias").zip(self.int4);
        let is_packed = layer.is_some_and(|(layer, packing)| {
            self.tensors.contains_key(&format!("{layer}.{}", packing.layout.parts()[0]))
        });
        is_packed && self.tensor(name).is_some_and(|bias| bias.bytes().iter().all(|byte| *byte == 0))
    }

    /// Checks the types and shapes of the tensors that store a weight of shape `dims`, `[d_out, d_in]`. The codes and
    /// scales are not read. Only weights of AWQ, GPTQ and compressed-tensors are checked.
    ///
    /// # Errors
    /// [`CheckpointError::Quantized`] if a tensor is missing, or has the wrong type or shape.
    pub fn check_packed(&self, name: &str, stored: &StoredWeight<'_>, dims: [usize; 2]) -> Result<(), CheckpointError> {
        match stored.kind {
            StoredFormat::Int4 { layout, group } => {
                self.int4_parts(name, layout, group, dims).map(drop).map_err(|source| stored.error(name, source))
            }
            _ => Ok(()),
        }
    }

    /// Returns, for each column of the weight from [`Self::read_packed`], the input that it belongs to, `[d_in]`.
    /// Returns `None` if the columns are in the order of the inputs, as for most weights.
    ///
    /// # Errors
    /// [`CheckpointError::Quantized`] if a tensor of the weight is missing or invalid.
    pub fn input_order(
        &self,
        name: &str,
        stored: &StoredWeight<'_>,
        dims: [usize; 2],
    ) -> Result<Option<Vec<u32>>, CheckpointError> {
        let order = match stored.kind {
            StoredFormat::Int4 { layout, group } => self.int4_parts(name, layout, group, dims).map(|parts| parts.order),
            StoredFormat::Own(PackedFormat::Int4 { .. }) => self.own_order(&order_name(name), dims[1]),
            _ => Ok(None),
        };
        order.map_err(|source| stored.error(name, source))
    }

    /// Describes an int4 weight in this project's own layout. `group` is the name of the tensor with the group size. A
    /// size that is not positive is replaced by 1. The weight is then rejected when it is read, because its number of
    /// scales does not match.
    pub(crate) fn stored_own_int4<'a>(&'a self, name: &str, entry: &'a TensorEntry, group: String) -> StoredWeight<'a> {
        let size = self.tensor(&group).and_then(|entry| entry.bytes().first_chunk().copied()).map(i64::from_le_bytes);
        let size = size.and_then(|size| usize::try_from(size).ok()).and_then(NonZeroUsize::new);
        let kind = StoredFormat::Own(PackedFormat::Int4 { group: size.unwrap_or(NonZeroUsize::MIN) });
        let others = [scales_name(name), order_name(name)].into_iter().filter(|name| self.tensors.contains_key(name));
        StoredWeight { entry, kind, companions: [group].into_iter().chain(others).collect() }
    }

    /// Reads an int4 weight in this project's own layout.
    pub(crate) fn own_int4<'a>(
        &self,
        name: &str,
        entry: &'a TensorEntry,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Int4<'a>, StoredWeightError> {
        Ok(Int4::new(entry.bytes(), self.floats(&scales_name(name))?, group, dims)?)
    }

    /// Reads the order of the inputs in this project's own layout, and checks that it contains each input once. Returns
    /// `None` if the checkpoint has no such tensor.
    fn own_order(&self, name: &str, d_in: usize) -> Result<Option<Vec<u32>>, StoredWeightError> {
        let Some(entry) = self.tensor(name) else { return Ok(None) };
        check_part(name, entry, &[Dtype::I32], "I32", &[d_in])?;
        let order: Vec<i32> = entry.bytes().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        let mut is_taken = vec![false; d_in];
        for (at, input) in order.iter().enumerate() {
            let place = usize::try_from(*input).ok().and_then(|input| is_taken.get_mut(input));
            match place {
                Some(place) if !*place => *place = true,
                _ => return Err(StoredWeightError::Order { name: name.to_owned(), at, found: *input, inputs: d_in }),
            }
        }
        Ok(Some(order.into_iter().map(i32::cast_unsigned).collect()))
    }

    /// Reads a weight of AWQ, GPTQ or compressed-tensors, and sorts its columns by group.
    pub(crate) fn int4(
        &self,
        name: &str,
        layout: Int4Layout,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Int4<'_>, StoredWeightError> {
        let Parts { codes, zeros, scales, order } = self.int4_parts(name, layout, group, dims)?;
        let (zeros, scales, order) = (zeros.map(TensorEntry::bytes), numbers(scales), order.as_deref());
        let stored_zeros = zeros.unwrap_or_default();
        Ok(match layout {
            Int4Layout::Awq => Int4::from_awq(codes.bytes(), stored_zeros, &scales, group, dims)?,
            Int4Layout::Gptq { zero_offset } => {
                Int4::from_gptq(codes.bytes(), stored_zeros, zero_offset, &scales, order, group, dims)?
            }
            Int4Layout::CompressedTensors => {
                Int4::from_compressed_tensors(codes.bytes(), zeros, &scales, order, group, dims)?
            }
        })
    }

    fn int4_parts(
        &self,
        name: &str,
        layout: Int4Layout,
        group: NonZeroUsize,
        dims: [usize; 2],
    ) -> Result<Parts<'_>, StoredWeightError> {
        let layer = layer_prefix(name);
        let named = |part: &str| format!("{layer}{part}");
        let [d_out, d_in] = dims;
        let groups = d_in.div_ceil(group.get());
        let (out_words, in_words) = (d_out.div_ceil(PER_WORD), d_in.div_ceil(PER_WORD));
        if layout == Int4Layout::CompressedTensors {
            if let Some(shape) = self.tensor(&named("weight_shape")) {
                check_declared(&named("weight_shape"), shape, dims)?;
            }
            let zeros = named("weight_zero_point");
            let has_zeros = self.tensors.contains_key(&zeros);
            return Ok(Parts {
                codes: self.words(&named("weight_packed"), [d_out, in_words])?,
                zeros: has_zeros.then(|| self.words(&zeros, [out_words, groups])).transpose()?,
                scales: self.scales(&named("weight_scale"), [d_out, groups])?,
                order: self.order(&named("weight_g_idx"), group, d_in)?,
            });
        }
        let is_awq = layout == Int4Layout::Awq;
        let in_unit = if is_awq { group.get() } else { PER_WORD };
        if !d_out.is_multiple_of(PER_WORD) || !d_in.is_multiple_of(in_unit) {
            return Err(StoredWeightError::Indivisible { d_out, d_in, out_unit: PER_WORD, in_unit });
        }
        let codes = if is_awq { [d_in, out_words] } else { [in_words, d_out] };
        Ok(Parts {
            codes: self.words(&named("qweight"), codes)?,
            zeros: Some(self.words(&named("qzeros"), [groups, out_words])?),
            scales: self.scales(&named("scales"), [groups, d_out])?,
            order: if is_awq { None } else { self.order(&named("g_idx"), group, d_in)? },
        })
    }

    /// Returns the tensor `name`, which must hold 32-bit words and have this shape.
    fn words(&self, name: &str, shape: [usize; 2]) -> Result<&TensorEntry, StoredWeightError> {
        let entry = self.companion(name)?;
        check_part(name, entry, &[Dtype::I32, Dtype::U32], "I32 or U32", &shape)?;
        Ok(entry)
    }

    /// Returns the tensor `name`, which must hold scales and have this shape.
    fn scales(&self, name: &str, shape: [usize; 2]) -> Result<&TensorEntry, StoredWeightError> {
        let entry = self.companion(name)?;
        check_part(name, entry, &[Dtype::F16, Dtype::BF16, Dtype::F32], "F16, BF16 or F32", &shape)?;
        Ok(entry)
    }

    /// Returns the inputs sorted by group. The tensor `name` holds the group of each input. Returns `None` if there is
    /// no such tensor, or if the inputs are already sorted.
    fn order(&self, name: &str, group: NonZeroUsize, d_in: usize) -> Result<Option<Vec<u32>>, StoredWeightError> {
        let is_needed = self.int4.is_some_and(|packing| packing.needs_index);
        let entry = match self.tensor(name) {
            Some(entry) => entry,
            None if is_needed => return Err(StoredWeightError::PartMissing { name: name.to_owned() }),
            None => return Ok(None),
        };
        check_part(name, entry, &[Dtype::I32], "I32", &[d_in])?;
        let index: Vec<i32> = entry.bytes().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        // If the groups were never set, compressed-tensors writes −1 for every input.
        if index.iter().all(|group| *group == -1) {
            return Ok(None);
        }
        let groups = d_in.div_ceil(group.get());
        let is_group = |index: i32| usize::try_from(index).is_ok_and(|index| index < groups);
        if let Some(at) = index.iter().position(|index| !is_group(*index)) {
            return Err(StoredWeightError::GroupIndex { name: name.to_owned(), at, found: index[at], groups });
        }
        let mut order: Vec<u32> = (0..d_in as u32).collect();
        order.sort_by_key(|input| index[*input as usize]);
        let group_at = |column: usize| index[order[column] as usize] as usize;
        if let Some(column) = (0..d_in).find(|column| group_at(*column) != *column / group) {
            let wrong = group_at(column).min(column / group);
            let found = index.iter().filter(|index| **index as usize == wrong).count();
            let (name, expected) = (name.to_owned(), group.get().min(d_in - wrong * group.get()));
            return Err(StoredWeightError::GroupSize { name, group: wrong, found, expected });
        }
        Ok((0..d_in).any(|column| order[column] as usize != column).then_some(order))
    }
}

/// Checks the type and the shape of a tensor that belongs to a weight.
fn check_part(
    name: &str,
    entry: &TensorEntry,
    dtypes: &[Dtype],
    expected: &'static str,
    shape: &[usize],
) -> Result<(), StoredWeightError> {
    if !dtypes.contains(&entry.dtype) {
        return Err(StoredWeightError::PartDtype {
            name: name.to_owned(),
            found: format!("{:?}", entry.dtype),
            expected,
        });
    }
    if entry.shape != shape {
        let (name, found, expected) = (name.to_owned(), entry.shape.clone(), shape.to_vec());
        return Err(StoredWeightError::PartShape { name, found, expected });
    }
    Ok(())
}

/// Checks that the shape stored in the tensor `entry` equals `dims`.
fn check_declared(name: &str, entry: &TensorEntry, dims: [usize; 2]) -> Result<(), StoredWeightError> {
    check_part(name, entry, &[Dtype::I64, Dtype::I32], "I64 or I32", &[2])?;
    let found: Vec<i64> = match entry.dtype {
        Dtype::I64 => entry.bytes().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        _ => entry.bytes().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect(),
    };
    let is_same = found.iter().zip(dims).all(|(found, dim)| usize::try_from(*found) == Ok(dim));
    if is_same {
        Ok(())
    } else {
        Err(StoredWeightError::DeclaredShape { name: name.to_owned(), found, expected: dims })
    }
}

/// Reads the values of a floating-point tensor as f32.
fn numbers(entry: &TensorEntry) -> Vec<f32> {
    fn read<E: Element>(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(size_of::<E>()).map(|bytes| E::from_le_bytes(bytes).to_f32()).collect()
    }
    match entry.dtype {
        Dtype::F16 => read::<f16>(entry.bytes()),
        Dtype::BF16 => read::<bf16>(entry.bytes()),
        _ => read::<f32>(entry.bytes()),
    }
}
