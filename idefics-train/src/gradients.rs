//! Gradients, keyed by tensor name.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use idefics_nn::{ParameterVisitor, visit_parameters};

/// The gradient of a loss for each parameter, flattened, keyed by the name of the parameter in the checkpoint.
/// Gradients are F32 whatever the dtype of the parameter, so that sums over micro-batches are exact enough.
///
/// The tensors are on the device without autodiff, because they are not differentiated again.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    tensors: BTreeMap<String, Tensor<1>>,
}

/// The loss of a micro-batch and its gradients. Both are sums over the labels, so those of several micro-batches can be
/// added.
#[derive(Debug, Clone, Default)]
pub struct LossGradients {
    /// Loss, summed over the labels.
    pub loss: f64,
    /// Number of labels in the sum.
    pub n_labels: usize,
    /// Gradients of the summed loss.
    pub gradients: Gradients,
}

impl LossGradients {
    /// Runs the backward pass of `loss`, `[1]`, which is the sum over `n_labels` labels. Returns gradients for all
    /// parameters of `module` that the loss depends on and that are not frozen.
    pub fn backward<M: Module>(loss: &Tensor<1>, n_labels: usize, module: &M) -> Self {
        let gradients = if loss.is_tracked() {
            Gradients::collect(module, &mut loss.backward())
        } else {
            Gradients::default() // all parameters are frozen
        };
        Self { loss: loss.clone().into_scalar::<f64>(), n_labels, gradients }
    }
}

impl Gradients {
    /// Moves the gradients of the parameters of `module` out of Burn's container.
    pub(crate) fn collect<M: Module>(module: &M, from: &mut burn::tensor::Gradients) -> Self {
        let mut collector = Collector { from, tensors: BTreeMap::new() };
        visit_parameters(module, &mut collector);
        Self { tensors: collector.tensors }
    }

    /// Returns the gradient of tensor `name`, flattened, or `None` if the loss does not depend on the tensor.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.tensors.get(name)
    }

    /// Returns all gradients, flattened, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.tensors.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Adds the gradients of another micro-batch.
    pub fn accumulate(&mut self, other: Self) {
        for (name, gradient) in other.tensors {
            self.add(&name, gradient);
        }
    }

    /// Adds `gradient` to the gradient of tensor `name`.
    pub(crate) fn add(&mut self, name: &str, gradient: Tensor<1>) {
        let sum = match self.tensors.remove(name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.tensors.insert(name.to_owned(), sum);
    }

    /// Multiplies all gradients by `factor`.
    pub fn scale(&mut self, factor: f64) {
        for gradient in self.tensors.values_mut() {
            gradient.inplace(|gradient| gradient * factor);
        }
    }

    /// Adds the gradient of each tied tensor to that of its source, and removes the entry of the tied tensor. `tied`
    /// has pairs (tensor, source).
    pub fn tie(&mut self, tied: &[(&str, &str)]) {
        for (tied, source) in tied {
            if let Some(gradient) = self.tensors.remove(*tied) {
                self.add(source, gradient);
            }
        }
    }

    /// Computes the Euclidean norm of all gradients together, like `torch.nn.utils.get_total_norm`.
    pub fn norm(&self) -> f64 {
        let squares = self.tensors.values().map(|gradient| gradient.clone().square().sum());
        let squares: Vec<Tensor<1>> = squares.collect();
        if squares.is_empty() {
            return 0.0;
        }
        Tensor::cat(squares, 0).sum().into_scalar::<f64>().sqrt()
    }

    /// Scales the gradients down so that their norm is at most `max_norm`. Returns the norm before clipping.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`, including its constant 1e-6.
    pub fn clip(&mut self, max_norm: f64) -> f64 {
        let norm = self.norm();
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            self.scale(scale);
        }
        norm
    }
}

struct Collector<'a> {
    from: &'a mut burn::tensor::Gradients,
    tensors: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Collector<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.from) {
            self.tensors.insert(name.to_owned(), gradient.flatten(0, D - 1).cast(DType::F32));
        }
    }
}
