//! The answers of a request: how their tokens are chosen, and when they end.

use std::sync::{Arc, Mutex, PoisonError};

use super::prompt::Prompt;
use super::request::Request;
use super::scheduler::{AnswerEnd, RowFault, Verdict};
use super::speculation::Proposer;
use crate::generation::{Stops, logprobs};
use crate::logits::{LogitsProcessor, ProcessorChain, Row, RowEnd, RowError, RowKey, Sampler, argmax};
use crate::{Error, FinishReason, GeneratedLogprob, GenerationConfig, GenerationError};

/// The answers of one request. They have the same options.
#[derive(Debug)]
pub(super) struct Answers<'m> {
    config: GenerationConfig,
    stops: Stops<'m>,
    /// Draws the tokens; `None` for greedy search.
    sampler: Option<Sampler>,
    /// Number of most likely tokens to report with each token; `None` if no log-probabilities are reported.
    n_top: Option<usize>,
    /// Whether the next token is simply the most likely one that is allowed.
    is_plain: bool,
    padding: usize,
    sample: usize,
    prompt_len: usize,
    rows: Vec<AnswerRow>,
}

/// One answer.
#[derive(Debug)]
pub(super) struct AnswerRow {
    chain: ProcessorChain,
    key: RowKey,
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    logprobs: Vec<GeneratedLogprob>,
    finish: Option<FinishReason>,
    failure: Option<RowError>,
    proposer: Proposer,
}

impl AnswerRow {
    /// Returns the generated tokens, the end token included.
    pub(super) fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Returns the log-probabilities of the generated tokens; empty if they were not requested.
    pub(super) fn logprobs(&self) -> &[GeneratedLogprob] {
        &self.logprobs
    }

    /// Returns why the answer ended, if it has ended.
    pub(super) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Returns why no token could be chosen, if the answer has failed.
    pub(super) fn failure(&self) -> Option<RowError> {
        self.failure
    }

    /// Returns the token that the next decode step reads.
    pub(super) fn last_token(&self) -> u32 {
        self.tokens[self.tokens.len() - 1]
    }

    /// Proposes at most `limit` tokens for the next positions. Returns the number of proposals, and the share of them
    /// that is expected to be right.
    pub(super) fn propose(&mut self, limit: usize) -> (usize, f64) {
        (self.proposer.propose(&self.tokens, limit).len(), self.proposer.acceptance())
    }

    /// Returns the proposals for the next positions.
    pub(super) fn proposals(&self) -> &[u32] {
        self.proposer.proposals(self.tokens.len())
    }
}

/// Custom processors that several answers or requests share.
#[derive(Debug, Clone)]
pub(crate) struct SharedProcessors(Arc<Mutex<Vec<Box<dyn LogitsProcessor>>>>);

impl SharedProcessors {
    pub(crate) fn new(processors: Vec<Box<dyn LogitsProcessor>>) -> Self {
        Self(Arc::new(Mutex::new(processors)))
    }

    /// Returns the processors of a request.
    pub(crate) fn for_request(&self) -> Vec<Box<dyn LogitsProcessor>> {
        let is_empty = self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if is_empty { Vec::new() } else { vec![Box::new(self.clone())] }
    }
}

impl LogitsProcessor for SharedProcessors {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let mut processors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processors.iter_mut().for_each(|processor| processor.process(row, scores));
    }

    fn ending(&self, row: &Row<'_>) -> Option<RowEnd> {
        let processors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processors.iter().find_map(|processor| processor.ending(row))
    }
}

