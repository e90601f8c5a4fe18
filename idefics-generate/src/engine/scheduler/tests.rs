//! Tests of single rules, with concrete numbers. The simulator tests the properties that hold for all inputs.

mod memory;
mod speculation;

use super::*;

fn layout() -> Layout {
    Layout { pages: 40, page_tokens: 4, chunk_tokens: 8, text_layers: 4, vision_layers: 2, slabs: 0 }
}

fn scheduler(policy: Policy) -> Scheduler {
    Scheduler::new(layout(), policy).unwrap()
}

fn ask(prompt_tokens: u32, max_tokens: u32) -> Ask {
    Ask { tenant: Tenant(0), prompt_tokens, max_tokens, job: Job::Answers(1), slabs: 0, deadline: None }
}

fn of_tenant(tenant: u32, ask: Ask) -> Ask {
    Ask { tenant: Tenant(tenant), ..ask }
}

/// Submits a request and prepares it without images.
fn add(scheduler: &mut Scheduler, ask: Ask, now: Micros) -> SeqId {
    let tokens = ask.prompt_tokens;
    let id = scheduler.submit(ask, now).unwrap();
    scheduler.prepared(id, PromptShape { tokens, ..PromptShape::default() });
    id
}

/// Returns the outcome of a step without faults. After the last layers of a prompt, each answer gets a token.
fn good(scheduler: &Scheduler, step: &StepPlan) -> Outcome {
    let verdicts = match step {
        StepPlan::Idle { .. } => Vec::new(),
        StepPlan::Decode(rows) => rows.iter().map(|row| (*row, Verdict::Token)).collect(),
        StepPlan::Verify { row, tokens } => vec![(*row, Verdict::Tokens(*tokens))],
        StepPlan::Slice(Slice::Chunk { id, tokens, layers }) => {
            let sequence = scheduler.sequence(*id).unwrap();
            let last = layers.end == 4 && tokens.end == sequence.prompt().tokens;
            match sequence.ask().job {
                Job::Answers(answers) if last => {
                    (0..answers).map(|answer| (id.answer(answer), Verdict::Token)).collect()
                }
                _ => vec![(id.answer(0), Verdict::Done)],
            }
        }
        StepPlan::Slice(Slice::Vision { id, .. }) | StepPlan::Fork { id, .. } | StepPlan::Solo(id) => {
            vec![(id.answer(0), Verdict::Done)]
        }
    };
    Outcome::Rows(verdicts)
}

/// Runs a step that takes 1 ms.
fn step(scheduler: &mut Scheduler, now: &mut Micros) -> StepPlan {
    let step = scheduler.plan(*now);
    let outcome = good(scheduler, &step);
    *now += 1_000;
    scheduler.done(outcome, 1_000, *now);
    step
}

fn steps(scheduler: &mut Scheduler, now: &mut Micros, count: usize) -> Vec<StepPlan> {
    (0..count).map(|_| step(scheduler, now)).collect()
}

fn until_decode(scheduler: &mut Scheduler, now: &mut Micros) -> StepPlan {
    loop {
        let step = step(scheduler, now);
        if matches!(step, StepPlan::Decode(_)) {
            return step;
        }
    }
}

fn admitted(scheduler: &mut Scheduler) -> Vec<SeqId> {
    let admitted = |notice| if let Notice::Admitted { id, .. } = notice { Some(id) } else { None };
    scheduler.take_notices().into_iter().filter_map(admitted).collect()
}

