//! The Mistral decoder. Llama differs only in its configuration.
//!
//! Papers: <https://arxiv.org/abs/2310.06825>, <https://arxiv.org/abs/2302.13971>. Reference: `MistralModel`,
//! `modeling_mistral.py`, Transformers 5.23.0.
//!
//! Axes: `batch` rows, `n_new` tokens of this call, `d` = `hidden_size`.
//!
//! Numerics: RMS norms and rotary angles are computed in f32. Attention weights have at least the precision of the
//! input.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{ConfigError, Embedding, GatedMlp, KeyValues, RmsNorm};

use crate::positions::PositionRules;
use crate::{DecoderObserver, DecoderStack, Positions, SelfAttention, TextConfig};

/// A decoder that maps token embeddings to hidden states. The language-model head belongs to the model.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embeddings.
    pub embed_tokens: Embedding,
    /// Decoder layers, in order of execution.
    pub layers: Vec<DecoderLayer>,
    /// Final norm.
    pub norm: RmsNorm,
    #[module(skip)]
    rules: PositionRules,
}

impl Decoder {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Result<Self, ConfigError> {
        Ok(Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|_| DecoderLayer::new(config, device)).collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_eps, device),
            rules: PositionRules::new(config)?,
        })
    }
}

impl DecoderStack for Decoder {
    fn n_layers(&self) -> usize {
        self.layers.len()
    }

    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        self.embed_tokens.forward(input_ids)
    }

    fn layers(
        &self,
        layers: Range<usize>,
        mut hidden_states: Tensor<3>,
        positions: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        for layer_idx in layers.clone() {
            observer.hidden_states(layer_idx, &hidden_states);
            hidden_states = self.layers[layer_idx].forward(hidden_states, layer_idx, positions, key_values, observer);
        }
        if layers.end < self.n_layers() {
            return hidden_states;
        }
        let hidden_states = self.norm.forward(hidden_states);
        observer.hidden_states(self.n_layers(), &hidden_states);
        hidden_states
    }

    fn device(&self) -> Device {
        self.embed_tokens.device()
    }

    fn position_rules(&self) -> &PositionRules {
        &self.rules
    }
}

/// Self-attention and feed-forward block, each with a pre-norm and a residual connection.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Norm before self-attention.
    pub input_layernorm: RmsNorm,
    /// Causal self-attention.
    pub self_attn: SelfAttention,
    /// Norm before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward block.
    pub mlp: GatedMlp,
}

impl DecoderLayer {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        let d = config.hidden_size;
        let norm = || RmsNorm::new(d, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: SelfAttention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: GatedMlp::new(d, config.intermediate_size, d, config.hidden_act, device),
        }
    }

    /// Runs the layer.
    ///
    /// # Shapes
    /// As [`SelfAttention::forward`].
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        layer_idx: usize,
        positions: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(hidden_states.clone());
        let attended = self.self_attn.forward(normed, layer_idx, positions, key_values, observer);
        let hidden_states = hidden_states + attended;
        hidden_states.clone() + self.mlp.forward(self.post_attention_layernorm.forward(hidden_states))
    }
}
