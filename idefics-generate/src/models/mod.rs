//! The assembled models, one file a family, and what all of them have in common.
//!
//! A family writes five functions: its sizes, the way of a picture to vectors, the way of a prompt to embeddings, its
//! decoder, and its head. Prefill, decode, branches and captured steps are written once, here, over the decoder.

mod assembled;
pub mod idefics1;
pub mod idefics2;
pub mod idefics3;
pub mod idefics3_text;
mod merge;
mod tower_run;
mod vision_batch;

use std::borrow::Borrow;
use std::fmt::Debug;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KvCache, Step};
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, DecoderObserver, DecoderStack, TextConfig, Unobserved};

use crate::features::{ImageBatch, arrange, distinct, image_batches, in_order};
use crate::inputs::upload_ids;
use crate::{Error, InputError, Prompts};

pub use assembled::AssembledModel;
pub(crate) use tower_run::TowerRun;
pub use vision_batch::VisionBatch;

/// Which positions get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsToKeep {
    /// Each one.
    All,
    /// The last `n` positions.
    Last(usize),
}

impl LogitsToKeep {
    /// The positions of `[batch, seq, d]` that get logits, `[batch, kept, d]`.
    pub fn select(self, hidden_states: Tensor<3>) -> Tensor<3> {
        let seq = hidden_states.dims()[1];
        match self {
            Self::All => hidden_states,
            Self::Last(kept) => hidden_states.narrow(1, seq - kept.min(seq), kept.min(seq)),
        }
    }
}

/// The two halves of an image's way to vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeStage {
    /// The vision tower.
    Vision,
    /// What makes image vectors of its features.
    Connector,
}

/// Sizes of a model that its callers plan with.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Tokens that the model has an embedding and a logit for.
    pub vocab_size: usize,
    /// The decoder: what the KV cache and the context depend on.
    pub text: TextConfig,
    /// Pixels on each side of a patch.
    pub patch_size: usize,
    /// Bytes of activations that the vision tower takes for each patch.
    pub activation_bytes_per_patch: usize,
}

impl ModelShape {
    /// Images that are encoded together, in batches as large as `vision_batch` allows.
    ///
    /// # Errors
    /// [`InputError::Patches`] for an image that has no whole patch, or too many.
    pub fn image_batches<'i>(
        &self,
        images: &'i [impl Borrow<ImageTile>],
        vision_batch: VisionBatch,
    ) -> Result<Vec<ImageBatch<'i>>, InputError> {
        image_batches(images, self.patch_size, self.activation_bytes_per_patch, vision_batch)
    }
}

/// Images of one size on their way through the vision tower, some layers at a time.
pub trait LayerRun {
    /// Runs at most `n_layers` of the tower's layers. Once all of them have run, the next call runs the connector and
    /// returns the image vectors, `[n_images, n_vectors, d_image]`.
    ///
    /// # Panics
    /// If the vectors were returned already.
    fn step(&mut self, n_layers: usize) -> Option<Tensor<3>>;
}

/// A vision-language model, whatever its family: five functions that a family writes, and what follows from them.
///
/// Axes: `batch` rows, `seq` tokens of a prompt, `n_images` images of the whole batch, each of `n_vectors`; `d` the
/// decoder's width.
pub trait Model: Debug + Send + Sync {
    /// The model's sizes.
    fn shape(&self) -> &ModelShape;

    /// Begins to encode images that share a patch grid.
    ///
    /// # Errors
    /// [`InputError`] for images that do not fit the model.
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn LayerRun + '_>, InputError>;

    /// What the decoder reads of prompts that follow what the cache holds, `[batch, seq, d]`. `image_hidden_states` are
    /// the vectors of all their images, row after row, `[n_images, n_vectors, d_image]`. Models whose tokens attend to
    /// images beside the text put them into the context of the cache.
    ///
    /// # Errors
    /// [`InputError`] for ids or images that do not fit the model or each other.
    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError>;

    /// The decoder.
    fn decoder(&self) -> &dyn DecoderStack;

    /// The head: `[batch, seq, d]` in, `[batch, seq, vocab_size]` in f32 out.
    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3>;

    /// The device where tokens and images go in.
    fn device(&self) -> Device {
        self.decoder().device()
    }

    /// Whether all parts are on one device.
    fn is_on_one_device(&self) -> bool {
        true
    }

    /// A cache of at most `capacity` tokens a row; `left_padding` is the number of padded slots on the left of each row.
    fn empty_cache(&self, left_padding: Vec<usize>, capacity: usize) -> KvCache {
        self.shape().text.cache(left_padding, capacity)
    }

    /// A cache for these prompts and `max_new_tokens` more.
    fn cache(&self, prompts: &Prompts, max_new_tokens: usize) -> KvCache {
        self.empty_cache(prompts.left_padding().to_vec(), prompts.seq() + max_new_tokens)
    }

    /// The vectors of every image, `[n_images, n_vectors, d_image]`; `None` if there is no image. Images that are encoded
    /// together, as `vision_batch` says, go through both stages before the next do; `done` is called after each.
    ///
    /// # Errors
    /// [`InputError`] for images that do not fit the model, or what `done` returns.
    fn encode_in_stages(
        &self,
        images: &[&ImageTile],
        vision_batch: VisionBatch,
        done: &mut dyn FnMut(EncodeStage) -> Result<(), Error>,
    ) -> Result<Option<Tensor<3>>, Error> {
        let batches = self.shape().image_batches(images, vision_batch)?;
        let mut encoded = Vec::with_capacity(batches.len());
        for batch in &batches {
            let mut run = self.vision(batch)?;
            let mut image_hidden_states = run.step(usize::MAX); // the tower
            done(EncodeStage::Vision)?;
            while image_hidden_states.is_none() {
                image_hidden_states = run.step(usize::MAX); // the connector: [n_images, n_vectors, d_image]
            }
            done(EncodeStage::Connector)?;
            encoded.extend(image_hidden_states);
        }
        Ok(in_order(&batches, encoded))
    }

