//! Settings of a generation call that are not options of `generation_config.json`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idefics_nn::DeviceLease;
use idefics_processor::Tokenizer;

use crate::engine::Speculation;
use crate::logits::LogitsProcessor;
use crate::{Error, GenerationConfig};

/// Cancels a generation or a ranking from another thread. The computation stops within one step.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Requests cancellation.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the shared flag, for [`ProcessOptions::cancel`](idefics_processor::ProcessOptions::cancel).
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// Returns [`Error::Cancelled`] if cancellation was requested.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// When to use graph capture. With graph capture, the GPU records one decode step and replays it in all later steps.
/// The captured graph is used only if its logits match those of an eager step. Beam search and several answers per
/// sample always run eagerly.
///
/// Graph capture needs a [`DeviceLease`], by which the caller guarantees that no other thread uses the device. The
/// lease is borrowed while steps are replayed. It cannot leave its thread, and neither can anything that borrows it.
/// CUDA may refuse to capture the steps of a model that was loaded on another thread.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum GraphCapture<'a> {
    /// Never capture a step.
    #[default]
    Never,
    /// Capture after nine decode steps, if the answer can have at least eight more tokens. For shorter answers, the
    /// capture would take longer than it saves.
    WhenLong(&'a DeviceLease),
    /// Capture at the second decode step.
    AtOnce(&'a DeviceLease),
}

/// Settings of a generation call that are not options of `generation_config.json`.
#[derive(Debug, Default)]
pub struct Controls<'a> {
    /// Cancels the generation.
    pub cancel: CancelToken,
    /// Seed for sampling. The tokens drawn for a row depend only on the seed and the row's own prompt, not on the rest
    /// of the batch.
    pub seed: u64,
    /// Custom logits processors. They run after the processors of the generation options, and before the sampling
    /// filters.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
    /// Tokenizer, required by `stop_strings`.
    pub tokenizer: Option<&'a Tokenizer>,
    /// If this is `n`, the log-probabilities of each generated token and of the `n` most likely tokens are returned.
    /// They are computed before any logits processor.
    pub logprobs: Option<usize>,
    /// Whether the next tokens are proposed from the text so far, and verified together in one decode step. This is
    /// done only while a single answer is generated. Beam search, prompt log-probabilities, conversations and GPUs with
    /// graph capture do not use it.
    pub speculation: Speculation,
    /// When to use graph capture.
    pub graph_capture: GraphCapture<'a>,
    /// Whether to return the log-probabilities of the prompt's tokens. Prompt tokens that are already in the KV cache
    /// have none.
    pub prompt_logprobs: bool,
    /// Grammar that every answer follows. Its mask runs after `processors`.
    #[cfg(feature = "grammar")]
    pub grammar: Option<crate::CompiledGrammar>,
}

impl Controls<'_> {
    /// Checks that the grammar, if there is one, can be combined with the options and the model.
    ///
    /// # Errors
    /// [`Error::Generation`], [`Error::Grammar`].
    #[cfg_attr(not(feature = "grammar"), allow(unused_variables, reason = "there is nothing to check"))]
    pub(crate) fn check(&self, config: &GenerationConfig, vocab_size: usize) -> Result<(), Error> {
        #[cfg(feature = "grammar")]
        if let Some(grammar) = &self.grammar {
            grammar.check(config, vocab_size)?;
        }
        Ok(())
    }

    /// Adds the mask of the grammar, if there is one, after the custom processors.
    #[cfg_attr(not(feature = "grammar"), allow(unused_variables, reason = "there is no mask"))]
    pub(crate) fn add_mask(&mut self, config: &GenerationConfig) {
        #[cfg(feature = "grammar")]
        if let Some(grammar) = &self.grammar {
            self.processors.push(grammar.mask(config.eos_token_ids()));
        }
    }
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
