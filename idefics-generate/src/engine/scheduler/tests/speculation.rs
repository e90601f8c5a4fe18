//! Tests of the rules for proposals.

use super::*;

/// Runs until a single row decodes, which may have `max_tokens` tokens. Its decode step takes 1 ms.
fn decoding(scheduler: &mut Scheduler, max_tokens: u32, now: &mut Micros) -> RowId {
    let id = add(scheduler, ask(6, max_tokens), *now);
    until_decode(scheduler, now);
    id.answer(0)
}

/// Offers proposals and returns the next step.
fn offered(scheduler: &mut Scheduler, row: RowId, tokens: u32, acceptance: f64) -> StepPlan {
    scheduler.offer(Offer { row, tokens, acceptance });
    scheduler.plan(0)
}

/// Notes that the step has taken this time.
fn done(scheduler: &mut Scheduler, step: &StepPlan, took: Micros) {
    let outcome = good(scheduler, step);
    scheduler.done(outcome, took, 0);
}

#[test]
fn proposals_are_verified_if_this_gives_more_tokens_per_second() {
    let mut scheduler = scheduler(Policy::default());
    let row = decoding(&mut scheduler, 90, &mut 0);
    let decode = StepPlan::Decode(vec![row]);
    // The time of proposals is unknown, so a quarter of a step is assumed for each.
    for (tokens, acceptance) in [(7, 0.3), (0, 1.0)] {
        let step = offered(&mut scheduler, row, tokens, acceptance);
        assert_eq!(step, decode);
        done(&mut scheduler, &step, 1_000);
    }
    let step = offered(&mut scheduler, row, 7, 0.95);
    assert_eq!(step, StepPlan::Verify { row, tokens: 8 });
    done(&mut scheduler, &step, 7_000);
    assert_eq!(scheduler.answer(row).unwrap().generated(), 1 + 3 + 8);
    assert_eq!(scheduler.answer(row).unwrap().written(), 6 + 3 + 8);
    // Each proposal has taken 6/7 of a decode step, so proposals pay only if nearly all are right.
    let step = offered(&mut scheduler, row, 7, 0.95);
    assert_eq!(step, decode);
    done(&mut scheduler, &step, 1_000);
    assert_eq!(scheduler.plan(0), decode, "an offer counts for one plan");
    done(&mut scheduler, &decode, 1_000);
    let step = offered(&mut scheduler, row, 7, 1.0);
    assert_eq!(step, StepPlan::Verify { row, tokens: 8 });
}

#[test]
fn fewer_proposals_are_verified_if_fewer_are_right() {
    let mut scheduler = scheduler(Policy::default());
    let row = decoding(&mut scheduler, 90, &mut 0);
    // Each proposal takes a tenth of a decode step.
    for (acceptance, tokens) in [(0.95, 8), (0.6, 4), (0.3, 2)] {
        let step = offered(&mut scheduler, row, 7, acceptance);
        assert_eq!(step, StepPlan::Verify { row, tokens });
        done(&mut scheduler, &step, 900 + 100 * Micros::from(tokens));
    }
    assert_eq!(offered(&mut scheduler, row, 7, 0.1), StepPlan::Decode(vec![row]));
}

#[test]
fn promising_proposals_are_tried_again_after_64_steps() {
    let mut scheduler = Scheduler::new(Layout { pages: 200, ..layout() }, Policy::default()).unwrap();
    let row = decoding(&mut scheduler, 500, &mut 0);
    let step = offered(&mut scheduler, row, 1, 0.9);
    assert_eq!(step, StepPlan::Verify { row, tokens: 2 });
    done(&mut scheduler, &step, 100_000); // a disturbance
    let mut tries = Vec::new();
    for number in 0..200 {
        let step = offered(&mut scheduler, row, 1, 0.9);
        if matches!(step, StepPlan::Verify { .. }) {
            tries.push(number);
        }
        done(&mut scheduler, &step, 1_000);
    }
    assert_eq!(tries[..2], [63, 127]);
}

