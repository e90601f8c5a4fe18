//! Moves tensors between devices, and reports the memory that a device keeps.

use burn::tensor::{Device, Tensor};

use crate::ops;

/// Maximum bytes of scratch memory that the device's operations keep for reuse, beside weights, caches and
/// activations. 0 where Burn manages the memory.
pub fn kept_bytes(device: &Device) -> u64 {
    ops::kept_bytes(device)
}

/// Moves activations to the device of a parameter (one that is not a matrix) and casts them to its dtype, which is
/// the dtype of all activations there (f32 on the CPU). Does nothing if both match already.
pub fn to_parameter_device<const D: usize, const P: usize>(activations: Tensor<D>, parameter: &Tensor<P>) -> Tensor<D> {
    let (device, dtype) = (parameter.device(), parameter.dtype());
    let activations = if activations.device() == device { activations } else { activations.to_device(&device) };
    if activations.dtype() == dtype { activations } else { activations.cast(dtype) }
}
