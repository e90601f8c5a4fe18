//! Chooses the next step.

use std::collections::VecDeque;

use super::cost::Cost;
use super::plan::{Ending, PageCopy, RowFault, RowId, Slice, StepPlan};
use super::policy::Policy;
use super::sequence::{SeqId, State};
use super::{Micros, Scheduler};

/// Maximum debt (negative credit), in microseconds. A slice that takes much longer than expected delays the next
/// slices. This maximum limits the delay.
const DEBT: f64 = 1e6;

/// The turns of rows, solo jobs, forks and prompts.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Rows that decode. The rows at the front, at most [`Policy::max_batch`], have their turn.
    rows: VecDeque<RowId>,
    /// Number of decode steps so far in this turn.
    steps: u32,
    /// Number of rows at the front that ran in the last step. Only these go to the back after the turn. A row that has
    /// taken the place of an ended row stays at the front.
    ran: usize,
    /// Solo jobs. The one at the front runs next.
    solo: VecDeque<SeqId>,
    /// Whether a solo job runs before the next slice.
    solo_first: bool,
    /// Requests that wait for a fork.
    forks: VecDeque<SeqId>,
    /// The prompt that is being computed.
    prompt: Option<SeqId>,
    /// The guest that runs before `prompt` continues.
    guest: Option<SeqId>,
    /// The prompt and its state at the last cut where a guest ran first. There is no second guest at the same cut.
    guest_at: Option<(SeqId, State)>,
    /// Time in microseconds that slices and steps of solo jobs may take.
    credit: f64,
    /// Whether the last step was not a decode step.
    other_ran: bool,
}

impl Turns {
    pub(super) fn rows(&self) -> &VecDeque<RowId> {
        &self.rows
    }

    pub(super) fn solo(&self) -> &VecDeque<SeqId> {
        &self.solo
    }

    pub(super) fn forks(&self) -> &VecDeque<SeqId> {
        &self.forks
    }

    /// Returns the prompt that is being computed, and its guest.
    pub(super) fn prompts(&self) -> impl Iterator<Item = SeqId> {
        self.prompt.into_iter().chain(self.guest)
    }

    pub(super) fn add_row(&mut self, row: RowId) {
        self.rows.push_back(row);
    }

    pub(super) fn remove_row(&mut self, row: RowId) {
        if let Some(place) = self.rows.iter().position(|other| *other == row) {
            self.rows.remove(place);
            self.ran -= usize::from(place < self.ran);
        }
    }

    pub(super) fn add_solo(&mut self, id: SeqId) {
        self.solo.push_back(id);
    }

    pub(super) fn add_fork(&mut self, id: SeqId) {
        self.forks.push_back(id);
    }

    pub(super) fn forked(&mut self, id: SeqId) {
        self.forks.retain(|other| *other != id);
    }

    /// Removes a request that has ended.
    pub(super) fn remove(&mut self, id: SeqId) {
        while let Some(row) = self.rows.iter().find(|row| row.id == id).copied() {
            self.remove_row(row);
        }
        self.solo.retain(|other| *other != id);
        self.forks.retain(|other| *other != id);
        self.prompt = self.prompt.filter(|prompt| *prompt != id);
        self.guest = self.guest.filter(|guest| *guest != id);
    }

    /// Notes that a decode step ran. Its rows were suspects if `suspects` is true, and otherwise the rows at the front.
    pub(super) fn decoded(&mut self, rows: &[RowId], took: Micros, policy: &Policy, suspects: bool) {
        self.other_ran = false;
        self.credit += took as f64 * (1.0 - policy.decode_share) / policy.decode_share;
        if !suspects {
            self.steps += 1;
            self.ran = self.rows.iter().take_while(|row| rows.contains(row)).count();
        }
    }

    /// Notes that a slice, a fork or a step of a solo job ran. If rows decode, takes its time from the credit.
    pub(super) fn other_ran(&mut self, took: Micros) {
        self.other_ran = true;
        if !self.rows.is_empty() {
            self.credit = (self.credit - took as f64).max(-DEBT);
        }
    }

    /// Notes that a slice ran. A solo job is next.
    pub(super) fn slice_ran(&mut self, took: Micros) {
        self.other_ran(took);
        self.solo_first = true;
    }

    /// Notes that a step of a solo job ran. A slice is next, and then another solo job.
    pub(super) fn solo_ran(&mut self, took: Micros, id: SeqId) {
        self.other_ran(took);
        self.solo_first = false;
        if self.solo.front() == Some(&id) {
            self.solo.rotate_left(1);
        }
    }