fn endings(scheduler: &mut Scheduler) -> Vec<(SeqId, Ending)> {
    let ended = |notice| if let Notice::Ended { id, ending } = notice { Some((id, ending)) } else { None };
    scheduler.take_notices().into_iter().filter_map(ended).collect()
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let layout = |change: fn(&mut Layout)| {
        let mut layout = layout();
        change(&mut layout);
        Scheduler::new(layout, Policy::default()).unwrap_err().to_string()
    };
    assert_eq!(layout(|layout| layout.pages = 0), "pages is 0; expected at least 1");
    assert_eq!(layout(|layout| layout.chunk_tokens = 6), "chunk_tokens is 6; expected a multiple of page_tokens (4)");
    for share in [0.0, 1.0, f64::NAN] {
        let policy = Policy { decode_share: share, ..Policy::default() };
        assert!(matches!(
            Scheduler::new(self::layout(), policy),
            Err(SettingError::Share { name: "decode_share", .. })
        ));
    }
    for gain in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
        let error = Scheduler::new(self::layout(), Policy { min_gain: gain, ..Policy::default() }).unwrap_err();
        assert_eq!(error.to_string(), format!("min_gain is {gain}; expected a finite number of at least 0"));
    }
    scheduler(Policy { min_gain: 0.0, ..Policy::default() });
}

#[test]
fn the_queue_limits_requests_and_prompt_tokens() {
    let mut scheduler = scheduler(Policy { max_queue: 3, max_queue_tokens: 50, ..Policy::default() });
    // A prompt above the limit is accepted if it is alone in the queue.
    let long = scheduler.submit(ask(100, 1), 0).unwrap();
    assert!(matches!(scheduler.submit(ask(1, 1), 0), Err(Refusal::QueueFull { retry_after: 60_000_000 })));
    scheduler.end(long, Ending::BadInput);
    for _ in 0..3 {
        scheduler.submit(ask(1, 1), 0).unwrap();
    }
    assert!(matches!(scheduler.submit(ask(1, 1), 0), Err(Refusal::QueueFull { .. })));
    let refusal = scheduler.submit(ask(100, 61), 0).unwrap_err();
    assert_eq!(refusal, Refusal::NeverFits { pages: 41, total: 40 });
    scheduler.drain();
    assert_eq!(scheduler.submit(ask(1, 1), 0), Err(Refusal::Draining));
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    let mut scheduler = scheduler(Policy { max_queue: 2, ..Policy::default() });
    let mut now = 0;
    // With 16 tokens per request and 10 s between starts, the rate is about 1.6 tokens per second.
    for _ in 0..3 {
        let id = add(&mut scheduler, ask(16, 1), now);
        until_idle(&mut scheduler, &mut now);
        assert!(scheduler.sequence(id).is_none());
        now += 10 * SECOND;
    }
    scheduler.submit(ask(16, 1), now).unwrap();
    scheduler.submit(ask(16, 1), now).unwrap();
    let Err(Refusal::QueueFull { retry_after }) = scheduler.submit(ask(16, 1), now) else {
        panic!("the queue is not full")
    };
    assert!((19 * SECOND..22 * SECOND).contains(&retry_after), "{retry_after}");
}

fn until_idle(scheduler: &mut Scheduler, now: &mut Micros) {
    while !matches!(step(scheduler, now), StepPlan::Idle { .. }) {}
}

#[test]
fn a_tenant_can_fill_only_its_share_of_the_queue() {
    let mut scheduler = scheduler(Policy { max_queue: 4, tenant_share: 0.5, ..Policy::default() });
    scheduler.submit(ask(1, 1), 0).unwrap();
    scheduler.submit(ask(1, 1), 0).unwrap();
    assert!(matches!(scheduler.submit(ask(1, 1), 0), Err(Refusal::TenantLimit { .. })));
    scheduler.submit(of_tenant(1, ask(1, 1)), 0).unwrap();
}

#[test]
fn tenants_take_turns() {
    let mut scheduler = scheduler(Policy::default());
    let [a, b, c] = [0, 0, 0].map(|tenant| add(&mut scheduler, of_tenant(tenant, ask(8, 1)), 0));
    let other = add(&mut scheduler, of_tenant(1, ask(8, 1)), 0);
    scheduler.plan(0);
    assert_eq!(admitted(&mut scheduler), [a, other, b, c]);
}

