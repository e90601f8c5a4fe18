//! Moves tensors between devices, and reports the memory that a device keeps.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use rayon::Yield;

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

/// Largest thread pool whose threads stay awake during [`in_thread_pool`].
const MAX_AWAKE: usize = 16;

/// How long a thread without work stays awake. The pauses between the parallel operations of a decode step are shorter.
const AWAKE: Duration = Duration::from_micros(200);

/// Calls `work` in the thread pool if operations on `device` run there, and otherwise on this thread.
///
/// A thread outside the pool hands every operation over to the pool and sleeps until it is done. For short operations,
/// such as those of a decode step, this takes longer than the operations. For the same reason, the other threads of a
/// small pool do not sleep, but keep looking for work until `work` is done or pauses.
pub fn in_thread_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if !ops::is_cpu(device) {
        return work();
    }
    rayon::scope(|_| {
        let _end = keep_awake();
        work()
    })
}

/// Whether a call keeps threads awake. Only one call at a time may do so. Otherwise, a thread that waits for a result
/// of its own call could start to [look for work](look_for_work) for another call, and be held up until that one ends.
static IS_AWAKE: AtomicBool = AtomicBool::new(false);

/// Keeps the other threads of this thread's pool awake until the returned value is dropped. Returns `None` if another
/// call does so already, or if the pool is too large.
fn keep_awake() -> Option<End> {
    if !(2..=MAX_AWAKE).contains(&rayon::current_num_threads()) || IS_AWAKE.swap(true, Ordering::Relaxed) {
        return None;
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let (caller, end) = (rayon::current_thread_index(), End(is_done.clone()));
    // The tasks are not part of a scope: a thread that is busy with other work must not delay the caller.
    rayon::spawn_broadcast(move |context| {
        if Some(context.index()) != caller {
            look_for_work(&is_done);
        }
    });
    Some(end)
}

/// Sets its flag when it is dropped, and lets the next call keep threads awake.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        IS_AWAKE.store(false, Ordering::Relaxed);
    }
}

/// Runs tasks of the pool until the flag is set, or until there have been none for [`AWAKE`]. The time limit also
/// ensures that this task ends if the caller waits for a task that this thread has suspended to run this one.
fn look_for_work(is_done: &AtomicBool) {
    let mut idle_since = Instant::now();
    while !is_done.load(Ordering::Relaxed) && idle_since.elapsed() < AWAKE {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = Instant::now();
        } else {
            (0..4).for_each(|_| hint::spin_loop());
            thread::yield_now(); // lets other programs run
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use rayon::prelude::*;

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

    #[test]
    fn concurrent_calls_with_parallel_operations_finish() {
        let sum = || (0..1000usize).into_par_iter().with_max_len(10).sum::<usize>();
        let calls = || (0..50).for_each(|_| assert_eq!(in_thread_pool(&Device::flex(), sum), 499_500));
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(calls))));
    }
}
