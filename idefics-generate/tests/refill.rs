//! Batches whose rows start as soon as rows of earlier batches have ended.

use idefics_generate::processor::Sample;
use idefics_generate::{Answer, AnswerSink, CancelToken, Controls, Error, FinishReason, GenerationConfig, Idefics};
use serde_json::json;

use crate::common::{load, no_splitting, text_sample};

const QUESTION: &str = "User:<image>What is this?<end_of_utterance>\nAssistant:";

/// Batches with prompts and answers of several lengths. The sample `<image>` without an image is invalid.
fn batches() -> Vec<Vec<Sample>> {
    let hello = |n: usize| text_sample(&format!("User: {}<end_of_utterance>\nAssistant:", "Hello ".repeat(n)), &[]);
    vec![
        vec![hello(1), text_sample(QUESTION, &["tall.png"]), hello(9)],
        vec![],
        vec![hello(2), text_sample("<image>", &[]), text_sample(QUESTION, &["small.png"])],
        vec![text_sample(QUESTION, &["wide.png"])],
        vec![hello(60), hello(3)],
    ]
}

/// The token ids of each answer to a sample, or its error; `None` until it is answered.
type Found = Option<Result<Vec<Vec<u32>>, String>>;

/// Collects the token ids of each sample. Stops after `limit` samples.
struct Sink {
    found: Vec<Vec<Found>>,
    finished: usize,
    limit: usize,
}

impl Sink {
    fn new(limit: usize) -> Self {
        let found = batches().iter().map(|batch| batch.iter().map(|_| None).collect()).collect();
        Self { found, finished: 0, limit }
    }
}

/// A batch with its number.
struct Numbered(usize, Vec<Sample>);

impl AsRef<[Sample]> for Numbered {
    fn as_ref(&self) -> &[Sample] {
        &self.1
    }
}

impl AnswerSink<Numbered> for Sink {
    type Error = FinishReason;

    fn answered(
        &mut self,
        batch: &Numbered,
        sample: usize,
        answers: Result<Vec<Answer>, Error>,
    ) -> Result<(), FinishReason> {
        if let Some(answer) = answers.iter().flatten().find(|answer| answer.finish_reason == FinishReason::Cancelled) {
            return Err(answer.finish_reason);
        }
        let answers = answers.map(|answers| answers.into_iter().map(|answer| answer.token_ids).collect());
        let answers = answers.map_err(|error| error.to_string());
        assert!(self.found[batch.0][sample].replace(answers).is_none(), "the sample was answered twice");
        self.limit -= 1;
        if self.limit == 0 { Err(FinishReason::Length) } else { Ok(()) }
    }

    fn finished(&mut self, batch: Numbered) -> Result<(), FinishReason> {
        assert_eq!(batch.0, self.finished, "batches come back in order");
        assert!(self.found[batch.0].iter().all(Option::is_some));
        self.finished += 1;
        Ok(())
    }
}

fn run(
    model: &Idefics,
    rows: usize,
    options: &GenerationConfig,
    cancel: &CancelToken,
    limit: usize,
) -> (Sink, Result<(), FinishReason>) {
    let mut sink = Sink::new(limit);
    let all = batches().into_iter().enumerate().map(|(number, batch)| Numbered(number, batch));
    let settings = || (options.clone(), Controls { seed: 5, cancel: cancel.clone(), ..Controls::default() });
    let result = model.answer_batches(all, &no_splitting(), rows, settings, &mut sink);
    (sink, result)
}

#[test]
fn refilled_rows_have_the_answers_of_their_batches() {
    for checkpoint in ["odd-heads", "sliding-sharded"] {
        let model = load(checkpoint);
        for options in [
            json!({"max_new_tokens": 9, "eos_token_id": [2, 60, 120, 180]}),
            json!({"max_length": 80, "do_sample": true, "top_k": 0, "num_return_sequences": 2}),
            json!({"max_new_tokens": 5, "num_beams": 2}),
        ] {
            let options: GenerationConfig = serde_json::from_value(options).unwrap();
            for rows in [1, 2, 8] {
                let (sink, result) = run(&model, rows, &options, &CancelToken::default(), usize::MAX);
                assert_eq!((result, sink.finished), (Ok(()), batches().len()));
                for (batch, found) in batches().iter().zip(&sink.found) {
                    let controls = || Controls { seed: 5, ..Controls::default() };
                    let expected = |samples: &[Sample]| {
                        let answers = model.generate(samples, &no_splitting(), &options, controls());
                        answers.map(|answers| answers.into_iter().map(|answer| answer.token_ids).collect::<Vec<_>>())
                    };
                    let together = expected(batch);
                    for (sample, found) in found.iter().enumerate() {
                        let n = options.num_return_sequences();
                        let expected = match &together {
                            Ok(answers) => Ok(answers[sample * n..(sample + 1) * n].to_vec()),
                            Err(_) => expected(&batch[sample..=sample]).map_err(|error| error.to_string()),
                        };
                        assert_eq!(found.as_ref(), Some(&expected), "{checkpoint}, {rows} rows, {options:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn work_stops_when_the_sink_fails_or_is_cancelled() {
    let model = load("odd-heads");
    let options = GenerationConfig { max_new_tokens: Some(4), ..GenerationConfig::default() };
    let (sink, result) = run(&model, 2, &options, &CancelToken::default(), 3);
    assert_eq!(result, Err(FinishReason::Length));
    assert_eq!(sink.found.iter().flatten().flatten().count(), 3);
    let cancel = CancelToken::default();
    cancel.cancel();
    let (sink, result) = run(&model, 2, &options, &cancel, usize::MAX);
    assert_eq!(result, Err(FinishReason::Cancelled));
    assert_eq!(sink.found.iter().flatten().flatten().count(), 0);
}
