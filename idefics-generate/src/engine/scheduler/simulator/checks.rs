//! Checks of the order and the turns of requests. They do not rely on the scheduler's own records.

use std::collections::{BTreeSet, HashMap};

use super::super::{Micros, Offer, RowId, Scheduler, SeqId, State, StepPlan};
use super::scenario::{Request, Scenario};

/// Tracks which requests wait, and how many have started before the first one.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    waiting: BTreeSet<SeqId>,
    first: Option<(SeqId, Micros, u32)>,
}

impl Admissions {
    pub(super) fn wait(&mut self, id: SeqId) {
        self.waiting.insert(id);
    }

    pub(super) fn end(&mut self, id: SeqId) {
        self.waiting.remove(&id);
        self.first = self.first.filter(|(first, ..)| *first != id);
    }

    /// Notes that a request starts. With one tenant, checks that the request is the first waiting request, or may start
    /// before it.
    pub(super) fn admit(&mut self, id: SeqId, now: Micros, scenario: &Scenario) {
        if scenario.tenants == 1 {
            let (first, since, passed) = self.known_first(now).expect("a request waits");
            if id != first {
                assert!(
                    passed < scenario.policy.max_passes,
                    "{id:?} passes {first:?}, which {passed} others have passed"
                );
                assert!(
                    now - since < scenario.policy.pass_window,
                    "{id:?} starts at {now} before {first:?}, which has been the first since {since}"
                );
                self.first = Some((first, since, passed + 1));
            }
        }
        assert!(self.waiting.contains(&id), "{id:?} starts, but did not wait");
        self.end(id);
    }

    fn known_first(&mut self, now: Micros) -> Option<(SeqId, Micros, u32)> {
        self.first = self.first.or_else(|| Some((*self.waiting.first()?, now, 0)));
        self.first
    }

    /// Checks after a plan that the worst cases of the admitted requests and of the first waiting request do not fit
    /// together. If they did, the first would have started.
    pub(super) fn check_first(
        &mut self,
        scheduler: &Scheduler,
        scenario: &Scenario,
        requests: &HashMap<SeqId, Request>,
        now: Micros,
    ) {
        let own = if scenario.tenants == 1 { self.known_first(now).map(|(id, ..)| id) } else { None };
        let known = scheduler.queue.known_first().map(|first| first.id);
        assert!(own.is_none() || own == known, "the first waiting request is {own:?}, not {known:?}");
        assert_eq!(known.is_none(), self.waiting.is_empty());
        let Some(first) = known else { return };
        let need = |id: &SeqId| {
            let request = &requests[id];
            let pages = scenario.layout.worst_case(request.ids.len() as u32, request.max_tokens, request.answers);
            (pages, request.ask().slabs)
        };
        let admitted =
            requests.keys().filter(|id| scheduler.sequence(**id).is_some_and(|sequence| !sequence.is_queued()));
        let used = admitted.map(need).fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
        let need = need(&first);
        let fits = used.0 + need.0 <= u64::from(scenario.layout.pages) && used.1 + need.1 <= scenario.layout.slabs;
        assert!(!fits, "{first:?} fits, but does not start");
    }
}

/// Checks that a step verifies proposals only if its row is the only one that decodes and no other request could run,
/// that the caller has offered the proposals, and that they do not exceed the answer.
pub(super) fn check_proposals(
    step: &StepPlan,
    offer: Option<Offer>,
    scheduler: &Scheduler,
    requests: &HashMap<SeqId, Request>,
) {
    let StepPlan::Verify { row, tokens } = step else { return };
    for sequence in scheduler.sequences.values() {
        let decodes = |answer: &u32| sequence.answers[*answer as usize].ended().is_none();
        let rows: Vec<RowId> =
            (0..sequence.answers.len() as u32).filter(decodes).map(|answer| sequence.id().answer(answer)).collect();
        match sequence.state() {
            State::Preparing | State::Waiting => assert!(rows.is_empty()),
            State::Decoding if sequence.id() == row.id => assert_eq!(rows, [*row]),
            state => panic!("{step:?} runs beside {:?} in state {state:?}", sequence.id()),
        }
    }
    let offer = offer.expect("proposals are verified that nobody offered");
    assert_eq!(offer.row, *row);
    assert!((2..=offer.tokens + 1).contains(tokens), "{step:?} after {offer:?}");
    let generated = scheduler.answer(*row).map_or(0, |answer| answer.generated());
    assert!(generated + tokens <= requests[&row.id].max_tokens, "{step:?} exceeds the answer");
}

