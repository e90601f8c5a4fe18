//! Decides what runs next: which rows decode, which layers of which prompt run between two decode steps, and which
//! pages of the KV cache each request owns. The scheduler has no threads, no clock and no tensors.
//!
//! ```text
//! submit ─ Preparing ─ prepared ─ Waiting ─ pages reserved ─ Encoding ─ Prefilling ─┬─ (Forking) ─ Decoding ─ ended
//!                                                            pictures   chunks      └─ Solo ─ ended
//! ```
//!
//! The executor calls [`Scheduler::plan`], runs the [`StepPlan`], reports the result with [`Scheduler::done`], and
//! reads [`Scheduler::take_notices`]. One step runs at a time. [`Scheduler::end`] may be called at any time, even while
//! a step runs.
//!
//! # Terms
//!
//! - **Page**: [`Layout::page_tokens`] slots of the KV cache, one slot for each token. The page table of an answer
//!   lists its pages in order.
//! - **Reserved page**: a page that is set aside for an admitted request, before a particular page is chosen.
//! - **Idle page**: a page that no request owns, but that still holds a chunk of the prefix cache. It may be allocated
//!   again.
//! - **Slab**: the space for the keys and values of one image for cross-attention (IDEFICS v1).
//! - **Row**: one answer of a request in a decode step.
//! - **Chunk**: the part of a prompt between two multiples of [`Layout::chunk_tokens`]. The last chunk may be shorter.
//! - **Slice**: some layers of one chunk or one picture, run as one step.
//! - **Cut**: a point in the computation of a prompt at which no chunk or picture is half computed.
//! - **Guest**: a short prompt that runs at a cut of a longer prompt. The guest has only one chunk and no picture left
//!   to compute.
//! - **Solo job**: a job that is not batched: beams, ranking or prompt log-probabilities.
//! - **Fork**: a step that copies the last, partly filled page of a prompt, so that each answer can write to a copy of
//!   its own.
//! - **Credit**: the time in microseconds that slices and steps of solo jobs may take. Decode steps earn it.
//! - **Proposals**: guesses of the next tokens of an answer. A step that verifies them has several tokens of one row.
//! - **Suspects**: the rows of a decode step that failed, which run again in smaller groups.
//!
//! # Rules
//!
//! - **Memory.** A request starts when its worst case is reserved: the pages of the prompt and of answers of maximum
//!   length. Later it never waits for a page, and is never preempted.
//! - **Order.** Tenants take turns, and the requests of a tenant start in order of arrival. If the first waiting
//!   request does not fit, at most [`Policy::max_passes`] others start before it. After [`Policy::pass_window`], no
//!   other request starts before it.
//! - **Prompts.** One prompt runs at a time, in order of arrival, in chunks. At each cut, one guest may run first.
//! - **Credit.** Each decode step of `t` µs earns `t · (1 − s) / s` µs, where `s` is [`Policy::decode_share`]. A slice
//!   or a step of a solo job runs when the credit covers its expected time, or when no row decodes. At most one of
//!   them runs between two decode steps.
//! - **Slices.** The time of a slice is limited to the longest of three times: [`Policy::slice_floor`], the time of a
//!   decode step, and the credit that a decode step earns. A slice has at least one layer, and all further layers that
//!   fit into this time.
//! - **Rows.** If more rows decode than [`Policy::max_batch`], they take turns of [`Policy::turn_steps`] steps.
//! - **Proposals.** If a single row decodes and there is no other work, its caller may [offer](Scheduler::offer)
//!   proposals before a plan. They are verified if [`Policy::min_gain`] times more tokens per second are expected than from decode steps. The row then
//!   writes at most as many slots as its answer may still have tokens.
//! - **Prefix cache.** Other requests can reuse the chunks of a prompt once its first token is chosen, or once its solo
//!   job has its result. The pages of these chunks are kept after the request has ended, until other requests need the
//!   pages. The least recently used pages are taken first.
//! - **Faults.** A row that fails ends only its own request. A decode step that fails has no effect. Its rows run again
//!   in smaller groups, until each row that fails is alone in a step. If a step that verifies proposals fails, its row
//!   decodes without proposals from then on, because a wrong proposal may be the cause.
//!
//! # Reasons
//!
//! - A row of a decode step is an answer, not a request ([`RowId`]). The answers of a request decode side by side, and
//!   each ends on its own. A fault of one answer ends the whole request, because a request cannot be answered in part.
//! - The scheduler never sees tokens, so its decisions cannot depend on them. It sees only how many are proposed, and
//!   which share of earlier proposals was right.
//! - A partly filled page that several answers share is copied in a separate step ([`StepPlan::Fork`]) before they
//!   decode. A decode step that fails therefore never leaves a copy half done.
//! - A fault of a whole step is an [`Outcome`], not a [`Verdict`] of a row, because all results of such a step are
//!   discarded.
//! - The scheduler looks into the prefix cache again when a prompt begins, and only then decides which images to
//!   encode. Requests that were admitted together can therefore share what the first of them computes.
//! - The time in the queue has a limit besides the deadline, because the caller gets no status before the request
//!   starts.
//! - If a tenant uses more than its share of the pages, its requests start after those of other tenants, but are not
//!   blocked. Pages are never kept free for a tenant without requests.

