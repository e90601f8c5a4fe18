//! Graph capture: a GPU records a step with fixed shapes once and then replays it. CUDA launches a CUDA graph; other
//! APIs repeat the recorded commands. During a replay, only the upload of the inputs goes through Burn.

use std::fmt;
use std::marker::PhantomData;

use burn::backend::{Backend, BackendGraph, Dispatch, ExecutionError};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;

/// Number of runs before the step is captured. The first run chooses and compiles kernels. The later runs allocate the
/// memory that the captured run reuses.
const WARM_UPS: usize = 3;

/// Returns whether the device supports graph capture. Such a device may still reject a particular step.
pub fn supports_graph_capture(device: &Device) -> bool {
    ops::shares_memory(device)
}

/// A promise that this thread has exclusive use of its devices. Graph capture needs exclusive use.
///
/// Burn's safe operations can use a device from any thread, and this crate has no lock that could prevent it. Whoever
/// creates a lease must therefore know what all threads of the program do, and is responsible for them until the lease
/// is dropped. The type system ties the lease to its thread: it is neither `Send` nor `Sync`, and a [`CapturedGraph`]
/// borrows it. So a step is captured and replayed on the lease's thread, and cannot be replayed after the lease is
/// dropped.
///
/// A lease cannot move to another thread:
///
/// ```compile_fail,E0277
/// # use idefics_nn::DeviceLease;
/// fn needs_send<T: Send>() {}
/// needs_send::<DeviceLease>();
/// ```
///
/// A reference to a lease, which [`CapturedGraph::capture`] takes, cannot move to another thread either:
///
/// ```compile_fail,E0277
/// # use idefics_nn::DeviceLease;
/// fn needs_send<T: Send>() {}
/// needs_send::<&DeviceLease>();
/// ```
///
/// A captured step cannot move to another thread either:
///
/// ```compile_fail,E0277
/// # use idefics_nn::CapturedGraph;
/// fn needs_send<T: Send>() {}
/// needs_send::<CapturedGraph<'static, 2>>();
/// ```
///
/// A captured step cannot outlive the lease:
///
/// ```compile_fail,E0505
/// # use idefics_nn::{DeviceLease, CapturedGraph};
/// fn late(lease: DeviceLease, capture: for<'a> fn(&'a DeviceLease) -> CapturedGraph<'a, 1>) {
///     let mut replay = capture(&lease);
///     drop(lease);
///     let _ = replay.run([&[0]]);
/// }
/// ```
#[derive(Debug)]
pub struct DeviceLease {
    /// Makes the lease neither `Send` nor `Sync`, because a raw pointer is neither.
    thread: PhantomData<*const ()>,
}

impl DeviceLease {
    /// Creates a lease for the current thread.
    ///
    /// # Safety
    /// Until the lease is dropped:
    /// - While this thread captures a step with the lease ([`CapturedGraph::capture`]), no other thread uses the step's
    ///   device. Commands of another thread could become part of the capture, which would then refer to memory that is
    ///   freed later.
    /// - While a captured step is replayed ([`CapturedGraph::run`]), no other thread uses the tensors that the step
    ///   reads or writes. The only exception: other threads may read tensors that the step only reads.
    #[allow(unsafe_code, reason = "only the caller knows what other threads do")]
    pub unsafe fn for_this_thread() -> Self {
        Self { thread: PhantomData }
    }
}

/// A step that can be captured. It reads its inputs from tensors that it holds.
pub struct Step<'a>(Box<dyn FnMut() -> Tensor<2> + 'a>);

impl<'a> Step<'a> {
    /// Creates a step that calls `run`.
    ///
    /// # Safety
    /// - `run` must hold every tensor that it reads or writes, or borrow it for `'a`. A replay uses the memory of these
    ///   tensors without checking whether it is still allocated.
    /// - Every call must do the same operations on the same tensors, and must neither upload nor read back data.
    #[allow(unsafe_code, reason = "nothing tracks the memory that a replay uses")]
    pub unsafe fn new(run: impl FnMut() -> Tensor<2> + 'a) -> Self {
        Self(Box::new(run))
    }

