//! Runs the steps that the scheduler plans. It owns the KV cache and the state of each request.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use idefics_kernels::MAX_GEMV_ROWS;
use idefics_nn::{PageStore, PagedRow, in_thread_pool};
use idefics_text::NoObserver;

use super::context::{LayerContexts, RowContexts};
use super::options::EngineOptions;
use super::prefill::{Prefill, sync};
use super::row::Answers;
use super::scheduler::{Answer, Offer, Outcome, PageCopy, RowFault, RowId, Scheduler, SeqId, Slice, StepPlan, Verdict};
use super::speculation::{Exactness, Speculation};
use crate::feature_cache::FeatureCache;
use crate::generation::logprobs::read;
use crate::inputs::upload_ids;
use crate::pipeline::milliseconds;
use crate::{Error, LogitsToKeep, Model, Timings};

/// A request: its prompt until it is computed, and its answers.
struct Work<'m> {
    answers: Answers<'m>,
    /// `None` once the prompt is computed.
    prefill: Option<Prefill<'m>>,
    /// The images that the tokens of the answers see by cross-attention.
    context: LayerContexts,
}

/// The result of a step.
pub(super) enum Ran {
    /// What the scheduler is told.
    Outcome(Outcome),
    /// The request does not fit the model.
    Invalid(SeqId, Error),
}

/// Runs steps; see the [module](self).
pub(super) struct Executor<'m> {
    model: &'m dyn Model,
    features: Option<&'m Mutex<FeatureCache>>,
    store: PageStore,
    dtype: DType,
    /// Whether a panic in a step counts as a failure of the step.
    isolates_panics: bool,
    /// Whether a single row is computed twice, because a step of one row uses other kernels than a step of several.
    doubles_single_rows: bool,
    /// Maximum number of proposed tokens.
    most_proposals: usize,
    /// Whether steps of this number of tokens have the bits of steps of one.
    exactness: [Exactness; MAX_GEMV_ROWS + 1],
    /// Time that the current step spent on comparing its bits with those of a step of one token.
    uncounted: Duration,
    work: HashMap<SeqId, Work<'m>>,
    contexts: RowContexts,
    timings: Timings,
    /// The reason of the last step that failed as a whole.
    reason: String,
}

type Verdicts = Vec<(RowId, Verdict)>;

/// A token of a decode step.
#[derive(Debug, Clone, Copy)]
struct NewToken {
    row: RowId,
    id: u32,
    position: usize,
}

impl<'m> Executor<'m> {
    /// Allocates the KV cache. `features` caches the vectors of images.
    ///
    /// # Errors
    /// [`Error::Input`] if the model has no token.
    pub(super) fn new(
        model: &'m dyn Model,
        options: &EngineOptions,
        features: Option<&'m Mutex<FeatureCache>>,
    ) -> Result<Self, Error> {
        let decoder = model.decoder();
        let token = upload_ids(&[0], [1, 1], model.shape().vocab_size, &model.device())?;
        let dtype = decoder.embed(token).dtype();
        Ok(Self {
            model,
            features,
            isolates_panics: options.isolates_panics,
            doubles_single_rows: options.reproducible,
            most_proposals: options.speculation.limit(),
            exactness: match options.speculation {
                Speculation::UpTo(_) => [Exactness::Proven; MAX_GEMV_ROWS + 1],
                _ => [Exactness::Unknown; MAX_GEMV_ROWS + 1],
            },
            uncounted: Duration::ZERO,
            store: store(model, options.pages, dtype),
            dtype,
            work: HashMap::new(),
            contexts: RowContexts::default(),
            timings: Timings::default(),
            reason: String::new(),
        })
    }

    /// Adds a request.
    pub(super) fn add(&mut self, id: SeqId, prefill: Prefill<'m>, answers: Answers<'m>) {
        self.work.insert(id, Work { answers, prefill: Some(prefill), context: Vec::new() });
    }

