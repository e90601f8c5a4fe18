//! The code shared by all decoders: chunked prefill, branches and decode steps, written in terms of the layers.

use std::fmt::Debug;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KeyValues, KvCache};

use crate::positions::PositionRules;
use crate::{Branches, Positions, SlotPositions};

/// Default number of tokens, over all rows, that are processed together in a chunk; enough to keep all cores busy.
pub const CHUNK_TOKENS: usize = 1024;

/// A stack of decoder layers that maps token embeddings to hidden states. The language-model head belongs to the model.
///
/// An implementation defines how to embed tokens and run the layers; everything else is provided.
///
/// Axes: `batch` rows, `n_new` tokens of this call, `d` = width of the hidden states.
pub trait DecoderStack: Debug + Send + Sync {
    /// Number of layers.
    fn n_layers(&self) -> usize;

    /// Looks up the embeddings of tokens: `[batch, n_new]` in, `[batch, n_new, d]` out.
    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3>;

    /// Runs a range of layers, and the final norm if the range includes the last layer. `[batch, n_new, d]` in and out.
    ///
    /// Every layer appends the keys and values of the tokens to `key_values`. `positions` has their positions and
    /// masks. `observer` gets the input of every layer and the output of the norm.
    fn layers(
        &self,
        layers: Range<usize>,
        hidden_states: Tensor<3>,
        positions: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3>;

    /// The device on which token ids are expected.
    fn device(&self) -> Device;

    /// How positions and masks are computed.
    fn position_rules(&self) -> &PositionRules;

    /// Runs all layers on tokens that follow those in the cache, and adds them to the cache. Processes
    /// [`CHUNK_TOKENS`] at a time, which limits the memory that long prompts take.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, with the left padding that the cache was created for
    /// - returns `[batch, n_new, d]`; the values of padding tokens are meaningless
    ///
    /// # Panics
    /// If the cache has another number of rows or layers, or no space for `n_new` tokens.
    fn forward(&self, inputs_embeds: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        self.forward_in_chunks(inputs_embeds, CHUNK_TOKENS, cache)
    }

    /// Like [`Self::forward`], with about `n_tokens` tokens at a time over all rows, but at least one per row.
    fn forward_in_chunks(&self, inputs_embeds: Tensor<3>, n_tokens: usize, cache: &mut KvCache) -> Tensor<3> {
        let [batch, n_new, _] = inputs_embeds.dims();
        let n_slots = cache.len() + n_new;
        let n_chunks = n_new.div_ceil((n_tokens / batch.max(1)).max(1)).max(1);
        let chunk_len = n_new.div_ceil(n_chunks).max(1); // makes the chunks about equally long
        let mut run = |chunk: Tensor<3>| {
            let positions = self.position_rules().for_next_tokens(&chunk, cache, n_slots);
            self.forward_at(chunk, &positions, cache, &mut NoObserver)
        };
        if n_chunks == 1 {
            return run(inputs_embeds);
        }
        let chunk = |start: usize| run(inputs_embeds.clone().narrow(1, start, chunk_len.min(n_new - start)));
        Tensor::cat((0..n_new).step_by(chunk_len).map(chunk).collect(), 1)
    }

    /// Like [`Self::forward`], with all tokens at once, and with hidden states and attention weights passed to
    /// `observer`.
    fn forward_observed(
        &self,
        inputs_embeds: Tensor<3>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let positions = self.positions(&inputs_embeds, cache);
        self.forward_at(inputs_embeds, &positions, cache, observer)
    }

    /// Like [`Self::forward`], for rows that branch. The tokens are those just appended to `branches`; they may
    /// belong to different branches, which do not see each other.
    ///
    /// # Panics
    /// As [`Self::forward`], or if `branches` has another number of rows or slots.
    fn forward_branches(&self, inputs_embeds: Tensor<3>, branches: &Branches, cache: &mut KvCache) -> Tensor<3> {
        let positions = self.branch_positions(&inputs_embeds, branches, cache);
        self.forward_at(inputs_embeds, &positions, cache, &mut NoObserver)
    }

    /// Runs all layers on tokens with the given positions and masks, and adds the tokens to the cache. `positions`
    /// comes from [`Self::positions`], [`Self::branch_positions`] or [`Self::slot_positions`].
    fn forward_at(
        &self,
        inputs_embeds: Tensor<3>,
        positions: &Positions,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let n_new = inputs_embeds.dims()[1];
        let hidden_states = self.layers(0..self.n_layers(), inputs_embeds, positions, cache, observer);
        cache.advance(n_new);
        hidden_states
    }

    /// Positions and masks of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow those in the cache.
    fn positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Positions {
        self.position_rules().for_next_tokens(inputs_embeds, cache, cache.len() + inputs_embeds.dims()[1])
    }

    /// Like [`Self::positions`], for rows that branch. The tokens are those just appended to `branches`.
    ///
    /// # Panics
    /// If `branches` has another number of rows or slots.
    fn branch_positions(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Positions {
        self.position_rules().for_branches(inputs_embeds, branches, cache)
    }

    /// The data to compute positions and masks of single tokens on the device, for a decode step that is captured as
    /// a graph. Activations have the dtype and device of `inputs_embeds`. `None` if the rotary angles depend on the
    /// length of the sequence
    /// ([`RotaryEmbedding::depends_on_length`](idefics_nn::RotaryEmbedding::depends_on_length)).
    fn slot_positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPositions> {
        self.position_rules().for_slots(inputs_embeds, cache)
    }
}

/// Observes the intermediate results of a decoder that Transformers returns with `output_hidden_states` and
/// `output_attentions`.
pub trait DecoderObserver {
    /// `hidden_states[index]`, `[batch, n_new, d]`: the input of layer `index`, or the output of the final norm if
    /// `index` is the number of layers.
    fn hidden_states(&mut self, _index: usize, _hidden_states: &Tensor<3>) {}

    /// `attentions[layer_idx]`: calling `weights` computes the attention weights, `[batch, heads, n_new, len + n_new]`.
    fn attentions(&mut self, _layer_idx: usize, _weights: &dyn Fn() -> Tensor<4>) {}
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl DecoderObserver for NoObserver {}
