//! A model as segments that run one after another: what the backward pass in bounded memory goes through.

use std::fmt;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use idefics_generate::InputError;
use idefics_nn::{ParameterVisitor, visit_parameters};

use crate::{Trainable, TrainingBatch};

/// A model that shows itself as segments.
pub trait Segments: Trainable + Module {
    /// The segments that `batch` goes through. The last one's output is the summed loss, `[1, 1, 1]`.
    ///
    /// # Errors
    /// As [`Trainable::training_gradients`].
    fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, InputError>;
}

/// What a segment computes, on the plain model or on the one in the graph.
type Forward<'a, M> = Box<dyn Fn(&M, &[Tensor<3>]) -> Result<Tensor<3>, InputError> + 'a>;

/// Segments in the order in which they run. Each reads outputs of earlier ones.
pub struct Chain<'a, M> {
    pub(crate) segments: Vec<Segment<'a, M>>,
}

/// A part of a model: a layer, mostly.
pub(crate) struct Segment<'a, M> {
    /// The segments whose outputs it reads, by number.
    pub(crate) inputs: Vec<usize>,
    /// Whether one of its parameters is trained.
    pub(crate) is_trained: bool,
    pub(crate) forward: Forward<'a, M>,
}

impl<M> Default for Chain<'_, M> {
    fn default() -> Self {
        Self { segments: Vec::new() }
    }
}

impl<'a, M> Chain<'a, M> {
    /// Adds a segment that reads the outputs of the segments `inputs`, and returns its number.
    ///
    /// `forward` is given the model on the plain device with plain inputs, and again, in the backward pass, the model on
    /// the autodiff device with inputs of the graph. What does not depend on parameters may be plain in both: a tensor
    /// outside the graph is a constant.
    pub fn push(
        &mut self,
        inputs: &[usize],
        is_trained: bool,
        forward: impl Fn(&M, &[Tensor<3>]) -> Result<Tensor<3>, InputError> + 'a,
    ) -> usize {
        assert!(inputs.iter().all(|input| *input < self.segments.len()), "a segment reads earlier ones");
        self.segments.push(Segment { inputs: inputs.to_vec(), is_trained, forward: Box::new(forward) });
        self.segments.len() - 1
    }
}

impl<M> fmt::Debug for Chain<'_, M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.segments.iter().map(|segment| &segment.inputs)).finish()
    }
}

/// Whether a parameter of `module` asks for a gradient.
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

/// Vectors of images in another order, `[places, n_vectors, d]`: `places` says which of the images, `[n_images, n_vectors,
/// d]`, stands at each place.
pub(crate) fn select(images: Tensor<3>, places: &[usize]) -> Tensor<3> {
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let options = (&images.device(), DType::I32);
    images.select(0, Tensor::from_data(TensorData::from(places.as_slice()), options))
}
