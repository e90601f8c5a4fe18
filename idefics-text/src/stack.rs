//! Code shared by all decoders: chunked prefill, branches and decode steps. It calls the layers through a trait.

use std::fmt::Debug;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KeyValues, KvCache};

use crate::positions::PositionRules;
use crate::{Branches, Positions, SlotPositions};

/// Default number of tokens in a chunk, summed over all rows. It is large enough to keep all cores busy.
pub const CHUNK_TOKENS: usize = 1024;

/// A stack of decoder layers that maps token embeddings to hidden states. The language-model head belongs to the model.
///
/// An implementation defines how to embed tokens and run the layers; everything else is provided.
///
/// Axes: `batch` rows, `n_new` tokens of this call, `d` = width of the hidden states.
pub trait DecoderStack: Debug + Send + Sync {
    /// Returns the number of layers.
    fn n_layers(&self) -> usize;

    /// Looks up the embeddings of tokens: takes `[batch, n_new]` and returns `[batch, n_new, d]`.
    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3>;

    /// Runs a range of layers, and the final norm if the range includes the last layer. Takes and returns
    /// `[batch, n_new, d]`.
    ///
    /// Every layer appends the keys and values of the tokens to `key_values`. `positions` has the positions and masks
    /// of the tokens. `observer` gets the input of every layer and the output of the norm.
    fn layers(
        &self,
        layers: Range<usize>,
        hidden_states: Tensor<3>,
        positions: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3>;

    /// Returns the device on which token ids are expected.
    fn device(&self) -> Device;

    /// Returns the rules by which positions and masks are computed.
    fn position_rules(&self) -> &PositionRules;

    /// Runs all layers on tokens that follow those in the cache, and adds them to the cache. Processes [`CHUNK_TOKENS`]
    /// tokens at a time, which limits the memory that long prompts take.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, with the left padding that the cache was created for
    /// - returns `[batch, n_new, d]`; the values of padding tokens are meaningless
    ///
    /// # Panics
    /// If the rows of the cache do not match `inputs_embeds`, the layers of the cache do not match the decoder, or the
    /// cache has no space for `n_new` tokens.
    fn forward(&self, inputs_embeds: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        self.forward_in_chunks(inputs_embeds, CHUNK_TOKENS, cache)
    }

    /// Runs all layers like [`Self::forward`], but in chunks of about `n_tokens` tokens, summed over all rows, with at
    /// least one token per row.
    fn forward_in_chunks(&self, inputs_embeds: Tensor<3>, n_tokens: usize, cache: &mut KvCache) -> Tensor<3> {
        let [batch, n_new, _] = inputs_embeds.dims();
        let n_slots = cache.len() + n_new;
        let n_chunks = n_new.div_ceil((n_tokens / batch.max(1)).max(1)).max(1);
        let chunk_len = n_new.div_ceil(n_chunks).max(1); // so that the chunks have about equal lengths
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

    /// Runs all layers like [`Self::forward`], but on all tokens in a single chunk. `observer` gets the hidden
    /// states and attention weights.
    fn forward_observed(
        &self,
        inputs_embeds: Tensor<3>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let positions = self.positions(&inputs_embeds, cache);
        self.forward_at(inputs_embeds, &positions, cache, observer)
    }

    /// Runs all layers like [`Self::forward`], but for rows that branch. The tokens are those just appended to
    /// `branches`. They may belong to different branches, which do not see each other.
    ///
    /// # Panics
    /// As [`Self::forward`], or if the number of rows or slots of `branches` does not fit the cache and the tokens.
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

    /// Returns the positions and masks of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow the tokens
    /// in the cache.
    fn positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Positions {
        self.position_rules().for_next_tokens(inputs_embeds, cache, cache.len() + inputs_embeds.dims()[1])
    }

    /// Returns positions and masks like [`Self::positions`], but for rows that branch. The tokens are those just
    /// appended to `branches`.
    ///
    /// # Panics
    /// If the number of rows or slots of `branches` does not fit the cache and the tokens.
    fn branch_positions(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Positions {
        self.position_rules().for_branches(inputs_embeds, branches, cache)
    }

    /// Creates the data to compute positions and masks of single tokens on the device, for a decode step that is
    /// captured as a graph. Activations have the dtype and device of `inputs_embeds`. `None` if the rotary angles
    /// depend on the length of the sequence
    /// ([`RotaryEmbedding::depends_on_length`](idefics_nn::RotaryEmbedding::depends_on_length)).
    fn slot_positions(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPositions> {
        self.position_rules().for_slots(inputs_embeds, cache)
    }
}

/// Observes the intermediate results of a decoder that Transformers returns with `output_hidden_states` and
/// `output_attentions`.
pub trait DecoderObserver {
    /// Observes `hidden_states[index]`, `[batch, n_new, d]`: the input of layer `index`, or the output of the final
    /// norm if `index` is the number of layers.
    fn hidden_states(&mut self, _index: usize, _hidden_states: &Tensor<3>) {}

    /// Observes `attentions[layer_idx]`. A call of `weights` computes them, `[batch, heads, n_new, len + n_new]`, where
    /// `len` is the number of cached tokens.
    fn attentions(&mut self, _layer_idx: usize, _weights: &dyn Fn() -> Tensor<4>) {}
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl DecoderObserver for NoObserver {}