#[test]
fn a_tenant_with_more_than_its_share_of_pages_gives_way() {
    let mut scheduler = scheduler(Policy { tenant_share: 0.5, ..Policy::default() });
    let large = add(&mut scheduler, ask(8, 76), 0);
    let mut now = 0;
    step(&mut scheduler, &mut now);
    assert_eq!(admitted(&mut scheduler), [large]);
    let own = add(&mut scheduler, ask(8, 8), now);
    let other = add(&mut scheduler, of_tenant(1, ask(8, 8)), now);
    step(&mut scheduler, &mut now);
    assert_eq!(admitted(&mut scheduler), [other, own]);
}

#[test]
fn few_requests_pass_the_first_one_and_only_for_a_limited_time() {
    for (max_passes, pass_window) in [(3, 2 * SECOND), (8, 2_500)] {
        let mut scheduler = scheduler(Policy { max_passes, pass_window, ..Policy::default() });
        let mut now = 0;
        let running = add(&mut scheduler, ask(8, 80), now);
        step(&mut scheduler, &mut now);
        assert_eq!(admitted(&mut scheduler), [running]);
        let first = add(&mut scheduler, ask(100, 60), now);
        for _ in 0..6 {
            add(&mut scheduler, ask(4, 1), now);
            step(&mut scheduler, &mut now);
        }
        assert_eq!(admitted(&mut scheduler).len(), 3);
        assert_eq!(scheduler.sequence(first).unwrap().state(), State::Waiting);
        scheduler.end(running, Ending::Cancelled);
        until_waiting_is_over(&mut scheduler, &mut now, first);
    }
}

/// Runs until `first` starts, and checks that no other request starts before it.
fn until_waiting_is_over(scheduler: &mut Scheduler, now: &mut Micros, first: SeqId) {
    loop {
        step(scheduler, now);
        let started = admitted(scheduler);
        assert!(started.is_empty() || started[0] == first);
        if !started.is_empty() {
            return;
        }
    }
}

#[test]
fn the_time_limit_sets_the_number_of_layers_of_a_slice() {
    let mut scheduler = scheduler(Policy { slice_floor: 3_500, ..Policy::default() });
    let id = add(&mut scheduler, ask(20, 1), 0);
    let layers = |step: StepPlan| {
        let StepPlan::Slice(Slice::Chunk { tokens, layers, .. }) = step else { panic!("{step:?}") };
        (tokens, layers)
    };
    let run = |scheduler: &mut Scheduler| {
        let step = scheduler.plan(0);
        let outcome = good(scheduler, &step);
        let (tokens, layers) = layers(step);
        scheduler.done(outcome, 1_000 * layers.len() as u64, 0);
        (tokens, layers)
    };
    // The time of the first layer is unknown, so it runs alone. After it, 3 layers of 1 ms fit into 3.5 ms. The last
    // chunk has half the tokens, so 4 layers fit.
    let expected = [(0..8, 0..1), (0..8, 1..4), (8..16, 0..3), (8..16, 3..4), (16..20, 0..4)];
    assert_eq!(std::array::from_fn(|_| run(&mut scheduler)), expected);
    assert_eq!(endings(&mut scheduler), [(id, Ending::Finished)]);
}

#[test]
fn decode_steps_keep_their_share_of_the_time() {
    for share in [0.2, 0.5, 0.8] {
        let mut scheduler = scheduler(Policy { decode_share: share, slice_floor: 1, ..Policy::default() });
        let mut now = 0;
        add(&mut scheduler, ask(1, 90), now);
        until_decode(&mut scheduler, &mut now);
        add(&mut scheduler, ask(60, 1), now);
        let (mut decode, mut slices) = (0.0, 0.0);
        let mut known = false;
        while scheduler.counts().prompts > 0 || !known {
            let step = scheduler.plan(now);
            let outcome = good(&scheduler, &step);
            let (time, micros) = match &step {
                StepPlan::Decode(_) => (&mut decode, 1_000),
                StepPlan::Slice(Slice::Chunk { layers, .. }) => (&mut slices, 990 * layers.len() as u64),
                step => panic!("{step:?}"),
            };
            // Times are counted only after the first slice, because the time of a slice is unknown until then.
            if known {
                *time += micros as f64;
            }
            known |= matches!(step, StepPlan::Slice(_));
            now += micros;
            scheduler.done(outcome, micros, now);
            if decode + slices > 40_000.0 {
                break;
            }
        }
        let kept = decode / (decode + slices);
        assert!((kept - share).abs() < 0.06, "decode steps kept {kept} of the time; expected {share}");
    }
}

