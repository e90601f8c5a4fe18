//! In-place writes to memory that several tensors share, so that a replayed step finds its inputs and its cache at the
//! recorded addresses.
//!
//! All other operations leave existing tensors unchanged. Only two kinds of tensors are written in place: caches that
//! share their memory on purpose, and the inputs of a recorded step.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Number of units per cube.
const UNITS: u32 = 256;

/// Copies the new rows to the slot, with one unit per value.
#[cube(launch_unchecked)]
fn rows<N: Numeric>(
    states: &mut Tensor<N>, // [batch, heads, capacity, head_dim]
    new: &Tensor<N>,        // [batch, heads, 1, head_dim]
    slot: &[i32],           // [1]
    n_values: usize,
    #[define(N)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < n_values {
        let (heads, head_dim) = (new.shape(1), new.shape(3));
        let (row, column) = (ABSOLUTE_POS / head_dim, ABSOLUTE_POS % head_dim);
        let (batch, head) = (row / heads, row % heads);
        let slot = slot[0] as usize;
        if slot < states.shape(2) {
            let to = batch * states.stride(0) + head * states.stride(1) + slot * states.stride(2);
            let from = batch * new.stride(0) + head * new.stride(1);
            let to = to + column * states.stride(3);
            states[to] = new[from + column * new.stride(3)];
        }
    }
}

/// Launches the kernel of [`super::CubeKernels::write_slot`].
pub(super) fn slot(states: CubeTensor, new: CubeTensor, slot: CubeTensor) -> CubeTensor {
    let n_values = new.meta.shape().num_elements();
    let dim = CubeDim::new_1d(UNITS);
    let count = calculate_cube_count_elemwise(&states.client, n_values, dim);
    let dtype = dtype_to_storage_type(states.dtype);
    // SAFETY: units past the last value do nothing, and nothing is written if the slot is out of range. The other axes
    // of `states` and `new` have equal lengths, which `ops::write_slot` checks.
    unsafe {
        rows::launch_unchecked(
            &states.client,
            count,
            dim,
            states.clone().into_tensor_arg(),
            new.into_tensor_arg(),
            slot.into_buffer_arg(),
            n_values,
            dtype,
        );
    }
    states
}

/// Copies all values, with one unit per value.
#[cube(launch_unchecked)]
fn all(target: &mut [i32], new: &[i32], n_values: usize) {
    if ABSOLUTE_POS < n_values {
        target[ABSOLUTE_POS] = new[ABSOLUTE_POS];
    }
}

/// Launches the kernel of [`super::CubeKernels::overwrite`].
pub(super) fn overwrite(target: CubeTensor, new: CubeTensor) -> CubeTensor {
    let new = into_contiguous(new);
    let n_values = target.meta.shape().num_elements();
    let dim = CubeDim::new_1d(UNITS);
    let count = calculate_cube_count_elemwise(&target.client, n_values, dim);
    // SAFETY: units past the last value do nothing. Both tensors are contiguous and have the same number of values,
    // which `ops::overwrite` checks.
    unsafe {
        all::launch_unchecked(
            &target.client,
            count,
            dim,
            target.clone().into_buffer_arg(),
            new.into_buffer_arg(),
            n_values,
        );
    }
    target
}
