//! Applies the outcome of a step.

use std::ops::Range;

use super::cost::Cost;
use super::plan::{AnswerEnd, Ending, Notice, Outcome, RowFault, RowId, Slice, StepPlan, Verdict};
use super::sequence::{Answer, Job, SeqId, State};
use super::{Micros, Scheduler};

/// The verdicts of a step.
struct Verdicts(Vec<(RowId, Verdict)>);

impl Verdicts {
    /// Returns the verdict of a row. A missing verdict is a failure.
    fn of(&self, row: RowId) -> Verdict {
        let verdict = self.0.iter().find(|(other, _)| *other == row);
        verdict.map_or(Verdict::Failed(RowFault::Internal), |(_, verdict)| *verdict)
    }
}

/// Returns the fault that ends a request after this verdict. A verdict of the wrong kind is an internal fault.
fn fault_of(verdict: Verdict) -> RowFault {
    match verdict {
        Verdict::Failed(fault) => fault,
        _ => RowFault::Internal,
    }
}

impl Scheduler {
    /// Reports that the step from [`plan`](Self::plan) has run for `took` µs. Does nothing if no step is running.
    ///
    /// Verdicts of requests that ended while the step ran are ignored.
    pub fn done(&mut self, outcome: Outcome, took: Micros, now: Micros) {
        let Some(step) = self.in_flight.take() else { return };
        let suspects = matches!(step, StepPlan::Decode(_)) && self.suspects.pop().is_some();
        match &step {
            StepPlan::Idle { .. } => {}
            StepPlan::Decode(rows) => self.turns.decoded(rows, took, &self.policy, suspects),
            StepPlan::Verify { row, .. } => self.turns.decoded(&[*row], took, &self.policy, false),
            StepPlan::Slice(_) => self.turns.slice_ran(took),
            StepPlan::Fork { .. } => self.turns.other_ran(took),
            StepPlan::Solo(id) => self.turns.solo_ran(took, *id),
        }
        match outcome {
            Outcome::Rows(verdicts) => self.step_ran(step, &Verdicts(verdicts), took),
            Outcome::Failed(fault) => self.step_failed(step, fault, suspects, now),
        }
        self.check_invariants();
    }

    fn step_ran(&mut self, step: StepPlan, verdicts: &Verdicts, took: Micros) {
        match step {
            StepPlan::Idle { .. } => {}
            StepPlan::Decode(rows) => {
                self.costs.note(Cost::Step { rows: rows.len() as u32 }, 1, took);
                rows.into_iter().for_each(|row| self.row_decoded(row, 1, verdicts.of(row)));
            }
            StepPlan::Verify { row, tokens } => {
                self.costs.note(Cost::Verify { tokens }, 1, took);
                self.row_decoded(row, tokens, verdicts.of(row));
            }
            StepPlan::Slice(Slice::Vision { id, image, layers }) => {
                self.layers_of_image_done(id, image, &layers, verdicts.of(id.answer(0)), took);
            }
            StepPlan::Slice(Slice::Chunk { id, tokens, layers }) => {
                self.costs.note(
                    Cost::ChunkLayer { tokens: tokens.end - tokens.start },
                    layers.end - layers.start,
                    took,
                );
                self.layers_of_chunk_done(id, &tokens, &layers, verdicts);
            }
            StepPlan::Fork { id, .. } => match verdicts.of(id.answer(0)) {
                Verdict::Done => {
                    self.turns.forked(id);
                    self.decode_answers(id);
                }
                other => self.end(id, Ending::Failed(fault_of(other))),
            },
            StepPlan::Solo(id) => {
                self.costs.note(Cost::SoloStep, 1, took);
                self.solo_step_done(id, verdicts.of(id.answer(0)));
            }
        }
    }