#[test]
fn rows_take_turns_of_8_steps_if_they_exceed_the_batch() {
    let mut scheduler = scheduler(Policy { max_batch: 2, ..Policy::default() });
    let mut now = 0;
    let ids = [0; 3].map(|_| add(&mut scheduler, ask(1, 40), now));
    while scheduler.counts().rows < 3 {
        step(&mut scheduler, &mut now);
    }
    let rows = |step: &StepPlan| if let StepPlan::Decode(rows) = step { rows.clone() } else { panic!("{step:?}") };
    let ran: Vec<_> = steps(&mut scheduler, &mut now, 40).iter().map(rows).collect();
    for id in ids {
        let gaps = ran.split(|rows| rows.contains(&id.answer(0))).map(<[_]>::len);
        assert_eq!(gaps.max(), Some(8));
        let runs = ran.iter().filter(|rows| rows.contains(&id.answer(0))).count();
        assert!((22..=32).contains(&runs), "{runs} of 40 steps");
    }
}

#[test]
fn a_panic_ends_only_the_row_that_causes_it() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    let ids = [0; 8].map(|_| add(&mut scheduler, ask(1, 19), now));
    while scheduler.counts().rows < 8 {
        step(&mut scheduler, &mut now);
    }
    let generated = ids.map(|id| scheduler.answer(id.answer(0)).unwrap().generated());
    scheduler.take_notices();
    let mut sizes = Vec::new();
    while scheduler.sequence(ids[5]).is_some() || !scheduler.suspects.is_empty() {
        let step = scheduler.plan(now);
        let StepPlan::Decode(rows) = &step else { panic!("{step:?}") };
        sizes.push(rows.len());
        let panics = rows.contains(&ids[5].answer(0));
        let outcome = if panics { Outcome::Failed(RowFault::Panic) } else { good(&scheduler, &step) };
        scheduler.done(outcome, 1_000, now);
    }
    assert_eq!(sizes, [8, 4, 4, 2, 1, 1, 2]);
    assert_eq!(endings(&mut scheduler), [(ids[5], Ending::Failed(RowFault::Panic))]);
    assert_eq!((scheduler.incidents(now), scheduler.incidents(now + 61 * SECOND)), (1, 0));
    for (id, generated) in ids.iter().zip(generated).filter(|(id, _)| **id != ids[5]) {
        assert_eq!(scheduler.answer(id.answer(0)).unwrap().generated(), generated + 1);
    }
}

#[test]
fn a_missing_verdict_fails_only_its_request() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    let [lost, other] = [0; 2].map(|_| add(&mut scheduler, ask(1, 10), now));
    while scheduler.counts().rows < 2 {
        step(&mut scheduler, &mut now);
    }
    scheduler.plan(now);
    scheduler.done(Outcome::Rows(vec![(other.answer(0), Verdict::Token)]), 1_000, now);
    assert_eq!(endings(&mut scheduler), [(lost, Ending::Failed(RowFault::Internal))]);
    assert!(scheduler.sequence(other).is_some());
}

