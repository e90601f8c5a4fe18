//! Runs the scheduler with a [stub executor](stub) in random [scenarios](scenario). Checks that requests do not affect
//! each other's tokens, that each request ends once and in time, and that none starves.
//!
//! The environment variable `SIMULATOR_SEEDS` sets the number of scenarios, and `SIMULATOR_FIRST` the first seed.

mod checks;
mod scenario;
mod stub;

use std::collections::{BTreeMap, HashMap};

use super::{
    AnswerEnd, Ending, Micros, Notice, Offer, Outcome, Refusal, RowFault, RowId, Scheduler, SeqId, Slice, StepPlan,
    Verdict,
};
use checks::{Admissions, Fairness, check_proposals};
use scenario::{Outside, Random, Request, Scenario};
use stub::Stub;

/// An event that comes from outside the scheduler.
#[derive(Debug, Clone, Copy)]
enum Event {
    Arrival(usize),
    Prepared(SeqId),
    End(SeqId, Outside),
    LosePages,
    Drain,
}

/// How often each kind of step, ending and refusal has occurred.
type Seen = BTreeMap<String, u64>;

struct Simulation {
    random: Random,
    scenario: Scenario,
    scheduler: Scheduler,
    stub: Stub,
    now: Micros,
    /// Events to come, in order of time. The key is the time and the number of the event, in order of creation.
    events: BTreeMap<(Micros, usize), Event>,
    made: usize,
    requests: HashMap<SeqId, Request>,
    /// The requests that an event from outside has ended, and how each was ended.
    outside: HashMap<SeqId, Outside>,
    lost: Vec<SeqId>,
    ended: HashMap<SeqId, Ending>,
    answers: HashMap<RowId, AnswerEnd>,
    admissions: Admissions,
    fairness: Fairness,
    seen: Seen,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let scenario = Scenario::draw(&mut random);
        let layout = scenario.layout.clone();
        let scheduler = Scheduler::new(layout.clone(), scenario.policy.clone()).unwrap();
        let stub = Stub::new(&layout, &mut random);
        let mut simulation = Self {
            admissions: Admissions::default(),
            fairness: Fairness::default(),
            scheduler,
            stub,
            now: 0,
            events: BTreeMap::new(),
            made: 0,
            requests: HashMap::new(),
            outside: HashMap::new(),
            lost: Vec::new(),
            ended: HashMap::new(),
            answers: HashMap::new(),
            seen: Seen::new(),
            random,
            scenario,
        };
        for number in 0..simulation.scenario.arrivals.len() {
            simulation.add(simulation.scenario.arrivals[number].at, Event::Arrival(number));
        }
        let (lost, drained) = (simulation.scenario.loses_pages_at, simulation.scenario.drains_at);
        lost.into_iter().for_each(|at| simulation.add(at, Event::LosePages));
        drained.into_iter().for_each(|at| simulation.add(at, Event::Drain));
        simulation
    }

    fn add(&mut self, at: Micros, event: Event) {
        self.made += 1;
        self.events.insert((at, self.made), event);
    }

    fn note(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }

    fn run(mut self) -> Seen {
        for steps in 0.. {
            assert!(steps < 50_000, "the simulation runs for too many steps: {:?}", self.scheduler);
            self.happen(self.now);
            let offer = self.offer();
            let step = self.scheduler.plan(self.now);
            self.scheduler.check_invariants();
            check_proposals(&step, offer, &self.scheduler, &self.requests);
            assert_eq!(self.scheduler.plan(self.now), step, "a second call of `plan` returns another step");
            self.read_notices(true);
            self.check_limits();
            if let StepPlan::Idle { until } = step {
                let next = self.events.keys().next().map(|(at, _)| *at);
                let Some(next) = next.into_iter().chain(until).min() else { break };
                assert!(next > self.now, "an idle step must end at a later time");
                self.now = next;
                continue;
            }
            self.execute(&step);
        }
        self.check_end();
        self.seen
    }

    /// Offers proposals for the only row that decodes, and returns the offer. The number of proposals and their
    /// acceptance are arbitrary.
    fn offer(&mut self) -> Option<Offer> {
        let row = self.scheduler.only_row().filter(|_| self.scenario.speculates)?;
        let acceptance = f64::from(self.random.from(0..11)) / 10.0;
        let offer = Offer { row, tokens: self.random.from(0..10), acceptance };
        self.scheduler.offer(offer);
        Some(offer)
    }

    fn execute(&mut self, step: &StepPlan) {
        let transient = self.scenario.transient > 0 && self.random.chance(self.scenario.transient);
        let outcome = self.stub.run(step, &self.scheduler, &self.requests, transient, &mut self.random);
        let took = self.cost(step);
        let failed = matches!(outcome, Outcome::Failed(_));
        self.fairness.step(step, took, failed, &self.scheduler);
        self.note(match step {
            StepPlan::Idle { .. } => "idle",
            StepPlan::Decode(_) if failed => "decode failed",
            StepPlan::Decode(_) => "decode",
            StepPlan::Verify { .. } if failed => "verify failed",
            StepPlan::Verify { .. } => "verify",
            StepPlan::Slice(Slice::Vision { .. }) => "vision",
            StepPlan::Slice(Slice::Chunk { .. }) => "chunk",
            StepPlan::Fork { .. } => "fork",
            StepPlan::Solo(_) => "solo",
        });
        if let Outcome::Rows(verdicts) = &outcome
            && verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Tokens(2..)))
        {
            self.note("several tokens");
        }
        self.now += took;
        if self.random.chance(4) {
            // In one step of four, some events happen while the step runs.
            let before = self.now - took / 2;
            self.happen(before);
            self.scheduler.check_invariants();
        }
        self.scheduler.done(outcome, took, self.now);
        self.scheduler.check_invariants();
        self.read_notices(false);
    }

    /// Returns the simulated time of a step, with some noise. The time of layers is proportional to their tokens or
    /// patches.
    fn cost(&mut self, step: &StepPlan) -> Micros {
        let micros = match step {
            StepPlan::Idle { .. } => 0,
            StepPlan::Decode(rows) => 500 + 50 * rows.len() as u32,
            StepPlan::Verify { tokens, .. } => 500 + 50 * tokens,
            StepPlan::Slice(Slice::Vision { id, image, layers }) => {
                200 * self.requests[id].images[*image as usize].length * (layers.end - layers.start)
            }
            StepPlan::Slice(Slice::Chunk { tokens, layers, .. }) => {
                40 * (tokens.end - tokens.start) * (layers.end - layers.start)
            }
            StepPlan::Fork { .. } => 10,
            StepPlan::Solo(_) => 700,
        };
        Micros::from(micros) * Micros::from(self.random.from(80..121)) / 100
    }

    /// Handles all events up to `now`.
    fn happen(&mut self, now: Micros) {
        while let Some(((at, number), event)) = self.events.first_key_value().map(|(key, event)| (*key, *event)) {
            if at > now {
                break;
            }
            self.events.remove(&(at, number));
            match event {
                Event::Arrival(number) => self.arrive(number, now),
                Event::Prepared(id) => {
                    self.scheduler.prepared(id, self.requests[&id].prompt(self.scenario.layout.chunk_tokens));
                    if self.scheduler.sequence(id).is_some() {
                        self.admissions.wait(id);
                    }
                }
                Event::End(id, outside) => {
                    if self.scheduler.sequence(id).is_some() {
                        self.outside.insert(id, outside);
                    }
                    self.scheduler.end(id, ending_of(outside));
                    assert!(self.scheduler.sequence(id).is_none());
                }
                Event::LosePages => {
                    self.lost.extend(
                        self.requests
                            .keys()
                            .filter(|id| self.scheduler.sequence(**id).is_some_and(|sequence| !sequence.is_queued())),
                    );
                    self.scheduler.lose_pages(RowFault::Device, now);
                    self.stub.lose_pages(&mut self.random);
                    assert_eq!(self.scheduler.counts().pages.free, self.scenario.layout.pages);
                }
                Event::Drain => self.scheduler.drain(),
            }
            self.scheduler.check_invariants();
            self.read_notices(false);
        }
    }

    fn arrive(&mut self, number: usize, now: Micros) {
        let arrival = self.scenario.arrivals[number].clone();
        let drained = self.scenario.drains_at.is_some_and(|at| at < arrival.at);
        match self.scheduler.submit(arrival.request.ask(), now) {
            Ok(id) => {
                assert!(!drained, "a request was accepted after the drain");
                self.requests.insert(id, arrival.request);
                self.add(arrival.at + arrival.preparation, Event::Prepared(id));
                if let Some((at, outside)) = arrival.end {
                    self.add(at, Event::End(id, outside));
                }
            }
            Err(refusal) => {
                let Refusal::QueueFull { retry_after } = refusal else {
                    return self.note(format!("{refusal:?}").split(' ').next().unwrap_or_default());
                };
                assert!((1_000_000..=60_000_000).contains(&retry_after));
                self.note("QueueFull");
            }
        }
    }

    fn read_notices(&mut self, planned: bool) {
        for notice in self.scheduler.take_notices() {
            match notice {
                Notice::Admitted { id, .. } => {
                    assert!(planned && !self.ended.contains_key(&id));
                    self.admissions.admit(id, self.now, &self.scenario);
                }
                Notice::Begun { id, cached_tokens } => {
                    assert!(!self.ended.contains_key(&id));
                    assert_eq!(cached_tokens % self.scenario.layout.chunk_tokens, 0);
                    if cached_tokens > 0 {
                        self.note("prefix hit");
                    }
                }
                Notice::Answer { row, tokens, end } => {
                    assert!(!self.ended.contains_key(&row.id));
                    assert_eq!(self.stub.tokens[&row].len(), tokens as usize, "{row:?} has another number of tokens");
                    assert!(self.answers.insert(row, end).is_none(), "{row:?} ends twice");
                }
                Notice::Ended { id, ending } => {
                    assert!(self.ended.insert(id, ending).is_none(), "{id:?} ends twice");
                    self.admissions.end(id);
                    self.check_ended(id, ending);
                }
            }
        }
        if planned {
            self.admissions.check_first(&self.scheduler, &self.scenario, &self.requests, self.now);
        }
    }

    /// Checks the tokens that an ended request has received, and that it had a reason to end in this way.
    fn check_ended(&mut self, id: SeqId, ending: Ending) {
        let request = &self.requests[&id];
        let alone: Vec<_> = (0..request.answers).map(|answer| request.alone(answer)).collect();
        for (answer, (tokens, end)) in (0..).zip(&alone) {
            let got = self.stub.tokens.get(&id.answer(answer)).map_or(&[][..], Vec::as_slice);
            assert!(tokens.starts_with(got), "answer {answer} of {id:?} is {got:?}; expected {tokens:?}; {request:?}");
            if ending == Ending::Finished {
                assert_eq!(got.len(), tokens.len(), "answer {answer} of {id:?} is too short: {request:?}");
                let told = self.answers.get(&id.answer(answer));
                assert!(request.solo && told.is_none() || told == Some(end), "{id:?} reported {told:?}, not {end:?}");
            }
        }
        let reason = match ending {
            Ending::Finished => {
                let fails = |answer: u32, after: u32| after < alone[answer as usize].0.len() as u32;
                !request.fault.is_some_and(|fault| match fault {
                    scenario::Fault::Row { answer, after, .. } => fails(answer, after),
                    scenario::Fault::Panics { answer, after } => fails(answer, after),
                    scenario::Fault::PromptPanics { .. } => false,
                })
            }
            Ending::Cancelled | Ending::SlowReader | Ending::BadInput => {
                self.outside.get(&id).is_some_and(|outside| ending_of(*outside) == ending)
            }
            Ending::Deadline => request.deadline.is_some_and(|deadline| deadline <= self.now),
            Ending::QueueTimeout => !self.stub.tokens.contains_key(&id.answer(0)),
            Ending::NeverFits { pages, total } => {
                let layout = &self.scenario.layout;
                pages > u64::from(total)
                    && pages == layout.worst_case(request.ids.len() as u32, request.max_tokens, request.answers)
            }
            Ending::Drained => false,
            Ending::Failed(fault) => match request.fault {
                _ if fault == RowFault::Internal => false,
                Some(scenario::Fault::Row { fault: own, .. }) if own == fault => true,
                Some(scenario::Fault::Panics { .. } | scenario::Fault::PromptPanics { .. })
                    if fault == RowFault::Panic =>
                {
                    self.stub.failed_alone.contains(&id)
                }
                _ => fault == RowFault::Device && (self.lost.contains(&id) || self.stub.failed_alone.contains(&id)),
            },
        };
        assert!(reason, "{id:?} has no reason to end with {ending:?}: {request:?}");
        self.note(format!("{ending:?}").split(' ').next().unwrap_or_default());
    }

    /// Checks that all requests that have reached a time limit have ended.
    fn check_limits(&self) {
        let requests = self.requests.keys().filter_map(|id| self.scheduler.sequence(*id));
        for sequence in requests {
            assert!(sequence.ask().deadline.is_none_or(|deadline| deadline > self.now));
            let limit = sequence.submitted + self.scenario.policy.queue_timeout;
            assert!(!sequence.is_queued() || limit > self.now, "{:?} is in the queue for too long", sequence.id());
        }
    }

    fn check_end(&self) {
        assert_eq!(self.ended.len(), self.requests.len(), "not all requests have ended");
        let pages = self.scheduler.counts().pages;
        assert_eq!((pages.owned, pages.reserved), (0, 0), "pages were not released: {pages:?}");
        assert_eq!(pages.free + pages.idle, self.scenario.layout.pages);
        self.scheduler.check_invariants();
        assert_eq!(self.scheduler.broken_invariant(), None);
    }
}

