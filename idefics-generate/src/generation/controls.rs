//! Settings of a call that are not options of `generation_config.json`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idefics_nn::DeviceLease;
use idefics_processor::Tokenizer;

use crate::Error;
use crate::logits::LogitsProcessor;

/// Cancels a generation or a ranking from another thread, within one step.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Requests cancellation.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The shared flag, for [`ProcessOptions::cancel`](idefics_processor::ProcessOptions::cancel).
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// [`Error::Cancelled`] if cancellation was requested.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// When to use graph capture: a GPU records one decode step and replays it from then on. The captured graph is
/// used only if its logits match the eager step's. It is used for rows that grow by one token per step; beam
/// search and several answers per sample always run eagerly.
///
/// Graph capture needs a [`DeviceLease`], by which the caller guarantees that no other thread uses the device. The
/// lease is borrowed while steps are replayed, and bound to its thread, like everything that holds it. CUDA may
/// reject the steps of a model that was loaded on another thread.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum GraphCapture<'a> {
    /// Never.
    #[default]
    Never,
    /// If the answer can become long enough to pay off: after nine steps, if at least eight remain.
    WhenLong(&'a DeviceLease),
    /// At the second step.
    AtOnce(&'a DeviceLease),
}

/// Settings of a call that are not options of `generation_config.json`.
#[derive(Debug, Default)]
pub struct Controls<'a> {
    /// Cancels the generation.
    pub cancel: CancelToken,
    /// Seed for sampling. What a row draws depends only on the seed and the row's own prompt, not on the rest of
    /// the batch.
    pub seed: u64,
    /// Custom logits processors. They run after those of the options and before the sampling filters.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
    /// Tokenizer, required by `stop_strings`.
    pub tokenizer: Option<&'a Tokenizer>,
    /// If set, return the log-probability of each generated token and of this many most likely tokens, as computed
    /// by the model before any logits processor.
    pub logprobs: Option<usize>,
    /// When to use graph capture.
    pub graph_capture: GraphCapture<'a>,
    /// Whether to return the log-probabilities of the prompt's tokens. Tokens that were already cached get none.
    pub prompt_logprobs: bool,
}

impl From<CancelToken> for Controls<'_> {
    fn from(cancel: CancelToken) -> Self {
        Self { cancel, ..Self::default() }
    }
}

impl From<&CancelToken> for Controls<'_> {
    fn from(cancel: &CancelToken) -> Self {
        cancel.clone().into()
    }
}
