//! The Llama decoder of the first Idefics: gated layers between its own let its tokens see a context.
//!
//! Papers: <https://arxiv.org/abs/2302.13971>, <https://arxiv.org/abs/2306.16527>. Reference: `IdeficsModel`,
//! `modeling_idefics.py`, Transformers 5.23.0.
//!
//! Axes: `batch` rows, `n_new` tokens of this call, `d` = `hidden_size`, `n_keys` vectors of the context, `d_context`
//! wide.
//!
//! Numerics: as the decoder without gated layers. The context's keys and values are computed once and kept; the
//! reference computes them at each step, to the same values.

use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Int, Tensor};
use idefics_nn::{ConfigError, ContextView, KvCache, RmsNorm, beside};

use crate::cross_attention::Context;
use crate::decoder::{CHUNK_TOKENS, in_chunks};
use crate::positions::PositionRules;
use crate::{
    Branches, CrossAttentionConfig, DecoderLayer, DecoderObserver, DecoupledEmbedding, GatedCrossAttentionLayer,
    Positions, SlotPositions, Unobserved,
};

/// Token vectors and a context in, contextual vectors out; the head is the assembled model's.
#[derive(Module, Debug)]
pub struct CrossAttentionDecoder {
    /// One vector a token id.
    pub embed_tokens: DecoupledEmbedding,
    /// In the order in which they run.
    pub layers: Vec<DecoderLayer>,
    /// The first runs before layer 0, the next before layer `cross_layer_interval`, and so on.
    pub gated_cross_attn_layers: Vec<GatedCrossAttentionLayer>,
    /// Norm of the result.
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

