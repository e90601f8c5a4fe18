//! The assembled models, one file per family, and the trait [`Model`] that they share.
//!
//! A family implements five functions, which return its shape, encode images into vectors, embed prompts, return its
//! decoder, and apply its head. Prefill, decode steps, branches and captured steps are implemented here with these
//! functions.

mod assembled;
pub mod idefics1;
pub mod idefics2;
pub mod idefics3;
pub mod idefics3_text;
pub mod merge;
mod tower_encoder;
mod vision_batch;

use std::borrow::Borrow;
use std::fmt::Debug;

use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{KvCache, Step, in_thread_pool};
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, DecoderObserver, DecoderStack, NoObserver, TextConfig};

use crate::features::{ImageBatch, distinct, image_batches, in_order};
use crate::inputs::upload_ids;
use crate::{Error, ImageVectors, InputError, Prompts};

pub use assembled::AssembledModel;
pub(crate) use tower_encoder::TowerEncoder;
pub use vision_batch::VisionBatch;

/// The positions for which logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsToKeep {
    /// All positions.
    All,
    /// The last `n` positions.
    Last(usize),
}

impl LogitsToKeep {
    /// Selects from `[batch, seq, d]` the positions for which logits are computed. Returns `[batch, kept, d]`.
    pub fn select(self, hidden_states: Tensor<3>) -> Tensor<3> {
        let seq = hidden_states.dims()[1];
        match self {
            Self::All => hidden_states,
            Self::Last(kept) => hidden_states.narrow(1, seq - kept.min(seq), kept.min(seq)),
        }
    }
}

/// The two stages of encoding images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeStage {
    /// The vision tower.
    Vision,
    /// The connector, which turns the tower's features into image vectors.
    Connector,
}

/// Sizes of a model that callers need for planning.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Number of tokens with an embedding and a logit.
    pub vocab_size: usize,
    /// Configuration of the decoder. It determines the size of the KV cache and of the context.
    pub text: TextConfig,
    /// Width and height of a patch in pixels.
    pub patch_size: usize,
    /// Bytes of activations that the vision tower needs per patch.
    pub activation_bytes_per_patch: usize,
    /// Number of layers of the vision tower.
    pub vision_layers: usize,
}

impl ModelShape {
    /// Groups images into batches that are encoded together, as large as `vision_batch` allows.
    ///
    /// # Errors
    /// [`InputError::Patches`] if an image is smaller than a patch, or has too many patches.
    pub fn image_batches<'i>(
        &self,
        images: &'i [impl Borrow<ImageTile>],
        vision_batch: VisionBatch,
    ) -> Result<Vec<ImageBatch<'i>>, InputError> {
        image_batches(images, self.patch_size, self.activation_bytes_per_patch, vision_batch)
    }
}

/// A batch of images that runs through the vision tower, a few layers at a time.
pub trait StepwiseEncoder: Send {
    /// Runs the next `n_layers` layers of the tower: at least one, and at most those that are left. Once all layers
    /// have run, the next call runs the connector and returns the image vectors, `[n_images, n_vectors, d_image]`. All
    /// images of a batch have the same patch grid, so they have the same number of vectors.
    ///
    /// # Panics
    /// If an earlier call has returned the vectors.
    fn step(&mut self, n_layers: usize) -> Option<Tensor<3>>;
}

/// A vision-language model of any family: five functions that the family implements, and functions that call them.
///
/// Axes: `batch` rows, `seq` tokens per prompt, `d` = width of the decoder.
pub trait Model: Debug + Send + Sync {
    /// Returns the model's sizes.
    fn shape(&self) -> &ModelShape;

    /// Starts to encode a batch of images; [`StepwiseEncoder::step`] does the work.
    ///
    /// # Errors
    /// [`InputError`] if the images do not fit the model.
    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError>;

    /// Embeds prompts that follow the contents of the cache, and returns the decoder's input, `[batch, seq, d]`.
    /// `image_hidden_states` are the vectors of all images of the prompts, row by row. Models with cross-attention
    /// store the images in the cache's context.
    ///
    /// # Errors
    /// [`InputError`] if token ids or images do not match the model or each other.
    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError>;