    /// Runs the step eagerly, operation by operation.
    pub fn run(&mut self) -> Tensor<2> {
        (self.0)()
    }
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").finish_non_exhaustive()
    }
}

/// A captured step with `N` inputs. A replay reads the inputs and writes the output at the memory addresses that were
/// used in the capture.
pub struct CapturedGraph<'a, const N: usize> {
    graph: BackendGraph<Dispatch>,
    inputs: [Tensor<1, Int>; N],
    output: Tensor<2>,
    device: Device,
    /// Ties the graph to the thread of the capture, so that uploads of inputs and replays stay in order.
    _lease: &'a DeviceLease,
    /// Keeps the tensors alive that the graph reads and writes.
    _step: Step<'a>,
}

impl<'a, const N: usize> CapturedGraph<'a, N> {
    /// Captures the step that `step` creates. `step` receives one tensor for each of `inputs`, with the same values:
    /// `[n_values]` in I32. Returns `None` if `step` returns `None`, or if the device does not support graph capture.
    ///
    /// The step runs four times with these inputs: three times to warm up, and once for the capture.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device rejects the step. CUDA may reject it if tensors were created on another thread.
    /// After an error, the contents of the tensors that the step writes are unspecified.
    pub fn capture(
        inputs: [&[i32]; N],
        device: &Device,
        lease: &'a DeviceLease,
        step: impl FnOnce(&[Tensor<1, Int>; N]) -> Option<Step<'a>>,
    ) -> Result<Option<Self>, ExecutionError> {
        if !supports_graph_capture(device) {
            return Ok(None);
        }
        let inputs = inputs.map(|values| upload(values, device));
        let Some(mut step) = step(&inputs) else { return Ok(None) };
        let guard = CaptureGuard::prepare(device)?;
        for _ in 0..WARM_UPS {
            let output = step.run();
            device.sync()?;
            drop(output); // only after the sync: an output that is dropped earlier is never computed
        }
        Dispatch::graph_start_capture(device.as_dispatch())?;
        let output = step.run();
        let graph = guard.close()?;
        Ok(Some(Self { graph, inputs, output, device: device.clone(), _lease: lease, _step: step }))
    }

    /// Replays the step with new inputs of the same lengths. The output is valid until the next run.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device reports a failure.
    ///
    /// # Panics
    /// If the length of an input differs from its length at the capture.
    #[allow(unsafe_code, reason = "nothing tracks the memory that a replay uses")]
    pub fn run(&mut self, inputs: [&[i32]; N]) -> Result<Tensor<2>, ExecutionError> {
        for (known, values) in self.inputs.iter_mut().zip(inputs) {
            let new = upload(values, &self.device);
            *known = ops::overwrite(known.clone(), new);
        }
        // SAFETY: this struct holds the inputs, the output and the step, and the step holds every tensor that it uses
        // (contract of `Step::new`), so their memory stays allocated. No other thread uses that memory (contract of
        // `DeviceLease::for_this_thread`). The inputs were overwritten on the thread of the capture, because the lease
        // that this struct borrows cannot move to another thread.
        unsafe { Dispatch::graph_replay(self.device.as_dispatch(), &self.graph) }?;
        Ok(self.output.clone())
    }
}

impl<const N: usize> fmt::Debug for CapturedGraph<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedGraph")
            .field("inputs", &self.inputs.each_ref().map(Tensor::dims))
            .finish_non_exhaustive()
    }
}

fn upload(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::from(values), (device, DType::I32))
}

/// A device in capture mode. Dropping the guard ends the capture, so the device stays usable if the step fails or
/// panics.
struct CaptureGuard<'d>(&'d Device);

impl<'d> CaptureGuard<'d> {
    fn prepare(device: &'d Device) -> Result<Self, ExecutionError> {
        Dispatch::graph_prepare(device.as_dispatch())?;
        Ok(Self(device))
    }

    fn close(self) -> Result<BackendGraph<Dispatch>, ExecutionError> {
        let graph = Dispatch::graph_stop_capture(self.0.as_dispatch());
        std::mem::forget(self);
        graph
    }
}

impl Drop for CaptureGuard<'_> {
    fn drop(&mut self) {
        let _ = Dispatch::graph_stop_capture(self.0.as_dispatch());
    }
}
