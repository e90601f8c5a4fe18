//! Splits a model into segments that run one after another, for gradient checkpointing.

use std::fmt;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use idefics_generate::InputError;
use idefics_nn::{ParameterVisitor, visit_parameters};

use crate::{BatchError, Trainable, TrainingBatch};

/// A model that can be split into segments.
pub trait Segments: Trainable {
    /// Splits the model into the segments that process `batch`. The output of the last one is the summed loss,
    /// `[1, 1, 1]`.
    ///
    /// # Errors
    /// As [`Trainable::training_gradients`].
    fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, BatchError>;
}

/// Reorders or repeats image vectors. Returns `[n_places, n_vectors, d]`, where `places[i]` is the index of the image
/// at place `i`.
///
/// # Shapes
/// - `image_hidden_states`: `[n_images, n_vectors, d]`
pub(crate) fn arrange(image_hidden_states: Tensor<3>, places: &[usize]) -> Tensor<3> {
    if places.iter().copied().eq(0..image_hidden_states.dims()[0]) {
        return image_hidden_states;
    }
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let options = (&image_hidden_states.device(), DType::I32);
    image_hidden_states.select(0, Tensor::from_data(TensorData::from(places.as_slice()), options))
}

/// The forward pass of a segment. The model may be on the device with or without autodiff.
type Forward<'a, M> = Box<dyn Fn(&M, &[Tensor<3>]) -> Result<Tensor<3>, InputError> + 'a>;

/// Segments in order of execution. A segment reads the outputs of earlier ones.
pub struct Chain<'a, M> {
    pub(crate) segments: Vec<Segment<'a, M>>,
}

/// A part of a model, usually one layer.
pub(crate) struct Segment<'a, M> {
    /// Indices of the segments whose outputs this segment reads.
    pub(crate) inputs: Vec<usize>,
    /// Whether any parameter of the segment is trained.
    pub(crate) is_trained: bool,
    pub(crate) forward: Forward<'a, M>,
}

impl<M> Default for Chain<'_, M> {
    fn default() -> Self {
        Self { segments: Vec::new() }
    }
}

impl<'a, M> Chain<'a, M> {
    /// Adds a segment that reads the outputs of the segments with the indices `inputs`. Returns the index of the new
    /// segment. `is_trained` says whether any of its parameters is trained.
    ///
    /// `forward` is called twice: with model and inputs on the device without autodiff, and in the backward pass with
    /// model and inputs on the autodiff device. Tensors that do not depend on parameters may be on the device without
    /// autodiff in both calls, because they are constants.
    ///
    /// # Panics
    /// If an input is not the index of an earlier segment.
    pub fn push(
        &mut self,
        inputs: &[usize],
        is_trained: bool,
        forward: impl Fn(&M, &[Tensor<3>]) -> Result<Tensor<3>, InputError> + 'a,
    ) -> usize {
        assert!(inputs.iter().all(|input| *input < self.segments.len()), "a segment can only read earlier segments");
        self.segments.push(Segment { inputs: inputs.to_vec(), is_trained, forward: Box::new(forward) });
        self.segments.len() - 1
    }
}

impl<M> fmt::Debug for Chain<'_, M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.segments.iter().map(|segment| &segment.inputs)).finish()
    }
}

/// Whether any parameter of `module` requires a gradient.
pub(crate) fn is_trained<M: Module>(module: &M) -> bool {
    struct Any(bool);
    impl ParameterVisitor for Any {
        fn visit<const D: usize>(&mut self, _name: &str, param: &Param<Tensor<D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut any = Any(false);
    visit_parameters(module, &mut any);
    any.0
}
