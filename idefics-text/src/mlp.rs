//! The gated feed-forward block of Llama and Mistral layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use idefics_nn::{Activation, Linear};

use crate::TextConfig;

/// `down(act(gate(x)) · up(x))`, without biases. Source: `MistralMLP`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The branch that goes through the activation.
    pub gate_proj: Linear,
    /// The branch that it scales.
    pub up_proj: Linear,
    /// Back to `hidden_size`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        let TextConfig { hidden_size, intermediate_size, hidden_act, .. } = *config;
        Self {
            gate_proj: Linear::new_without_bias(hidden_size, intermediate_size, device),
            up_proj: Linear::new_without_bias(hidden_size, intermediate_size, device),
            down_proj: Linear::new_without_bias(intermediate_size, hidden_size, device),
            activation: hidden_act,
        }
    }

    /// `[batch, seq, hidden_size]` in and out.
    pub fn forward(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        let gate = self.activation.forward(self.gate_proj.forward(hidden_states.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(hidden_states))
    }
}
