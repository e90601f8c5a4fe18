//! What a caller asks of the engine.

use std::time::Duration;

use idefics_processor::Tokenizer;

use super::options::EngineOptions;
use super::prompt::Prompt;
use super::scheduler::Tenant;
use crate::logits::LogitsProcessor;
use crate::{CancelToken, Controls, GenerationConfig, GenerationError, Model};

/// A prompt to answer, with everything that determines its answers.
#[derive(Debug)]
pub struct Request<'m> {
    /// The prompt.
    pub prompt: Prompt,
    /// Generation options, those of the model folder included. `num_return_sequences` is the number of answers; beams
    /// are not supported.
    pub options: GenerationConfig,
    /// Seed for sampling.
    pub seed: u64,
    /// Custom logits processors, as in [`Controls::processors`].
    pub processors: Vec<Box<dyn LogitsProcessor>>,
    /// Tokenizer, required by `stop_strings`.
    pub tokenizer: Option<&'m Tokenizer>,
    /// Number of most likely tokens to report with each token, as in [`Controls::logprobs`].
    pub logprobs: Option<usize>,
    /// Cancels the request. Dropping its [`Ticket`](super::Ticket) does the same.
    pub cancel: CancelToken,
    /// Time after submission at which the request ends at the latest.
    pub deadline: Option<Duration>,
    /// The owner of the request.
    pub tenant: Tenant,
    /// A secret of the owner. Requests share the beginnings of prompts only if they have the same secret.
    pub salt: Vec<u8>,
}

impl<'m> Request<'m> {
    /// Creates a request without custom logits processors, log-probabilities or time limits.
    pub fn new(prompt: Prompt, options: GenerationConfig) -> Self {
        Self {
            prompt,
            options,
            seed: 0,
            processors: Vec::new(),
            tokenizer: None,
            logprobs: None,
            cancel: CancelToken::default(),
            deadline: None,
            tenant: Tenant::default(),
            salt: Vec::new(),
        }
    }

    /// Returns the number of pages that the request needs at most.
    ///
    /// # Errors
    /// [`GenerationError`] if an option is invalid.
    pub(crate) fn pages(&self, model: &dyn Model) -> Result<usize, GenerationError> {
        let tokens = self.prompt.ids().len();
        let before = self.prompt.padding + tokens;
        let options = self.options.resolve(before, model.shape().vocab_size)?;
        Ok(EngineOptions::pages_of(tokens, options.max_length() - before, options.num_return_sequences()))
    }

    /// Takes over cancellation, seed, processors, grammar, tokenizer and log-probabilities of `controls`. Graph capture,
    /// speculation and the log-probabilities of the prompt have no effect.
    #[must_use]
    pub fn with_controls(self, mut controls: Controls<'m>) -> Self {
        controls.add_mask(&self.options);
        let Controls { cancel, seed, processors, tokenizer, logprobs, .. } = controls;
        Self { cancel, seed, processors, tokenizer, logprobs, ..self }
    }
}