    /// Handles a step that failed. The rows of a decode step run again in two halves. If a decode step has only one
    /// row, its request fails. If the step verified proposals, its row decodes without proposals from now on, which is
    /// an incident only if that fails too. If any other step fails, its request fails.
    fn step_failed(&mut self, step: StepPlan, fault: RowFault, suspects: bool, now: Micros) {
        if !suspects && !matches!(step, StepPlan::Verify { .. }) {
            self.note_incident(now);
        }
        match step {
            StepPlan::Idle { .. } => {}
            StepPlan::Decode(rows) if rows.len() == 1 => self.end(rows[0].id, Ending::Failed(fault)),
            StepPlan::Verify { row, .. } => {
                let sequence = self.sequences.get_mut(&row.id);
                let answer = sequence.and_then(|sequence| sequence.answers.get_mut(row.answer as usize));
                answer.into_iter().for_each(|answer| answer.refuses_proposals = true);
            }
            StepPlan::Decode(mut rows) => {
                let second = rows.split_off(rows.len() / 2);
                self.suspects.push(second);
                self.suspects.push(rows);
            }
            StepPlan::Slice(Slice::Vision { id, .. } | Slice::Chunk { id, .. })
            | StepPlan::Fork { id, .. }
            | StepPlan::Solo(id) => self.end(id, Ending::Failed(fault)),
        }
    }

    /// Applies the verdict of a row that can have got at most `most` new tokens.
    fn row_decoded(&mut self, row: RowId, most: u32, verdict: Verdict) {
        let Some(sequence) = self.sequences.get_mut(&row.id) else { return };
        let Some(answer) = sequence.answers.get_mut(row.answer as usize).filter(|answer| answer.ended.is_none()) else {
            return;
        };
        let (count, end) = match verdict {
            Verdict::Token => (1, None),
            Verdict::Tokens(count) if (1..=most).contains(&count) => (count, None),
            Verdict::Ended { tokens, end } if tokens <= most => (tokens, Some(end)),
            other => return self.end(row.id, Ending::Failed(fault_of(other))),
        };
        answer.written += count.max(1); // the last earlier token was written even if no token was chosen
        answer.generated += count;
        let end = end.or((answer.generated >= sequence.ask.max_tokens).then_some(AnswerEnd::Length));
        if let Some(end) = end {
            self.end_answer(row, end);
        }
    }

    /// Ends an answer and releases its pages. The request ends with its last answer.
    fn end_answer(&mut self, row: RowId, end: AnswerEnd) {
        let Some(sequence) = self.sequences.get_mut(&row.id) else { return };
        let Some(answer) = sequence.answers.get_mut(row.answer as usize) else { return };
        answer.ended = Some(end);
        let tokens = answer.generated;
        self.memory.release(std::mem::take(&mut answer.table), std::mem::take(&mut answer.reservation));
        self.turns.remove_row(row);
        self.notices.push(Notice::Answer { row, tokens, end });
        if sequence.answers.iter().all(|answer| answer.ended.is_some()) {
            self.end(row.id, Ending::Finished);
        }
    }

