//! Proposed tokens change nothing but the number of steps.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idefics_generate::engine::scheduler::Policy;
use idefics_generate::engine::{Engine, EngineOptions, Event, Request, Speculation};
use idefics_generate::logits::{LogitsProcessor, Row};
use idefics_generate::{GenerationConfig, Model, WeightOptions};
use serde_json::{Value, json};

use super::common::{Answered, Case, Fixture, Random, collect, engine_options};
use super::faults::{Fragile, Panics, Trouble};

const CHECKPOINTS: [&str; 7] = [
    "odd-heads",
    "sliding-sharded",
    "rope-dynamic",
    "tiny-idefics3",
    "tiny-smolvlm",
    "idefics1-vector",
    "idefics1-float",
];

/// Makes answers copy a text with a few changes: in most steps, raises the score of the next token of the text. Records
/// the token ids of each call.
#[derive(Debug, Clone)]
pub(crate) struct Copier {
    text: Arc<[u32]>,
    /// In one of this many steps, no score is raised, so that the model chooses the token by itself.
    changes: usize,
    seen: Arc<Mutex<Vec<Vec<u32>>>>,
}

impl Copier {
    pub(crate) fn new(text: &[u32], changes: usize) -> Self {
        Self { text: text.into(), changes, seen: Arc::default() }
    }
}

impl LogitsProcessor for Copier {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        self.seen.lock().unwrap().push(row.input_ids.to_vec());
        if row.n_generated() % self.changes + 1 < self.changes {
            scores[self.text[row.n_generated() % self.text.len()] as usize] += 20.0;
        }
    }
}

pub(crate) fn up_to(tokens: usize) -> Speculation {
    Speculation::UpTo(NonZeroUsize::new(tokens).unwrap())
}

/// Returns settings with which every proposal is verified, even if that is not expected to save time. The number of
/// steps that a prompt takes does not depend on the speed of the machine.
pub(crate) fn eager(speculation: Speculation) -> EngineOptions {
    let options = engine_options();
    let policy = Policy { min_gain: 0.0, slice_floor: 1_000_000_000, ..options.policy.clone() };
    EngineOptions { speculation, policy, ..options }
}

/// Answers a request alone. Returns the answers and the number of steps.
pub(crate) fn run<'m>(model: &'m dyn Model, options: EngineOptions, request: Request<'m>) -> (Vec<Answered>, usize) {
    let mut engine = Engine::new(model, options).unwrap();
    let ticket = engine.submit(request).unwrap();
    let mut steps = 0;
    while engine.step().unwrap() {
        steps += 1;
    }
    assert_eq!((engine.counts().pages.owned, engine.counts().pages.reserved), (0, 0));
    (collect(&ticket).unwrap(), steps)
}

/// Returns a random text in which parts occur several times.
pub(crate) fn text(fixture: &Fixture, random: &mut Random) -> Vec<u32> {
    let part = |random: &mut Random| (0..3 + random.below(9)).map(|_| fixture.token(random)).collect::<Vec<_>>();
    let parts = [part(random), part(random), part(random)];
    (0..4 + random.below(6)).flat_map(|_| parts[random.below(3)].clone()).collect()
}

/// Returns a case whose prompt contains `text`, with random options that may end the answer within a copy of it.
pub(crate) fn copying(fixture: &Fixture, text: &[u32], random: &mut Random) -> Case {
    let mut case = fixture.case(random);
    case.ids.extend(text);
    let mut options = serde_json::to_value(&case.options).unwrap();
    options["max_new_tokens"] = json!(1 + random.below(2 * text.len()));
    let ends = match random.below(2) {
        0 => vec![2],
        _ => vec![2, text[random.below(text.len())]],
    };
    options["eos_token_id"] = json!(ends);
    options.as_object_mut().unwrap().remove("num_return_sequences");
    if random.below(3) == 0 {
        let first = random.below(text.len() - 1);
        options["stop_strings"] = match fixture.model.processor().tokenizer().decode(&text[first..first + 2], true) {
            Ok(piece) if !piece.trim().is_empty() => json!([piece.trim()]),
            _ => Value::Null,
        };
    }
    if random.below(3) == 0 {
        options["bad_words_ids"] = json!([text[..2], [text[text.len() - 1]]]);
    }
    Case { options: serde_json::from_value(options).unwrap(), ..case }
}

