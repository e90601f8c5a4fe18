//! The engine that answers many requests at once.
//!
//! Requests join and leave a running batch at every step (continuous batching). [`scheduler`] decides what runs next
//! and which pages of the KV cache each request owns. It uses no tensors, threads or clocks, so that a simulator can
//! test it. The executor runs the steps: images are encoded one at a time, prompts run in chunks, and each answer is a
//! row of the decode steps.
//!
//! An [`Engine`] runs on the caller's thread, one step at a time. A [`Worker`] is a thread with an engine.
//!
//! If a single answer is generated, a step can verify several proposed tokens of it; see [`Speculation`].
//!
//! An answer depends only on its own request, not on other requests, the prefix cache or the order of arrival. A row
//! that fails ends only its own request.

mod context;
mod executor;
mod options;
mod prefill;
mod prompt;
mod request;
mod row;
pub mod scheduler;
mod session;
mod speculation;
mod ticket;
mod worker;

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::feature_cache::FeatureCache;
use crate::{CancelToken, Error, FinishReason, Idefics, Model, Timings, Usage};

use executor::{Executor, Ran};
pub use options::EngineOptions;
use prefill::Prefill;
pub use prompt::Prompt;
pub use request::Request;
use row::Answers;
pub(crate) use row::SharedProcessors;
use scheduler::{
    Ask, Counts, Ending, Job, Micros, Notice, Outcome, RowFault, Scheduler, SeqId, SettingError, Slice, StepPlan,
};
pub(crate) use session::{Collected, Session};
pub use speculation::{Speculation, UnknownSpeculation};
use ticket::Outbox;
pub use ticket::{Event, Ticket};
pub use worker::{Pulse, Worker};

/// Why an engine cannot be created, or cannot take a request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting is invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The scheduler refused the request.
    #[error(transparent)]
    Refused(#[from] scheduler::Refusal),
    /// The parts of the model are on several devices.
    #[error("the parts of the model are on several devices; the engine needs all of them on one")]
    SeveralDevices,
    /// The request waited too long for memory.
    #[error("the request waited for {seconds} s and was not started; try again later")]
    QueueTimeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The worker's thread has ended.
    #[error("the thread of the engine has ended; no more requests can be answered")]
    Stopped,
}

/// Answers many requests at once; see the [module](self).
///
/// An engine stays on its thread. Each call of [`Self::step`] runs one step.
pub struct Engine<'m> {
    model: &'m dyn Model,
    scheduler: Scheduler,
    executor: Executor<'m>,
    requests: HashMap<SeqId, Active>,
    options: EngineOptions,
    started: Instant,
}

/// A request that has not ended.
#[derive(Debug)]
struct Active {
    outbox: Arc<Outbox>,
    cancel: CancelToken,
    usage: Usage,
    /// Index of the prompt in its batch, for errors.
    sample: usize,
    /// Number of tokens of each answer that have been sent.
    sent: Vec<usize>,
    /// Whether the end of each answer has been sent.
    ended: Vec<bool>,
    /// Why the request does not fit the model.
    invalid: Option<Error>,
}

impl Debug for Engine<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Engine").field("options", &self.options).field("counts", &self.counts()).finish()
    }
}

impl<'m> Engine<'m> {
    /// Creates an engine and allocates its KV cache.
    ///
    /// # Errors
    /// [`EngineError::Setting`], or [`EngineError::SeveralDevices`].
    pub fn new(model: &'m dyn Model, options: EngineOptions) -> Result<Self, Error> {
        Self::with_features(model, options, None)
    }

