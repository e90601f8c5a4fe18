//! Tensors from one device to another, and what a device keeps.

use burn::tensor::{Device, Tensor};

use crate::ops;

/// Bytes that the device's operations keep for later results, at most: memory of a process besides weights, caches and
/// activations. Nothing is kept where Burn manages the memory.
pub fn kept_bytes(device: &Device) -> u64 {
    ops::kept_bytes(device)
}

/// Activations where a parameter that is no matrix is, in its dtype: that of all activations there (f32 on the CPU).
/// Themselves if they are so already.
pub fn beside<const D: usize, const P: usize>(activations: Tensor<D>, parameter: &Tensor<P>) -> Tensor<D> {
    let (device, dtype) = (parameter.device(), parameter.dtype());
    let activations = if activations.device() == device { activations } else { activations.to_device(&device) };
    if activations.dtype() == dtype { activations } else { activations.cast(dtype) }
}
