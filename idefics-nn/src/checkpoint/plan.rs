//! Predicts the memory that a model takes, before anything is allocated.

use std::collections::HashMap;
use std::ops::AddAssign;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_checkpoint::{Checkpoint, Int4Layout, StoredFormat, StoredWeight};
use idefics_kernels::formats::{BLOCK, Int4, PackedFormat, Q4_BLOCK, Q4_PANEL, Q4_TILE};
use serde::Serialize;

use super::LoadOptions;
use super::in_place::{blocks_on, is_usable_in_place};
use crate::parameters::{Matrix, ParameterVisitor, matrices, visit_parameters};
use crate::{PackedWeight, ops};

/// Memory of a model's weights, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct WeightMemory {
    /// Number of bytes that are allocated.
    pub taken: u64,
    /// Number of bytes that stay in the memory-mapped files. The operating system reads them on demand and may drop
    /// them again.
    pub mapped: u64,
    /// Number of bytes that are allocated temporarily while the largest tensor is converted.
    pub loading: u64,
}

impl WeightMemory {
    /// Returns the number of bytes that must be available for the model to run well.
    pub fn total(&self) -> u64 {
        self.taken + self.mapped
    }
}

impl LoadOptions<'_> {
    /// Predicts the memory of `module` on `device` after it is loaded with these options. `module` may still be empty.
    ///
    /// Without a checkpoint, BF16 weights are assumed.
    pub fn memory<M: Module>(&self, module: &M, checkpoint: Option<&Checkpoint>, device: &Device) -> WeightMemory {
        let mut sum = WeightMemory::default();
        self.memory_per_tensor(module, checkpoint, device, |_, memory| sum += memory);
        sum
    }

    /// Predicts memory like [`Self::memory`], but for each tensor: calls `take` with its name and memory. Tied tensors
    /// are skipped.
    pub fn memory_per_tensor<M: Module>(
        &self,
        module: &M,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        take: impl FnMut(&str, WeightMemory),
    ) {
        visit_parameters(module, &mut Planner { options: self, checkpoint, device, matrices: matrices(module), take });
    }
}

impl AddAssign for WeightMemory {
    fn add_assign(&mut self, other: Self) {
        self.taken += other.taken;
        self.mapped += other.mapped;
        self.loading = self.loading.max(other.loading);
    }
}

struct Planner<'a, F> {
    options: &'a LoadOptions<'a>,
    checkpoint: Option<&'a Checkpoint>,
    device: &'a Device,
    matrices: HashMap<String, Matrix>,
    take: F,
}

impl<F: FnMut(&str, WeightMemory)> ParameterVisitor for Planner<'_, F> {
    fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
        self.plan(path, &param.lazy_shape().to_vec());
    }

    fn visit_packed(&mut self, path: &str, weight: &PackedWeight) {
        self.plan(path, &weight.dims());
    }
}

impl<F: FnMut(&str, WeightMemory)> Planner<'_, F> {
    fn plan(&mut self, path: &str, shape: &[usize]) {
        let name = format!("{}{path}", self.options.prefix);
        let stored = self.checkpoint.and_then(|checkpoint| checkpoint.stored(&name));
        if stored.is_none() && (self.checkpoint.is_some() || self.options.tied_source(&name).is_some()) {
            return; // tied, so it shares the memory of its source; or missing, which is an error of loading
        }
        let memory = self.memory_of(path, &name, shape, stored);
        (self.take)(&name, memory);
    }
}

impl<F> Planner<'_, F> {
    fn memory_of(&self, path: &str, name: &str, shape: &[usize], stored: Option<StoredWeight<'_>>) -> WeightMemory {
        let n: usize = shape.iter().product();
        let matrix = self.matrices.get(path).copied();
        let entry = stored.as_ref().map(|stored| stored.entry);
        if matrix == Some(Matrix::Linear) {
            let dims = [shape[0], shape[1]];
            if let Some(format) = stored.as_ref().and_then(|stored| stored.kind.packed_format()) {
                let [codes, scales] = part_bytes(format, dims, self.device);
                // AWQ and GPTQ codes are copied, because the kernels expect another order.
                let is_copied = stored.as_ref().is_some_and(|stored| {
                    matches!(stored.kind, StoredFormat::Int4 { layout: Int4Layout::Awq | Int4Layout::Gptq { .. }, .. })
                });
                let is_mapped = ops::computes_on(self.device) && !is_copied;
                let (mapped, taken) = if is_mapped { (codes, scales) } else { (0, codes + scales) };
                return WeightMemory { taken, mapped, loading: 0 };
            }
            if let Some(quantization) = self.options.quantization_of(matrix, name) {
                return WeightMemory {
                    taken: part_bytes(quantization.format, dims, self.device).iter().sum(),
                    mapped: 0,
                    loading: n as u64 * 4,
                };
            }
        }
        if let Some(entry) = entry.filter(|entry| matrix.is_some() && blocks_on(entry, self.device).is_some()) {
            let bytes = entry.len_bytes() as u64;
            let (mapped, taken) = if entry.is_in_order() { (bytes, 0) } else { (0, bytes) };
            return WeightMemory { taken, mapped, loading: 0 };
        }
        let dtype = self.options.dtype_of(name, matrix, entry.map(|entry| entry.dtype), self.device);
        let bytes = (n * dtype.size()) as u64;
        match entry {
            Some(entry) if matrix.is_some() && is_usable_in_place(entry, dtype, self.device) => {
                WeightMemory { mapped: bytes, ..WeightMemory::default() }
            }
            _ => WeightMemory { taken: bytes, mapped: 0, loading: bytes },
        }
    }
}

/// Computes the number of bytes of the codes and that of the scales of a `[d_out, d_in]` weight. GPUs hold scales in
/// F32.
fn part_bytes(format: PackedFormat, [d_out, d_in]: [usize; 2], device: &Device) -> [u64; 2] {
    let n = d_out * d_in;
    let parts = match format {
        PackedFormat::Int8 => [n, 4 * d_out],
        PackedFormat::FourBit(_) => [n.div_ceil(2), 4 * n.div_ceil(BLOCK)],
        PackedFormat::Q4 => {
            let tiles = d_out.div_ceil(Q4_PANEL) * d_in.div_ceil(Q4_BLOCK);
            let scale = if ops::reads_bytes(device) { DType::BF16 } else { DType::F32 };
            [tiles * Q4_TILE, tiles * Q4_PANEL * scale.size()]
        }
        PackedFormat::Int4 { group } => {
            let [codes, scales] = Int4::part_lens(group, [d_out, d_in]);
            [codes, 4 * scales]
        }
        PackedFormat::Blocks(kind) => [d_out * kind.row_bytes(d_in).unwrap_or(0), 0],
    };
    parts.map(|bytes| bytes as u64)
}