#[test]
fn answers_have_the_same_bits_with_and_without_speculation() {
    let (mut fewer, mut plain) = (0, 0);
    for checkpoint in CHECKPOINTS {
        let fixture = Fixture::new(checkpoint);
        let mut random = Random(5);
        for number in 0..9 {
            let text = text(&fixture, &mut random);
            let case = copying(&fixture, &text, &mut random);
            let changes = [2, 5, 1000][number % 3];
            let answer = |options| {
                let copier = Copier::new(&text, changes);
                let seen = copier.seen.clone();
                let request = Request { processors: vec![Box::new(copier)], ..fixture.request(&case) };
                let (answers, steps) = run(fixture.model.model(), options, request);
                (answers, seen.lock().unwrap().clone(), steps)
            };
            let (expected, seen, steps) = answer(eager(Speculation::Off));
            for speculation in [Speculation::Exact, up_to(1), up_to(3), up_to(7)] {
                let found = answer(eager(speculation));
                let what = format!("{checkpoint}, case {number}, {speculation:?}: {:?}", case.options);
                assert_eq!(found.0, expected, "{what}");
                assert_eq!(found.1, seen, "the processor sees other tokens: {what}");
                assert!(found.2 <= steps, "{what}");
                (fewer, plain) = (fewer + steps - found.2, plain + steps);
            }
        }
    }
    assert!(10 * fewer > plain, "{fewer} of {plain} steps were saved");
}

#[test]
fn answers_without_processors_are_the_same_too() {
    for checkpoint in CHECKPOINTS {
        let fixture = Fixture::new(checkpoint);
        let mut random = Random(8);
        for number in 0..8 {
            let text = text(&fixture, &mut random);
            let mut case = copying(&fixture, &text, &mut random);
            if number % 2 == 0 {
                // Plain greedy answers of small models soon repeat themselves.
                case.options = serde_json::from_value(json!({"max_new_tokens": 40, "eos_token_id": []})).unwrap();
            }
            let logprobs = [None, Some(3)][number / 2 % 2];
            let request = || Request { logprobs, ..fixture.request(&case) };
            let (expected, _) = run(fixture.model.model(), eager(Speculation::Off), request());
            for options in [eager(up_to(7)), EngineOptions { speculation: up_to(7), ..engine_options() }] {
                let (found, _) = run(fixture.model.model(), options, request());
                assert_eq!(found, expected, "{checkpoint}, case {number}: {:?}", case.options);
            }
        }
    }
}

/// In some formats, the kernels for one row may round differently from the kernels for several rows. Default
/// speculation changes no bits in these formats either.
#[test]
fn default_speculation_changes_no_bits_in_any_format() {
    for format in ["none", "int8", "nf4", "fp4", "q4"] {
        let weights = WeightOptions { quantize: format.parse().unwrap(), ..WeightOptions::default() };
        for checkpoint in ["odd-heads", "idefics1-vector"] {
            let fixture = Fixture::with_weights(checkpoint, weights);
            let mut random = Random(3);
            for reproducible in [false, true] {
                let text = text(&fixture, &mut random);
                let case = copying(&fixture, &text, &mut random);
                let answer = |speculation| {
                    let copier = Box::new(Copier::new(&text, 6));
                    let request = Request { processors: vec![copier], ..fixture.request(&case) };
                    run(fixture.model.model(), EngineOptions { reproducible, ..eager(speculation) }, request)
                };
                let ((expected, steps), (found, fewer)) = (answer(Speculation::Off), answer(Speculation::Exact));
                assert_eq!(found, expected, "{checkpoint}, {format}, {:?}", case.options);
                let long = expected[0].tokens.len() > 12;
                assert!(!(long && reproducible) || fewer < steps, "{checkpoint}, {format}: no step was saved");
            }
        }
    }
}

#[test]
fn speculation_pauses_while_several_answers_run() {
    let fixture = Fixture::new("odd-heads");
    let mut random = Random(9);
    let texts = [0; 3].map(|_| text(&fixture, &mut random));
    let cases = texts.each_ref().map(|text| copying(&fixture, text, &mut random));
    let request = |number: usize| {
        let copier = Box::new(Copier::new(&texts[number], 5));
        Request { processors: vec![copier], ..fixture.request(&cases[number]) }
    };
    let mut engine = Engine::new(fixture.model.model(), eager(up_to(7))).unwrap();
    let tickets = [0, 1, 2].map(|number| {
        let ticket = engine.submit(request(number)).unwrap();
        (0..random.below(9)).for_each(|_| _ = engine.step().unwrap());
        ticket
    });
    while engine.step().unwrap() {}
    for (number, ticket) in tickets.iter().enumerate() {
        let (alone, _) = run(fixture.model.model(), eager(Speculation::Off), request(number));
        assert_eq!(collect(ticket).unwrap(), alone, "request {number}");
    }
}

