//! What every decoder has in common: prompts in chunks, branches and steps are written once, over its layers.

use std::fmt::Debug;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KeyValues, KvCache};

use crate::places::PlaceRules;
use crate::{Branches, Places, SlotPlaces};

/// Tokens of all rows that go through the layers together: as many as keep all cores busy.
pub const CHUNK_TOKENS: usize = 1024;

/// The layers of a decoder: token vectors in, contextual vectors out. The head is the assembled model's.
///
/// A decoder says how it embeds tokens and what its layers compute; all else is provided.
///
/// Axes: `batch` rows, `n_new` tokens of this call, `d` the decoder's width.
pub trait DecoderStack: Debug + Send + Sync {
    /// Number of layers.
    fn n_layers(&self) -> usize;

    /// The tokens' own vectors: `[batch, n_new]` in, `[batch, n_new, d]` out.
    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3>;

    /// Runs some of the layers, and behind the last one the final norm. `[batch, n_new, d]` in and out.
    ///
    /// `key_values` gets the tokens' keys and values in each layer; `places` says where they stand and what they see.
    /// `observer` sees what goes into each of the layers, and what comes out of the norm.
    fn layers(
        &self,
        layers: Range<usize>,
        hidden_states: Tensor<3>,
        places: &Places,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3>;

    /// The device where token ids go in.
    fn device(&self) -> Device;

    /// How tokens are placed.
    fn place_rules(&self) -> &PlaceRules;

    /// Runs the tokens that follow those in the cache, and adds them to it: [`CHUNK_TOKENS`] at a time, which bounds the
    /// memory of long prompts.
    ///
    /// # Shapes
    /// - `inputs_embeds`: `[batch, n_new, d]`, padded on the left where the cache says so
    /// - returns `[batch, n_new, d]`; rows of padding mean nothing
    ///
    /// # Panics
    /// If the cache has another number of rows or layers, or no room for `n_new` tokens.
    fn forward(&self, inputs_embeds: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        self.forward_in_chunks(inputs_embeds, CHUNK_TOKENS, cache)
    }

    /// As [`Self::forward`] with `n_tokens` tokens of all rows at a time, but at least one of each row.
    fn forward_in_chunks(&self, inputs_embeds: Tensor<3>, n_tokens: usize, cache: &mut KvCache) -> Tensor<3> {
        let [batch, n_new, _] = inputs_embeds.dims();
        let n_slots = cache.len() + n_new;
        let n_chunks = n_new.div_ceil((n_tokens / batch.max(1)).max(1)).max(1);
        let chunk_len = n_new.div_ceil(n_chunks).max(1); // chunks of about the same length
        let mut run = |chunk: Tensor<3>| {
            let places = self.place_rules().after(&chunk, cache, n_slots);
            self.forward_at(chunk, &places, cache, &mut Unobserved)
        };
        if n_chunks == 1 {
            return run(inputs_embeds);
        }
        let chunk = |start: usize| run(inputs_embeds.clone().narrow(1, start, chunk_len.min(n_new - start)));
        Tensor::cat((0..n_new).step_by(chunk_len).map(chunk).collect(), 1)
    }

    /// As [`Self::forward`] with all tokens at once, showing `observer` what happens inside.
    fn forward_observed(
        &self,
        inputs_embeds: Tensor<3>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let places = self.places(&inputs_embeds, cache);
        self.forward_at(inputs_embeds, &places, cache, observer)
    }

    /// As [`Self::forward`] for rows that branch: the tokens are those that `branches` was last given, and need not see
    /// each other.
    ///
    /// # Panics
    /// As [`Self::forward`], or if `branches` is of other rows or another number of slots.
    fn forward_branches(&self, inputs_embeds: Tensor<3>, branches: &Branches, cache: &mut KvCache) -> Tensor<3> {
        let places = self.branch_places(&inputs_embeds, branches, cache);
        self.forward_at(inputs_embeds, &places, cache, &mut Unobserved)
    }

    /// Runs all layers on tokens of which [`Self::places`], [`Self::branch_places`] or [`Self::slot_places`] said where
    /// they stand, and adds them to the cache.
    fn forward_at(
        &self,
        inputs_embeds: Tensor<3>,
        places: &Places,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        let n_new = inputs_embeds.dims()[1];
        let hidden_states = self.layers(0..self.n_layers(), inputs_embeds, places, cache, observer);
        cache.advance(n_new);
        hidden_states
    }

    /// The places of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow those in the cache.
    fn places(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Places {
        self.place_rules().after(inputs_embeds, cache, cache.len() + inputs_embeds.dims()[1])
    }

    /// As [`Self::places`] for rows that branch: the tokens are those that `branches` was last given.
    ///
    /// # Panics
    /// If `branches` is of other rows or another number of slots.
    fn branch_places(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Places {
        self.place_rules().of_branches(inputs_embeds, branches, cache)
    }

    /// What the places of single tokens in slots of the cache are made of, for a step that is captured; activations are
    /// like `inputs_embeds`. `None` where the angles of a position depend on the length of the sequence
    /// ([`RotaryEmbedding::depends_on_length`](idefics_nn::RotaryEmbedding::depends_on_length)).
    fn slot_places(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPlaces> {
        self.place_rules().of_slots(inputs_embeds, cache)
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
