//! Activation functions, named as in `config.json`.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::ops;

/// An activation function. It is serialised under its name in the `ACT2FN` table of Transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// The exact GELU, `x · Φ(x)`, where Φ is the cumulative distribution function of the standard normal distribution.
    /// IDEFICS v1's vision tower uses it.
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation of GELU, `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`. Every SigLIP tower uses it.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// The sigmoid approximation of GELU, `x · σ(1.702 x)`, where σ is the logistic sigmoid.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `max(x, 0)`. IDEFICS v1's resampler uses it.
    #[serde(rename = "relu")]
    Relu,
    /// `x · σ(x)`, where σ is the logistic sigmoid. The decoders and Idefics2's connector use it.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    /// Applies the function to each element. The shape stays the same.
    pub fn forward<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => ops::gelu(input),
            Self::GeluTanh => ops::gelu_tanh(input),
            Self::QuickGelu => input.clone() * activation::sigmoid(input * 1.702),
            Self::Relu => activation::relu(input),
            Self::Silu => activation::silu(input),
        }
    }
}
