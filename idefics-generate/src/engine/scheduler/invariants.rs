//! The invariants of the scheduler, which hold between any two calls.

use super::Scheduler;
use super::plan::{RowId, StepPlan};
use super::sequence::{Answer, Sequence, State};

impl Scheduler {
    /// Asserts, in debug builds, the invariants that hold between any two calls:
    ///
    /// 1. Free, idle and owned pages add up to all pages. The page that an answer writes next has no other owner.
    /// 2. Reserved pages are available: the sum of the reservations is at most the number of free and idle pages.
    /// 3. A sequence has written at most its prompt and its longest answers, and only into pages of its own tables. An
    ///    answer has written all its tokens but the last.
    ///    The step that runs writes only slots of such pages, and at most as many as the answer may still have tokens.
    ///    Proposals are verified only if a single row decodes and there is no other work, and not more than were offered.
    /// 4. Each submitted request either has ended exactly once or is in one state. The rows, solo jobs and prompts that
    ///    have turns belong to requests that have not ended.
    /// 5. Chunks begin at multiples of the chunk length, and the chunk of a prompt's last token never comes from the
    ///    prefix cache. The boundaries of the chunks therefore depend on the prompt alone.
    /// 6. The queue is within its bounds, and at most [`Policy::max_passes`](super::Policy::max_passes) requests have
    ///    started before the first waiting one.
    ///
    /// # Panics
    /// In debug builds, if an invariant does not hold.
    pub fn check_invariants(&self) {
        if cfg!(debug_assertions)
            && let Some(broken) = self.broken_invariant()
        {
            panic!("an invariant of the scheduler is broken: {broken}");
        }
    }

    /// Describes the first invariant that does not hold. `None` if all hold.
    pub fn broken_invariant(&self) -> Option<String> {
        self.broken_memory()
            .or_else(|| self.sequences.values().find_map(|sequence| self.broken_sequence(sequence)))
            .or_else(|| self.broken_step())
            .or_else(|| self.broken_verification())
            .or_else(|| self.broken_turns())
            .or_else(|| self.broken_queue())
    }

    /// Checks invariants 1 and 2.
    fn broken_memory(&self) -> Option<String> {
        let mut owners = vec![0; self.layout.pages as usize];
        let answers = || self.sequences.values().flat_map(|sequence| &sequence.answers);
        answers().flat_map(|answer| &answer.table).for_each(|page| owners[page.index()] += 1);
        let reserved: u32 = answers().map(|answer| answer.reservation.pages()).sum();
        if reserved != self.memory.pages.counts().reserved {
            return Some(format!(
                "the answers have reserved {reserved} pages, but the pool counts {:?}",
                self.memory.pages.counts()
            ));
        }
        let admitted = self.sequences.values().filter(|sequence| !sequence.is_queued());
        let slabs: u32 = admitted.map(|sequence| sequence.ask.slabs).sum();
        if slabs + self.memory.slabs != self.layout.slabs {
            return Some(format!("{slabs} slabs are owned and {} are free, which is not the total", self.memory.slabs));
        }
        self.memory.pages.broken(&owners)
    }

    /// Checks invariants 1, 3 and 5 for one sequence.
    fn broken_sequence(&self, sequence: &Sequence) -> Option<String> {
        let id = sequence.id.0;
        if sequence.is_queued() {
            return (!sequence.answers.is_empty()).then(|| format!("request {id} is in the queue but owns pages"));
        }
        let (cached, chunk, tokens) = (sequence.cached, self.layout.chunk_tokens, sequence.prompt.tokens);
        let first = match sequence.state {
            State::Prefilling { first, .. } => first,
            _ => cached,
        };
        if cached % chunk > 0 || first % chunk > 0 || cached >= tokens || first >= tokens {
            return Some(format!("request {id} of {tokens} tokens has {cached} cached tokens and a chunk at {first}"));
        }
        let longest = u64::from(tokens) + u64::from(sequence.ask.max_tokens);
        let wrong = |answer: &&Answer| {
            let pages = answer.table.len() as u64;
            answer.generated > sequence.ask.max_tokens
                || sequence.state == State::Decoding && !Self::wrote_all_but_the_last(sequence, answer)
                || u64::from(answer.written) > longest
                || answer.ended.is_none()
                    && self.layout.pages_for(u64::from(answer.written))
                        > pages + u64::from(self.may_lack_a_page(sequence, answer))
                || pages + u64::from(answer.reservation.pages()) > sequence.worst_case(&self.layout)
                || answer.ended.is_none() && self.writes_shared(sequence, answer)
        };
        let answer = sequence.answers.iter().find(wrong)?;
        Some(format!("request {id} of {tokens} tokens in state {:?} has an invalid answer: {answer:?}", sequence.state))
    }

    /// Whether the keys and values of the prompt and of all tokens but the last are written. If an answer was complete
    /// before a step, that of the last token is written too.
    fn wrote_all_but_the_last(sequence: &Sequence, answer: &Answer) -> bool {
        let all = sequence.prompt.tokens + answer.generated;
        answer.written + 1 == all || answer.ended.is_some() && answer.written == all
    }

