//! The Mistral decoder (and Llama's, which differs in configuration only).
//!
//! Papers: <https://arxiv.org/abs/2310.06825>, <https://arxiv.org/abs/2302.13971>. Reference: `MistralModel`,
//! `modeling_mistral.py`, Transformers 5.23.0.
//!
//! Axes: `batch` rows, `n_new` tokens of this call, `len` tokens in the cache before it, `d` = `hidden_size`, `heads`
//! query and `kv_heads` key/value heads of `head_dim`.
//!
//! Numerics: RMS norms and rotary angles in f32, attention weights at least in the input's dtype.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{ConfigError, Embedding, GatedMlp, KvCache, LayerCache, RmsNorm};

use crate::positions::PositionRules;
use crate::{Branches, Positions, SelfAttention, SlotPositions, TextConfig};

/// Tokens of all rows that go through the layers together: as many as keep all cores busy.
pub const CHUNK_TOKENS: usize = 1024;

/// Runs `forward` on `[batch, n_new, d]` in chunks of about `n_tokens` tokens of all rows, with the slots of each among
/// the new ones.
pub(crate) fn in_chunks(
    inputs_embeds: Tensor<3>,
    n_tokens: usize,
    mut forward: impl FnMut(Tensor<3>, Range<usize>) -> Tensor<3>,
) -> Tensor<3> {
    let [batch, n_new, _] = inputs_embeds.dims();
    let n_chunks = n_new.div_ceil((n_tokens / batch.max(1)).max(1));
    if n_chunks <= 1 {
        return forward(inputs_embeds, 0..n_new);
    }
    let step = n_new.div_ceil(n_chunks); // chunks of about the same length
    let chunk = |start: usize| {
        let slots = start..n_new.min(start + step);
        forward(inputs_embeds.clone().narrow(1, start, slots.len()), slots) // [batch, slots, d]
    };
    Tensor::cat((0..n_new).step_by(step).map(chunk).collect(), 1)
}

/// Token vectors in, contextual vectors out; the head is the assembled model's.
#[derive(Module, Debug)]
pub struct Decoder {
    /// One vector a token id.
    pub embed_tokens: Embedding,
    /// In the order in which they run.
    pub layers: Vec<DecoderLayer>,
    /// Norm of the result.
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

    /// The tokens' own vectors: `[batch, n_new]` in, `[batch, n_new, d]` out.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        self.embed_tokens.forward(input_ids)
    }

    /// Runs the tokens that follow those in the cache, and adds them to it: [`CHUNK_TOKENS`] at a time, which bounds the
    /// memory of long prompts.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, padded on the left where the cache says so
    /// - returns `[batch, n_new, d]`; rows of padding mean nothing
    ///
    /// # Panics
    /// If the cache has another number of rows or layers, or no room for `n_new` tokens.
    pub fn forward(&self, inputs_embeds: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        self.forward_in_chunks(inputs_embeds, CHUNK_TOKENS, cache)
    }

    /// As [`Self::forward`] with so many tokens at a time, those of all rows counted, but at least one of each.
    pub fn forward_in_chunks(&self, inputs_embeds: Tensor<3>, n_tokens: usize, cache: &mut KvCache) -> Tensor<3> {
        let n_slots = cache.len() + inputs_embeds.dims()[1];
        in_chunks(inputs_embeds, n_tokens, |chunk, _| {
            let positions = self.rules.after(&chunk, cache, n_slots);
            self.forward_at(chunk, &positions, cache, &mut Unobserved)
        })
    }

    /// As [`Self::forward`] with all tokens at once, showing `observer` what happens inside.
    pub fn forward_observed(
        &self,
        inputs_embeds: Tensor<3>,
        cache: &mut KvCache,
        observer: &mut (impl DecoderObserver + ?Sized),
    ) -> Tensor<3> {
        let positions = self.positions(&inputs_embeds, cache);
        self.forward_at(inputs_embeds, &positions, cache, observer)
    }

    /// As [`Self::forward`] for rows that branch: the tokens are those that `branches` was last given.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, the new tokens of each row, which need not see each other
    /// - returns `[batch, n_new, d]`
    ///
    /// # Panics
    /// As [`Self::forward`], or if `branches` is of other rows or another number of slots.
    pub fn forward_branches(&self, inputs_embeds: Tensor<3>, branches: &Branches, cache: &mut KvCache) -> Tensor<3> {
        let positions = self.branch_positions(&inputs_embeds, branches, cache);
        self.forward_at(inputs_embeds, &positions, cache, &mut Unobserved)
    }

    /// As [`Self::forward_observed`] for tokens of which [`Self::positions`] or [`Self::branch_positions`] said where
    /// they stand.
    pub fn forward_at(
        &self,
        inputs_embeds: Tensor<3>,
        positions: &Positions,
        cache: &mut KvCache,
        observer: &mut (impl DecoderObserver + ?Sized),
    ) -> Tensor<3> {
        let n_new = inputs_embeds.dims()[1];
        let mut hidden_states = inputs_embeds;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            observer.hidden_states(layer_idx, &hidden_states);
            hidden_states = layer.forward(hidden_states, positions, cache.layer(layer_idx), |weights| {
                observer.attentions(layer_idx, weights)
            });
        }
        cache.advance(n_new);
        let hidden_states = self.norm.forward(hidden_states);
        observer.hidden_states(self.layers.len(), &hidden_states);
        hidden_states
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
}

/// Sees a decoder's insides as the reference returns them with `output_hidden_states` and `output_attentions`.
pub trait DecoderObserver {
    /// `hidden_states[index]`, `[batch, n_new, d]`: the input of layer `index`, or after the last layer the normed
    /// result.
    fn hidden_states(&mut self, _index: usize, _hidden_states: &Tensor<3>) {}

    /// `attentions[layer_idx]`: `weights` computes them when called, `[batch, heads, n_new, len + n_new]`.
    fn attentions(&mut self, _layer_idx: usize, _weights: &dyn Fn() -> Tensor<4>) {}
}

/// Looks at nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl DecoderObserver for Unobserved {}

/// Attention and feed-forward, each on a normalised copy, each added to what it read.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Causal self-attention.
    pub self_attn: SelfAttention,
    /// Before the feed-forward block.
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

    /// # Shapes
    /// As [`SelfAttention::forward`].
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        positions: &Positions,
        cache: &mut LayerCache,
        observe: impl FnOnce(&dyn Fn() -> Tensor<4>),
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(hidden_states.clone());
        let hidden_states = hidden_states + self.self_attn.forward(normed, positions, cache, observe);
        hidden_states.clone() + self.mlp.forward(self.post_attention_layernorm.forward(hidden_states))
    }
}
