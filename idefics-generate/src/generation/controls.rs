//! What a call says besides its options.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idefics_nn::DeviceLease;
use idefics_processor::Tokenizer;

use crate::Error;
use crate::logits::LogitsProcessor;

/// Ends a generation or a ranking from elsewhere, within one step.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks it to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag behind the token, for [`ProcessOptions::cancel`](idefics_processor::ProcessOptions::cancel).
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// [`Error::Cancelled`] if that was asked for.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// When a GPU records a decode step of rows that grow by one token each, to replay it from then on: as long as it gives the
/// logits of the step whose operations were launched one after the other. Beams, and several answers to a sample, are always
/// launched.
///
/// Recording needs a [`DeviceLease`]: the caller's promise that no other thread uses the device meanwhile. It is borrowed as
/// long as steps are replayed, and bound to its thread, as is everything that holds it. CUDA may refuse steps of a model
/// that was loaded on another thread.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum Replays<'a> {
    /// Never.
    #[default]
    Never,
    /// In an answer that is long enough to earn it back: after nine steps, if eight are left.
    WhenLong(&'a DeviceLease),
    /// At the second step.
    AtOnce(&'a DeviceLease),
}

/// What a call says besides the options that `generation_config.json` can hold.
#[derive(Debug, Default)]
pub struct Controls<'a> {
    /// Ends the generation.
    pub cancel: CancelToken,
    /// Seed of draws. A row's draws depend on it, on the row's own prompt, and on nothing else in the batch.
    pub seed: u64,
    /// Processors of the caller's own, which come after those of the options and before the filters of a draw.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
    /// What the text of tokens is known by; `stop_strings` need it.
    pub tokenizer: Option<&'a Tokenizer>,
    /// For each generated token, return its log-probability and those of this many likeliest tokens, as the model gives
    /// them before any logits processor.
    pub logprobs: Option<usize>,
    /// When a GPU records a step, to replay it from then on.
    pub replays: Replays<'a>,
    /// Whether the log-probabilities of the prompt's tokens are computed; of those that a cache held already they are not.
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