    /// Returns the rows of the next decode step, and starts the next turn if this one is over.
    fn batch(&mut self, max_batch: usize, turn_steps: u32) -> Vec<RowId> {
        if self.steps >= turn_steps {
            self.steps = 0;
            if self.rows.len() > max_batch {
                self.rows.rotate_left(self.ran);
                self.ran = 0;
            }
        }
        self.rows.iter().take(max_batch).copied().collect()
    }
}

/// Work that runs between decode steps.
#[derive(Debug, Clone, Copy)]
enum Other {
    Fork(SeqId),
    Solo(SeqId),
    Prompt(SeqId, Cost, u32),
}

impl Scheduler {
    /// Chooses the next step and allocates its pages.
    pub(super) fn choose(&mut self) -> StepPlan {
        loop {
            if let Some(step) = self.try_to_choose() {
                return step;
            }
        }
    }

    /// Chooses the next step, or returns `None` if a page that was reserved for the chosen request is not available.
    /// That request has then failed.
    fn try_to_choose(&mut self) -> Option<StepPlan> {
        while let Some(mut rows) = self.suspects.pop() {
            rows.retain(|row| self.turns.rows.contains(row));
            if !rows.is_empty() {
                self.suspects.push(rows.clone());
                return self.decode(rows);
            }
        }
        let rows = self.turns.batch(self.policy.max_batch, self.policy.turn_steps);
        let Some((other, cost)) = self.other_work(rows.len() as u32) else {
            self.turns.credit = 0.0;
            if rows.is_empty() {
                return Some(StepPlan::Idle { until: self.next_limit() });
            }
            return self.decode_or_verify(rows);
        };
        if !rows.is_empty() {
            // Credit that the next piece of work does not need is not saved, so that later pieces cannot run in a
            // burst.
            self.turns.credit = self.turns.credit.min(cost.max(self.earning(rows.len() as u32)));
            if self.turns.other_ran || cost > self.turns.credit {
                return self.decode(rows);
            }
        }
        let (id, step) = match other {
            Other::Fork(id) => (id, self.fork(id)),
            Other::Solo(id) => (id, Some(StepPlan::Solo(id))),
            Other::Prompt(id, cost, layers) => (id, self.slice(id, cost, layers)),
        };
        if step.is_none() {
            self.end(id, Ending::Failed(RowFault::Internal));
        }
        step
    }

    pub(super) fn decode(&mut self, rows: Vec<RowId>) -> Option<StepPlan> {
        for row in &rows {
            let written = self.answer(*row).map_or(0, |answer| answer.written);
            if !self.extend(*row, u64::from(written) + 1) {
                self.turns.remove_row(*row);
                return None;
            }
        }
        Some(StepPlan::Decode(rows))
    }

    /// Extends the page table of an answer to `tokens` positions. If a reserved page is not available, ends the request
    /// and returns false.
    pub(super) fn extend(&mut self, row: RowId, tokens: u64) -> bool {
        let pages = self.layout.pages_for(tokens);
        let answers = self.sequences.get_mut(&row.id).map(|sequence| &mut sequence.answers);
        let Some(answer) = answers.and_then(|answers| answers.get_mut(row.answer as usize)) else { return false };
        let extended = self.memory.extend(&mut answer.table, &mut answer.reservation, pages);
        if !extended {
            debug_assert!(false, "too few pages are reserved for {row:?}");
            self.end(row.id, Ending::Failed(RowFault::Internal));
        }
        extended
    }

    /// Returns the expected time of a decode step in microseconds; 0 if it is unknown.
    fn step_time(&self, rows: u32) -> f64 {
        self.costs.expect(Cost::Step { rows: rows.max(1) }).unwrap_or(0.0)
    }

    /// Returns the credit that a decode step is expected to earn, in microseconds.
    fn earning(&self, rows: u32) -> f64 {
        self.step_time(rows) * (1.0 - self.policy.decode_share) / self.policy.decode_share
    }

