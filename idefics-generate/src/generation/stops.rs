//! Decides when an answer ends.

use std::time::{Duration, Instant};

use idefics_processor::Tokenizer;

use super::FinishReason;
use crate::stop_strings::StopStrings;
use crate::{GenerationConfig, GenerationError};

/// The end conditions of an answer: end tokens, length, stop strings and `max_time`.
#[derive(Debug)]
pub(crate) struct Stops<'a> {
    strings: StopStrings,
    tokenizer: Option<&'a Tokenizer>,
    started: Instant,
    limit: Option<Duration>,
}

impl<'a> Stops<'a> {
    pub(crate) fn new(
        config: &GenerationConfig,
        tokenizer: Option<&'a Tokenizer>,
        started: Instant,
    ) -> Result<Self, GenerationError> {
        let strings = config.stop_strings.as_ref().map_or(&[][..], |strings| strings.as_slice());
        let strings =
            StopStrings::new(strings.iter().cloned()).map_err(|_| GenerationError::Empty { option: "stop_strings" })?;
        if !strings.is_empty() && tokenizer.is_none() {
            return Err(GenerationError::NoTokenizer { option: "stop_strings" });
        }
        let limit = config.max_time.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        Ok(Self { strings, tokenizer, started, limit })
    }

    /// Starts the clock of `max_time` again.
    pub(crate) fn restart(&mut self) {
        self.started = Instant::now();
    }

    /// Returns whether `max_time` has passed.
    pub(crate) fn is_late(&self) -> bool {
        self.limit.is_some_and(|limit| self.started.elapsed() > limit)
    }

    /// Returns whether the last of `ids` completes a stop string.
    pub(crate) fn completes<'i>(&self, ids: impl IntoIterator<Item = &'i u32, IntoIter: DoubleEndedIterator>) -> bool {
        let Some(tokenizer) = self.tokenizer else { return false };
        self.strings.find(ids.into_iter().map(|&id| tokenizer.piece(id))).is_some()
    }

    /// Returns why an answer ends with its last token, if it does. `tokens` are the prompt and the answer without
    /// padding, and `n_slots` is their number with padding. `is_late` is the result of [`Self::is_late`].
    pub(crate) fn finish(
        &self,
        config: &GenerationConfig,
        tokens: &[u32],
        n_slots: usize,
        is_late: bool,
    ) -> Option<FinishReason> {
        let is_end = tokens.last().is_some_and(|last| config.eos_token_ids().contains(last));
        if is_end || self.completes(tokens) {
            Some(FinishReason::Stop)
        } else if n_slots >= config.max_length() {
            Some(FinishReason::Length)
        } else {
            is_late.then_some(FinishReason::Time)
        }
    }
}