mod admission;
mod cost;
mod invariants;
mod memory;
mod outcome;
mod pages;
mod plan;
mod policy;
mod prefix;
mod queue;
mod sequence;
#[cfg(test)]
mod simulator;
mod speculation;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use cost::{Cost, CostModel};
pub use pages::{Allocated, PageCounts, PageId, PagePool, Reservation};
pub use plan::{AnswerEnd, Ending, Notice, Outcome, PageCopy, Refusal, RowFault, RowId, Slice, StepPlan, Verdict};
pub use policy::{Layout, Micros, Policy, SECOND, SettingError};
pub use prefix::{ChunkKey, PrefixIndex, chunk_keys};
pub use sequence::{Answer, Ask, ImageShape, Job, PromptShape, SeqId, Sequence, State, Tenant};
pub use speculation::Offer;

use memory::Memory;
use queue::Queue;
use steps::Turns;

/// Time for which [`Scheduler::incidents`] counts an incident.
const INCIDENT_WINDOW: Micros = 60 * SECOND;

/// The scheduler; see the [module](self).
#[derive(Debug)]
pub struct Scheduler {
    layout: Layout,
    policy: Policy,
    queue: Queue,
    /// Requests that have not ended.
    sequences: BTreeMap<SeqId, Sequence>,
    memory: Memory,
    costs: CostModel,
    turns: Turns,
    /// Proposals for the next plan.
    offer: Option<Offer>,
    /// Number of tokens of the offer that was accepted last.
    offered: u32,
    /// Number of promising offers since the last one that was accepted.
    declined: u32,
    /// The step that runs now.
    in_flight: Option<StepPlan>,
    /// Groups of rows that run again after a failed decode step. The last group runs first.
    suspects: Vec<Vec<RowId>>,
    notices: Vec<Notice>,
    draining: bool,
    submitted: u64,
    ended: u64,
    incidents: VecDeque<Micros>,
}

/// The number of requests in each state, and of pages in each condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests in preparation.
    pub preparing: usize,
    /// Requests that are prepared and wait for pages.
    pub waiting: usize,
    /// Number of prompt tokens of all preparing and waiting requests.
    pub queued_tokens: u64,
    /// Requests whose prompt is being computed or waits for its turn.
    pub prompts: usize,
    /// Rows that take part in decode steps.
    pub rows: usize,
    /// Requests whose solo job runs.
    pub solo: usize,
    /// Pages by condition.
    pub pages: PageCounts,
}

impl Scheduler {
    /// Creates a scheduler with an empty queue and free pages.
    ///
    /// # Errors
    /// [`SettingError`] if a size is 0, a chunk does not consist of whole pages, or a share or the minimum gain
    /// of proposals is out of its range.
    pub fn new(layout: Layout, policy: Policy) -> Result<Self, SettingError> {
        policy::check(&layout, &policy)?;
        Ok(Self {
            queue: Queue::default(),
            sequences: BTreeMap::new(),
            memory: Memory::new(layout.pages, layout.slabs),
            costs: CostModel::default(),
            turns: Turns::default(),
            offer: None,
            offered: 0,
            declined: 0,
            in_flight: None,
            suspects: Vec::new(),
            notices: Vec::new(),
            draining: false,
            submitted: 0,
            ended: 0,
            incidents: VecDeque::new(),
            layout,
            policy,
        })
    }