    fn layers_of_image_done(&mut self, id: SeqId, image: u32, layers: &Range<u32>, verdict: Verdict, took: Micros) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match verdict {
            Verdict::Done => {
                if let Some(shape) = sequence.prompt.images.get(image as usize) {
                    let cost = Cost::VisionLayer { patches: shape.patches };
                    self.costs.note(cost, layers.end - layers.start, took);
                }
                sequence.state = if layers.end < self.layout.vision_layers {
                    State::Encoding { image, layer: layers.end }
                } else {
                    sequence.next_image(image + 1)
                };
            }
            Verdict::ImageReady => sequence.state = sequence.next_image(image + 1),
            other => self.end(id, Ending::Failed(fault_of(other))),
        }
    }

    fn layers_of_chunk_done(&mut self, id: SeqId, tokens: &Range<u32>, layers: &Range<u32>, verdicts: &Verdicts) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let chunk_complete = layers.end == self.layout.text_layers;
        let prompt_complete = chunk_complete && tokens.end == sequence.prompt.tokens;
        if prompt_complete && matches!(sequence.ask.job, Job::Answers(_)) {
            sequence.answers[0].written = tokens.end;
            return self.first_tokens(id, verdicts);
        }
        let verdict = verdicts.of(id.answer(0));
        if verdict != Verdict::Done {
            return self.end(id, Ending::Failed(fault_of(verdict)));
        }
        if !chunk_complete {
            sequence.state = State::Prefilling { first: tokens.start, layer: layers.end };
            return;
        }
        sequence.answers[0].written = tokens.end;
        sequence.state = State::Prefilling { first: tokens.end, layer: 0 };
        if prompt_complete {
            sequence.state = State::Solo { step: 0 };
            self.turns.add_solo(id);
            // The solo job may write to any slot after the prompt.
            let all = u64::from(sequence.prompt.tokens) + u64::from(sequence.ask.max_tokens);
            self.extend(id.answer(0), all);
        }
    }

    fn solo_step_done(&mut self, id: SeqId, verdict: Verdict) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match (verdict, &mut sequence.state) {
            (Verdict::Done, State::Solo { step }) => *step += 1,
            (Verdict::Solved, _) => {
                self.index_prompt(id);
                self.end(id, Ending::Finished);
            }
            (other, _) => self.end(id, Ending::Failed(fault_of(other))),
        }
    }

    /// Adds the whole chunks of a prompt to the prefix index. The logits of the prompt must have been finite.
    fn index_prompt(&mut self, id: SeqId) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let pages_per_chunk = (self.layout.chunk_tokens / self.layout.page_tokens) as usize;
        let chunks = (sequence.prompt.tokens / self.layout.chunk_tokens) as usize;
        let keys = &sequence.prompt.keys[..chunks.min(sequence.prompt.keys.len())];
        self.memory.index(keys, &sequence.answers[0].table, pages_per_chunk);
    }

    /// Completes a prompt after the first token of each answer has been chosen. The answers that continue share the
    /// full pages of the prompt, and the reserved pages are divided among them.
    fn first_tokens(&mut self, id: SeqId, verdicts: &Verdicts) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let count = sequence.ask.answers();
        let mut ends = Vec::with_capacity(count as usize);
        for answer in 0..count {
            match verdicts.of(id.answer(answer)) {
                Verdict::Token => ends.push((1, (sequence.ask.max_tokens <= 1).then_some(AnswerEnd::Length))),
                Verdict::Ended { tokens: tokens @ 0..=1, end } => ends.push((tokens, Some(end))),
                other => return self.end(id, Ending::Failed(fault_of(other))),
            }
        }
        self.index_prompt(id);
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(prompt) = sequence.answers.pop() else { return };
        let tokens = sequence.prompt.tokens;
        let whole = (tokens / self.layout.page_tokens) as usize;
        let longest = self.layout.worst_case(tokens, sequence.ask.max_tokens, 1) as u32;
        let mut reserved = prompt.reservation;
        // The first answer that continues keeps the partly filled page. The others own only the full pages until the
        // fork.
        let mut keeper = Some(prompt.table);
        let shared = keeper.iter().flatten().take(whole).copied().collect::<Vec<_>>();
        for (generated, end) in &ends {
            let mut answer = Answer { written: tokens, generated: *generated, ..Answer::default() };
            if end.is_none() {
                answer.table = keeper.take().unwrap_or_else(|| {
                    shared.iter().for_each(|page| self.memory.pages.share(*page));
                    shared.clone()
                });
                answer.reservation = reserved.split(longest - answer.table.len() as u32);
            }
            sequence.answers.push(answer);
        }
        self.memory.release(keeper.unwrap_or_default(), reserved);
        let open = ends.iter().filter(|(_, end)| end.is_none()).count();
        if open > 1 && tokens % self.layout.page_tokens > 0 {
            sequence.state = State::Forking;
            self.turns.add_fork(id);
        } else {
            self.decode_answers(id);
        }
        for (answer, (_, end)) in (0..).zip(ends) {
            if let Some(end) = end {
                self.end_answer(id.answer(answer), end);
            }
        }
    }

    /// Starts to decode the answers of a request.
    fn decode_answers(&mut self, id: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.state = State::Decoding;
        for (number, answer) in (0..).zip(&sequence.answers) {
            if answer.ended.is_none() {
                self.turns.add_row(id.answer(number));
            }
        }
    }
}
