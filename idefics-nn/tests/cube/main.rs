//! Compares the GPU kernels with the CPU kernels, on the best GPU of the enabled backends. On a machine without a GPU,
//! `.ci/software-vulkan` provides a software device. It requires WGSL: the feature `wgpu` without `vulkan`.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod attention;
mod graph_capture;
mod packed;

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};

/// Returns the GPU to test.
fn gpu() -> Device {
    #[cfg(feature = "cuda")]
    return Device::cuda(0);
    #[cfg(all(feature = "vulkan", not(feature = "cuda")))]
    return Device::vulkan(DeviceKind::DefaultDevice);
    #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
    return Device::wgpu(DeviceKind::DefaultDevice);
}

/// Creates a tensor of pseudorandom numbers between −1 and 1.
fn numbers<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Returns the largest difference relative to the largest expected value, or NaN if an output has a NaN.
fn difference<const D: usize>(ours: Tensor<D>, expected: Tensor<D>) -> f32 {
    assert_eq!(ours.dims(), expected.dims());
    let read = |tensor: Tensor<D>| tensor.into_data().try_into_vec::<f32>().unwrap();
    let (ours, expected) = (read(ours), read(expected));
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let apart = |(ours, expected): (&f32, &f32)| if ours.is_nan() { f32::NAN } else { (ours - expected).abs() };
    let apart = ours.iter().zip(&expected).map(apart);
    apart.fold(0.0, |all: f32, one| if one.is_nan() || all.is_nan() { f32::NAN } else { all.max(one) }) / largest
}