#[test]
fn proposals_end_with_the_answer_and_need_no_further_pages() {
    for max_tokens in 2..30 {
        let mut scheduler = scheduler(Policy::default());
        let row = decoding(&mut scheduler, max_tokens, &mut 0);
        let mut steps = 0;
        while scheduler.sequence(row.id).is_some() {
            let left = max_tokens - scheduler.answer(row).unwrap().generated();
            let step = offered(&mut scheduler, row, 7, 1.0);
            match &step {
                StepPlan::Verify { tokens, .. } => assert_eq!(*tokens, 8.min(left)),
                step => assert_eq!((step, left), (&StepPlan::Decode(vec![row]), 1)),
            }
            done(&mut scheduler, &step, 1_000);
            steps += 1;
        }
        assert_eq!(steps, (max_tokens - 2).div_ceil(8));
        assert_eq!(scheduler.counts().pages.free, 40);
    }
}

#[test]
fn nothing_is_verified_if_several_rows_decode() {
    let mut scheduler = scheduler(Policy { max_batch: 1, ..Policy::default() });
    let mut now = 0;
    let row = decoding(&mut scheduler, 60, &mut now);
    assert_eq!(scheduler.only_row(), Some(row));
    let other = decoding(&mut scheduler, 60, &mut now);
    while scheduler.counts().rows < 2 {
        step(&mut scheduler, &mut now);
    }
    assert_eq!(scheduler.only_row(), None);
    let step = offered(&mut scheduler, row, 7, 1.0);
    assert!(matches!(step, StepPlan::Decode(_)), "{step:?}");
    done(&mut scheduler, &step, 1_000);
    scheduler.end(other.id, Ending::Cancelled);
    assert!(matches!(offered(&mut scheduler, row, 7, 1.0), StepPlan::Verify { .. }));
}

#[test]
fn nothing_is_verified_while_there_is_other_work() {
    for job in [Job::Answers(1), Job::Answers(2), Job::Solo] {
        let mut scheduler = scheduler(Policy { slice_floor: 1, ..Policy::default() });
        let mut now = 0;
        let row = decoding(&mut scheduler, 90, &mut now);
        let other = add(&mut scheduler, Ask { job, ..ask(22, 3) }, now);
        let mut decoded = 0;
        while scheduler.sequence(other).is_some() {
            let step = offered(&mut scheduler, row, 7, 1.0);
            assert!(!matches!(step, StepPlan::Verify { .. }), "{job:?}");
            decoded += u32::from(step == StepPlan::Decode(vec![row]));
            let outcome = match &step {
                StepPlan::Solo(id) => Outcome::Rows(vec![(id.answer(0), Verdict::Solved)]),
                step => good(&scheduler, step),
            };
            scheduler.done(outcome, 1_000, 0);
        }
        assert!(decoded > 5, "{job:?}");
        assert!(matches!(offered(&mut scheduler, row, 7, 1.0), StepPlan::Verify { .. }), "{job:?}");
    }
}

#[test]
fn the_scheduler_notices_proposals_that_must_not_be_verified() {
    let mut scheduler = scheduler(Policy::default());
    let row = decoding(&mut scheduler, 60, &mut 0);
    let step = offered(&mut scheduler, row, 7, 1.0);
    assert_eq!((&step, scheduler.broken_invariant()), (&StepPlan::Verify { row, tokens: 8 }, None));
    let breaks = |scheduler: &mut Scheduler, step: StepPlan, part: &str| {
        scheduler.in_flight = Some(step);
        let broken = scheduler.broken_invariant().unwrap_or_default();
        assert!(broken.contains(part), "{part:?} is not in {broken:?}");
    };
    breaks(&mut scheduler, StepPlan::Verify { row, tokens: 9 }, "9 tokens are verified, but 7 were offered");
    breaks(&mut scheduler, StepPlan::Verify { row, tokens: 1 }, "1 tokens are verified");
    breaks(&mut scheduler, StepPlan::Verify { row, tokens: 60 }, "60 tokens in the step");
    scheduler.in_flight = None;
    let other = add(&mut scheduler, ask(20, 9), 0);
    let mut now = 0;
    scheduler.plan(now);
    breaks(&mut scheduler, StepPlan::Verify { row, tokens: 2 }, "beside 0 rows and 1 other requests");
    scheduler.in_flight = None;
    while scheduler.counts().rows < 2 {
        super::step(&mut scheduler, &mut now);
    }
    scheduler.plan(now);
    breaks(&mut scheduler, StepPlan::Verify { row, tokens: 2 }, "beside 1 rows and 0 other requests");
    scheduler.end(other, Ending::Cancelled);
    assert_eq!(scheduler.broken_invariant(), None);
}