    /// Whether the answer may still wait for its copy of the prompt's partial page.
    fn may_lack_a_page(&self, sequence: &Sequence, answer: &Answer) -> bool {
        sequence.state == State::Forking && answer.generated == 1
    }

    /// Whether the answer could write to a page that has another owner or is in the prefix index.
    fn writes_shared(&self, sequence: &Sequence, answer: &Answer) -> bool {
        let next = (answer.written / self.layout.page_tokens) as usize;
        let pages = answer.table.get(next..).unwrap_or_default();
        sequence.begun && pages.iter().any(|page| !self.memory.pages.is_writable(*page))
    }

    /// Checks invariant 3 for the step that runs.
    fn broken_step(&self) -> Option<String> {
        let (rows, tokens) = match &self.in_flight {
            Some(StepPlan::Decode(rows)) => (rows.as_slice(), 1),
            Some(StepPlan::Verify { row, tokens }) => (std::slice::from_ref(row), *tokens),
            _ => return None,
        };
        let wrong = |row: &&RowId| {
            let (Some(sequence), Some(answer)) = (self.sequences.get(&row.id), self.answer(**row)) else {
                return false;
            };
            let end = u64::from(answer.written) + u64::from(tokens);
            answer.ended.is_none()
                && (self.layout.pages_for(end) > answer.table.len() as u64
                    || answer.generated + tokens > sequence.ask.max_tokens)
        };
        let row = rows.iter().find(wrong)?;
        Some(format!("{row:?} has {tokens} tokens in the step, which is too much for {:?}", self.answer(*row)))
    }

    /// Checks invariant 3 for a step that verifies proposals.
    fn broken_verification(&self) -> Option<String> {
        let Some(StepPlan::Verify { row, tokens }) = &self.in_flight else { return None };
        let others = self.turns.rows().iter().filter(|other| *other != row).count();
        let is_work = |state: State| {
            !matches!(state, State::Preparing | State::Waiting | State::Decoding) // the rest would be other work
        };
        let work = self.sequences.values().filter(|sequence| is_work(sequence.state)).count();
        if others + work > 0 {
            return Some(format!("proposals are verified beside {others} rows and {work} other requests"));
        }
        (*tokens < 2 || tokens - 1 > self.offered)
            .then(|| format!("{tokens} tokens are verified, but {} were offered", self.offered))
    }

    /// Checks invariant 4.
    fn broken_turns(&self) -> Option<String> {
        if self.submitted != self.ended + self.sequences.len() as u64 {
            return Some(format!(
                "{} requests were submitted, {} ended, {} are live",
                self.submitted,
                self.ended,
                self.sequences.len()
            ));
        }
        let decode = |sequence: &&Sequence| sequence.state == State::Decoding;
        let answers = self.sequences.values().filter(decode).flat_map(|sequence| &sequence.answers);
        let rows = answers.filter(|answer| answer.ended.is_none()).count();
        let lost = self.turns.rows().iter().find(|row| {
            let decodes = self.sequences.get(&row.id).filter(decode).is_some();
            !decodes || self.answer(**row).is_none_or(|answer| answer.ended.is_some())
        });
        if rows != self.turns.rows().len() || lost.is_some() {
            return Some(format!(
                "{rows} rows decode and {} rows have turns; row with a turn that does not decode: {lost:?}",
                self.turns.rows().len()
            ));
        }
        let solo = |state: State| matches!(state, State::Solo { .. });
        let count =
            |wanted: &dyn Fn(State) -> bool| self.sequences.values().filter(|sequence| wanted(sequence.state)).count();
        let forks = self.turns.forks();
        if count(&solo) != self.turns.solo().len() || count(&|state| state == State::Forking) != forks.len() {
            return Some(format!(
                "the turns of solo jobs {:?} and forks {forks:?} do not match the states of the requests",
                self.turns.solo()
            ));
        }
        let ended = self.turns.prompts().find(|id| !self.sequences.contains_key(id));
        ended.map(|id| format!("the prompt of request {} has a turn, but the request has ended", id.0))
    }

    /// Checks invariant 6.
    fn broken_queue(&self) -> Option<String> {
        let queued = || self.sequences.values().filter(|sequence| sequence.is_queued());
        let tokens: u64 = queued().map(|sequence| u64::from(sequence.prompt.tokens)).sum();
        if self.queue.len() != (queued().count(), tokens) || queued().count() > self.policy.max_queue {
            return Some(format!(
                "the queue has {} requests of {tokens} tokens, but counts {:?}",
                queued().count(),
                self.queue.len()
            ));
        }
        let lost = queued()
            .find(|sequence| self.queue.waits(sequence.id, sequence.ask.tenant) != (sequence.state == State::Waiting));
        if let Some(lost) = lost {
            return Some(format!("request {} in state {:?} is in the wrong part of the queue", lost.id.0, lost.state));
        }
        let first = self.queue.known_first()?;
        let waits = self.sequences.get(&first.id).is_some_and(|sequence| sequence.state == State::Waiting);
        (!waits || first.passed > self.policy.max_passes)
            .then(|| format!("the first waiting request does not wait, or was passed too often: {first:?}"))
    }
}
