//! Requests that are answered on the caller's thread.

use super::{Engine, EngineOptions, Event, Request, Speculation, Ticket};
use crate::running::Generated;
use crate::{Error, FinishReason, GeneratedLogprob, Idefics, Timings};

/// The requests of a batch, their engine, and the answers so far.
#[derive(Debug)]
pub(crate) struct Session<'m> {
    engine: Engine<'m>,
    requests: Vec<Collected>,
}

/// A request and what has been received of its answers.
#[derive(Debug)]
pub(crate) struct Collected {
    ticket: Ticket,
    answers: Vec<Received>,
    error: Option<Error>,
    is_over: bool,
}

/// What has been received of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    /// The generated tokens, the end token included.
    pub(crate) tokens: Vec<u32>,
    /// Log-probability of each token, if requested.
    logprobs: Vec<GeneratedLogprob>,
    /// Why the answer ended, if it has ended.
    pub(crate) finish: Option<FinishReason>,
}

impl<'m> Session<'m> {
    /// Submits requests to a new engine, whose memory is just large enough for all of them.
    ///
    /// # Errors
    /// Those of [`Engine::new`] and [`Engine::submit`].
    pub(crate) fn start(
        model: &'m Idefics,
        requests: Vec<Request<'m>>,
        speculation: Speculation,
    ) -> Result<Self, Error> {
        let (mut pages, mut rows) = (0_usize, 0_usize);
        for request in &requests {
            pages = pages.saturating_add(request.pages(model.model())?);
            rows = rows.saturating_add(request.options.num_return_sequences());
        }
        let options = EngineOptions { speculation, ..EngineOptions::offline(pages, rows.max(1)) };
        let mut engine = Engine::of(model, options)?;
        let submit = |request| Collected::submit(&mut engine, request);
        let requests = requests.into_iter().map(submit).collect::<Result<_, Error>>()?;
        Ok(Self { engine, requests })
    }

    /// Runs a step and receives its results. Returns false once all requests have ended.
    ///
    /// # Errors
    /// Those of [`Engine::step`].
    pub(crate) fn step(&mut self) -> Result<bool, Error> {
        let is_running = self.engine.step()?;
        self.requests.iter_mut().for_each(Collected::receive);
        Ok(is_running)
    }

    /// Returns the part of a request's answer that has been received so far.
    pub(crate) fn received(&self, request: usize, answer: usize) -> &Received {
        &self.requests[request].answers[answer]
    }

    /// Returns the number of answers of each request.
    pub(crate) fn answers_per_request(&self) -> usize {
        self.requests.first().map_or(1, |request| request.answers.len())
    }

    /// Returns the number of requests.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Returns the error of a request that failed.
    pub(crate) fn error(&mut self, request: usize) -> &mut Option<Error> {
        &mut self.requests[request].error
    }

    /// Returns the time of all steps so far, by stage.
    pub(crate) fn timings(&self) -> Timings {
        self.engine.timings()
    }
}

impl Collected {
    /// Submits a request.
    ///
    /// # Errors
    /// Those of [`Engine::submit`].
    pub(crate) fn submit<'m>(engine: &mut Engine<'m>, request: Request<'m>) -> Result<Self, Error> {
        let answers = vec![Received::default(); request.options.num_return_sequences()];
        Ok(Self { ticket: engine.submit(request)?, answers, error: None, is_over: false })
    }

    /// Reads the new events.
    pub(crate) fn receive(&mut self) {
        while let Some(event) = self.ticket.try_next() {
            match event {
                Event::Tokens { answer, tokens, logprobs } => {
                    self.answers[answer].tokens.extend(tokens);
                    self.answers[answer].logprobs.extend(logprobs);
                }
                Event::AnswerEnd { answer, reason } => self.answers[answer].finish = Some(reason),
                Event::Failed(error) => (self.error, self.is_over) = (Some(error), true),
                Event::End { .. } => self.is_over = true,
                Event::Admitted { .. } | Event::Begun { .. } => {}
            }
        }
    }

    /// Returns whether the request has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns the answers of a request that has ended, or its error.
    ///
    /// # Errors
    /// That of the request.
    pub(crate) fn into_generated(self) -> Result<Vec<Generated>, Error> {
        self.error.map_or(Ok(()), Err)?;
        Ok(self.answers.into_iter().map(Received::into_generated).collect())
    }
}

impl Received {
    /// Returns the answer, which has ended.
    pub(crate) fn into_generated(self) -> Generated {
        Generated {
            token_ids: self.tokens,
            finish_reason: self.finish.unwrap_or(FinishReason::Cancelled),
            replay_refusal: None,
            score: None,
            logprobs: self.logprobs,
            prompt_logprobs: None,
        }
    }
}
