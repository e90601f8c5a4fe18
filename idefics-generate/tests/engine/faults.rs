//! A request that fails does not change the answers of others.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{Device, Int, Tensor};
use idefics_generate::engine::{Engine, EngineError, EngineOptions, Prompt, Request, Ticket, Worker};
use idefics_generate::logits::{LogitsProcessor, Row};
use idefics_generate::nn::{KeyValues, KvCache};
use idefics_generate::text::{DecoderObserver, DecoderStack, PositionRules, Positions};
use idefics_generate::{
    Error, FinishReason, ImageBatch, ImageVectors, InputError, Model, ModelShape, Prompts, StepwiseEncoder,
};
use serde_json::json;

use super::common::{Case, Fixture, Force, Random, collect, engine_options};
use crate::common::load;

/// A model whose decode steps have some trouble.
#[derive(Debug)]
pub(crate) struct Fragile<'m>(pub(crate) &'m dyn Model, pub(crate) FragileDecoder<'m>);

#[derive(Debug)]
pub(crate) struct FragileDecoder<'m>(pub(crate) &'m dyn DecoderStack, pub(crate) Trouble);

#[derive(Debug)]
pub(crate) enum Trouble {
    /// A step that reads this token panics.
    Poison(u32),
    /// A step waits for this time.
    Delay(Duration),
}

impl<'m> Fragile<'m> {
    pub(crate) fn new(model: &'m dyn Model, trouble: Trouble) -> Self {
        Self(model, FragileDecoder(model.decoder(), trouble))
    }
}

impl DecoderStack for FragileDecoder<'_> {
    fn n_layers(&self) -> usize {
        self.0.n_layers()
    }

    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        if input_ids.dims()[1] == 1 {
            match self.1 {
                Trouble::Poison(poison) => {
                    let ids: Vec<i64> = input_ids.to_data().iter::<i64>().collect();
                    assert!(!ids.contains(&i64::from(poison)), "the poison was read");
                }
                Trouble::Delay(delay) => std::thread::sleep(delay),
            }
        }
        self.0.embed(input_ids)
    }

    fn layers(
        &self,
        layers: std::ops::Range<usize>,
        hidden_states: Tensor<3>,
        positions: &Positions,
        key_values: &mut dyn KeyValues,
        observer: &mut dyn DecoderObserver,
    ) -> Tensor<3> {
        self.0.layers(layers, hidden_states, positions, key_values, observer)
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn position_rules(&self) -> &PositionRules {
        self.0.position_rules()
    }
}

impl Model for Fragile<'_> {
    fn shape(&self) -> &ModelShape {
        self.0.shape()
    }

    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        self.0.vision(images)
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        self.0.begin(prompts, image_hidden_states, cache)
    }

    fn decoder(&self) -> &dyn DecoderStack {
        &self.1
    }

    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.0.logits(hidden_states)
    }
}

#[derive(Debug)]
pub(crate) struct Panics {
    pub(crate) after: usize,
}

impl LogitsProcessor for Panics {
    fn process(&mut self, row: &Row<'_>, _: &mut [f32]) {
        assert!(row.n_generated() != self.after, "the processor panics");
    }
}

fn cases(fixture: &Fixture) -> Vec<Case> {
    let mut random = Random(21);
    (0..5).map(|_| fixture.case(&mut random)).collect()
}

/// Runs [`cases`] together with requests that have these processors. Returns the errors of the latter requests.
fn run_beside(fixture: &Fixture, model: &dyn Model, processors: Vec<Box<dyn LogitsProcessor>>) -> Vec<Error> {
    let cases = cases(fixture);
    let mut engine = Engine::new(model, engine_options()).unwrap();
    let mut bad: Vec<Ticket> = Vec::new();
    for processor in processors {
        let mut case = cases[bad.len()].clone();
        case.options = serde_json::from_value(json!({"max_new_tokens": 20, "eos_token_id": []})).unwrap();
        let request = Request { processors: vec![processor], ..fixture.request(&case) };
        bad.push(engine.submit(request).unwrap());
    }
    let good: Vec<Ticket> = cases.iter().map(|case| engine.submit(fixture.request(case)).unwrap()).collect();
    while engine.step().unwrap() {}
    for (case, ticket) in cases.iter().zip(&good) {
        assert_eq!(collect(ticket).unwrap(), fixture.alone(case), "{:?}", case.options);
    }
    assert_eq!((engine.counts().pages.owned, engine.counts().pages.reserved), (0, 0));
    bad.iter().map(|ticket| collect(ticket).unwrap_err()).collect()
}