    /// Returns the decoder.
    fn decoder(&self) -> &dyn DecoderStack;

    /// Applies the head to hidden states, `[batch, seq, d]`. Returns logits, `[batch, seq, vocab_size]` in f32.
    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3>;

    /// Returns the device that tokens and images are uploaded to.
    fn device(&self) -> Device {
        self.decoder().device()
    }

    /// Returns whether all parts are on the same device.
    fn is_on_one_device(&self) -> bool {
        true
    }

    /// Creates a cache for at most `capacity` tokens per row. `left_padding` is the number of padded slots of each
    /// row.
    fn empty_cache(&self, left_padding: Vec<usize>, capacity: usize) -> KvCache {
        self.shape().text.cache(left_padding, capacity)
    }

    /// Creates a cache for these prompts and `max_new_tokens` more tokens.
    fn cache(&self, prompts: &Prompts, max_new_tokens: usize) -> KvCache {
        self.empty_cache(prompts.left_padding().to_vec(), prompts.seq() + max_new_tokens)
    }

    /// Computes the vectors of all images. Returns `None` if there are no images. Images are processed in batches
    /// according to `vision_batch`. Each batch runs through both stages before the next batch starts. `done` is called
    /// after each stage.
    ///
    /// # Errors
    /// [`InputError`] if the images do not fit the model, and any error that `done` returns.
    fn encode_in_stages(
        &self,
        images: &[&ImageTile],
        vision_batch: VisionBatch,
        done: &mut dyn FnMut(EncodeStage) -> Result<(), Error>,
    ) -> Result<Option<ImageVectors>, Error> {
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

    /// Computes the vectors of all images like [`Self::encode_in_stages`], but encodes duplicate images only once.
    ///
    /// # Errors
    /// [`InputError`] if the images do not fit the model.
    fn encode_images(&self, images: &[ImageTile]) -> Result<Option<ImageVectors>, InputError> {
        let (distinct, places) = distinct(images);
        let encoded = self.encode_in_stages(&distinct, VisionBatch::default(), &mut |_| Ok(()));
        match encoded {
            Ok(image_hidden_states) => Ok(image_hidden_states.map(|states| states.arrange(&places))),
            Err(Error::Input(error)) => Err(error),
            Err(other) => unreachable!("encoding images can fail only with an input error, but failed with: {other}"),
        }
    }

    /// Runs prompts that follow the contents of the cache, and returns the last hidden states, `[batch, seq, d]`. Long
    /// prompts run through the decoder in chunks.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    fn hidden_states(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        let inputs_embeds = self.begin(prompts, image_hidden_states, cache)?; // [batch, seq, d]
        let decoder = self.decoder();
        Ok(in_thread_pool(&self.device(), || decoder.forward(inputs_embeds, cache)))
    }

