//! Tensors from one device to another.

use burn::tensor::{Device, Tensor};

/// The tensor on `device`: itself if it is there already.
pub fn on_device<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    if tensor.device() == *device { tensor } else { tensor.to_device(device) }
}