#[test]
fn a_proposal_that_breaks_the_step_does_not_end_the_answer() {
    let fixture = Fixture::new("odd-heads");
    let model = fixture.model.model();
    let poison = 77;
    let fragile = Fragile::new(model, Trouble::Poison(poison));
    let repeated = [30, 31, 32, 33];
    let ids = [&[1][..], &repeated, &[poison, 40], &repeated, &[41, 42]].concat();
    let options = json!({"max_new_tokens": 9, "eos_token_id": [], "bad_words_ids": [[poison]]});
    let options = serde_json::from_value(options).unwrap();
    let case = Case { ids, images: Vec::new(), tile_tokens: Vec::new(), options, seed: 0 };
    let answer = |options| {
        // The answer copies the part `repeated`. In the prompt, the poison token follows this part, so it is proposed.
        let copier = Box::new(Copier::new(&[30, 31, 32, 33, 50, 51, 52, 53, 54], 1000));
        let mut engine = Engine::new(&fragile, options).unwrap();
        let ids = [&case.ids[..7], &case.ids[11..]].concat();
        let request = fixture.request(&Case { ids, ..case.clone() });
        let ticket = engine.submit(Request { processors: vec![copier], ..request }).unwrap();
        while engine.step().unwrap() {}
        (collect(&ticket).unwrap(), engine.incidents())
    };
    let (expected, incidents) = answer(eager(Speculation::Off));
    assert_eq!((expected[0].tokens.len(), incidents), (9, 0));
    // The answer survives, even if a panic in another step would unwind to the caller.
    for (speculation, isolates_panics) in [(up_to(7), true), (up_to(7), false), (Speculation::Exact, false)] {
        let found = answer(EngineOptions { isolates_panics, ..eager(speculation) });
        assert_eq!(found, (expected.clone(), 0), "{speculation:?}, {isolates_panics}");
    }
}

/// Proposals are not the cause if a processor panics, so this ends the run as it does without speculation.
#[test]
fn a_processor_that_panics_ends_a_run_whose_panics_are_not_isolated() {
    let fixture = Fixture::new("odd-heads");
    let text = [30, 31, 32, 33].repeat(3);
    let options = serde_json::from_value(json!({"max_new_tokens": 9, "eos_token_id": []})).unwrap();
    let ids = [&[1][..], &text].concat();
    let case = Case { ids, images: Vec::new(), tile_tokens: Vec::new(), options, seed: 0 };
    let run = |speculation| {
        let processors: Vec<Box<dyn LogitsProcessor>> =
            vec![Box::new(Copier::new(&text, 1000)), Box::new(Panics { after: 5 })];
        let options = EngineOptions { isolates_panics: false, ..eager(speculation) };
        let mut engine = Engine::new(fixture.model.model(), options).unwrap();
        let ticket = engine.submit(Request { processors, ..fixture.request(&case) }).unwrap();
        let mut steps = 0;
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
            while engine.step().unwrap() {
                steps += 1;
            }
        }));
        let message = *ended.unwrap_err().downcast::<&str>().unwrap();
        assert!(matches!(ticket.try_next(), Some(Event::Admitted { .. })));
        (message, steps)
    };
    let (off, on) = (run(Speculation::Off), run(up_to(7)));
    assert_eq!([off.0, on.0], ["the processor panics"; 2]);
    assert!(on.1 < off.1, "the processor did not panic in a step that verifies proposals");
}

