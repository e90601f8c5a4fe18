//! Decides what runs next: which rows decode, which layers of which prompt run between two decode steps, and which
//! pages of the KV cache each request owns. It has no threads, no clock and no tensors.
//!
//! ```text
//! submit ─ Preparing ─ prepared ─ Waiting ─ pages reserved ─ Encoding ─ Prefilling ─┬─ (Forking) ─ Decoding ─ ended
//!                                                            pictures   chunks      └─ Solo ─ ended
//! ```
//!
//! Its user calls [`Scheduler::plan`], runs the [`StepPlan`], reports with [`Scheduler::done`], and reads
//! [`Scheduler::take_notices`]. One step runs at a time. [`Scheduler::end`] may be called at any time, also while a
//! step runs.
//!
//! # Rules
//!
//! - **Memory.** A request starts when the pages of its worst case, prompt and longest answers, are reserved. It never
//!   waits for a page later, and is never thrown out for another.
//! - **Order.** Tenants take turns; each one's requests start by arrival. If the first waiting request does not fit, at
//!   most [`Policy::max_passes`] others start before it, and none after [`Policy::pass_window`].
//! - **Prompts.** One at a time, by arrival, cut at multiples of [`Layout::chunk_tokens`]. At each cut, and before each
//!   picture, one later prompt of a single chunk and without pictures may go first.
//! - **Credit.** Each decode step of `t` µs earns `t · (1 − s) / s` µs, where `s` is [`Policy::decode_share`]. A slice
//!   of a prompt or a step of a solo job runs when its expected time is earned, or when no row decodes. Between two
//!   decode steps there is at most one such piece of work, so a row never waits for longer than that and a step.
//! - **Slices.** As many layers as fit into the longest of [`Policy::slice_floor`], a decode step, and what a decode
//!   step earns; at least one.
//! - **Rows.** If more rows decode than [`Policy::max_batch`], they take turns by [`Policy::turn_steps`] steps.
//! - **Prefix cache.** The chunks of a prompt are found by others as soon as its first token is chosen. Their pages
//!   outlive the request until pages are needed; the least recently used go first.
//! - **Faults.** A row that fails ends its request alone. A decode step that fails counts for nothing, and its rows run
//!   again in halves until those that fail are alone.
//!
//! # Reasons
//!
//! - A row of a decode step is an answer, not a request ([`RowId`]): the answers of a request decode side by side, and
//!   each ends on its own. A fault of one ends the request, since no part of it can be delivered alone.
//! - Tokens do not pass through the scheduler, so what it decides cannot depend on them.
//! - The copies of a shared page are a step of their own ([`StepPlan::Fork`]) before any further answer writes. A
//!   decode step that fails then never leaves a copy half done.
//! - A fault of a whole step is an [`Outcome`], not a verdict: nothing of such a step counts.
//! - Whether an image must be encoded is decided when its prompt begins, after the prefix cache was asked again:
//!   requests that wait together share what the first of them computes.
//! - The wait of a request ends by the queue's own limit, since its caller waits for a status until it starts.
//!   A tenant over its share of pages only gives way; pages are never left unused for a tenant that is not there.

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

use memory::Memory;
use queue::Queue;
use steps::Turns;

/// Incidents are counted for a minute.
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
    /// The step that runs now.
    in_flight: Option<StepPlan>,
    /// Groups of rows to run again after a failed step, the last first.
    suspects: Vec<Vec<RowId>>,
    notices: Vec<Notice>,
    draining: bool,
    submitted: u64,
    ended: u64,
    incidents: VecDeque<Micros>,
}

/// Requests by state, and pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests that are being prepared.
    pub preparing: usize,
    /// Requests that wait for pages.
    pub waiting: usize,
    /// Prompt tokens of both.
    pub queued_tokens: u64,
    /// Requests whose prompt is at work or next.
    pub prompts: usize,
    /// Rows that decode.
    pub rows: usize,
    /// Solo jobs.
    pub solo: usize,
    /// Pages.
    pub pages: PageCounts,
}

impl Scheduler {
    /// A scheduler with an empty queue and free pages.
    ///
    /// # Errors
    /// A size is 0, a chunk does not consist of whole pages, or a share is out of its range.
    pub fn new(layout: Layout, policy: Policy) -> Result<Self, SettingError> {
        policy::check(&layout, &policy)?;
        Ok(Self {
            queue: Queue::default(),
            sequences: BTreeMap::new(),
            memory: Memory::new(layout.pages, layout.slabs),
            costs: CostModel::default(),
            turns: Turns::default(),
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

    /// Takes a request into the queue. It is to be prepared now; then [`prepared`](Self::prepared) is called, or
    /// [`end`](Self::end) with [`Ending::BadInput`].
    ///
    /// # Errors
    /// The queue is full, the request would never fit into memory, or the server ends.
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

    /// The prompt of a request is prepared, and the request waits for pages from now on. Without effect unless it is
    /// in preparation. A prompt of no tokens ends it, and so does one that never fits.
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

    /// Ends a request in any state, at once: its pages and its reservation are back when this returns. Without effect
    /// if it has ended.
    pub fn end(&mut self, id: SeqId, ending: Ending) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        if sequence.is_queued() {
            self.queue.leave(id, sequence.ask.tenant, sequence.prompt.tokens);
        } else {
            self.memory.slabs += sequence.ask.slabs;
        }
        if ending == Ending::Failed(RowFault::NonFinite) {
            // A page that others would find may hold what is not finite.
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

    /// Refuses new requests from now on; those that are there go on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// The contents of all pages are lost: all admitted requests fail with `fault`, and the prefix index is emptied.
    /// Requests in the queue go on. The step that runs counts for nothing.
    pub fn lose_pages(&mut self, fault: RowFault, now: Micros) {
        let admitted: Vec<SeqId> =
            self.sequences.values().filter(|sequence| !sequence.is_queued()).map(|sequence| sequence.id).collect();
        admitted.into_iter().for_each(|id| self.end(id, Ending::Failed(fault)));
        self.memory = Memory::new(self.layout.pages, self.layout.slabs);
        self.in_flight = None;
        self.suspects.clear();
        self.note_incident(now);
    }

    /// The next step. A second call before [`done`](Self::done) gives the same step.
    ///
    /// Requests whose time is over end, waiting ones that fit start, and then one step is chosen.
    pub fn plan(&mut self, now: Micros) -> StepPlan {
        if let Some(step) = &self.in_flight {
            return step.clone();
        }
        self.end_late(now);
        self.admit(now);
        let step = self.choose();
        if !matches!(step, StepPlan::Idle { .. }) {
            self.in_flight = Some(step.clone());
        }
        self.check_invariants();
        step
    }

    /// What has happened since the last call, in order.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// A request that has not ended.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// An answer of a request that has been admitted and not ended.
    pub fn answer(&self, row: RowId) -> Option<&Answer> {
        self.sequences.get(&row.id)?.answers.get(row.answer as usize)
    }

    /// The sizes it was made with.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The rules it was made with.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Requests by state, and pages.
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

    /// Steps that failed within the last minute, and losses of all pages. Running the rows of a failed step again
    /// adds none.
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
