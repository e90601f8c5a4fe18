//! A step of fixed shapes that a GPU captures once and replays: CUDA launches a graph, other interfaces repeat the
//! recorded commands. Only the inputs go through Burn again.

use std::fmt;
use std::marker::PhantomData;

use burn::backend::{Backend, BackendGraph, Dispatch, ExecutionError};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;

/// Runs before the step is captured. The first one chooses and compiles kernels; the later ones allocate the memory that
/// the captured run uses again.
const WARM_UPS: usize = 3;

/// Whether steps can be captured on the device. A device that can may still refuse a step.
pub fn can_record(device: &Device) -> bool {
    ops::shares_memory(device)
}

/// The promise that one thread has its devices to itself, which capturing a step needs.
///
/// Burn's safe operations may use a device from any thread, and no lock of ours can hold them back. Whoever makes a lease
/// knows the program's threads and answers for them, until the lease is dropped. The lease itself is tied to its thread by
/// the type system: it is neither `Send` nor `Sync`, and a [`Replay`] borrows it, so that a step is captured and replayed
/// on the lease's thread, and no step is replayed once the lease is gone.
///
/// A lease cannot go to another thread:
///
/// ```compile_fail,E0277
/// # use idefics_nn::DeviceLease;
/// fn needs_send<T: Send>() {}
/// needs_send::<DeviceLease>();
/// ```
///
/// Nor can a reference to it, which is what [`Replay::record`] takes:
///
/// ```compile_fail,E0277
/// # use idefics_nn::DeviceLease;
/// fn needs_send<T: Send>() {}
/// needs_send::<&DeviceLease>();
/// ```
///
/// Nor can a captured step:
///
/// ```compile_fail,E0277
/// # use idefics_nn::Replay;
/// fn needs_send<T: Send>() {}
/// needs_send::<Replay<'static, 2>>();
/// ```
///
/// A captured step does not outlive the lease:
///
/// ```compile_fail,E0505
/// # use idefics_nn::{DeviceLease, Replay};
/// fn late(lease: DeviceLease, capture: for<'a> fn(&'a DeviceLease) -> Replay<'a, 1>) {
///     let mut replay = capture(&lease);
///     drop(lease);
///     let _ = replay.run([&[0]]);
/// }
/// ```
#[derive(Debug)]
pub struct DeviceLease {
    /// A raw pointer is neither `Send` nor `Sync`.
    thread: PhantomData<*const ()>,
}

impl DeviceLease {
    /// A lease for this thread.
    ///
    /// # Safety
    /// Until the lease is dropped:
    /// - While this thread captures a step with the lease ([`Replay::record`]), no other thread uses the step's device:
    ///   its commands could become part of the capture, which would then refer to memory that is freed.
    /// - While a captured step is replayed ([`Replay::run`]), no other thread uses the tensors that the step reads or
    ///   writes, except to read what the step only reads.
    #[allow(unsafe_code)] // a promise about all other threads
    pub unsafe fn for_this_thread() -> Self {
        Self { thread: PhantomData }
    }
}

/// A step that can be captured: it reads its inputs from tensors that it holds.
pub struct Step<'a>(Box<dyn FnMut() -> Tensor<2> + 'a>);

impl<'a> Step<'a> {
    /// A step that `run` computes.
    ///
    /// # Safety
    /// - `run` holds every tensor that it reads or writes, or borrows it for `'a`: a replay uses their memory without
    ///   asking whether it is still allocated.
    /// - Each call does the same operations on the same tensors, and neither uploads nor reads back anything.
    #[allow(unsafe_code)] // nothing tracks the memory that a replay uses
    pub unsafe fn new(run: impl FnMut() -> Tensor<2> + 'a) -> Self {
        Self(Box::new(run))
    }

    /// Computes the step, one operation after the other.
    pub fn run(&mut self) -> Tensor<2> {
        (self.0)()
    }
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").finish_non_exhaustive()
    }
}

/// A captured step: it reads `N` inputs and writes its output in the memory where they were when it was captured.
pub struct Replay<'a, const N: usize> {
    graph: BackendGraph<Dispatch>,
    inputs: [Tensor<1, Int>; N],
    output: Tensor<2>,
    device: Device,
    /// Keeps the step on the thread whose commands are in order with the captured ones.
    _lease: &'a DeviceLease,
    /// Holds what the graph reads and writes.
    _step: Step<'a>,
}

impl<'a, const N: usize> Replay<'a, N> {
    /// Captures the step that `step` makes from its inputs, each `[n_values]` of I32. `None` if `step` makes none, or the
    /// device captures none at all.
    ///
    /// The step runs four times with these inputs.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device refuses to capture it, as CUDA may where tensors were made on another thread. The
    /// tensors that the step writes have unspecified contents then.
    pub fn record(
        inputs: [&[i32]; N],
        device: &Device,
        lease: &'a DeviceLease,
        step: impl FnOnce(&[Tensor<1, Int>; N]) -> Option<Step<'a>>,
    ) -> Result<Option<Self>, ExecutionError> {
        if !can_record(device) {
            return Ok(None);
        }
        let inputs = inputs.map(|values| upload(values, device));
        let Some(mut step) = step(&inputs) else { return Ok(None) };
        let window = Window::prepare(device)?;
        for _ in 0..WARM_UPS {
            let output = step.run();
            device.sync()?;
            drop(output); // only now, or nothing would be computed
        }
        Dispatch::graph_start_capture(device.as_dispatch())?;
        let output = step.run();
        let graph = window.close()?;
        Ok(Some(Self { graph, inputs, output, device: device.clone(), _lease: lease, _step: step }))
    }

    /// Runs the step with other inputs of the same lengths. The output is valid until the next run.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device fails.
    ///
    /// # Panics
    /// If an input has another length.
    #[allow(unsafe_code)] // nothing tracks the memory that a replay uses
    pub fn run(&mut self, inputs: [&[i32]; N]) -> Result<Tensor<2>, ExecutionError> {
        for (known, values) in self.inputs.iter_mut().zip(inputs) {
            let new = upload(values, &self.device);
            *known = ops::overwrite(known.clone(), new);
        }
        // SAFETY: the step, the inputs and the output are held here, so that their memory is allocated (`Step::new`); no
        // other thread uses it (`DeviceLease::for_this_thread`); inputs are refreshed on the thread of the capture, which
        // the lease is bound to.
        unsafe { Dispatch::graph_replay(self.device.as_dispatch(), &self.graph) }?;
        Ok(self.output.clone())
    }
}

impl<const N: usize> fmt::Debug for Replay<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("inputs", &self.inputs.each_ref().map(Tensor::dims)).finish_non_exhaustive()
    }
}

fn upload(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::from(values), (device, DType::I32))
}

/// A device that was told to capture. The capture is ended on drop, so that a step that fails or panics leaves the device
/// usable.
struct Window<'d>(&'d Device);

impl<'d> Window<'d> {
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

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let _ = Dispatch::graph_stop_capture(self.0.as_dispatch());
    }
}