    /// Removes a request that has ended, and returns its answers.
    pub(super) fn remove(&mut self, id: SeqId) -> Option<Answers<'m>> {
        self.contexts.clear();
        self.work.remove(&id).map(|work| work.answers)
    }

    /// Returns the answers of a request.
    pub(super) fn answers(&mut self, id: SeqId) -> Option<&mut Answers<'m>> {
        self.work.get_mut(&id).map(|work| &mut work.answers)
    }

    /// Returns the time of all steps so far, by stage.
    pub(super) fn timings(&self) -> Timings {
        self.timings
    }

    /// Returns the time that the last step spent on comparing its bits with those of a step of one token, and resets it.
    /// This time does not count as time of the step.
    pub(super) fn take_uncounted(&mut self) -> Duration {
        std::mem::take(&mut self.uncounted)
    }

    /// Proposes tokens for the only row that decodes.
    pub(super) fn offer(&mut self, scheduler: &Scheduler) -> Option<Offer> {
        if self.most_proposals == 0 || self.exactness.contains(&Exactness::Refuted) {
            return None;
        }
        let row = scheduler.only_row()?;
        let answer = self.work.get_mut(&row.id)?.answers.row_mut(row.answer as usize)?;
        let (n_tokens, acceptance) = answer.propose(self.most_proposals);
        (n_tokens > 0).then_some(Offer { row, tokens: n_tokens as u32, acceptance })
    }

    /// Returns the reason of the last step that failed as a whole.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the KV cache still has all its pages.
    pub(super) fn is_intact(&self) -> bool {
        self.store.is_intact()
    }

    /// Allocates the KV cache again. All keys and values are lost.
    pub(super) fn restore(&mut self, pages: usize) {
        self.store = store(self.model, pages, self.dtype);
    }

    /// Runs a step. If panics are isolated, or proposals may be the cause, a panic is a failure of the step.
    pub(super) fn run(&mut self, step: &StepPlan, scheduler: &Scheduler) -> Ran {
        let failed = |fault| Ran::Outcome(Outcome::Failed(fault));
        match catch_unwind(AssertUnwindSafe(|| self.run_step(step, scheduler))) {
            Ok(Ok(verdicts)) => Ran::Outcome(Outcome::Rows(verdicts)),
            Ok(Err(error)) => match (step, error) {
                (StepPlan::Slice(Slice::Vision { id, .. } | Slice::Chunk { id, .. }), error)
                    if !matches!(error, Error::Execution { .. }) =>
                {
                    Ran::Invalid(*id, error)
                }
                (_, Error::Execution { reason }) => {
                    self.reason = reason;
                    failed(RowFault::Device)
                }
                (_, error) => {
                    self.reason = error.to_string();
                    failed(RowFault::Device)
                }
            },
            Err(panic) if !self.isolates_panics => resume_unwind(panic),
            Err(panic) => {
                self.reason = panic_reason(&*panic);
                failed(RowFault::Panic)
            }
        }
    }

    /// Runs a step and counts its time. The tower and the connector count theirs separately.
    fn run_step(&mut self, step: &StepPlan, scheduler: &Scheduler) -> Result<Verdicts, Error> {
        let clock = Instant::now();
        let verdicts = self.verdicts(step, scheduler);
        match step {
            StepPlan::Decode(_) | StepPlan::Verify { .. } => self.timings.decode_ms += milliseconds(clock),
            StepPlan::Slice(Slice::Chunk { .. }) => self.timings.prefill_ms += milliseconds(clock),
            _ => {}
        }
        verdicts
    }

    fn verdicts(&mut self, step: &StepPlan, scheduler: &Scheduler) -> Result<Verdicts, Error> {
        match step {
            StepPlan::Idle { .. } => Ok(Vec::new()),
            StepPlan::Decode(rows) => self.decode(rows, scheduler),
            StepPlan::Verify { row, tokens } => self.verify(*row, *tokens as usize, scheduler),
            StepPlan::Slice(Slice::Vision { id, image, layers }) => {
                let layers = layers.start as usize..layers.end as usize;
                let Some(prefill) = self.work.get_mut(id).and_then(|work| work.prefill.as_mut()) else {
                    return Ok(Vec::new());
                };
                let is_known =
                    prefill.encode(self.model, self.features, *image as usize, &layers, &mut self.timings)?;
                Ok(vec![(id.answer(0), if is_known { Verdict::ImageReady } else { Verdict::Done })])
            }
            StepPlan::Slice(Slice::Chunk { id, tokens, layers }) => {
                let tokens = tokens.start as usize..tokens.end as usize;
                let layers = layers.start as usize..layers.end as usize;
                self.chunk(*id, tokens, layers, scheduler)
            }
            StepPlan::Fork { id, copies } => {
                for PageCopy { from, to, .. } in copies {
                    self.store.copy_page(from.index() as u32, to.index() as u32);
                }
                Ok(vec![(id.answer(0), Verdict::Done)])
            }
            // The engine submits no solo jobs.
            StepPlan::Solo(id) => Ok(vec![(id.answer(0), Verdict::Failed(RowFault::Internal))]),
        }
    }

    /// Runs layers of a chunk. After the last layer of the last chunk, chooses the first token of each answer.
    fn chunk(
        &mut self,
        id: SeqId,
        tokens: std::ops::Range<usize>,
        layers: std::ops::Range<usize>,
        scheduler: &Scheduler,
    ) -> Result<Verdicts, Error> {
        let pages = scheduler.answer(id.answer(0)).map(pages);
        let (Some(work), Some(pages)) = (self.work.get_mut(&id), pages) else { return Ok(Vec::new()) };
        let Some(prefill) = &mut work.prefill else { return Ok(Vec::new()) };
        let hidden_states = prefill.run_chunk(self.model, &mut self.store, pages, &tokens, &layers)?;
        let n_tokens = scheduler.sequence(id).map_or(0, |sequence| sequence.prompt().tokens as usize);
        let Some(hidden_states) = hidden_states.filter(|_| tokens.end == n_tokens) else {
            sync(self.model)?;
            return Ok(vec![(id.answer(0), Verdict::Done)]);
        };
        let logits = read(self.model.logits(LogitsToKeep::Last(1).select(hidden_states)))?; // [vocab_size]
        work.context = prefill.answer_context();
        work.prefill = None;
        let mut panics = Panics { are_isolated: self.isolates_panics, reason: &mut self.reason };
        let rows = 0..work.answers.rows().len();
        Ok(rows
            .map(|answer| (id.answer(answer as u32), choose(&mut work.answers, answer, &logits, &mut panics)))
            .collect())
    }

    /// Runs a decode step, in which each row has one token.
    fn decode(&mut self, rows: &[RowId], scheduler: &Scheduler) -> Result<Verdicts, Error> {
        let tokens = rows.iter().map(|row| self.last_token(*row, scheduler)).collect::<Result<Vec<_>, _>>()?;
        let logits = self.forward(&tokens, scheduler)?;
        let vocab_size = self.model.shape().vocab_size;
        let mut verdicts = Vec::with_capacity(rows.len());
        for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab_size)) {
            verdicts.push((*row, self.choose(*row, logits)));
        }
        Ok(verdicts)
    }

    /// Runs a decode step in which a single row has `n_tokens` tokens: its last one, and proposals. Chooses the next
    /// tokens in order, up to the first one that differs from its proposal.
    fn verify(&mut self, row: RowId, n_tokens: usize, scheduler: &Scheduler) -> Result<Verdicts, Error> {
        let last = self.last_token(row, scheduler)?;
        let proposals = self.proposals(row).get(..n_tokens - 1).ok_or_else(|| lost(row))?.to_vec();
        let ids = std::iter::once(last.id).chain(proposals.iter().copied());
        let tokens: Vec<NewToken> =
            ids.enumerate().map(|(index, id)| NewToken { row, id, position: last.position + index }).collect();
        let logits = self.forward_proposals(&tokens, scheduler)?;
        let mut count = 0;
        let mut verdict = Verdict::Failed(RowFault::Internal);
        for logits in logits.chunks_exact(self.model.shape().vocab_size) {
            verdict = match self.choose(row, logits) {
                Verdict::Token => Verdict::Tokens(count + 1),
                Verdict::Ended { tokens, end } => Verdict::Ended { tokens: count + tokens, end },
                other => other,
            };
            let Verdict::Tokens(so_far) = verdict else { break };
            count = so_far;
            let chosen = self.work.get(&row.id).map(|work| work.answers.rows()[row.answer as usize].last_token());
            if chosen.as_ref() != proposals.get(count as usize - 1) {
                break;
            }
        }
        Ok(vec![(row, verdict)])
    }

    /// Runs the decoder on the last token of a row and on proposals. Returns the logits after each of them. If these
    /// do not have the bits of steps of one token, returns only the logits after the first token, with such bits.
    ///
    /// A wrong proposal may be the cause of a panic, so a panic is always a failure of this step alone: the row then
    /// decodes without proposals.
    fn forward_proposals(&mut self, tokens: &[NewToken], scheduler: &Scheduler) -> Result<Vec<f32>, Error> {
        let forward = || {
            let logits = self.forward(tokens, scheduler)?;
            let differ = match self.exactness[tokens.len()] {
                Exactness::Unknown => self.compare(tokens[0], &logits, scheduler)?,
                Exactness::Proven | Exactness::Refuted => None,
            };
            Ok(differ.unwrap_or(logits))
        };
        let panicked = |panic: Box<dyn Any + Send>| Error::Execution { reason: panic_reason(&*panic) };
        catch_unwind(AssertUnwindSafe(forward)).unwrap_or_else(|panic| Err(panicked(panic)))
    }

    /// Finds out whether a step of several tokens gives the same bits as a step of one token. `last` is the first token
    /// of the step, and `logits` begins with the logits after it. If the bits differ, returns the logits of a step of
    /// one token, which has also written the keys and values of the token again.
    fn compare(&mut self, last: NewToken, logits: &[f32], scheduler: &Scheduler) -> Result<Option<Vec<f32>>, Error> {
        let clock = Instant::now();
        let n_tokens = logits.len() / self.model.shape().vocab_size;
        let mut single = self.forward(&[last], scheduler)?;
        single.truncate(self.model.shape().vocab_size);
        let is_exact = single.iter().zip(logits).all(|(one, other)| one.to_bits() == other.to_bits());
        self.exactness[n_tokens] = if is_exact { Exactness::Proven } else { Exactness::Refuted };
        self.uncounted += clock.elapsed();
        Ok((!is_exact).then_some(single))
    }

    /// Returns the last token of a row, which the next decode step reads.
    fn last_token(&self, row: RowId, scheduler: &Scheduler) -> Result<NewToken, Error> {
        let (Some(answer), Some(work)) = (scheduler.answer(row), self.work.get(&row.id)) else { return Err(lost(row)) };
        let id = work.answers.rows()[row.answer as usize].last_token();
        Ok(NewToken { row, id, position: answer.written() as usize })
    }

    fn proposals(&self, row: RowId) -> &[u32] {
        let answer = self.work.get(&row.id).and_then(|work| work.answers.rows().get(row.answer as usize));
        answer.map_or(&[], |answer| answer.proposals())
    }

    /// Runs the decoder on tokens, each of which sees the tokens of its row up to its own position. Writes their keys
    /// and values. Returns the logits after each token, `[tokens, vocab_size]`. A single token may be computed twice;
    /// the result then has its logits twice.
    fn forward(&mut self, tokens: &[NewToken], scheduler: &Scheduler) -> Result<Vec<f32>, Error> {
        let twice; // the same values are written to the same slot twice
        let tokens = match tokens {
            [token] if self.doubles_single_rows => {
                twice = [*token; 2];
                &twice[..]
            }
            tokens => tokens,
        };
        let decoder = self.model.decoder();
        let rules = decoder.position_rules();
        let (mut paged, mut contexts) = (Vec::new(), Vec::new());
        for NewToken { row, position, .. } in tokens {
            let (Some(answer), Some(work)) = (scheduler.answer(*row), self.work.get(&row.id)) else {
                return Err(lost(*row));
            };
            paged.push(PagedRow { pages: pages(answer), seen: rules.seen(*position), attention_mask: None });
            contexts.push(&work.context);
        }
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let rows: Vec<RowId> = tokens.iter().map(|token| token.row).collect();
        let positions: Vec<usize> = tokens.iter().map(|token| token.position).collect();
        let input_ids = upload_ids(&ids, [ids.len(), 1], self.model.shape().vocab_size, &self.model.device())?;
        let inputs_embeds = decoder.embed(input_ids); // [tokens, 1, d]
        let (context, seen) = self.contexts.join(&rows, &contexts);
        let positions = rules.for_rows(&inputs_embeds, &positions, seen);
        let (model, store) = (self.model, &mut self.store);
        let logits = in_thread_pool(&model.device(), || {
            let mut key_values = store.decode(paged).with_context(context);
            let all = 0..decoder.n_layers();
            let hidden_states = decoder.layers(all, inputs_embeds, &positions, &mut key_values, &mut NoObserver);
            model.logits(hidden_states)
        });
        read(logits)
    }

    /// Chooses the next token of a row.
    fn choose(&mut self, row: RowId, logits: &[f32]) -> Verdict {
        let Some(work) = self.work.get_mut(&row.id) else { return Verdict::Failed(RowFault::Internal) };
        let mut panics = Panics { are_isolated: self.isolates_panics, reason: &mut self.reason };
        choose(&mut work.answers, row.answer as usize, logits, &mut panics)
    }
}

