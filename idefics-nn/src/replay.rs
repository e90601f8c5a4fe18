//! A step of fixed shapes, recorded once and replayed: one command instead of hundreds of launches.

use std::fmt;
use std::marker::PhantomData;

use burn::backend::{Backend, BackendGraph, Dispatch, ExecutionError};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;

/// A step, which finds its inputs in tensors that it holds.
pub type Step<'a> = Box<dyn FnMut() -> Tensor<2> + 'a>;

/// Runs before one is recorded: the first chooses and compiles kernels, and later ones take the memory that the recorded
/// one finds again.
const WARM_UPS: usize = 3;

/// Whether the device has what steps are recorded with; it may still refuse one.
pub fn can_record(device: &Device) -> bool {
    ops::shares_memory(device)
}

/// A step that a GPU has recorded: it reads `N` inputs, and writes its output, where they were when it was recorded.
///
/// It stays on the thread that recorded it, whose commands it is in order with.
pub struct Replay<'a, const N: usize> {
    graph: BackendGraph<Dispatch>,
    inputs: [Tensor<1, Int>; N],
    output: Tensor<2>,
    device: Device,
    /// Holds what it reads and writes.
    _step: Step<'a>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<'a, const N: usize> Replay<'a, N> {
    /// Records the step that `step` makes of its inputs, each `[n_values]` of I32, and runs it a few times for that: it
    /// may write again what it wrote before, and no more. `None` if `step` makes none.
    ///
    /// What the step reads and writes it has to hold, and no other thread may write to it meanwhile.
    ///
    /// # Errors
    /// [`ExecutionError`] where the device cannot record it. What the step was to write to cannot be read then.
    pub fn record(
        inputs: [&[i32]; N],
        device: &Device,
        step: impl FnOnce(&[Tensor<1, Int>; N]) -> Option<Step<'a>>,
    ) -> Result<Option<Self>, ExecutionError> {
        if !can_record(device) {
            return Ok(None);
        }
        let inputs = inputs.map(|values| upload(values, device));
        let Some(mut step) = step(&inputs) else { return Ok(None) };
        Dispatch::graph_prepare(device.as_dispatch())?;
        let warmed_up = (0..WARM_UPS).try_for_each(|_| {
            let output = step();
            device.sync()?;
            drop(output); // only now, or nothing would be computed
            Ok(())
        });
        let started = warmed_up.and_then(|()| Dispatch::graph_start_capture(device.as_dispatch()));
        let recorded = started.map(|()| step());
        let graph = Dispatch::graph_stop_capture(device.as_dispatch()); // in any case: the device waits for it
        let (output, graph) = (recorded?, graph?);
        Ok(Some(Self { graph, inputs, output, device: device.clone(), _step: step, _of_this_thread: PhantomData }))
    }

    /// Runs the step with other inputs, as long as the first. What it gives is good until it runs again.
    ///
    /// # Errors
    /// [`ExecutionError`] if the device fails.
    ///
    /// # Panics
    /// If an input has another length.
    #[allow(unsafe_code)] // a replay reads and writes memory that nothing tracks
    pub fn run(&mut self, inputs: [&[i32]; N]) -> Result<Tensor<2>, ExecutionError> {
        for (known, values) in self.inputs.iter_mut().zip(inputs) {
            let new = upload(values, &self.device);
            *known = ops::overwrite(known.clone(), new);
        }
        // SAFETY: the step holds what it reads and writes, as `self` does its inputs and its output, and all commands on
        // them are this thread's.
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
