//! Gradients under the names of the tensors that they belong to.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use idefics_nn::{ParameterVisitor, visit_parameters};

/// What a loss says about each parameter, flattened, by the parameter's name in the checkpoint.
///
/// The tensors are on the plain device: nothing here is differentiated again.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    tensors: BTreeMap<String, Tensor<1>>,
}

/// The loss of a micro-batch and its gradients, summed over the labels so that micro-batches add up.
#[derive(Debug, Clone)]
pub struct LossGradients {
    /// The summed loss.
    pub loss: f64,
    /// Labels that it is the sum over.
    pub n_labels: usize,
    /// Its gradients.
    pub gradients: Gradients,
}

impl LossGradients {
    /// Runs the backward pass of `loss`, `[1]`, the sum over `n_labels` labels, for every parameter of `module` that it depends on and that is not
    /// frozen.
    pub fn backward<M: Module>(loss: &Tensor<1>, n_labels: usize, module: &M) -> Self {
        let gradients = if loss.is_tracked() {
            Gradients::collect(module, &mut loss.backward())
        } else {
            Gradients::default() // everything is frozen
        };
        Self { loss: loss.clone().into_scalar::<f64>(), n_labels, gradients }
    }
}

impl Gradients {
    /// Takes the parameters' gradients out of Burn's collection.
    pub(crate) fn collect<M: Module>(module: &M, from: &mut burn::tensor::Gradients) -> Self {
        let mut taken = Taken { from, tensors: BTreeMap::new() };
        visit_parameters(module, &mut taken);
        Self { tensors: taken.tensors }
    }

    /// The gradient of the tensor `name`, flattened; `None` if the loss does not depend on it.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.tensors.get(name)
    }

    /// All gradients, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.tensors.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Adds another micro-batch's gradients.
    pub fn accumulate(&mut self, other: Self) {
        for (name, gradient) in other.tensors {
            self.add(&name, gradient);
        }
    }

    /// Adds the gradient of one tensor.
    pub(crate) fn add(&mut self, name: &str, gradient: Tensor<1>) {
        let sum = match self.tensors.remove(name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.tensors.insert(name.to_owned(), sum);
    }

    /// Multiplies them all.
    pub fn scale(&mut self, factor: f64) {
        for gradient in self.tensors.values_mut() {
            gradient.inplace(|gradient| gradient * factor);
        }
    }

    /// Gives the gradient of each tied tensor to its source: pairs (tensor, source).
    pub fn tie(&mut self, tied: &[(&str, &str)]) {
        for (tied, source) in tied {
            if let Some(gradient) = self.tensors.remove(*tied) {
                self.add(source, gradient);
            }
        }
    }

    /// The Euclidean norm over all of them together, as `torch.nn.utils.get_total_norm`.
    pub fn norm(&self) -> f64 {
        let squares = self.tensors.values().map(|gradient| gradient.clone().square().sum());
        let squares: Vec<Tensor<1>> = squares.collect();
        if squares.is_empty() {
            return 0.0;
        }
        Tensor::cat(squares, 0).sum().into_scalar::<f64>().sqrt()
    }

    /// Scales them down so that their norm, which is returned as it was, is at most `max_norm`.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`, its 1e-6 included.
    pub fn clip(&mut self, max_norm: f64) -> f64 {
        let norm = self.norm();
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            self.scale(scale);
        }
        norm
    }
}

struct Taken<'a> {
    from: &'a mut burn::tensor::Gradients,
    tensors: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Taken<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.from) {
            self.tensors.insert(name.to_owned(), gradient.flatten(0, D - 1));
        }
    }
}