    /// The tokens' own vectors: `[batch, n_new]` in, `[batch, n_new, d]` out.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        self.embed_tokens.forward(input_ids)
    }

    /// Keys and values of a context, of each gated layer: what [`ContextCache`](idefics_nn::ContextCache) keeps.
    ///
    /// # Shapes
    /// - `context_states`: `[batch, n_keys, d_context]`
    /// - returns `[batch, heads, n_keys, head_dim]` each
    pub fn context_key_values(&self, context_states: &Tensor<3>) -> Vec<(Tensor<4>, Tensor<4>)> {
        let of_layer = |layer: &GatedCrossAttentionLayer| {
            layer.cross_attn.key_values(beside(context_states.clone(), &layer.input_layernorm.weight.val()))
        };
        self.gated_cross_attn_layers.iter().map(of_layer).collect()
    }

    /// Runs the tokens that follow those in the cache, and adds them to it: [`CHUNK_TOKENS`] at a time, which bounds the
    /// memory of long prompts.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, padded on the left where the cache says so
    /// - `view`: what the new tokens see of the cache's context; `None` for what the newest token of their row saw
    /// - returns `[batch, n_new, d]`; rows of padding mean nothing
    ///
    /// # Panics
    /// If the cache has another number of rows or layers, or no room for `n_new` tokens, or the view does not fit it.
    pub fn forward(&self, inputs_embeds: Tensor<3>, view: Option<&ContextView>, cache: &mut KvCache) -> Tensor<3> {
        self.forward_in_chunks(inputs_embeds, CHUNK_TOKENS, view, cache)
    }

    /// As [`Self::forward`] with so many tokens at a time, those of all rows counted, but at least one of each.
    pub fn forward_in_chunks(
        &self,
        inputs_embeds: Tensor<3>,
        n_tokens: usize,
        view: Option<&ContextView>,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let n_slots = cache.len() + inputs_embeds.dims()[1];
        in_chunks(inputs_embeds, n_tokens, |chunk, slots| {
            let view = view.map(|view| view.narrow(slots));
            let positions = self.rules.after(&chunk, cache, n_slots);
            let seen = self.seen_context(view.as_ref(), chunk.dims()[1], cache, &chunk.device());
            self.forward_at(chunk, positions, seen, cache, &mut Unobserved)
        })
    }

    /// As [`Self::forward`] with all tokens at once, showing `observer` what happens inside, as the reference does since
    /// version 5: what goes into layer 0 as it comes out of the gated layer before it, and later what comes out of each
    /// layer.
    pub fn forward_observed(
        &self,
        inputs_embeds: Tensor<3>,
        view: Option<&ContextView>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let positions = self.positions(&inputs_embeds, cache);
        let seen = self.seen_context(view, inputs_embeds.dims()[1], cache, &inputs_embeds.device());
        self.forward_at(inputs_embeds, positions, seen, cache, observer)
    }

    /// As [`Self::forward`] for rows that branch: the tokens are those that `branches` was last given, and see what the
    /// newest token of their row's prompt saw.
    ///
    /// # Panics
    /// As [`Self::forward`], or if `branches` is of other rows or another number of slots.
    pub fn forward_branches(&self, inputs_embeds: Tensor<3>, branches: &Branches, cache: &mut KvCache) -> Tensor<3> {
        let positions = self.branch_positions(&inputs_embeds, branches, cache);
        let seen = self.seen_context(None, inputs_embeds.dims()[1], cache, &inputs_embeds.device());
        self.forward_at(inputs_embeds, positions, seen, cache, &mut Unobserved)
    }

    /// The positions of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow those in the cache.
    pub fn positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Positions {
        self.rules.after(inputs_embeds, cache, cache.len() + inputs_embeds.dims()[1])
    }

    /// What the positions of single tokens in slots of the cache are made of, for a step that is recorded; activations are
    /// like `inputs_embeds`. `None` where the angles of a position depend on the length of the sequence
    /// ([`RotaryEmbedding::depends_on_length`](idefics_nn::RotaryEmbedding::depends_on_length)).
    pub fn slot_positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPositions> {
        self.rules.of_slots(inputs_embeds, cache)
    }

    /// As [`Self::positions`] for rows that branch: the tokens are those that `branches` was last given.
    ///
    /// # Panics
    /// If `branches` is of other rows or another number of slots.
    pub fn branch_positions(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Positions {
        self.rules.of_branches(inputs_embeds, branches, cache)
    }

    /// What `n_new` tokens see of the cache's context, by `view` or as the newest token of their row; `None` if nothing.
    ///
    /// # Panics
    /// If the view is of other rows or another number of tokens.
    pub fn seen_context(
        &self,
        view: Option<&ContextView>,
        n_new: usize,
        cache: &KvCache,
        device: &Device,
    ) -> Option<SeenContext> {
        let context = cache.context()?;
        let view = view.map_or_else(|| context.view().repeat_last(n_new), ContextView::clone);
        assert_eq!((view.batch(), view.n_new()), (cache.batch(), n_new), "a view of the new tokens");
        (!view.is_blind()).then(|| SeenContext { masked_out: view.masked_out(context.part_len(), device) })
    }

    /// As [`Self::forward_observed`] for tokens of which [`Self::positions`] or [`Self::branch_positions`] said where
    /// they stand, and [`Self::seen_context`] what they see.
    pub fn forward_at(
        &self,
        inputs_embeds: Tensor<3>,
        positions: Positions,
        seen: Option<SeenContext>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let n_new = inputs_embeds.dims()[1];
        let here = (inputs_embeds.device(), inputs_embeds.dtype());
        let mut states = Travelling { here, positions, seen };
        let mut hidden_states = inputs_embeds;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if layer_idx > 0 {
                observer.hidden_states(layer_idx, &hidden_states);
            }
            if layer_idx.is_multiple_of(self.cross_layer_interval) {
                let gated_idx = layer_idx / self.cross_layer_interval;
                let gated = &self.gated_cross_attn_layers[gated_idx];
                hidden_states = states.to(hidden_states, &gated.input_layernorm);
                let context = states.seen.as_ref().zip(cache.context()).map(|(seen, context)| {
                    let (key, value) = context.layer(gated_idx);
                    Context { key, value, masked_out: seen.masked_out.clone() }
                });
                hidden_states = gated.forward(hidden_states, context);
            }
            hidden_states = states.to(hidden_states, &layer.input_layernorm);
            if layer_idx == 0 {
                observer.hidden_states(layer_idx, &hidden_states);
            }
            hidden_states = layer.forward(hidden_states, &states.positions, cache.layer(layer_idx), |weights| {
                observer.attentions(layer_idx, weights)
            });
        }
        let hidden_states = states.to(hidden_states, &self.norm);
        cache.advance(n_new);
        let hidden_states = self.norm.forward(hidden_states);
        observer.hidden_states(self.layers.len(), &hidden_states);
        hidden_states
    }
}

/// What new tokens see of a context, the same in every layer.
#[derive(Debug, Clone)]
pub struct SeenContext {
    /// True hides the key, `[batch, 1, n_new, n_keys]`; `None` if nothing is hidden.
    masked_out: Option<Tensor<4, Bool>>,
}

/// What goes with the tokens from layer to layer, where it is, and the dtype of activations there.
struct Travelling {
    here: (Device, DType),
    positions: Positions,
    seen: Option<SeenContext>,
}

impl Travelling {
    /// Moves on to where the norm that comes next is, with `hidden_states`.
    fn to(&mut self, hidden_states: Tensor<3>, norm: &RmsNorm) -> Tensor<3> {
        let weight = norm.weight.val();
        let (device, dtype) = (weight.device(), weight.dtype());
        if self.here == (device.clone(), dtype) {
            return hidden_states;
        }
        self.positions = self.positions.clone().to_device(&device, dtype);
        let to_device = |masked_out: Tensor<4, Bool>| masked_out.to_device(&device);
        self.seen = self.seen.take().map(|seen| SeenContext { masked_out: seen.masked_out.map(to_device) });
        self.here = (device, dtype);
        beside(hidden_states, &weight)
    }
}