/// The error of a step with an unknown row. This can only be a defect of the program.
fn lost(row: RowId) -> Error {
    Error::Execution { reason: format!("{row:?} has no pages") }
}

/// How panics in the choice of a token are handled.
struct Panics<'r> {
    are_isolated: bool,
    /// The message of the last panic.
    reason: &'r mut String,
}

/// Chooses the next token of an answer. If a custom logits processor panics and panics are isolated, only this answer
/// fails.
fn choose(answers: &mut Answers<'_>, answer: usize, logits: &[f32], panics: &mut Panics<'_>) -> Verdict {
    match catch_unwind(AssertUnwindSafe(|| answers.choose(answer, logits))) {
        Ok(verdict) => verdict,
        Err(panic) if !panics.are_isolated => resume_unwind(panic),
        Err(panic) => {
            *panics.reason = format!("the choice of a token panicked: {}", message(&*panic));
            Verdict::Failed(RowFault::Panic)
        }
    }
}

fn pages(answer: &Answer) -> Vec<u32> {
    answer.table().iter().map(|page| page.index() as u32).collect()
}

fn store(model: &dyn Model, pages: usize, dtype: DType) -> PageStore {
    let text = &model.shape().text;
    let devices: Vec<Device> = vec![model.device(); model.decoder().n_layers()];
    PageStore::new(pages, text.n_kv_heads(), text.head_dim(), dtype, &devices)
}

/// Returns the reason of a step that panicked.
fn panic_reason(panic: &(dyn Any + Send)) -> String {
    format!("a step panicked: {}", message(panic))
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
