//! The gated feed-forward block of the decoders and of Idefics2's connector.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{Activation, Linear, ops};

/// A gated feed-forward block, `down(act(gate(x)) · up(x))`, without biases.
///
/// Paper: <https://arxiv.org/abs/2002.05202>. Source: `MistralMLP` and `Idefics2MLP` in Transformers.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// Projection to the inner width, followed by the activation.
    pub gate_proj: Linear,
    /// Projection to the inner width, whose result is multiplied by the activated gate.
    pub up_proj: Linear,
    /// Projection to the output width.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl GatedMlp {
    /// Creates a block with inner width `d_inner` and random weights, which loading a checkpoint replaces.
    pub fn new(d_in: usize, d_inner: usize, d_out: usize, activation: Activation, device: &Device) -> Self {
        Self {
            gate_proj: Linear::new_without_bias(d_in, d_inner, device),
            up_proj: Linear::new_without_bias(d_in, d_inner, device),
            down_proj: Linear::new_without_bias(d_inner, d_out, device),
            activation,
        }
    }

    /// Applies the block to the last axis: takes `[.., d_in]` and returns `[.., d_out]`.
    pub fn forward<const D: usize>(&self, hidden_states: Tensor<D>) -> Tensor<D> {
        let gate = self.gate_proj.forward(hidden_states.clone());
        let up = self.up_proj.forward(hidden_states);
        self.down_proj.forward(match self.activation {
            Activation::Silu => ops::swiglu(gate, up),
            activation => activation.forward(gate) * up,
        })
    }
}
