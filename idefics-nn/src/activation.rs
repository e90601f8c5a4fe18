//! Activation functions, named as in `config.json`.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::ops;

/// An activation function. The serialised names are those of the reference's `ACT2FN` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// `x · Φ(x)`, where Φ is the normal distribution function, computed with the exact error function (IDEFICS
    /// v1's vision tower).
    #[serde(rename = "gelu")]
    Gelu,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))` (every SigLIP tower).
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// `x · σ(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `max(x, 0)` (IDEFICS v1's resampler).
    #[serde(rename = "relu")]
    Relu,
    /// `x · σ(x)` (the decoders and Idefics2's connector).
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
