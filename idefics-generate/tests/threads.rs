//! Several threads that generate with the same model at the same time.

use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use burn::tensor::Device;
use idefics_generate::logits::{LogitsProcessor, Row};
use idefics_generate::nn::Activations;
use idefics_generate::processor::Sample;
use idefics_generate::{BackgroundText, CancelToken, Controls, GenerationConfig, Idefics, WeightFormat, WeightOptions};
use serde_json::json;

use crate::common::{no_splitting, picture, text_sample, xtask_folder};

/// Checks at compile time which types can be shared between threads or sent to another thread. `Generation` can be
/// neither; see its documentation.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    const fn sent<T: Send>() {}
    shared::<Idefics>();
    shared::<CancelToken>();
    sent::<BackgroundText>();
    sent::<GenerationConfig>();
};

/// Number of rounds. In each round, both threads start together, and their operations interleave differently.
const ROUNDS: usize = 6;

/// Records the logits of every step without changing them.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<u32>>>);

impl LogitsProcessor for Recorder {
    fn process(&mut self, _: &Row<'_>, scores: &mut [f32]) {
        self.0.lock().unwrap().extend(scores.iter().map(|score| score.to_bits()));
    }
}

/// Returns the text and tokens of an answer, and the bits of the logits of each step.
fn answer(model: &Idefics, sample: &Sample) -> (String, Vec<u32>, Vec<u32>) {
    let options = GenerationConfig { max_new_tokens: Some(12), min_new_tokens: Some(12), ..Default::default() };
    let recorder = Recorder::default();
    let controls = Controls { processors: vec![Box::new(recorder.clone())], ..Controls::default() };
    let answer = model.generate(std::slice::from_ref(sample), &no_splitting(), &options, controls).unwrap().remove(0);
    let logits = std::mem::take(&mut *recorder.0.lock().unwrap());
    (answer.text, answer.token_ids, logits)
}

fn assert_same_on_two_threads(checkpoint: &str, samples: &[Sample; 2]) {
    let formats = [WeightFormat::None, "int8".parse().unwrap(), "q4".parse().unwrap()];
    let mut all: Vec<_> = formats.map(|quantize| WeightOptions { quantize, ..WeightOptions::default() }).into();
    all.push(WeightOptions { activations: Activations::Int8, ..all[1] });
    for weights in all {
        let folder = xtask_folder("checkpoints").join(checkpoint);
        let model = Idefics::from_folder(&folder, &Device::flex(), weights, |_| ()).unwrap();
        model.set_feature_budget(0); // images are encoded every time
        let alone = [0, 1].map(|index| answer(&model, &samples[index]));
        assert_eq!(alone[0].2.len(), 12 * model.model().shape().vocab_size);
        assert_ne!(alone[0].2, alone[1].2, "the samples must give different logits");
        let (start, failures) = (Barrier::new(2), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for first in [0, 1] {
                let (model, alone, start, failures) = (&model, &alone, &start, &failures);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // First each thread runs another sample, then both run the same sample.
                        for index in [(first + round) % 2, round % 2] {
                            start.wait();
                            let found = answer(model, &samples[index]);
                            let (text, ids, logits) = &alone[index];
                            let what = format!("{checkpoint}, {weights:?}, round {round}, sample {index}");
                            // A panic here would leave the other thread waiting forever at the barrier.
                            let is_same = found.0 == *text && found.1 == *ids && found.2 == *logits;
                            failures.lock().unwrap().extend((!is_same).then_some(what));
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap();
        assert!(failures.is_empty(), "{failures:#?}");
    }
}

#[test]
fn idefics2_on_two_threads_matches_one() {
    let question = "User:<image>and<image>What is this?<end_of_utterance>\nAssistant:";
    let samples = [
        text_sample(question, &["wide.png", "tall.png"]),
        text_sample("User: Describe this.<image><end_of_utterance>\nAssistant:", &["small.png"]),
    ];
    assert_same_on_two_threads("odd-heads", &samples);
}

#[test]
fn idefics1_on_two_threads_matches_one() {
    let sample = |picture_name: &str, text: &str| -> Sample {
        serde_json::from_value(json!({"prompt": ["User:", {"image": picture(picture_name)}, text]})).unwrap()
    };
    assert_same_on_two_threads("idefics1-vector", &[sample("wide.png", "What is this?"), sample("tall.png", "Why?")]);
}