fn ending_of(outside: Outside) -> Ending {
    match outside {
        Outside::Cancelled => Ending::Cancelled,
        Outside::SlowReader => Ending::SlowReader,
        Outside::BadInput => Ending::BadInput,
    }
}

#[test]
fn random_requests_get_the_same_tokens_as_alone() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let (first, seeds): (u64, u64) = (number("SIMULATOR_FIRST", 0), number("SIMULATOR_SEEDS", 300));
    let mut seen = Seen::new();
    for seed in first..first + seeds {
        let run = std::panic::catch_unwind(|| Simulation::new(seed).run());
        let run = run.unwrap_or_else(|cause| {
            eprintln!("seed {seed} failed; run it again with SIMULATOR_FIRST={seed} SIMULATOR_SEEDS=1");
            std::panic::resume_unwind(cause)
        });
        run.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
    }
    println!("{seen:#?}");
    let rare = [
        "decode",
        "decode failed",
        "verify",
        "verify failed",
        "several tokens",
        "vision",
        "chunk",
        "fork",
        "solo",
        "prefix hit",
        "Finished",
        "Cancelled",
        "SlowReader",
        "Deadline",
        "QueueTimeout",
        "BadInput",
        "NeverFits",
        "Failed(NonFinite)",
        "Failed(NoAllowedToken)",
        "Failed(Panic)",
        "Failed(Device)",
        "QueueFull",
        "TenantLimit",
        "Draining",
    ];
    let missing: Vec<_> = rare.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(seeds < 300 || missing.is_empty(), "these events never happened: {missing:?}; these did: {seen:?}");
}
