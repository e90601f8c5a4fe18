//! RMS norm and layer norm. As in Transformers, both compute in f32, whatever the dtype of the input.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::init::normal;
use crate::ops;

/// RMS norm, `x / √(mean(x²) + eps) · weight`, with the mean over the last axis. The quotient is rounded to the input's
/// dtype before it is multiplied by the weight.
///
/// Paper: <https://arxiv.org/abs/1910.07467>. Source: `MistralRMSNorm` in Transformers.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Factor for each element of the last axis, `[hidden_size]`.
    pub weight: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNorm {
    /// Creates a layer for a last axis of size `hidden_size`.
    pub fn new(hidden_size: usize, eps: f64, device: &Device) -> Self {
        Self { weight: normal([hidden_size], 1.0, 0.0, device), eps }
    }

    /// Normalises the last axis: takes `[.., hidden_size]`, and returns the same shape and dtype.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(input, self.weight.val(), self.eps)
    }
}

/// Layer norm, `(x − mean(x)) / √(var(x) + eps) · weight + bias`, with mean and biased variance over the last axis.
///
/// Paper: <https://arxiv.org/abs/1607.06450>. Source: `torch.nn.LayerNorm`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Factor for each element of the last axis, `[hidden_size]`.
    pub weight: Param<Tensor<1>>,
    /// Offset for each element of the last axis, `[hidden_size]`.
    pub bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    /// Creates a layer for a last axis of size `hidden_size`.
    pub fn new(hidden_size: usize, eps: f64, device: &Device) -> Self {
        Self { weight: normal([hidden_size], 1.0, 0.0, device), bias: normal([hidden_size], 0.0, 0.0, device), eps }
    }

    /// Normalises the last axis: takes `[.., hidden_size]`, and returns the same shape and dtype.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(input, self.weight.val(), self.bias.val(), self.eps)
    }
}
