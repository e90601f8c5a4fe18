//! Requests alone, in company, and as a `Generation`.

use idefics_generate::engine::scheduler::Policy;
use idefics_generate::engine::{Engine, EngineOptions, Event, Ticket};
use idefics_generate::{CancelToken, FinishReason, GenerationConfig, WeightOptions};
use serde_json::json;

use super::common::{CHUNK, Case, Fixture, Random, collect, engine_options};
use crate::common::{SAME, picture};

/// Checkpoints of all families, with a sliding window and with rotary angles that depend on the length.
const CHECKPOINTS: [&str; 7] = [
    "odd-heads",
    "sliding-sharded",
    "rope-dynamic",
    "tiny-idefics3",
    "tiny-smolvlm",
    "idefics1-vector",
    "idefics1-float",
];

/// Number of random requests of each checkpoint.
const REQUESTS: usize = 12;

#[test]
fn answers_are_the_same_alone_and_in_company() {
    for checkpoint in CHECKPOINTS {
        let fixture = Fixture::new(checkpoint);
        let mut random = Random(1);
        let cases: Vec<Case> = (0..REQUESTS).map(|_| fixture.case(&mut random)).collect();
        let mut engine = Engine::of(&fixture.model, engine_options()).unwrap();
        let mut tickets: Vec<Ticket> = Vec::new();
        while tickets.len() < cases.len() {
            tickets.push(engine.submit(fixture.request(&cases[tickets.len()])).unwrap());
            for _ in 0..random.below(6) {
                engine.step().unwrap();
            }
        }
        while engine.step().unwrap() {}
        let counts = engine.counts();
        assert_eq!((counts.pages.owned, counts.pages.reserved), (0, 0), "{checkpoint}");
        for (number, (case, ticket)) in cases.iter().zip(&tickets).enumerate() {
            let together = collect(ticket).unwrap();
            let what = format!("{checkpoint}, request {number}: {:?}", case.options);
            assert_eq!(together, fixture.alone(case), "{what}");
            let generation = fixture.generation(case);
            assert_eq!(together.len(), generation.len(), "{what}");
            for (answer, expected) in together.iter().zip(generation) {
                assert_eq!((&answer.tokens, answer.finish), (&expected.tokens, expected.finish), "{what}");
                for (found, expected) in answer.logprobs.iter().zip(&expected.logprobs) {
                    let difference = (found.token.logprob - expected.token.logprob).abs();
                    assert!(difference <= SAME * expected.token.logprob.abs().max(1.0), "{what}: {difference}");
                }
            }
        }
    }
}

/// Tests weight formats with more requests than a step may have rows.
#[test]
fn reproducible_answers_have_the_same_bits_in_every_format() {
    let formats = ["none", "int8", "nf4", "fp4", "q4"]
        .map(|format| WeightOptions { quantize: format.parse().unwrap(), ..WeightOptions::default() });
    for weights in formats {
        for checkpoint in ["odd-heads", "idefics1-vector"] {
            let fixture = Fixture::with_weights(checkpoint, weights);
            let mut random = Random(17);
            let cases: Vec<Case> = (0..10).map(|_| fixture.case(&mut random)).collect();
            let options = EngineOptions { reproducible: true, pages: 200, ..engine_options() };
            let options = EngineOptions { policy: Policy { max_batch: 64, ..options.policy.clone() }, ..options };
            let mut engine = Engine::of(&fixture.model, options.clone()).unwrap();
            let tickets: Vec<Ticket> = cases.iter().map(|case| engine.submit(fixture.request(case)).unwrap()).collect();
            while engine.step().unwrap() {}
            for (case, ticket) in cases.iter().zip(&tickets) {
                let alone = fixture.alone_with(case, options.clone());
                assert_eq!(collect(ticket).unwrap(), alone, "{checkpoint}, {weights:?}, {:?}", case.options);
            }
        }
    }
}

#[test]
fn known_chunks_change_nothing() {
    for checkpoint in CHECKPOINTS {
        let fixture = Fixture::new(checkpoint);
        let mut random = Random(7);
        let images = [picture("wide.png"), picture("small.png")];
        let shown = fixture.prompt_with(&images);
        let mut engine = Engine::of(&fixture.model, engine_options()).unwrap();
        for before in [CHUNK - 3, CHUNK, 3 * CHUNK] {
            // Some images lie across the end of a chunk, and others begin at or after it.
            let mut ids: Vec<u32> = (0..before as u32).map(|place| 20 + (place * 7 + before as u32) % 200).collect();
            ids.extend(&shown.ids);
            ids.extend((0..5).map(|_| 30 + random.below(100) as u32));
            let options = GenerationConfig { max_new_tokens: Some(6), ..GenerationConfig::default() };
            let case = Case { ids, options, ..shown.clone() };
            let mut cached = Vec::new();
            for _ in 0..2 {
                let ticket = engine.submit(fixture.request(&case)).unwrap();
                while engine.step().unwrap() {}
                assert!(matches!(ticket.try_next(), Some(Event::Admitted { .. })));
                match ticket.try_next() {
                    Some(Event::Begun { cached_tokens }) => cached.push(cached_tokens),
                    other => panic!("{other:?}"),
                }
                assert_eq!(collect(&ticket).unwrap(), fixture.alone(&case), "{checkpoint}, {before}");
            }
            let whole = (case.ids.len() - 1) / CHUNK * CHUNK;
            assert_eq!(cached, [0, whole], "{checkpoint}, {before}");
        }
    }
}