    /// As [`Self::encode_in_stages`]; an image that comes several times is encoded once.
    ///
    /// # Errors
    /// [`InputError`] for images that do not fit the model.
    fn encode_images(&self, images: &[ImageTile]) -> Result<Option<Tensor<3>>, InputError> {
        let (distinct, places) = distinct(images);
        let encoded = self.encode_in_stages(&distinct, VisionBatch::default(), &mut |_| Ok(()));
        match encoded {
            Ok(image_hidden_states) => Ok(image_hidden_states.map(|states| arrange(states, &places))),
            Err(Error::Input(error)) => Err(error),
            Err(other) => unreachable!("nothing else fails here: {other}"),
        }
    }

    /// Runs prompts behind what the cache holds, up to the last hidden states, `[batch, seq, d]`. Long prompts go through
    /// the decoder in chunks.
    ///
    /// # Errors
    /// As [`Self::begin`].
    fn hidden_states(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let inputs_embeds = self.begin(prompts, image_hidden_states, cache)?; // [batch, seq, d]
        Ok(self.decoder().forward(inputs_embeds, cache))
    }

    /// As [`Self::hidden_states`] with whole prompts, showing `observer` the decoder's insides.
    ///
    /// # Errors
    /// As [`Self::begin`].
    fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError> {
        let inputs_embeds = self.begin(prompts, image_hidden_states, cache)?; // [batch, seq, d]
        Ok(self.decoder().forward_observed(inputs_embeds, cache, observer))
    }

    /// Runs prompts and returns the logits of the next token, `[batch, vocab_size]` in f32.
    ///
    /// # Errors
    /// As [`Self::begin`].
    fn prefill(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>, InputError> {
        let hidden_states = self.hidden_states(prompts, image_hidden_states, cache)?;
        Ok(self.logits(LogitsToKeep::Last(1).select(hidden_states)).squeeze_dim(1))
    }

    /// Runs one more token of each row and returns the logits of the next, `[batch, vocab_size]` in f32. An image token is
    /// an ordinary token here: images belong to the prompt.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError> {
        let shape = [next_tokens.len(), 1];
        let input_ids = upload_ids(next_tokens, shape, self.shape().vocab_size, &self.device())?;
        let decoder = self.decoder();
        let hidden_states = decoder.forward(decoder.embed(input_ids), cache); // [batch, 1, d]
        Ok(self.logits(hidden_states).squeeze_dim(1))
    }

    /// What [`Self::decode`] computes, as a step to capture: it reads the next token of each row, `[batch]`, and the slot
    /// that they go to, `[1]`, from tensors of I32, writes to the memory of `cache`, and gives `[batch, vocab_size]`. The
    /// caller makes sure that ids are below `vocab_size` and slots below the cache's capacity: GPUs do not check. `None`
    /// where the model's devices cannot capture steps, or nothing is in the cache.
    #[allow(unsafe_code)] // a step that can be replayed, see `Step::new`
    fn slot_step<'m>(&'m self, [next_tokens, slot]: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'m>> {
        if !self.is_on_one_device() {
            return None; // a graph belongs to one device
        }
        let decoder = self.decoder();
        let mut slot_cache = cache.at_slot(slot)?;
        let inputs_embeds = decoder.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
        let places = decoder.slot_places(&inputs_embeds, cache)?;
        let (next_tokens, slot) = (next_tokens.clone(), slot.clone());
        let step = move || {
            let inputs_embeds = decoder.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
            let places = places.at(&slot);
            let hidden_states = decoder.forward_at(inputs_embeds, &places, &mut slot_cache, &mut Unobserved);
            self.logits(hidden_states).squeeze_dim(1)
        };
        // SAFETY: the step holds or borrows the model, the cache with its context and the inputs, so their memory stays
        // allocated. It does the same at each call, and uploads nothing: what `places` needs was uploaded before.
        Some(unsafe { Step::new(step) })
    }

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
    ) -> Result<Tensor<3>, InputError> {
        let shape = [branches.batch(), next_tokens.len() / branches.batch()];
        let input_ids = upload_ids(next_tokens, shape, self.shape().vocab_size, &self.device())?;
        let decoder = self.decoder();
        Ok(decoder.forward_branches(decoder.embed(input_ids), branches, cache))
    }

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
        Ok(self.logits(self.branch_states(next_tokens, branches, cache)?))
    }

    /// Logits for a batch of prompts with their images, those of all rows in order: `[batch, kept, vocab_size]` in f32.
    /// Rows of padding mean nothing.
    ///
    /// # Errors
    /// As [`Self::encode_images`] and [`Self::begin`].
    fn forward(&self, prompts: &Prompts, images: &[ImageTile], keep: LogitsToKeep) -> Result<Tensor<3>, InputError> {
        let image_hidden_states = self.encode_images(images)?; // [n_images, n_vectors, d_image]
        let mut cache = self.cache(prompts, 0);
        let hidden_states = self.hidden_states(prompts, image_hidden_states, &mut cache)?; // [batch, seq, d]
        Ok(self.logits(keep.select(hidden_states)))
    }
}