    /// Creates an engine like [`Self::new`], which shares the cache of image vectors of `idefics`.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn of(idefics: &'m Idefics, options: EngineOptions) -> Result<Self, Error> {
        Self::with_features(idefics.model(), options, Some(&idefics.features))
    }

    fn with_features(
        model: &'m dyn Model,
        options: EngineOptions,
        features: Option<&'m Mutex<FeatureCache>>,
    ) -> Result<Self, Error> {
        if !model.is_on_one_device() {
            return Err(EngineError::SeveralDevices.into());
        }
        let scheduler = Scheduler::new(options.layout(model), options.policy()).map_err(EngineError::Setting)?;
        let executor = Executor::new(model, &options, features)?;
        Ok(Self { model, scheduler, executor, requests: HashMap::new(), options, started: Instant::now() })
    }

    /// Adds a request to the queue.
    ///
    /// # Errors
    /// [`Error::Generation`] if an option is invalid, [`Error::Input`] if an image does not fit the model,
    /// [`EngineError::Refused`] if the queue is full or the request needs more memory than there is.
    pub fn submit(&mut self, mut request: Request<'m>) -> Result<Ticket, Error> {
        let answers = Answers::new(&mut request, self.model.shape().vocab_size)?;
        let Request { prompt, cancel, deadline, tenant, salt, .. } = request;
        let salt = self.options.prefix_cache.then_some(salt.as_slice());
        let shape = prompt.shape(self.model, salt, self.options.chunk_tokens)?;
        let size = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let now = self.now();
        let ask = Ask {
            tenant,
            prompt_tokens: shape.tokens,
            max_tokens: size(answers.max_tokens()),
            job: Job::Answers(size(answers.rows().len())),
            slabs: if prompt.has_context() { size(prompt.images.len()) } else { 0 },
            deadline: deadline.map(|deadline| now.saturating_add(micros(deadline))),
        };
        let id = self.scheduler.submit(ask, now).map_err(EngineError::Refused)?;
        let (ticket, outbox) = Ticket::new();
        let usage =
            Usage { prompt_tokens: prompt.ids().len(), image_tokens: prompt.image_tokens(), completion_tokens: 0 };
        let n_answers = answers.rows().len();
        let active = Active {
            outbox,
            cancel,
            usage,
            sample: prompt.sample,
            sent: vec![0; n_answers],
            ended: vec![false; n_answers],
            invalid: None,
        };
        self.requests.insert(id, active);
        self.executor.add(id, Prefill::new(prompt), answers);
        self.scheduler.prepared(id, shape);
        Ok(ticket)
    }

    /// Runs one step. Returns false if there was nothing to run, which means that no request is left.
    ///
    /// # Errors
    /// [`Error::Execution`] if the KV cache was lost and cannot be allocated again. All requests have failed then.
    pub fn step(&mut self) -> Result<bool, Error> {
        let is_unwanted = |active: &Active| active.cancel.is_cancelled() || active.outbox.is_closed();
        let unwanted: Vec<SeqId> =
            self.requests.iter().filter(|(_, active)| is_unwanted(active)).map(|(id, _)| *id).collect();
        unwanted.into_iter().for_each(|id| self.scheduler.end(id, Ending::Cancelled));
        if let Some(offer) = self.executor.offer(&self.scheduler) {
            self.scheduler.offer(offer);
        }
        let step = self.scheduler.plan(self.now());
        self.deliver_notices();
        if matches!(step, StepPlan::Idle { .. }) {
            return Ok(false);
        }
        let begun = self.now();
        let ran = self.executor.run(&step, &self.scheduler);
        let now = self.now();
        let took = (now - begun).saturating_sub(micros(self.executor.take_uncounted()));
        let outcome = match ran {
            Ran::Outcome(outcome) => outcome,
            Ran::Invalid(id, error) => {
                if let Some(active) = self.requests.get_mut(&id) {
                    active.invalid = Some(error);
                }
                self.scheduler.end(id, Ending::BadInput);
                Outcome::Rows(Vec::new())
            }
        };
        self.deliver_tokens(&step);
        let kept = if self.executor.is_intact() {
            self.scheduler.done(outcome, took, now);
            Ok(())
        } else {
            let restored = catch_unwind(AssertUnwindSafe(|| self.executor.restore(self.options.pages)));
            self.scheduler.lose_pages(RowFault::Device, now);
            if restored.is_err() {
                self.scheduler.end_all(Ending::Failed(RowFault::Device));
            }
            restored.map_err(|_| Error::Execution { reason: self.executor.reason().to_owned() })
        };
        self.deliver_notices();
        kept.map(|()| true)
    }

    /// Refuses new requests from now on. Requests that were submitted before continue.
    pub fn drain(&mut self) {
        self.scheduler.drain();
    }

    /// Ends all requests with [`Refusal::Draining`](scheduler::Refusal::Draining).
    pub fn stop(&mut self) {
        self.scheduler.drain();
        self.scheduler.end_all(Ending::Drained);
        self.deliver_notices();
    }

    /// Returns the number of requests in each state, and of pages in each condition.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// Returns the number of failed steps within the last minute.
    pub fn incidents(&mut self) -> usize {
        let now = self.now();
        self.scheduler.incidents(now)
    }

    /// Returns the time of all steps so far, by stage.
    pub fn timings(&self) -> Timings {
        self.executor.timings()
    }

    fn now(&self) -> Micros {
        micros(self.started.elapsed())
    }

    /// Sends the tokens that the step has chosen.
    fn deliver_tokens(&mut self, step: &StepPlan) {
        match step {
            StepPlan::Decode(rows) => rows.iter().for_each(|row| self.deliver_tokens_of(row.id)),
            StepPlan::Verify { row, .. } => self.deliver_tokens_of(row.id),
            StepPlan::Slice(Slice::Chunk { id, .. }) => self.deliver_tokens_of(*id),
            _ => {}
        }
    }

    fn deliver_tokens_of(&mut self, id: SeqId) {
        let (Some(active), Some(answers)) = (self.requests.get_mut(&id), self.executor.answers(id)) else { return };
        for (answer, (row, sent)) in answers.rows().iter().zip(&mut active.sent).enumerate() {
            let tokens = &row.generated()[*sent..];
            if !tokens.is_empty() {
                let logprobs = row.logprobs().get(*sent..).unwrap_or_default().to_vec();
                active.outbox.push(Event::Tokens { answer, tokens: tokens.to_vec(), logprobs });
                *sent += tokens.len();
            }
        }
    }

    /// Tells callers what the scheduler has decided.
    fn deliver_notices(&mut self) {
        for notice in self.scheduler.take_notices() {
            match notice {
                Notice::Admitted { id, queued } => {
                    if let Some(active) = self.requests.get(&id) {
                        active.outbox.push(Event::Admitted { queued: Duration::from_micros(queued) });
                    }
                }
                Notice::Begun { id, cached_tokens } => {
                    if let Some(answers) = self.executor.answers(id) {
                        answers.start_clock();
                    }
                    if let Some(active) = self.requests.get(&id) {
                        active.outbox.push(Event::Begun { cached_tokens: cached_tokens as usize });
                    }
                }
                Notice::Answer { row, .. } => {
                    let answer = row.answer as usize;
                    let finish = self.executor.answers(row.id).and_then(|answers| answers.rows()[answer].finish());
                    if let Some(active) = self.requests.get_mut(&row.id) {
                        active.end_answer(answer, finish.unwrap_or(FinishReason::Length));
                    }
                }
                Notice::Ended { id, ending } => self.deliver_end(id, ending),
            }
        }
    }

    fn deliver_end(&mut self, id: SeqId, ending: Ending) {
        let (Some(mut active), Some(answers)) = (self.requests.remove(&id), self.executor.remove(id)) else { return };
        let reason = match ending {
            Ending::Finished => FinishReason::Length,
            Ending::Cancelled | Ending::SlowReader => FinishReason::Cancelled,
            Ending::Deadline => FinishReason::Time,
            failed => {
                let error = self.error(failed, &mut active, &answers);
                return active.outbox.push(Event::Failed(error));
            }
        };
        (0..active.ended.len()).for_each(|answer| active.end_answer(answer, reason));
        let completion_tokens = answers.rows().iter().map(|row| row.generated().len()).sum();
        active.outbox.push(Event::End { usage: Usage { completion_tokens, ..active.usage } });
    }

    /// Returns the error of a request that failed.
    fn error(&self, ending: Ending, active: &mut Active, answers: &Answers<'_>) -> Error {
        let row = active.sample;
        match ending {
            Ending::BadInput => active.invalid.take().unwrap_or(Error::Input(crate::InputError::Empty { row })),
            Ending::NeverFits { pages, total } => {
                EngineError::Refused(scheduler::Refusal::NeverFits { pages, total }).into()
            }
            Ending::QueueTimeout => {
                EngineError::QueueTimeout { seconds: self.options.policy.queue_timeout / scheduler::SECOND }.into()
            }
            Ending::Drained => EngineError::Refused(scheduler::Refusal::Draining).into(),
            Ending::Failed(fault @ (RowFault::NonFinite | RowFault::Grammar)) => {
                let failed = answers.rows().iter().find(|answer| answer.failure().is_some());
                let n_tokens = failed.map_or(0, |answer| answer.generated().len());
                match fault {
                    RowFault::Grammar => Error::GrammarLimit { row, n_tokens },
                    _ => Error::NonFinite { row, n_tokens },
                }
            }
            Ending::Failed(RowFault::NoAllowedToken) => Error::NoAllowedToken { row },
            Ending::Failed(RowFault::Device | RowFault::Panic) => {
                Error::Execution { reason: self.executor.reason().to_owned() }
            }
            Ending::Failed(fault) => Error::Execution { reason: fault.to_string() },
            Ending::Finished | Ending::Cancelled | Ending::SlowReader | Ending::Deadline => Error::Cancelled,
        }
    }
}

impl Active {
    /// Sends the end of an answer, unless it has been sent.
    fn end_answer(&mut self, answer: usize, reason: FinishReason) {
        if !std::mem::replace(&mut self.ended[answer], true) {
            self.outbox.push(Event::AnswerEnd { answer, reason });
        }
    }
}

fn micros(time: Duration) -> Micros {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