/// The time of a step that verifies proposals counts once, as decoding. A step that also compares the bits counts both
/// of its runs, because the caller waits for both.
#[test]
fn time_of_verification_counts_as_decoding() {
    let delay = Duration::from_millis(20);
    let fixture = Fixture::new("odd-heads");
    let slow = Fragile::new(fixture.model.model(), Trouble::Delay(delay));
    let text = [30, 31, 32, 33].repeat(3);
    let options = serde_json::from_value(json!({"max_new_tokens": 20, "eos_token_id": []})).unwrap();
    let case = Case { ids: text.clone(), images: Vec::new(), tile_tokens: Vec::new(), options, seed: 0 };
    for (speculation, runs) in [(up_to(7), 1), (Speculation::Exact, 2)] {
        let copier = Box::new(Copier::new(&text, 1000));
        let mut engine = Engine::new(&slow, eager(speculation)).unwrap();
        let request = Request { processors: vec![copier], ..fixture.request(&case) };
        let ticket = engine.submit(request).unwrap();
        let (mut steps, mut longest) = (0, 0.0_f64);
        loop {
            let (before, clock) = (engine.timings(), Instant::now());
            if !engine.step().unwrap() {
                break;
            }
            let (after, took) = (engine.timings(), clock.elapsed().as_secs_f64() * 1e3);
            let decode = after.decode_ms - before.decode_ms;
            if after.prefill_ms > before.prefill_ms {
                assert_eq!(decode, 0.0);
            } else {
                let least = delay.as_secs_f64() * 1e3;
                assert!((least..=took).contains(&decode), "step {steps}: {decode} of {took} ms");
                longest = longest.max(decode);
            }
            steps += 1;
        }
        let n_tokens = collect(&ticket).unwrap()[0].tokens.len();
        assert!(n_tokens == 20 && steps < n_tokens, "{steps} steps");
        assert!(longest >= f64::from(runs) * delay.as_secs_f64() * 1e3, "{longest} ms");
    }
}

/// Draws the second and third token with and without speculation, with different seeds, and compares their frequencies.
#[test]
fn sampled_tokens_have_the_same_distribution() {
    const DRAWS: u64 = 1500;
    let fixture = Fixture::new("odd-heads");
    let options: GenerationConfig = serde_json::from_value(json!({
        "max_new_tokens": 3, "eos_token_id": [], "do_sample": true, "top_k": 3, "temperature": 1.5,
    }))
    .unwrap();
    let text: Vec<u32> = [20, 21, 22].repeat(6);
    let ids = [&[1], &text[..]].concat();
    let case = Case { ids, images: Vec::new(), tile_tokens: Vec::new(), options, seed: 0 };
    let mut engines = [up_to(7), Speculation::Off, Speculation::Off].map(|speculation| {
        let mut options = eager(speculation);
        options.prefix_cache = false;
        Engine::new(fixture.model.model(), options).unwrap()
    });
    let mut steps = [0; 3];
    let mut draw = |index: usize, seed: u64| {
        let copier = Box::new(HalfCopier);
        let request = Request { processors: vec![copier], seed, logprobs: None, ..fixture.request(&case) };
        let ticket = engines[index].submit(request).unwrap();
        while engines[index].step().unwrap() {
            steps[index] += 1;
        }
        collect(&ticket).unwrap().remove(0).tokens
    };
    let mut counts: BTreeMap<(usize, u32), [f64; 2]> = BTreeMap::new();
    for seed in 0..DRAWS {
        let (with, without) = (draw(0, seed), draw(1, DRAWS + seed));
        if seed < 100 {
            assert_eq!(with, draw(2, seed), "seed {seed}");
        }
        for place in [1, 2] {
            counts.entry((place, with[place])).or_default()[0] += 1.0;
            counts.entry((place, without[place])).or_default()[1] += 1.0;
        }
    }
    assert!(50 * steps[0] < 49 * steps[1], "{steps:?}");
    for place in [1, 2] {
        let rows: Vec<[f64; 2]> =
            counts.iter().filter(|((other, _), _)| *other == place).map(|(_, counts)| *counts).collect();
        // Tokens that are drawn fewer than ten times are counted together.
        let (rare, mut rows): (Vec<[f64; 2]>, Vec<_>) = rows.into_iter().partition(|[a, b]| a + b < 10.0);
        let rest = rare.iter().fold([0.0; 2], |sum, row| [sum[0] + row[0], sum[1] + row[1]]);
        rows.extend((rest[0] + rest[1] >= 10.0).then_some(rest));
        let chi_square: f64 = rows.iter().map(|[a, b]| (a - b).powi(2) / (a + b)).sum();
        let freedom = rows.len() as f64 - 1.0;
        assert!(freedom >= 2.0, "{rows:?}");
        // The 99.9 % quantile, by the approximation of Wilson and Hilferty.
        let limit = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
        assert!(chi_square < limit, "token {place}: {chi_square:.1}, the limit is {limit:.1}: {rows:?}");
    }
}

/// Makes the token that continues the period of the prompt about as likely as all others together.
#[derive(Debug)]
struct HalfCopier;

impl LogitsProcessor for HalfCopier {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let next = 20 + (row.input_ids.len() as u32 - 1) % 3;
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores[next as usize] = best + 1.0;
    }
}