#[test]
fn requests_end_when_they_reach_a_time_limit() {
    let mut scheduler = scheduler(Policy { queue_timeout: 5_000, ..Policy::default() });
    let waits = scheduler.submit(ask(1, 1), 0).unwrap();
    let late = scheduler.submit(Ask { deadline: Some(3_000), ..ask(1, 1) }, 0).unwrap();
    assert_eq!(scheduler.plan(0), StepPlan::Idle { until: Some(3_000) });
    assert_eq!(scheduler.plan(3_000), StepPlan::Idle { until: Some(5_000) });
    assert_eq!(scheduler.plan(5_000), StepPlan::Idle { until: None });
    assert_eq!(endings(&mut scheduler), [(late, Ending::Deadline), (waits, Ending::QueueTimeout)]);
    scheduler.end(waits, Ending::Cancelled);
    scheduler.prepared(waits, PromptShape { tokens: 1, ..PromptShape::default() });
    assert_eq!(scheduler.take_notices(), []);
}

#[test]
fn solo_jobs_and_prompts_take_turns_between_decode_steps() {
    let mut scheduler = scheduler(Policy { slice_floor: 1_000, ..Policy::default() });
    let mut now = 0;
    let [one, two] = [0; 2].map(|_| add(&mut scheduler, Ask { job: Job::Solo, ..ask(1, 3) }, now));
    while scheduler.counts().solo < 2 {
        step(&mut scheduler, &mut now);
    }
    add(&mut scheduler, ask(1, 60), now);
    until_decode(&mut scheduler, &mut now);
    add(&mut scheduler, ask(60, 1), now);
    let kind = |step: &StepPlan| match step {
        StepPlan::Decode(_) => "decode",
        StepPlan::Solo(id) if *id == one => "one",
        StepPlan::Solo(id) if *id == two => "two",
        _ => "slice",
    };
    let kinds: Vec<_> = steps(&mut scheduler, &mut now, 17).iter().map(kind).collect();
    let decode = |kind: &&str| *kind == "decode";
    assert!(kinds.windows(2).all(|two| decode(&two[0]) != decode(&two[1])), "{kinds:?}");
    let others: Vec<_> = kinds.iter().filter(|kind| **kind != "decode").collect();
    assert!(others.windows(4).all(|four| ["one", "two"].iter().all(|job| four.contains(&job))), "{others:?}");
    assert!(others.windows(2).all(|two| two.contains(&&"slice")), "{others:?}");
}

#[test]
fn at_each_cut_one_short_prompt_runs_first() {
    let mut scheduler = scheduler(Policy { slice_floor: 100_000, ..Policy::default() });
    let mut now = 0;
    // This prompt makes the time of a layer known, so that each later slice is a whole chunk.
    add(&mut scheduler, ask(16, 1), now);
    until_idle(&mut scheduler, &mut now);
    let long = add(&mut scheduler, ask(24, 1), now);
    let short = [0; 4].map(|_| add(&mut scheduler, ask(3, 1), now));
    let id =
        |step: &StepPlan| if let StepPlan::Slice(Slice::Chunk { id, .. }) = step { *id } else { panic!("{step:?}") };
    let order: Vec<_> = steps(&mut scheduler, &mut now, 7).iter().map(id).collect();
    // Before its last chunk, the long prompt has as few chunks left as the short ones, so none of them goes first.
    assert_eq!(order, [short[0], long, short[1], long, long, short[2], short[3]]);
}

#[test]
fn lost_pages_end_running_requests_but_not_waiting_ones() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    let runs = add(&mut scheduler, ask(8, 100), now);
    let waits = add(&mut scheduler, ask(100, 20), now);
    until_decode(&mut scheduler, &mut now);
    scheduler.plan(now);
    scheduler.lose_pages(RowFault::Device, now);
    scheduler.done(Outcome::Rows(Vec::new()), 1_000, now);
    assert_eq!(endings(&mut scheduler), [(runs, Ending::Failed(RowFault::Device))]);
    assert_eq!((scheduler.counts().pages.free, scheduler.incidents(now)), (40, 1));
    until_idle(&mut scheduler, &mut now);
    assert_eq!(endings(&mut scheduler), [(waits, Ending::Finished)]);
}