#[test]
fn number_of_layers_of_a_slice_changes_nothing() {
    for checkpoint in ["odd-heads", "tiny-smolvlm", "idefics1-vector"] {
        let fixture = Fixture::new(checkpoint);
        let mut random = Random(3);
        let cases: Vec<Case> = (0..6).map(|_| fixture.case(&mut random)).collect();
        let all = [0, 1_000_000_000].map(|slice_floor| {
            let policy = Policy { slice_floor, decode_share: 0.999, ..engine_options().policy };
            let options = EngineOptions { policy, ..engine_options() };
            let mut engine = Engine::of(&fixture.model, options).unwrap();
            let tickets: Vec<Ticket> = cases.iter().map(|case| engine.submit(fixture.request(case)).unwrap()).collect();
            let mut steps = 0;
            while engine.step().unwrap() {
                steps += 1;
            }
            (tickets.iter().map(|ticket| collect(ticket).unwrap()).collect::<Vec<_>>(), steps)
        });
        assert_eq!(all[0].0, all[1].0, "{checkpoint}");
        assert!(all[0].1 > all[1].1, "{checkpoint}: slices of one layer take more steps");
    }
}

#[test]
fn a_request_can_be_cancelled_in_any_state() {
    let fixture = Fixture::new("odd-heads");
    let mut random = Random(11);
    let mut cases: Vec<Case> = (0..3).map(|_| fixture.case(&mut random)).collect();
    cases[1].options = serde_json::from_value(json!({"max_new_tokens": 9, "eos_token_id": []})).unwrap();
    let alone: Vec<_> = cases.iter().map(|case| fixture.alone(case)).collect();
    for step in 0.. {
        let mut engine = Engine::of(&fixture.model, engine_options()).unwrap();
        let cancel = CancelToken::default();
        let tickets = [0, 1, 2].map(|number| {
            let mut request = fixture.request(&cases[number]);
            if number == 1 {
                request.cancel = cancel.clone();
            }
            engine.submit(request).unwrap()
        });
        let mut n_steps = 0;
        while n_steps < step && engine.step().unwrap() {
            n_steps += 1;
        }
        let is_over = n_steps < step;
        let [first, second, third] = tickets;
        let second = match step % 2 {
            0 => {
                cancel.cancel();
                Some(second)
            }
            _ => {
                drop(second);
                None
            }
        };
        while engine.step().unwrap() {}
        assert_eq!(collect(&first).unwrap(), alone[0]);
        assert_eq!(collect(&third).unwrap(), alone[2]);
        if let Some(second) = second {
            let answer = collect(&second).unwrap().remove(0);
            assert!(alone[1][0].tokens.starts_with(&answer.tokens));
            let has_ended = answer.tokens.len() == 9;
            let expected = if has_ended { FinishReason::Length } else { FinishReason::Cancelled };
            assert_eq!(answer.finish, Some(expected), "after {step} steps");
        }
        assert_eq!((engine.counts().pages.owned, engine.counts().pages.reserved), (0, 0));
        if is_over {
            assert!(step > 10, "the requests took {n_steps} steps");
            break;
        }
    }
}

#[test]
fn requests_wait_for_memory() {
    let fixture = Fixture::new("odd-heads");
    let mut random = Random(5);
    let cases: Vec<Case> = (0..8).map(|_| fixture.case(&mut random)).collect();
    let pages = |case: &Case| {
        let tokens = case.options.max_new_tokens.unwrap();
        EngineOptions::pages_of(case.ids.len(), tokens, case.options.num_return_sequences())
    };
    let options = EngineOptions { pages: cases.iter().map(pages).max().unwrap(), ..engine_options() };
    let mut engine = Engine::of(&fixture.model, options).unwrap();
    let tickets: Vec<Ticket> = cases.iter().map(|case| engine.submit(fixture.request(case)).unwrap()).collect();
    while engine.step().unwrap() {}
    for (case, ticket) in cases.iter().zip(&tickets) {
        assert_eq!(collect(ticket).unwrap(), fixture.alone(case));
    }
}
