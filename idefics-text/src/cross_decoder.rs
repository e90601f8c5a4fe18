//! The Llama decoder of IDEFICS v1, with gated cross-attention layers between its own layers.
//!
//! Papers: <https://arxiv.org/abs/2302.13971>, <https://arxiv.org/abs/2306.16527>. Reference: `IdeficsModel`,
//! `modeling_idefics.py`, Transformers 5.23.0.
//!
//! Axes: `batch` rows, `n_new` tokens of this call, `d` = `hidden_size`, `n_keys` context vectors of width `d_context`.
//!
//! Numerics: RMS norms and rotary angles are computed in f32, as in the decoder without gated layers. The keys and
//! values of the context are computed once and cached. The reference recomputes the same values at every step.

use std::borrow::Cow;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};
use idefics_nn::{ConfigError, KeyValues, RmsNorm, to_parameter_device};

use crate::cross_attention::Context;
use crate::positions::PositionRules;
use crate::{
    CrossAttentionConfig, DecoderLayer, DecoderObserver, DecoderStack, DecoupledEmbedding, GatedCrossAttentionLayer,
    Positions,
};

/// A decoder that maps token embeddings and a context to hidden states. The language-model head belongs to the model.
#[derive(Module, Debug)]
pub struct CrossAttentionDecoder {
    /// Token embeddings.
    pub embed_tokens: DecoupledEmbedding,
    /// Decoder layers, in order of execution.
    pub layers: Vec<DecoderLayer>,
    /// Gated layers. The first runs before decoder layer 0, the next before layer `cross_layer_interval`, and so on.
    pub gated_cross_attn_layers: Vec<GatedCrossAttentionLayer>,
    /// Final norm.
    pub norm: RmsNorm,
    cross_layer_interval: usize,
    #[module(skip)]
    rules: PositionRules,
}

impl CrossAttentionDecoder {
    pub(crate) fn new(config: &CrossAttentionConfig, device_of: &dyn Fn(&str) -> Device) -> Result<Self, ConfigError> {
        let text = &config.text;
        let layer = |layer: usize| DecoderLayer::new(text, &device_of(&format!("layers.{layer}")));
        let gated = |layer: usize| {
            GatedCrossAttentionLayer::new(config, &device_of(&format!("gated_cross_attn_layers.{layer}")))
        };
        Ok(Self {
            embed_tokens: DecoupledEmbedding::new(
                text.vocab_size,
                config.additional_vocab_size,
                text.hidden_size,
                &device_of("embed_tokens"),
            ),
            layers: (0..text.num_hidden_layers).map(layer).collect(),
            gated_cross_attn_layers: (0..config.n_gated_layers()).map(gated).collect(),
            norm: RmsNorm::new(text.hidden_size, text.rms_norm_eps, &device_of("norm")),
            cross_layer_interval: config.cross_layer_interval,
            rules: PositionRules::new(text)?,
        })
    }

    /// Computes the keys and values of a context for each gated layer, as a [`ContextCache`](idefics_nn::ContextCache)
    /// keeps them.
    ///
    /// # Shapes
    /// - `context_states`: `[batch, n_keys, d_context]`
    /// - returns keys and values for each gated layer, `[batch, heads, n_keys, head_dim]` each
    pub fn context_key_values(&self, context_states: &Tensor<3>) -> Vec<(Tensor<4>, Tensor<4>)> {
        let layer_key_values = |layer: &GatedCrossAttentionLayer| {
            layer
                .cross_attn
                .key_values(to_parameter_device(context_states.clone(), &layer.input_layernorm.weight.val()))
        };
        self.gated_cross_attn_layers.iter().map(layer_key_values).collect()
    }
}

/// The cache supplies the context, and the mask that says which parts of the context each token sees.
///
/// An observer gets the hidden states that Transformers 5 returns. The first is the input of decoder layer 0, after the
/// gated layer that precedes it. Then come the outputs of all decoder layers but the last, before any gated layer that
/// follows them. The last is the output of the final norm.
impl DecoderStack for CrossAttentionDecoder {
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
        let mut device_positions =
            DevicePositions { here: positions.rotary.location(), positions: Cow::Borrowed(positions) };
        for layer_idx in layers.clone() {
            if layer_idx > 0 {
                observer.hidden_states(layer_idx, &hidden_states);
            }
            if layer_idx.is_multiple_of(self.cross_layer_interval) {
                let gated_idx = layer_idx / self.cross_layer_interval;
                let gated = &self.gated_cross_attn_layers[gated_idx];
                hidden_states = device_positions.move_to_device_of(hidden_states, &gated.input_layernorm);
                let context = device_positions.positions.context.as_ref().and_then(|seen| {
                    let (key, value) = key_values.context(gated_idx)?; // [batch, heads, n_keys, head_dim] each
                    Some(Context { key, value, mask: seen.mask.clone() })
                });
                hidden_states = gated.forward(hidden_states, context);
            }
            let layer = &self.layers[layer_idx];
            hidden_states = device_positions.move_to_device_of(hidden_states, &layer.input_layernorm);
            if layer_idx == 0 {
                observer.hidden_states(layer_idx, &hidden_states);
            }
            hidden_states = layer.forward(hidden_states, layer_idx, &device_positions.positions, key_values, observer);
        }
        if layers.end < self.n_layers() {
            return hidden_states;
        }
        let hidden_states = self.norm.forward(device_positions.move_to_device_of(hidden_states, &self.norm));
        observer.hidden_states(self.n_layers(), &hidden_states);
        hidden_states
    }

    fn device(&self) -> Device {
        self.embed_tokens.table.device()
    }

    fn position_rules(&self) -> &PositionRules {
        &self.rules
    }
}

/// The positions and masks of the tokens on the device of the current layer. Layers may be on several devices.
struct DevicePositions<'a> {
    here: (Device, DType),
    positions: Cow<'a, Positions>,
}

impl DevicePositions<'_> {
    /// Moves the positions, masks and `hidden_states` to the device and dtype of the next norm.
    fn move_to_device_of(&mut self, hidden_states: Tensor<3>, norm: &RmsNorm) -> Tensor<3> {
        let weight = norm.weight.val();
        let there = (weight.device(), weight.dtype());
        if self.here != there {
            self.positions = Cow::Owned(self.positions.as_ref().clone().to_device(&there.0, there.1));
            self.here = there;
        }
        to_parameter_device(hidden_states, &weight)
    }
}
