//! AdamW, with its state keyed by tensor name.
//!
//! Paper: <https://arxiv.org/abs/1711.05101>. Source: `torch.optim.AdamW`. Burn's own optimiser is not used, because it
//! keys its state by parameter ids. These are random for each model, so a run could not be resumed in another process.
//!
//! Moments and updates are computed in F32 whatever the dtype of a parameter. The new value is rounded to that dtype.
//! PyTorch keeps the moments in the dtype of the parameter.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use idefics_nn::{ParameterMapper, map_parameters};
use serde::{Deserialize, Serialize};

use crate::Gradients;

/// Hyperparameters of AdamW, except the learning rate. The defaults are those of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay rates of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the square root of the mean square.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: WeightDecay,
}

/// Which parameters decay, and the decay coefficient. A step multiplies a decaying parameter by
/// `1 − learning_rate · coefficient`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WeightDecay {
    /// All parameters decay, as in `torch.optim.AdamW` with a single parameter group.
    All(f64),
    /// Only parameters with at least two axes decay, so no biases or norms, as in the `Trainer` of Transformers.
    Matrices(f64),
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, weight_decay: WeightDecay::All(0.01) }
    }
}

/// The optimiser with its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    pub(crate) moments: BTreeMap<String, Moments>,
}

/// The optimiser state of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    /// Number of steps in which this tensor had a gradient.
    pub(crate) step: u64,
    /// Running mean of the gradients, flattened, F32.
    pub(crate) exp_avg: Tensor<1>,
    /// Running mean of the squared gradients, flattened, F32.
    pub(crate) exp_avg_sq: Tensor<1>,
}

impl AdamW {
    /// Creates an optimiser without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }

    /// Updates every parameter that has a gradient. `tied` has pairs (tensor, source). The tensor is set to the new
    /// value of the source. The source must precede the tensor in the module.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        gradients: &Gradients,
        learning_rate: f64,
        tied: &[(&str, &str)],
    ) -> M {
        map_parameters(
            module,
            &mut Update { optimizer: self, gradients, learning_rate, tied, sources: BTreeMap::new() },
        )
    }

    /// Computes the new value of a tensor, in F32, from its value and gradient in F32.
    fn update(&mut self, name: &str, n_axes: usize, value: Tensor<1>, gradient: Tensor<1>, rate: f64) -> Tensor<1> {
        let AdamWConfig { betas: [beta1, beta2], eps, weight_decay } = self.config;
        let decay = match weight_decay {
            WeightDecay::All(decay) => decay,
            WeightDecay::Matrices(decay) if n_axes >= 2 => decay,
            WeightDecay::Matrices(_) => 0.0,
        };
        let moments = self.moments.entry(name.to_owned()).or_insert_with(|| Moments {
            step: 0,
            exp_avg: gradient.zeros_like(),
            exp_avg_sq: gradient.zeros_like(),
        });
        moments.step += 1;
        moments.exp_avg.inplace(|mean| mean * beta1 + gradient.clone() * (1.0 - beta1));
        moments.exp_avg_sq.inplace(|mean| mean * beta2 + gradient.square() * (1.0 - beta2));

        let step = i32::try_from(moments.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(step);
        let correction2 = 1.0 - beta2.powi(step);
        let denominator = moments.exp_avg_sq.clone().sqrt() / correction2.sqrt() + eps;
        value * (1.0 - rate * decay) - moments.exp_avg.clone() / denominator * (rate / correction1)
    }
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    gradients: &'a Gradients,
    learning_rate: f64,
    tied: &'a [(&'a str, &'a str)],
    /// New values of the tensors to which other tensors are tied, flattened.
    sources: BTreeMap<String, Tensor<1>>,
}

impl ParameterMapper for Update<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = param.val().dtype();
        let source = self.tied.iter().find(|(tied, _)| *tied == name).and_then(|(_, source)| self.sources.get(*source));
        let value = match (source, self.gradients.get(name)) {
            (Some(source), _) => source.clone().cast(dtype),
            (None, Some(gradient)) => {
                let value = param.val().inner().flatten(0, D - 1).cast(DType::F32);
                self.optimizer.update(name, D, value, gradient.clone(), self.learning_rate).cast(dtype)
            }
            (None, None) => return param,
        };
        if self.tied.iter().any(|(_, source)| *source == name) {
            self.sources.insert(name.to_owned(), value.clone());
        }
        let is_require_grad = param.is_require_grad();
        param.map(|old| Tensor::from_inner(value.reshape(old.dims())).set_require_grad(is_require_grad))
    }
}