    /// Adds a request to the queue. The caller prepares the prompt, and then calls [`prepared`](Self::prepared). If the
    /// prompt cannot be prepared, the caller calls [`end`](Self::end) with [`Ending::BadInput`].
    ///
    /// # Errors
    /// [`Refusal`] if the queue is full, the request would never fit into memory, or the server is shutting down.
    pub fn submit(&mut self, ask: Ask, now: Micros) -> Result<SeqId, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let pages = self.layout.worst_case(ask.prompt_tokens, ask.max_tokens, ask.answers());
        if pages > u64::from(self.layout.pages) {
            return Err(Refusal::NeverFits { pages, total: self.layout.pages });
        }
        if ask.slabs > self.layout.slabs {
            return Err(Refusal::TooManyImages { slabs: ask.slabs, total: self.layout.slabs });
        }
        self.queue.enter(ask.tenant, ask.prompt_tokens, &self.policy, now)?;
        let id = SeqId(self.submitted);
        self.submitted += 1;
        self.sequences.insert(id, Sequence::new(id, ask, now));
        Ok(id)
    }

    /// Notes that the prompt of a request is prepared. The request waits for pages from now on. Does nothing if the
    /// request is not in preparation. Ends the request if the prompt has no tokens, or needs more pages than there are.
    pub fn prepared(&mut self, id: SeqId, prompt: PromptShape) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| sequence.state == State::Preparing) else {
            return;
        };
        self.queue.prepared(id, sequence.ask.tenant, sequence.prompt.tokens, prompt.tokens);
        sequence.state = State::Waiting;
        sequence.prompt = prompt;
        let pages = sequence.worst_case(&self.layout);
        if sequence.prompt.tokens == 0 {
            self.end(id, Ending::BadInput);
        } else if pages > u64::from(self.layout.pages) {
            self.end(id, Ending::NeverFits { pages, total: self.layout.pages });
        }
    }

    /// Ends a request in any state, at once. Its pages and its reservation are released when this returns. Does nothing
    /// if the request has ended.
    pub fn end(&mut self, id: SeqId, ending: Ending) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        if sequence.is_queued() {
            self.queue.leave(id, sequence.ask.tenant, sequence.prompt.tokens);
        } else {
            self.memory.slabs += sequence.ask.slabs;
        }
        if ending == Ending::Failed(RowFault::NonFinite) {
            // The pages may hold values that are not finite, so other requests must not find them.
            self.memory.forget(&sequence.prompt.keys);
        }
        for answer in sequence.answers {
            self.memory.release(answer.table, answer.reservation);
        }
        self.turns.remove(id);
        self.ended += 1;
        self.notices.push(Notice::Ended { id, ending });
    }

    /// Ends all requests.
    pub fn end_all(&mut self, ending: Ending) {
        let ids: Vec<SeqId> = self.sequences.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id, ending));
    }

    /// Refuses new requests from now on. Requests that were submitted before continue.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Notes that the contents of all pages are lost. All admitted requests fail with `fault`, and the prefix index is
    /// emptied. Requests in the queue continue. The result of the running step is ignored.
    pub fn lose_pages(&mut self, fault: RowFault, now: Micros) {
        let admitted: Vec<SeqId> =
            self.sequences.values().filter(|sequence| !sequence.is_queued()).map(|sequence| sequence.id).collect();
        admitted.into_iter().for_each(|id| self.end(id, Ending::Failed(fault)));
        self.memory = Memory::new(self.layout.pages, self.layout.slabs);
        self.in_flight = None;
        self.suspects.clear();
        self.note_incident(now);
    }

    /// Returns the next step. A second call before [`done`](Self::done) returns the same step.
    ///
    /// First ends the requests that have reached a time limit, then starts waiting requests that fit, and then chooses
    /// a step.
    pub fn plan(&mut self, now: Micros) -> StepPlan {
        if let Some(step) = &self.in_flight {
            return step.clone();
        }
        self.end_late(now);
        self.admit(now);
        let step = self.choose();
        self.offer = None;
        if !matches!(step, StepPlan::Idle { .. }) {
            self.in_flight = Some(step.clone());
        }
        self.check_invariants();
        step
    }

    /// Returns the notices since the last call, in order.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Returns a request that has not ended.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Returns an answer of a request that has been admitted and has not ended.
    pub fn answer(&self, row: RowId) -> Option<&Answer> {
        self.sequences.get(&row.id)?.answers.get(row.answer as usize)
    }

    /// Returns the sizes that the scheduler was created with.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the rules that the scheduler was created with.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Counts the requests in each state, and the pages in each condition.
    pub fn counts(&self) -> Counts {
        let of =
            |wanted: fn(&State) -> bool| self.sequences.values().filter(|sequence| wanted(&sequence.state)).count();
        Counts {
            preparing: of(|state| *state == State::Preparing),
            waiting: of(|state| *state == State::Waiting),
            queued_tokens: self.queue.len().1,
            prompts: of(|state| matches!(state, State::Encoding { .. } | State::Prefilling { .. })),
            rows: self.turns.rows().len(),
            solo: of(|state| matches!(state, State::Solo { .. })),
            pages: self.memory.pages.counts(),
        }
    }

    /// Returns the number of incidents within the last minute. An incident is a step that failed, or the loss of all
    /// pages. The rows of a failed step run again in smaller groups; a group that fails is not a new incident. A step
    /// that verifies proposals is no incident either, because its row then decodes without them.
    pub fn incidents(&mut self, now: Micros) -> usize {
        while self.incidents.front().is_some_and(|time| time + INCIDENT_WINDOW < now) {
            self.incidents.pop_front();
        }
        self.incidents.len()
    }

    fn note_incident(&mut self, now: Micros) {
        self.incidents(now);
        self.incidents.push_back(now);
    }
}