    /// Returns the next piece of work between decode steps, and its expected time in microseconds.
    fn other_work(&mut self, rows: u32) -> Option<(Other, f64)> {
        if let Some(id) = self.turns.forks.front() {
            return Some((Other::Fork(*id), 0.0));
        }
        let unknown = self.policy.slice_floor as f64;
        let solo = self.turns.solo.front().copied();
        let prompt = if solo.is_some() && self.turns.solo_first { None } else { self.next_prompt() };
        if let Some(id) = prompt
            && let Some((cost, left)) = self.layers_left(id)
        {
            let budget = (self.policy.slice_floor as f64).max(self.step_time(rows)).max(self.earning(rows));
            let layer = self.costs.expect(cost);
            let layers = layer.map_or(1, |layer| (budget / layer) as u32).clamp(1, left);
            return Some((Other::Prompt(id, cost, layers), layer.map_or(unknown, |layer| layer * f64::from(layers))));
        }
        solo.map(|id| (Other::Solo(id), self.costs.expect(Cost::SoloStep).unwrap_or(unknown)))
    }

    /// Returns the prompt that runs next: the current prompt, or a guest if the current prompt is at a cut.
    fn next_prompt(&mut self) -> Option<SeqId> {
        let running = |id: Option<SeqId>| id.filter(|id| self.sequence(*id).is_some_and(|prompt| prompt.in_prompt()));
        if let Some(guest) = running(self.turns.guest) {
            return Some(guest);
        }
        let mut prompts = self.sequences.values().filter(|sequence| sequence.in_prompt());
        let id = running(self.turns.prompt).or_else(|| prompts.next().map(|sequence| sequence.id))?;
        self.turns.prompt = Some(id);
        self.begin(id);
        let prompt = self.sequence(id)?;
        let cut = Some((id, prompt.state));
        let may_wait = prompt.at_cut() && !prompt.is_short(&self.layout) && self.turns.guest_at != cut;
        let mut short = self.sequences.values().filter(|sequence| sequence.is_short(&self.layout));
        self.turns.guest = may_wait.then(|| short.next().map(|guest| guest.id)).flatten();
        if let Some(guest) = self.turns.guest {
            self.turns.guest_at = cut;
            self.begin(guest);
        }
        self.turns.guest.or(self.turns.prompt)
    }

    /// Returns the [`Cost`] of a layer of the current picture or chunk, and the number of layers left.
    fn layers_left(&self, id: SeqId) -> Option<(Cost, u32)> {
        let sequence = self.sequence(id)?;
        match sequence.state {
            State::Encoding { image, layer } => {
                let patches = sequence.prompt.images.get(image as usize)?.patches;
                Some((Cost::VisionLayer { patches }, self.layout.vision_layers - layer))
            }
            State::Prefilling { first, layer } => {
                let tokens = self.layout.chunk_tokens.min(sequence.prompt.tokens - first);
                Some((Cost::ChunkLayer { tokens }, self.layout.text_layers - layer))
            }
            _ => None,
        }
    }

    fn slice(&mut self, id: SeqId, cost: Cost, layers: u32) -> Option<StepPlan> {
        match (self.sequence(id)?.state, cost) {
            (State::Encoding { image, layer }, _) => {
                Some(StepPlan::Slice(Slice::Vision { id, image, layers: layer..layer + layers }))
            }
            (State::Prefilling { first, layer }, Cost::ChunkLayer { tokens }) => {
                let tokens = first..first + tokens;
                self.extend(id.answer(0), u64::from(tokens.end))
                    .then(|| StepPlan::Slice(Slice::Chunk { id, tokens, layers: layer..layer + layers }))
            }
            _ => None,
        }
    }

    /// Plans the copies of the last, partly filled page of a prompt. The first answer that has not ended keeps the page
    /// itself.
    fn fork(&mut self, id: SeqId) -> Option<StepPlan> {
        let sequence = self.sequence(id)?;
        let whole = (sequence.prompt.tokens / self.layout.page_tokens) as usize;
        let slots = sequence.prompt.tokens % self.layout.page_tokens;
        let open = |answer: &u32| sequence.answers[*answer as usize].ended.is_none();
        let mut answers = (0..sequence.answers.len() as u32).filter(open);
        let keeper = answers.next()?;
        let from = *sequence.answers[keeper as usize].table.get(whole)?;
        let answers: Vec<u32> = answers.collect();
        let mut copies = Vec::new();
        for answer in answers {
            let row = id.answer(answer);
            if !self.extend(row, whole as u64 * u64::from(self.layout.page_tokens) + 1) {
                return None;
            }
            copies.push(PageCopy { from, to: self.answer(row)?.table[whole], slots });
        }
        Some(StepPlan::Fork { id, copies })
    }
}
