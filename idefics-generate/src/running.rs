//! A running batch of answers: in the engine, or as a [`Generation`].

use crate::engine::Session;
use crate::{Error, FinishReason, GeneratedLogprob, Generation, Timings};

/// A batch that is being answered. Answers are numbered sample by sample.
#[derive(Debug)]
pub(crate) enum Running<'a> {
    /// Each sample is a request of an engine.
    Engine(Box<Session<'a>>),
    /// Used for beam search, log-probabilities of prompts, several devices, and GPUs.
    Generation(Box<Generation<'a>>),
}

/// A finished answer.
#[derive(Debug)]
pub(crate) struct Generated {
    /// The generated tokens, end token included.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
    /// Why no step was replayed although graph capture was requested.
    pub(crate) replay_refusal: Option<String>,
    /// Score of the answer in a beam search.
    pub(crate) score: Option<f32>,
    pub(crate) logprobs: Vec<GeneratedLogprob>,
    pub(crate) prompt_logprobs: Option<Vec<f32>>,
}

impl Generated {
    /// Takes the answer of a row that has finished.
    pub(crate) fn of_row(generation: &Generation<'_>, row: usize) -> Self {
        Self {
            token_ids: generation.generated(row).to_vec(),
            finish_reason: generation.finish_reason(row).unwrap_or(FinishReason::Cancelled),
            replay_refusal: generation.replay_refusal().map(str::to_owned),
            score: generation.sequences_scores().map(|scores| scores[row]),
            logprobs: generation.logprobs(row).to_vec(),
            prompt_logprobs: generation.prompt_logprobs(row / generation.answers_per_sample()).map(<[f32]>::to_vec),
        }
    }
}

impl Running<'_> {
    /// Runs until all answers have ended.
    ///
    /// # Errors
    /// [`Error::Execution`]; if every answer failed, the error of the first one.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        match self {
            Self::Generation(generation) => while generation.step()?.is_some() {},
            Self::Engine(session) => {
                while session.step()? {}
                let all = 0..session.len();
                let is_of_sample =
                    |error: &Error| matches!(error, Error::NonFinite { .. } | Error::NoAllowedToken { .. });
                let mut n_failed = 0;
                for request in all.clone() {
                    match session.error(request) {
                        Some(error) if is_of_sample(error) => n_failed += 1,
                        error => error.take().map_or(Ok(()), Err)?,
                    }
                }
                if n_failed == session.len() {
                    all.into_iter().try_for_each(|request| session.error(request).take().map_or(Ok(()), Err))?;
                }
            }
        }
        Ok(())
    }

    /// Computes the prompt of the only answer.
    ///
    /// # Errors
    /// [`Error::Input`] if the prompt does not fit the model, [`Error::Execution`].
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        let Self::Engine(session) = self else { return Ok(()) }; // a generation begins when it is created
        while session.received(0, 0).tokens.is_empty() && session.error(0).is_none() && session.step()? {}
        match session.error(0) {
            Some(Error::NonFinite { .. } | Error::NoAllowedToken { .. }) => Ok(()), // `token` returns this error
            error => error.take().map_or(Ok(()), Err),
        }
    }

    /// Runs until token `index` of the only answer has been generated, and returns the token. Returns `None` if the
    /// answer ends before that.
    ///
    /// # Errors
    /// [`Error::Execution`], [`Error::NonFinite`] or [`Error::NoAllowedToken`].
    pub(crate) fn token(&mut self, index: usize) -> Result<Option<u32>, Error> {
        match self {
            Self::Generation(generation) => Ok(generation.step()?.map(|tokens| tokens[0])),
            Self::Engine(session) => loop {
                if let Some(token) = session.received(0, 0).tokens.get(index) {
                    return Ok(Some(*token));
                }
                if let Some(error) = session.error(0).take() {
                    return Err(error);
                }
                if !session.step()? && session.error(0).is_none() {
                    return Ok(None);
                }
            },
        }
    }

    /// Returns why the only answer has ended, if it has ended.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        match self {
            Self::Generation(generation) => generation.finish_reason(0),
            Self::Engine(session) => session.received(0, 0).finish,
        }
    }

    /// Returns the number of answers of each sample.
    pub(crate) fn answers_per_sample(&self) -> usize {
        match self {
            Self::Generation(generation) => generation.answers_per_sample(),
            Self::Engine(session) => session.answers_per_request(),
        }
    }

    /// Returns an answer that has ended, or the error of its sample.
    ///
    /// # Errors
    /// [`Error::NonFinite`] or [`Error::NoAllowedToken`].
    pub(crate) fn generated(&mut self, index: usize) -> Result<Generated, Error> {
        match self {
            Self::Generation(generation) => match generation.failure(index) {
                Some(error) => Err(error),
                None => Ok(Generated::of_row(generation, index)),
            },
            Self::Engine(session) => {
                let n_answers = session.answers_per_request();
                let (request, answer) = (index / n_answers, index % n_answers);
                match session.error(request) {
                    Some(Error::NonFinite { row, n_tokens }) => {
                        return Err(Error::NonFinite { row: *row, n_tokens: *n_tokens });
                    }
                    Some(Error::NoAllowedToken { row }) => return Err(Error::NoAllowedToken { row: *row }),
                    error => error.take().map_or(Ok(()), Err)?,
                }
                Ok(session.received(request, answer).clone().into_generated())
            }
        }
    }

    /// Returns the time that each stage took in the engine; `None` for a generation.
    pub(crate) fn timings(&self) -> Option<Timings> {
        match self {
            Self::Generation(_) => None,
            Self::Engine(session) => Some(session.timings()),
        }
    }
}