impl<'m> Answers<'m> {
    /// Checks the options of a request. `vocab_size` is the width of the logits.
    ///
    /// # Errors
    /// [`GenerationError`] if an option is invalid, or asks for beams.
    pub(super) fn new(request: &mut Request<'m>, vocab_size: usize) -> Result<Self, Error> {
        let Prompt { tokens, padding, sample, .. } = &request.prompt;
        let (ids, padding, sample) = (tokens.row(0), *padding, *sample);
        let config = request.options.resolve(padding + ids.len(), vocab_size)?;
        if config.num_beams() > 1 {
            let reason = "beams share one step, and rows of the engine do not";
            return Err(GenerationError::Conflict { option: "num_beams", other: "the engine", reason }.into());
        }
        let processors = std::mem::take(&mut request.processors);
        let is_plain = config.is_plain() && processors.is_empty() && request.logprobs.is_none();
        let shared = SharedProcessors::new(processors);
        let row = |answer: usize| {
            let mut chain = ProcessorChain::new(&config)?;
            shared.for_request().into_iter().for_each(|processor| chain.push(processor));
            Ok(AnswerRow {
                chain,
                key: RowKey::of_prompt(ids, answer),
                tokens: ids.to_vec(),
                prompt_len: ids.len(),
                logprobs: Vec::new(),
                finish: None,
                failure: None,
                proposer: Proposer::new(),
            })
        };
        let rows = (0..config.num_return_sequences()).map(row).collect::<Result<_, GenerationError>>()?;
        Ok(Self {
            stops: Stops::new(&config, request.tokenizer, std::time::Instant::now())?,
            sampler: config.do_sample().then(|| Sampler::new(request.seed)),
            n_top: request.logprobs,
            is_plain,
            padding,
            sample,
            prompt_len: ids.len(),
            rows,
            config,
        })
    }

    /// Returns the answers.
    pub(super) fn rows(&self) -> &[AnswerRow] {
        &self.rows
    }

    /// Returns an answer.
    pub(super) fn row_mut(&mut self, answer: usize) -> Option<&mut AnswerRow> {
        self.rows.get_mut(answer)
    }

    /// Returns the maximum number of tokens of an answer.
    pub(super) fn max_tokens(&self) -> usize {
        self.config.max_length() - self.padding - self.prompt_len
    }

    /// Starts the clock of `max_time`, when the computation of the prompt begins.
    pub(super) fn start_clock(&mut self) {
        self.stops.restart();
    }

    /// Chooses the next token of an answer from its logits, `[vocab_size]`.
    pub(super) fn choose(&mut self, answer: usize, logits: &[f32]) -> Verdict {
        let Some(row) = self.rows.get_mut(answer) else { return Verdict::Failed(RowFault::Internal) };
        let view = Row {
            input_ids: &row.tokens,
            prompt_len: self.prompt_len,
            padding: self.padding,
            sample: self.sample,
            beam: answer,
        };
        let chosen = if self.is_plain && logits.iter().any(|score| !score.is_finite()) {
            Err(RowError::NonFinite)
        } else {
            let mut scores = logits.to_vec();
            row.chain.process(&view, &mut scores);
            match (row.chain.ending(&view), &self.sampler) {
                (Some(RowEnd::Complete), _) => {
                    row.finish = Some(FinishReason::Stop);
                    return Verdict::Ended { tokens: 0, end: AnswerEnd::Stop };
                }
                (Some(RowEnd::Failed(error)), _) => Err(error),
                (None, None) => argmax(&scores),
                (None, Some(sampler)) => sampler.draw(row.key, view.n_generated(), &scores),
            }
        };
        let token = match chosen {
            Ok(token) => token,
            Err(error) => {
                row.failure = Some(error);
                row.finish = Some(FinishReason::Failed);
                return Verdict::Failed(match error {
                    RowError::NonFinite => RowFault::NonFinite,
                    RowError::NothingAllowed => RowFault::NoAllowedToken,
                    RowError::GrammarLimit => RowFault::Grammar,
                });
            }
        };
        row.proposer.compare(row.tokens.len(), token);
        row.tokens.push(token);
        if let Some(n_top) = self.n_top {
            row.logprobs.push(logprobs::of_token(logits, token, n_top));
        }
        let n_slots = self.padding + row.tokens.len();
        row.finish = self.stops.finish(&self.config, &row.tokens, n_slots, self.stops.is_late());
        match row.finish {
            None => Verdict::Token,
            Some(FinishReason::Length) => Verdict::Ended { tokens: 1, end: AnswerEnd::Length },
            Some(_) => Verdict::Ended { tokens: 1, end: AnswerEnd::Stop },
        }
    }
}
