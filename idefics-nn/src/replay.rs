//! A step of fixed shapes, recorded once and replayed: CUDA launches a graph, other interfaces repeat the recorded
//! commands. Nothing but its inputs goes through Burn again.

use std::fmt;
use std::thread::{self, ThreadId};

use burn::backend::{Backend, BackendGraph, Dispatch, ExecutionError};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;

/// A step, which finds its inputs in tensors that it holds.
pub type Step<'a> = Box<dyn FnMut() -> Tensor<2> + Send + 'a>;

/// Runs before one is recorded: the first chooses and compiles kernels, and later ones take the memory that the recorded
/// one finds again.
const WARM_UPS: usize = 3;

/// Whether the device has what steps are recorded with; it may still refuse one.
pub fn can_record(device: &Device) -> bool {
    ops::shares_memory(device)
}

/// A step that a GPU has recorded: it reads `N` inputs, and writes its output, where they were when it was recorded.
pub struct Replay<'a, const N: usize> {
    graph: BackendGraph<Dispatch>,
    inputs: [Tensor<1, Int>; N],
    output: Tensor<2>,
    device: Device,
    /// Whose commands the recorded ones are in order with.
    thread: ThreadId,
    /// Holds what it reads and writes.
    _step: Step<'a>,
}

impl<'a, const N: usize> Replay<'a, N> {
    /// Records the step that `step` makes of its inputs, each `[n_values]` of I32. `None` if `step` makes none, or the
    /// device does not record at all.
    ///
    /// The step runs four times with these inputs, and whenever it is replayed: each time it has to do the same.
    ///
    /// # Safety
    /// - As long as this is there, the step holds every tensor that it reads and writes, the same ones at each run.
    /// - No other thread uses the device while a step is recorded, or those tensors while it is replayed, unless it only
    ///   reads what the step only reads.
    ///
    /// # Errors
    /// [`ExecutionError`] where the device refuses to record it, as CUDA may where tensors were made on another thread.
    /// What the step was to write to cannot be read then.
    #[allow(unsafe_code)] // what a replay reads and writes is not tracked
    pub unsafe fn record(
        inputs: [&[i32]; N],
        device: &Device,
        step: impl FnOnce(&[Tensor<1, Int>; N]) -> Option<Step<'a>>,
    ) -> Result<Option<Self>, ExecutionError> {
        if !can_record(device) {
            return Ok(None);
        }
        let inputs = inputs.map(|values| upload(values, device));
        let Some(mut step) = step(&inputs) else { return Ok(None) };
        let window = Window::prepare(device)?;
        for _ in 0..WARM_UPS {
            let output = step();
            device.sync()?;
            drop(output); // only now, or nothing would be computed
        }
        Dispatch::graph_start_capture(device.as_dispatch())?;
        let output = step();
        let graph = window.close()?;
        Ok(Some(Self { graph, inputs, output, device: device.clone(), thread: thread::current().id(), _step: step }))
    }

    /// Whether this is the thread that it was recorded on, which alone can run it.
    pub fn is_here(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// Runs the step with other inputs, as long as the first. What it gives is good until it runs again.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device fails.
    ///
    /// # Panics
    /// If an input has another length, or on another thread.
    #[allow(unsafe_code)] // as above
    pub fn run(&mut self, inputs: [&[i32]; N]) -> Result<Tensor<2>, ExecutionError> {
        assert!(self.is_here(), "a step is replayed on the thread that recorded it");
        for (known, values) in self.inputs.iter_mut().zip(inputs) {
            let new = upload(values, &self.device);
            *known = ops::overwrite(known.clone(), new);
        }
        // SAFETY: whoever recorded it vouches for what the step holds and for other threads; inputs and output are held
        // here, and their commands are this thread's.
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

/// A device that was told to record: it waits for the end, which comes even if a step fails or panics.
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
