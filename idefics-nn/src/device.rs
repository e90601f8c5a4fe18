//! Moves tensors between devices, and reports the memory that a device keeps.

use burn::tensor::{Device, Tensor};

use crate::ops;

/// Returns the maximum size, in bytes, of the scratch buffers that operations on `device` keep for reuse. Weights,
/// caches and activations are not included. Returns 0 for devices whose memory Burn manages.
pub fn kept_bytes(device: &Device) -> u64 {
    ops::kept_bytes(device)
}

/// Moves activations to the device of `parameter` and casts them to its dtype. `parameter` must not be a matrix: all
/// other parameters of a device have the dtype of the activations there (f32 on the CPU). Does nothing if device and
/// dtype match already.
pub fn to_parameter_device<const D: usize, const P: usize>(activations: Tensor<D>, parameter: &Tensor<P>) -> Tensor<D> {
    let (device, dtype) = (parameter.device(), parameter.dtype());
    let activations = if activations.device() == device { activations } else { activations.to_device(&device) };
    if activations.dtype() == dtype { activations } else { activations.cast(dtype) }
}

/// Calls `work` in the thread pool if operations on `device` run there, and otherwise on this thread.
///
/// A thread outside the pool hands every operation over to the pool and sleeps until it is done. For short operations,
/// such as those of a decode step, this takes longer than the operations.
pub fn in_thread_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if ops::is_cpu(device) { rayon::scope(|_| work()) } else { work() }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads the result")]
    fn work_on_the_cpu_runs_in_the_thread_pool() {
        assert_eq!(rayon::current_thread_index(), None, "the test itself runs outside the pool");
        let device = Device::flex();
        let (index, sum) = in_thread_pool(&device, || {
            let sum = Tensor::<1>::from_data([1.0, 2.0], &device).sum();
            (rayon::current_thread_index(), sum)
        });
        assert!(index.is_some(), "the work ran outside the pool");
        assert_eq!(sum.into_scalar::<f32>(), 3.0);
    }
}