#[test]
fn a_failed_verification_ends_no_request() {
    let mut scheduler = scheduler(Policy::default());
    let row = decoding(&mut scheduler, 60, &mut 0);
    let before = scheduler.answer(row).unwrap().generated();
    let step = offered(&mut scheduler, row, 7, 1.0);
    assert!(matches!(step, StepPlan::Verify { .. }));
    scheduler.done(Outcome::Failed(RowFault::Panic), 1_000, 0);
    assert_eq!((scheduler.answer(row).unwrap().generated(), scheduler.incidents(0)), (before, 0));
    let step = offered(&mut scheduler, row, 7, 1.0);
    assert_eq!(step, StepPlan::Decode(vec![row]), "the row decodes without proposals");
    scheduler.done(Outcome::Failed(RowFault::Panic), 1_000, 0);
    assert_eq!(endings(&mut scheduler), [(row.id, Ending::Failed(RowFault::Panic))]);
    assert_eq!(scheduler.incidents(0), 1);
}

/// Returns the number of tokens and the end of each answer that has ended.
fn ended_answers(scheduler: &mut Scheduler) -> Vec<(u32, AnswerEnd)> {
    let of = |notice| if let Notice::Answer { tokens, end, .. } = notice { Some((tokens, end)) } else { None };
    scheduler.take_notices().into_iter().filter_map(of).collect()
}

#[test]
fn all_tokens_of_an_answer_that_ends_while_proposals_are_verified_count() {
    for tokens in 0..=8 {
        let mut scheduler = scheduler(Policy::default());
        let row = decoding(&mut scheduler, 60, &mut 0);
        let before = scheduler.answer(row).unwrap().generated();
        assert_eq!(offered(&mut scheduler, row, 7, 1.0), StepPlan::Verify { row, tokens: 8 });
        let verdict = Verdict::Ended { tokens, end: AnswerEnd::Stop };
        scheduler.done(Outcome::Rows(vec![(row, verdict)]), 1_000, 0);
        assert_eq!(ended_answers(&mut scheduler), [(before + tokens, AnswerEnd::Stop)]);
    }
}

#[test]
fn written_positions_follow_the_tokens_of_answers_that_end() {
    let mut scheduler = scheduler(Policy::default());
    let three = Ask { job: Job::Answers(3), ..ask(8, 30) };
    let id = add(&mut scheduler, three, 0);
    until_decode(&mut scheduler, &mut 0);
    let rows = [0, 1, 2].map(|answer| id.answer(answer));
    assert_eq!(scheduler.plan(0), StepPlan::Decode(rows.to_vec()));
    let end = |tokens| Verdict::Ended { tokens, end: AnswerEnd::Stop };
    let verdicts = [end(1), end(0), Verdict::Token];
    scheduler.done(Outcome::Rows(rows.into_iter().zip(verdicts).collect()), 1_000, 0);
    let sizes = rows.map(|row| scheduler.answer(row).map(|answer| (answer.generated(), answer.written())).unwrap());
    assert_eq!(sizes, [(3, 10), (2, 10), (3, 10)]);
    assert_eq!(ended_answers(&mut scheduler), [(3, AnswerEnd::Stop), (2, AnswerEnd::Stop)]);
}

#[test]
fn a_wrong_number_of_tokens_is_an_internal_fault() {
    let ended = |tokens| Verdict::Ended { tokens, end: AnswerEnd::Stop };
    for verdict in [Verdict::Tokens(0), Verdict::Tokens(9), ended(9)] {
        let mut scheduler = scheduler(Policy::default());
        let row = decoding(&mut scheduler, 60, &mut 0);
        assert_eq!(offered(&mut scheduler, row, 7, 1.0), StepPlan::Verify { row, tokens: 8 });
        scheduler.done(Outcome::Rows(vec![(row, verdict)]), 1_000, 0);
        assert_eq!(endings(&mut scheduler), [(row.id, Ending::Failed(RowFault::Internal))]);
    }
}
