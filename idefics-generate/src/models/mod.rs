//! The assembled models, one file a generation, and what all of them have in common.

pub mod idefics1;
pub mod idefics2;
mod vision_batch;

use std::borrow::Cow;
use std::fmt::Debug;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KvCache, Step};
use idefics_processor::Tokenizer;
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, DecoderObserver, TextConfig};

use crate::{Error, InputError, Prompts};

pub use vision_batch::VisionBatch;

/// Which positions get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsToKeep {
    /// Each one.
    All,
    /// The logits of the last positions, as many as given.
    Last(usize),
}

/// What an image goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeStage {
    /// The vision tower.
    Vision,
    /// What makes image vectors of its features.
    Connector,
}

/// What generation asks of a model, whatever its generation.
///
/// Axes: `batch` rows, `seq` tokens of a prompt, `n_images` images of the whole batch, each of `n_vectors`; `d` the
/// decoder's width.
pub trait Model: Debug + Send + Sync {
    /// Tokens that it has an embedding and a logit for.
    fn vocab_size(&self) -> usize;

    /// The decoder: what the KV cache and the context depend on.
    fn text_config(&self) -> Cow<'_, TextConfig>;

    /// Longest context, in tokens.
    fn max_position_embeddings(&self) -> usize {
        self.text_config().max_position_embeddings
    }

    /// Where prompts and images go in.
    fn device(&self) -> Device;

    /// How many images are encoded together from now on.
    fn set_vision_batch(&mut self, vision_batch: VisionBatch);

    /// The vectors of every image, `[n_images, n_vectors, d_image]`; `None` if there is no image. Images that are encoded
    /// together go through both stages before the next do; `done` is called after each.
    ///
    /// # Errors
    /// [`InputError`] for images that do not fit the model, or what `done` returns.
    fn encode_in_stages(
        &self,
        images: &[&ImageTile],
        done: &mut dyn FnMut(EncodeStage) -> Result<(), Error>,
    ) -> Result<Option<Tensor<3>>, Error>;

    /// As [`Self::encode_in_stages`]; an image that comes several times is encoded once.
    ///
    /// # Errors
    /// [`InputError`] for images that do not fit the model.
    fn encode_images(&self, images: &[ImageTile]) -> Result<Option<Tensor<3>>, InputError>;

    /// A cache of at most `capacity` tokens a row; `left_padding` is the number of padded slots on the left of each row.
    fn empty_cache(&self, left_padding: Vec<usize>, capacity: usize) -> KvCache {
        self.text_config().cache(left_padding, capacity)
    }

    /// A cache for these prompts and `max_new_tokens` more.
    fn cache(&self, prompts: &Prompts, max_new_tokens: usize) -> KvCache {
        self.empty_cache(prompts.left_padding().to_vec(), prompts.seq() + max_new_tokens)
    }

    /// What the tokens of prompts see of their images, where images do not stand in the prompt.
    fn see_images(&self, prompts: Prompts, _tokenizer: &Tokenizer) -> Prompts {
        prompts
    }

    /// Runs prompts behind what the cache holds, up to the last hidden states, `[batch, seq, d]`; `image_hidden_states`
    /// are the vectors of all their images, row after row. Long prompts go through the decoder in chunks.
    ///
    /// # Errors
    /// [`InputError`] for ids or images that do not fit the model or each other.
    fn hidden_states(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError>;

    /// As [`Self::hidden_states`] with whole prompts, showing `observer` the decoder's insides.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError>;

    /// Runs prompts and returns the logits of the next token, `[batch, vocab_size]` in f32.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    fn prefill(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>, InputError> {
        let hidden_states = self.hidden_states(prompts, image_hidden_states, cache)?;
        Ok(self.logits(hidden_states, LogitsToKeep::Last(1)).squeeze_dim(1))
    }

    /// Runs one more token of each row and returns the logits of the next, `[batch, vocab_size]` in f32.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError>;

    /// What [`Self::decode`] computes, as a step to record: it reads the next token of each row, `[batch]`, and the slot
    /// that they go to, `[1]`, from tensors of I32, writes to the memory of `cache`, and gives `[batch, vocab_size]`. The
    /// caller makes sure that ids are below `vocab_size` and slots below the cache's capacity: GPUs do not check. `None`
    /// where the model's devices cannot record, or nothing is in the cache.
    fn slot_step<'m>(&'m self, inputs: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'m>>;

    /// Runs more tokens of rows that branch, those that `branches` was last given, up to the last hidden states,
    /// `[batch, n_new, d]`.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    fn branch_states(
        &self,
        next_tokens: &[u32],
        branches: &Branches,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError>;

    /// As [`Self::branch_states`] up to the logits after each token, `[batch, n_new, vocab_size]` in f32.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    fn decode_branches(
        &self,
        next_tokens: &[u32],
        branches: &Branches,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        Ok(self.logits(self.branch_states(next_tokens, branches, cache)?, LogitsToKeep::All))
    }

    /// `[batch, seq, d]` in, `[batch, kept, vocab_size]` in f32 out.
    fn logits(&self, hidden_states: Tensor<3>, keep: LogitsToKeep) -> Tensor<3>;

    /// Logits for a batch of prompts with their images, those of all rows in order: `[batch, kept, vocab_size]` in f32.
    /// Rows of padding mean nothing.
    ///
    /// # Errors
    /// As [`Self::encode_images`] and [`Self::hidden_states`].
    fn forward(&self, prompts: &Prompts, images: &[ImageTile], keep: LogitsToKeep) -> Result<Tensor<3>, InputError> {
        let image_hidden_states = self.encode_images(images)?;
        let mut cache = self.cache(prompts, 0);
        let hidden_states = self.hidden_states(prompts, image_hidden_states, &mut cache)?;
        Ok(self.logits(hidden_states, keep))
    }
}

/// The positions of `[batch, seq, d]` that get logits.
fn keep(hidden_states: Tensor<3>, keep: LogitsToKeep) -> Tensor<3> {
    let seq = hidden_states.dims()[1];
    match keep {
        LogitsToKeep::All => hidden_states,
        LogitsToKeep::Last(kept) => hidden_states.narrow(1, seq - kept.min(seq), kept.min(seq)),
    }
}