/// Tracks how decode steps and other steps take turns, and how rows take turns.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    /// Number of other steps since the last decode step, counted while rows decode.
    others: u32,
    /// Number of decode steps since the last other step, counted while there is other work.
    decodes: u32,
    steps: u32,
    /// The step at which each row decoded last.
    last: HashMap<RowId, u32>,
    most_rows: usize,
    longest_step: f64,
    shortest_step: f64,
    longest_other: f64,
    any_failed: bool,
}

impl Fairness {
    pub(super) fn step(&mut self, step: &StepPlan, took: Micros, failed: bool, scheduler: &Scheduler) {
        self.any_failed |= failed;
        let policy = scheduler.policy();
        let counts = scheduler.counts();
        let earns = (1.0 - policy.decode_share) / policy.decode_share;
        self.most_rows = self.most_rows.max(counts.rows);
        let rows = match step {
            StepPlan::Decode(rows) => Some(rows.as_slice()),
            StepPlan::Verify { row, .. } => Some(std::slice::from_ref(row)),
            _ => None,
        };
        if let Some(rows) = rows {
            assert!(rows.len() <= policy.max_batch);
            let took = took as f64;
            self.shortest_step = if self.longest_step == 0.0 { took } else { self.shortest_step.min(took) };
            self.longest_step = self.longest_step.max(took);
            self.others = 0;
            let forking = scheduler.sequences.values().any(|sequence| sequence.state == State::Forking);
            let other = counts.prompts + counts.solo > 0 || forking;
            self.decodes = if other && !failed { self.decodes + 1 } else { 0 };
            let most = 2.0 * self.longest_other.max(self.budget(scheduler)).max(2_000.0) / (self.shortest_step * earns);
            assert!(
                f64::from(self.decodes) <= most + 3.0,
                "other work waits for {} decode steps; expected about {most} at most",
                self.decodes
            );
            self.check_rows(rows, scheduler);
        } else {
            self.decodes = 0;
            self.others += u32::from(counts.rows > 0);
            assert!(self.others <= 1, "two other steps ran between two decode steps");
            self.longest_other = self.longest_other.max(took as f64);
            if let StepPlan::Slice(slice) = step {
                let layers = match slice {
                    super::Slice::Vision { layers, .. } | super::Slice::Chunk { layers, .. } => layers,
                };
                // The factor 1.7 allows for noise and cost classes. Times vary by up to a fifth, and the sizes of a
                // cost class by up to an eighth.
                let most = 1.7 * self.budget(scheduler);
                assert!(layers.len() == 1 || took as f64 <= most, "{slice:?} took {took} µs, more than {most} µs");
            }
        }
    }

    /// Returns the maximum expected time of a slice of several layers, in microseconds.
    fn budget(&self, scheduler: &Scheduler) -> f64 {
        let share = scheduler.policy().decode_share;
        (scheduler.policy().slice_floor as f64).max(self.longest_step * ((1.0 - share) / share).max(1.0))
    }

    /// Checks that each row decodes at least once while all other rows have their turns.
    fn check_rows(&mut self, rows: &[RowId], scheduler: &Scheduler) {
        self.steps += 1;
        rows.iter().for_each(|row| _ = self.last.insert(*row, self.steps));
        if self.any_failed {
            return;
        }
        let policy = scheduler.policy();
        let turns = self.most_rows.div_ceil(policy.max_batch) as u32;
        for row in scheduler.turns.rows() {
            let since = self.steps - *self.last.entry(*row).or_insert(self.steps);
            assert!(since <= turns * policy.turn_steps, "{row:?} has not decoded for {since} steps");
        }
    }
}
