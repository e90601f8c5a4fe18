//! Parameters that are allocated lazily.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Distribution, Shape, Tensor};

/// Creates a parameter that is drawn from the normal distribution N(`mean`, `std`²) when it is first used. A checkpoint
/// can replace it before that, so building a model of any size allocates nothing.
///
/// `shape` is the shape of the tensor in the checkpoint.
pub fn normal<const D: usize>(shape: [usize; D], mean: f64, std: f64, device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, is_require_grad| {
            let values = Tensor::random(shape, Distribution::Normal(mean, std), device);
            if is_require_grad { values.require_grad() } else { values }
        },
        device.clone(),
        true,
        Shape::from(shape),
    )
}