#[test]
fn rows_that_fail_end_only_their_own_requests() {
    let fixture = Fixture::new("odd-heads");
    let processors: Vec<Box<dyn LogitsProcessor>> = vec![
        Box::new(Force { after: 0, id: None }),
        Box::new(Force { after: 3, id: None }),
        Box::new(Panics { after: 2 }),
    ];
    let errors = run_beside(&fixture, fixture.model.model(), processors);
    assert!(matches!(errors[0], Error::NonFinite { row: 0, n_tokens: 0 }), "{errors:?}");
    assert!(matches!(errors[1], Error::NonFinite { row: 0, n_tokens: 3 }), "{errors:?}");
    assert!(errors[2].to_string().contains("the processor panics"), "{errors:?}");
}

#[test]
fn a_step_that_panics_fails_only_the_rows_that_cause_it() {
    let fixture = Fixture::new("odd-heads");
    let model = fixture.model.model();
    let answers: Vec<_> = cases(&fixture).iter().flat_map(|case| fixture.alone(case)).collect();
    let poison = (10..).find(|id| answers.iter().all(|answer| !answer.tokens.contains(id))).unwrap();
    let fragile = Fragile::new(model, Trouble::Poison(poison));
    let poison = |after| -> Box<dyn LogitsProcessor> { Box::new(Force { after, id: Some(poison) }) };
    let errors = run_beside(&fixture, &fragile, vec![poison(1), poison(4), poison(1)]);
    assert!(errors.iter().all(|error| error.to_string().contains("the poison was read")), "{errors:?}");
}

#[test]
fn invalid_requests_are_refused_or_fail_alone() {
    let fixture = Fixture::new("odd-heads");
    let mut random = Random(2);
    let case = fixture.case(&mut random);
    let mut engine = Engine::of(&fixture.model, EngineOptions { pages: 8, ..engine_options() }).unwrap();
    let with = |options| Case { options: serde_json::from_value(options).unwrap(), ..case.clone() };
    let error = engine.submit(fixture.request(&with(json!({"max_new_tokens": 5000})))).unwrap_err();
    assert!(matches!(error, Error::Engine(EngineError::Refused(_))), "{error}");
    let error = engine.submit(fixture.request(&with(json!({"num_beams": 2})))).unwrap_err();
    assert!(error.to_string().contains("num_beams"), "{error}");
    // An id outside the vocabulary is found when the prompt begins.
    let wrong = Case { ids: vec![1, 100_000], images: Vec::new(), tile_tokens: Vec::new(), ..case.clone() };
    let (wrong, right) = (engine.submit(fixture.request(&wrong)).unwrap(), engine.submit(fixture.request(&case)));
    while engine.step().unwrap() {}
    assert!(matches!(collect(&wrong), Err(Error::Input(InputError::TokenId { id: 100_000, .. }))));
    assert_eq!(collect(&right.unwrap()).unwrap(), fixture.alone(&case));
}

#[test]
fn a_worker_answers_other_threads_and_can_be_drained() {
    let fixture = Fixture::new("odd-heads");
    let mut random = Random(31);
    let cases: Vec<Case> = (0..6).map(|_| fixture.case(&mut random)).collect();
    let worker = Worker::start(|| Ok(Arc::new(load("odd-heads"))), |_| engine_options()).unwrap();
    let image_token_id = fixture.model.processor().tokenizer().image_token_id();
    std::thread::scope(|scope| {
        for case in &cases {
            let (worker, fixture) = (&worker, &fixture);
            scope.spawn(move || {
                let prompts = fixture.prompts(case);
                let prompt =
                    Prompt::of_row(&prompts, 0, case.images.clone(), &case.tile_tokens, image_token_id).unwrap();
                let request =
                    Request { seed: case.seed, logprobs: Some(2), ..Request::new(prompt, case.options.clone()) };
                let mut ticket = worker.submit(request).unwrap();
                let tokens: Vec<u32> = ticket
                    .by_ref()
                    .filter_map(|event| match event {
                        idefics_generate::engine::Event::Tokens { answer: 0, tokens, .. } => Some(tokens),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                assert_eq!(tokens, fixture.alone(case)[0].tokens);
            });
        }
    });
    let pulse = worker.pulse();
    assert!(pulse.is_running && pulse.steps > 0 && pulse.incidents == 0, "{pulse:?}");
    // Requests that run when the worker is drained end normally; new requests are refused.
    let long = Case {
        options: serde_json::from_value(json!({"max_new_tokens": 60, "eos_token_id": []})).unwrap(),
        ..cases[0].clone()
    };
    let submit = |case: &Case| {
        let prompts = fixture.prompts(case);
        let prompt = Prompt::of_row(&prompts, 0, case.images.clone(), &case.tile_tokens, image_token_id).unwrap();
        worker.submit(Request::new(prompt, case.options.clone()))
    };
    let ticket = submit(&long).unwrap();
    worker.drain(Duration::from_secs(600));
    assert_eq!(collect(&ticket).unwrap()[0].finish, Some(FinishReason::Length));
    let error = submit(&long).unwrap_err();
    assert!(matches!(error, Error::Engine(EngineError::Stopped)), "{error}");
    assert!(!worker.pulse().is_running);
}