    /// Runs prompts like [`Self::hidden_states`], but not in chunks, and shows the decoder's intermediate results to
    /// `observer`.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    fn prefill_observed(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
        observer: &mut dyn DecoderObserver,
    ) -> Result<Tensor<3>, InputError> {
        let inputs_embeds = self.begin(prompts, image_hidden_states, cache)?; // [batch, seq, d]
        Ok(self.decoder().forward_observed(inputs_embeds, cache, observer))
    }

    /// Runs prompts and returns the logits of the token after each, `[batch, vocab_size]` in f32.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    fn prefill(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>, InputError> {
        let hidden_states = self.hidden_states(prompts, image_hidden_states, cache)?;
        Ok(self.logits(LogitsToKeep::Last(1).select(hidden_states)).squeeze_dim(1))
    }

    /// Runs one more token per row and returns the logits of the token after it, `[batch, vocab_size]` in f32. An image
    /// token is treated like any other token, because images belong to the prompt.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    fn decode(&self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, InputError> {
        let shape = [next_tokens.len(), 1];
        let input_ids = upload_ids(next_tokens, shape, self.shape().vocab_size, &self.device())?;
        let decoder = self.decoder();
        Ok(in_thread_pool(&self.device(), || {
            let hidden_states = decoder.forward(decoder.embed(input_ids), cache); // [batch, 1, d]
            self.logits(hidden_states).squeeze_dim(1)
        }))
    }

    /// Returns this model if its decode step can be captured in a graph, or `None` by default. A family that implements
    /// [`Capturable`] overrides this function.
    fn capturable(&self) -> Option<&dyn Capturable> {
        None
    }

    /// Returns [`Self::decode`] as a step for graph capture. The step reads the next token of each row, `[batch]`, and
    /// the slot of these tokens, `[1]`, from I32 tensors. It writes to the memory of `cache` and returns logits,
    /// `[batch, vocab_size]`. The caller must make sure that ids are less than `vocab_size` and slots less than the
    /// cache's capacity, because GPUs do not check them. Returns `None` if the model is not [`Self::capturable`], its
    /// devices do not support graph capture, or the cache is empty.
    #[allow(unsafe_code, reason = "the step can be replayed, see `Step::new`")]
    fn slot_step<'m>(&'m self, [next_tokens, slot]: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'m>> {
        let model = self.capturable()?;
        if !model.is_on_one_device() {
            return None; // a graph can be captured on one device only
        }
        let decoder = model.decoder();
        let mut slot_cache = cache.slot_view(slot)?;
        let inputs_embeds = decoder.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
        let positions = decoder.slot_positions(&inputs_embeds, cache)?;
        let (next_tokens, slot) = (next_tokens.clone(), slot.clone());
        let step = move || {
            let inputs_embeds = decoder.embed(next_tokens.clone().unsqueeze_dim(1)); // [batch, 1, d]
            let positions = positions.at(&slot);
            let hidden_states = decoder.forward_at(inputs_embeds, &positions, &mut slot_cache, &mut NoObserver);
            model.logits(hidden_states).squeeze_dim(1)
        };
        // SAFETY: the step owns or borrows the model, the cache with its context, and the inputs, so their memory stays
        // allocated. By the contract of `Capturable`, every call does the same operations and uploads nothing. The data
        // of `positions` was uploaded before the step was created.
        Some(unsafe { Step::new(step) })
    }

    /// Runs the newest tokens of rows that branch: those that were last added to `branches`. Returns the last hidden
    /// states of these tokens, `[batch, n_new, d]`.
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

    /// Runs new tokens like [`Self::branch_states`], and returns the logits after each token,
    /// `[batch, n_new, vocab_size]` in f32.
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

    /// Computes the logits of a batch of prompts, `[batch, kept, vocab_size]` in f32. `images` are the images of all
    /// rows, in order. Logits at padding are meaningless.
    ///
    /// # Errors
    /// Those of [`Self::encode_images`] and [`Self::begin`].
    fn forward(&self, prompts: &Prompts, images: &[ImageTile], keep: LogitsToKeep) -> Result<Tensor<3>, InputError> {
        let image_hidden_states = self.encode_images(images)?;
        let mut cache = self.cache(prompts, 0);
        let hidden_states = self.hidden_states(prompts, image_hidden_states, &mut cache)?; // [batch, seq, d]
        Ok(self.logits(keep.select(hidden_states)))
    }
}

/// A model whose decode step can be captured in a graph and replayed; see [`Model::slot_step`].
///
/// # Safety
/// A replay uses the memory of the captured step without any check. The step calls the functions `embed`,
/// `slot_positions` and `forward_at` of [`Model::decoder`], and [`Model::logits`]. The implementor guarantees for these
/// functions:
/// - Tensors that they read or write, besides their arguments, belong to the model and stay allocated while the model
///   is borrowed.
/// - Calls with arguments of the same shapes do the same operations on the same tensors of the model.
/// - `embed`, `forward_at` and `logits` neither upload nor read back data.
#[allow(unsafe_code, reason = "implementors promise what the compiler cannot check")]
pub unsafe trait Capturable: Model {}
