//! Preparation of samples while other samples are answered.

use idefics_generate::processor::Sample;
use idefics_generate::{Error, Idefics};

use crate::common::{SAME, difference, greedy, load, never, next_logits, no_splitting, text_sample};

const QUESTION: &str = "User:<image>What is this?<end_of_utterance>\nAssistant:";

fn batches() -> Vec<Vec<Sample>> {
    vec![
        vec![text_sample(QUESTION, &["wide.png"]), text_sample(QUESTION, &["tall.png"])],
        vec![text_sample("User: Hello<end_of_utterance>\nAssistant:", &[])],
        vec![text_sample(QUESTION, &["small.png"])],
    ]
}

fn answers(model: &Idefics, samples: &[Sample]) -> Vec<String> {
    let answers = model.generate(samples, &no_splitting(), &greedy(6), never()).unwrap();
    answers.into_iter().map(|answer| answer.text).collect()
}

#[test]
fn answers_are_in_order_and_unchanged() {
    let model = load("odd-heads");
    let mut found = Vec::new();
    let all = model.prepare_ahead(batches(), &no_splitting(), |batch, prepared| {
        let answers = prepared?.generate(&greedy(6), never())?;
        assert_eq!(answers.len(), batch.len());
        found.push(answers.into_iter().map(|answer| answer.text).collect::<Vec<_>>());
        Ok::<_, Error>(())
    });
    all.unwrap();
    assert_eq!(found, batches().iter().map(|batch| answers(&model, batch)).collect::<Vec<_>>());
}

#[test]
fn unreadable_batch_does_not_affect_others() {
    let model = load("odd-heads");
    let mut batches = batches();
    batches[1] = vec![text_sample(QUESTION, &["gone.png"])];
    let mut found = Vec::new();
    let all = model.prepare_ahead(batches, &no_splitting(), |_, prepared| {
        found.push(prepared.and_then(|prepared| prepared.generate(&greedy(2), never())).is_ok());
        Ok::<_, Error>(())
    });
    all.unwrap();
    assert_eq!(found, [true, false, true]);
}

#[test]
fn stops_at_first_error_of_an_answer() {
    let model = load("odd-heads");
    let mut calls = 0;
    let endless = std::iter::repeat_with(|| batches().remove(1));
    let error = model.prepare_ahead(endless, &no_splitting(), |_, _| {
        calls += 1;
        if calls == 3 { Err("enough") } else { Ok(()) }
    });
    assert_eq!((error, calls), (Err("enough"), 3));
}

#[test]
fn only_a_single_sample_can_be_streamed() {
    let model = load("odd-heads");
    let prepared = model.prepare(&batches()[0], &no_splitting()).unwrap();
    let error = prepared.stream(&greedy(2), never()).unwrap_err();
    assert!(error.to_string().contains("several samples"), "{error}");
    let prepared = model.prepare(&batches()[2], &no_splitting()).unwrap();
    let text = prepared.generate_streaming(&greedy(6), never(), |_| ()).unwrap().text;
    assert_eq!([text], *answers(&model, &batches()[2]));
}

#[test]
fn last_logits_match_next_token_logits() {
    let model = load("odd-heads");
    let samples = &batches()[0];
    let (prompts, logits) = model.prepare(samples, &no_splitting()).unwrap().logits().unwrap();
    let seq = prompts.seq();
    assert!(difference(logits.narrow(1, seq - 1, 1).squeeze_dim(1), next_logits(&model, samples)) <= SAME);
}
