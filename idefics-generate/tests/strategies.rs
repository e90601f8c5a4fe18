//! Generation strategies with a model: how their results agree, how much memory they need, and how they end.

use std::time::Duration;

use burn::tensor::DType;
use idefics_generate::logits::{LogitsProcessor, Row};
use idefics_generate::nn::KvCache;
use idefics_generate::processor::Sample;
use idefics_generate::{Answer, CancelToken, Controls, Error, FinishReason, GenerationConfig, Idefics, RankOptions};
use serde_json::{Value, json};

use crate::common::{greedy, load, never, no_splitting, text_sample};
use crate::memory::peak;

fn options(value: Value) -> GenerationConfig {
    serde_json::from_value(value).unwrap()
}

fn samples() -> [Sample; 3] {
    [
        text_sample("User:<image>What is this?<end_of_utterance>\nAssistant:", &["wide.png"]),
        text_sample("User: Hello<end_of_utterance>\nAssistant:", &[]),
        text_sample("<image>and<image>Compare these.", &["small.png", "tall.png"]),
    ]
}

fn tokens(answers: &[Answer]) -> Vec<Vec<u32>> {
    answers.iter().map(|answer| answer.token_ids.clone()).collect()
}

fn run(model: &Idefics, samples: &[Sample], options: &GenerationConfig, seed: u64) -> Vec<Answer> {
    let controls = Controls { seed, ..Controls::default() };
    model.generate(samples, &no_splitting(), options, controls).unwrap()
}

/// A logits processor without effect. It forces the scores to be read back to the host.
#[derive(Debug)]
struct Nothing;

impl LogitsProcessor for Nothing {
    fn process(&mut self, _row: &Row<'_>, _scores: &mut [f32]) {}
}

/// Allows only one token in every step after the first `after` tokens.
#[derive(Debug)]
struct Force {
    after: usize,
    id: usize,
}

impl LogitsProcessor for Force {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_generated() >= self.after {
            for (_, score) in scores.iter_mut().enumerate().filter(|(id, _)| *id != self.id) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

#[test]
fn greedy_search_on_device_matches_host() {
    let model = load("odd-heads");
    let options = options(json!({"max_new_tokens": 16, "bad_words_ids": [[20], [30, 31], [32, 33, 34]]}));
    let device = model.generate(&samples(), &no_splitting(), &options, never()).unwrap();
    let controls = Controls { processors: vec![Box::new(Nothing)], ..Controls::default() };
    let host = model.generate(&samples(), &no_splitting(), &options, controls).unwrap();
    assert_eq!(tokens(&device), tokens(&host));
}

#[test]
fn answers_do_not_depend_on_batch() {
    let model = load("odd-heads");
    for value in [
        json!({"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}),
        json!({"do_sample": true, "temperature": 1.3, "num_return_sequences": 3, "max_new_tokens": 8}),
        json!({"do_sample": true, "num_beams": 2, "max_new_tokens": 8}),
    ] {
        let options = options(value);
        let n = options.num_return_sequences();
        let together = run(&model, &samples(), &options, 7);
        assert_eq!(together.len(), 3 * n);
        for (row, sample) in samples().into_iter().enumerate() {
            let alone = run(&model, &[sample], &options, 7);
            assert_eq!(tokens(&alone), tokens(&together[row * n..(row + 1) * n]), "{options:?}, row {row}");
            for (alone, together) in alone.iter().zip(&together[row * n..]) {
                let difference = alone.score.unwrap_or(0.0) - together.score.unwrap_or(0.0);
                assert!(difference.abs() <= 1e-5, "{difference}");
            }
        }
    }
}

#[test]
fn same_seed_gives_same_answer() {
    let model = load("odd-heads");
    let options = options(json!({"do_sample": true, "top_k": 0, "temperature": 2.0, "max_new_tokens": 12,
        "num_return_sequences": 2}));
    let first = tokens(&run(&model, &samples()[..1], &options, 1));
    assert_eq!(first, tokens(&run(&model, &samples()[..1], &options, 1)));
    assert_ne!(first, tokens(&run(&model, &samples()[..1], &options, 2)));
    assert_ne!(first[0], first[1], "the answers of a sample must differ");
}

#[test]
fn beam_scores_are_sorted_and_match_log_likelihoods() {
    let model = load("odd-heads");
    let beams = |n: usize| {
        let options = options(json!({"num_beams": n, "max_new_tokens": 6, "length_penalty": 1.0,
            "eos_token_id": [], "num_return_sequences": n}));
        run(&model, &samples()[..1], &options, 0)
    };
    let four = beams(4);
    let scores: Vec<f32> = four.iter().map(|answer| answer.score.unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| score.is_finite()));
    // A score is the mean log-probability of the answer's tokens. A single forward pass gives the same value.
    let processed = model.processor().process(&samples()[..1], &no_splitting()).unwrap();
    let images: Vec<_> = processed.images.iter().flatten().cloned().collect();
    let prompt = idefics_generate::Prompts::pad_left(&processed.input_ids, 0).unwrap();
    let features = model.model().encode_images(&images).unwrap();
    let scored = model.model().log_likelihoods(&prompt, features, &tokens(&four)).unwrap();
    for (answer, log_likelihood) in four.iter().zip(scored) {
        let mean = log_likelihood / answer.token_ids.len() as f64;
        assert!((mean - f64::from(answer.score.unwrap())).abs() < 1e-4, "{mean} {:?}", answer.score);
    }
}

#[test]
fn four_beams_need_little_more_than_greedy_search() {
    let model = load("odd-heads");
    model.set_feature_budget(0);
    let sample = &samples()[..1];
    let new_tokens = 24;
    let prompt_tokens = run(&model, sample, &greedy(1), 0)[0].usage.prompt_tokens;
    let text = &model.model().shape().text;
    let cache = |slots: usize| {
        let head_dim = text.hidden_size / text.num_attention_heads;
        let kv_heads = text.num_key_value_heads.unwrap_or(text.num_attention_heads);
        KvCache::bytes(text.num_hidden_layers, 1, kv_heads, slots, head_dim, DType::F32)
    };
    let need = |options: &GenerationConfig| peak(|| drop(run(&model, sample, options, 0)));
    let greedy_need = need(&greedy(new_tokens)) - cache(prompt_tokens + new_tokens - 1);
    let four = options(json!({"num_beams": 4, "max_new_tokens": new_tokens, "eos_token_id": []}));
    let beams_need = need(&four) - cache(prompt_tokens + 4 * (new_tokens - 1));
    assert!(
        beams_need as f64 <= 1.3 * greedy_need as f64,
        "four beams took {beams_need} bytes beyond their cache, greedy search {greedy_need}"
    );
}

#[test]
fn stop_string_ends_answer_and_is_kept() {
    let model = load("odd-heads");
    let free = run(&model, &samples()[1..2], &greedy(20), 0).remove(0);
    // Incomplete characters are shown as U+FFFD and cannot be part of a stop string.
    let mut words = free.text.split(|character: char| !character.is_ascii_alphabetic());
    let stop = words.find(|word| word.len() >= 2).expect("a word of two letters");
    let stopping = options(json!({"max_new_tokens": 20, "stop_strings": [stop]}));
    let answer = run(&model, &samples()[1..2], &stopping, 0).remove(0);
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert!(answer.text.contains(stop) && answer.token_ids.len() < free.token_ids.len());
    assert_eq!(free.token_ids[..answer.token_ids.len()], answer.token_ids);
}

#[test]
fn stop_strings_end_beams() {
    let model = load("odd-heads");
    let stop = model.processor().tokenizer().decode(&[352], true).unwrap();
    let options = options(json!({"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 9, "eos_token_id": [],
        "stop_strings": [stop]}));
    let controls = Controls { processors: vec![Box::new(Force { after: 2, id: 352 })], ..Controls::default() };
    let answers = model.generate(&samples()[1..2], &no_splitting(), &options, controls).unwrap();
    assert_eq!(answers.len(), 2);
    for answer in &answers {
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        assert!(answer.text.contains(&stop) && answer.token_ids.len() <= 3, "{answer:?}");
    }
}

#[test]
fn max_time_ends_answer_with_next_token() {
    let model = load("odd-heads");
    for value in
        [json!({"max_time": 0.0, "max_new_tokens": 50}), json!({"max_time": 0.0, "max_new_tokens": 50, "num_beams": 2})]
    {
        let answers = run(&model, &samples(), &options(value), 0);
        assert!(answers.iter().all(|answer| answer.token_ids.len() == 1));
        assert!(answers.iter().all(|answer| answer.finish_reason == FinishReason::Time), "{answers:?}");
    }
}

#[test]
fn custom_processor_runs_last() {
    let model = load("odd-heads");
    for beams in [1, 3] {
        let controls = Controls { processors: vec![Box::new(Force { after: 2, id: 99 })], ..Controls::default() };
        let options = options(json!({"max_new_tokens": 5, "num_beams": beams}));
        let answer = model.generate(&samples()[..1], &no_splitting(), &options, controls).unwrap().remove(0);
        assert_eq!(answer.token_ids[2..], [99, 99, 99]);
    }
}

#[test]
fn log_probabilities_ignore_logits_processors() {
    let model = load("odd-heads");
    let controls = || Controls { logprobs: Some(3), prompt_logprobs: true, ..Controls::default() };
    let options = options(json!({"max_new_tokens": 6, "eos_token_id": [], "repetition_penalty": 1.2}));
    let answers = model.generate(&samples(), &no_splitting(), &options, controls()).unwrap();
    for (answer, sample) in answers.iter().zip(samples()) {
        assert_eq!(answer.logprobs.len(), 6);
        for (logprob, &id) in answer.logprobs.iter().zip(&answer.token_ids) {
            assert_eq!((logprob.token.id, logprob.top.len()), (id, 3));
            assert!(logprob.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            assert!(logprob.token.logprob <= logprob.top[0].logprob && logprob.token.logprob < 0.0);
        }
        // Ranking the answer after the prompt must give the same log-probabilities.
        let prompt_logprobs = answer.prompt_logprobs.as_ref().unwrap();
        assert_eq!(prompt_logprobs.len(), answer.usage.prompt_tokens - 1);
        let processed = model.processor().process(&[sample], &no_splitting()).unwrap();
        let images: Vec<_> = processed.images.iter().flatten().cloned().collect();
        let prompt = idefics_generate::Prompts::pad_left(&processed.input_ids, 0).unwrap();
        let features = model.model().encode_images(&images).unwrap();
        let answer_ids = [answer.token_ids.clone()];
        let whole = model.model().log_likelihoods(&prompt, features, &answer_ids).unwrap()[0];
        let sum: f64 = answer.logprobs.iter().map(|logprob| f64::from(logprob.token.logprob)).sum();
        assert!((whole - sum).abs() < 1e-4, "{whole} {sum}");
    }
}

#[test]
fn beam_log_probabilities_sum_to_scores() {
    let model = load("odd-heads");
    for value in [
        json!({"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "length_penalty": 0.0}),
        json!({"num_beams": 2, "max_new_tokens": 6, "length_penalty": 0.0, "eos_token_id": [], "do_sample": true,
            "top_k": 0}),
    ] {
        let options = options(value);
        let controls = Controls { logprobs: Some(2), ..Controls::default() };
        let answers = model.generate(&samples(), &no_splitting(), &options, controls).unwrap();
        assert_eq!(tokens(&answers), tokens(&run(&model, &samples(), &options, 0)));
        for answer in &answers {
            let ids: Vec<u32> = answer.logprobs.iter().map(|logprob| logprob.token.id).collect();
            assert_eq!(ids, answer.token_ids);
            assert!(answer.logprobs.iter().all(|logprob| logprob.top.len() == 2));
            let sum: f32 = answer.logprobs.iter().map(|logprob| logprob.token.logprob).sum();
            assert!((sum - answer.score.unwrap()).abs() < 1e-4, "{sum} {:?}", answer.score);
        }
    }
}

#[test]
fn cancelled_search_returns_partial_answer() {
    let model = load("odd-heads");
    let cancel = CancelToken::default();
    cancel.cancel();
    let options = options(json!({"max_new_tokens": 50, "num_beams": 3}));
    let answer = model.generate(&samples()[..1], &no_splitting(), &options, &cancel).unwrap().remove(0);
    assert_eq!((answer.finish_reason, answer.token_ids.len()), (FinishReason::Cancelled, 0));
}

#[test]
fn rejects_streaming_beams() {
    let model = load("odd-heads");
    let options = options(json!({"num_beams": 2}));
    let error = model.stream(&samples()[0], &no_splitting(), &options, never()).unwrap_err();
    assert!(error.to_string().contains("num_beams") && error.to_string().contains("stream"), "{error}");
}

#[test]
fn ranking_together_matches_ranking_one_by_one() {
    let model = load("sliding-sharded"); // sliding window of 7 keys, shorter than the prompt
    let processed = model.processor().process(&samples()[..1], &no_splitting()).unwrap();
    let images: Vec<_> = processed.images.iter().flatten().cloned().collect();
    let prompt = idefics_generate::Prompts::pad_left(&processed.input_ids, 0).unwrap();
    let features = model.model().encode_images(&images).unwrap();
    let answers: Vec<Vec<u32>> =
        vec![vec![40], vec![40, 41], vec![40, 41, 42, 43, 44, 45, 46, 47, 48], vec![50, 41, 42], vec![7]];
    let together = model.model().log_likelihoods(&prompt, features.clone(), &answers).unwrap();
    for (answer, together) in answers.iter().zip(together) {
        let whole = [prompt.row(0).to_vec(), answer.clone()].concat();
        let prompts = idefics_generate::Prompts::pad_left(&[whole], 0).unwrap();
        let mut cache = model.model().cache(&prompts, 0);
        let states = model
            .model()
            .prefill_observed(&prompts, features.clone(), &mut cache, &mut idefics_generate::text::NoObserver)
            .unwrap();
        let logits = model.model().logits(states);
        let log_probs = burn::tensor::activation::log_softmax(logits, 2);
        let alone: f32 = (0..answer.len())
            .map(|at| {
                let slot = prompt.seq() - 1 + at;
                let id = answer[at] as usize;
                log_probs.clone().narrow(1, slot, 1).narrow(2, id, 1).into_scalar::<f32>()
            })
            .sum();
        assert!((f64::from(alone) - together).abs() < 1e-4, "{answer:?}: {together}, alone {alone}");
    }
}

#[test]
fn labels_are_plain_text_and_unique() {
    let model = load("odd-heads");
    let rank = |labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        model.rank(&samples()[0], &labels, &no_splitting(), RankOptions::default(), &never())
    };
    let ranked = rank(&["circle", " star ", "</s>", "<image>"]).unwrap().labels;
    assert!(ranked.iter().any(|ranked| ranked.label == "star"), "{ranked:?}");
    for special in ["</s>", "<image>"] {
        let ranked = ranked.iter().find(|ranked| ranked.label == special).unwrap();
        assert!(ranked.tokens > 1, "{ranked:?}");
    }
    let error = rank(&["circle", "star", " circle"]).unwrap_err();
    assert!(matches!(&error, Error::SameLabel { label } if label == "circle"), "{error}");
    assert!(matches!(rank(&["circle", " "]), Err(Error::NoLabels)));
}

#[test]
fn cancelled_ranking_is_an_error() {
    let model = load("odd-heads");
    let cancel = CancelToken::default();
    cancel.cancel();
    let labels = ["circle".to_owned(), "star".to_owned()];
    let error = model.rank(&samples()[0], &labels, &no_splitting(), RankOptions::default(), &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(error.kind().exit_code(), 130);
}

#[test]
fn background_answer_matches_direct_answer() {
    use futures_core::Stream;
    let model = std::sync::Arc::new(load("odd-heads"));
    let sample = samples()[0].clone();
    let expected = run(&model, std::slice::from_ref(&sample), &greedy(16), 0).remove(0).text;
    let start = |new_tokens, timeout| {
        let options = options(json!({"max_new_tokens": new_tokens, "eos_token_id": []}));
        model.generate_in_background(sample.clone(), no_splitting(), options, never(), timeout).unwrap()
    };
    let options = greedy(16);
    let text = model.generate_in_background(sample.clone(), no_splitting(), options, never(), None).unwrap();
    assert_eq!(text.map(Result::unwrap).collect::<String>(), expected);

    // The answer is also a `Stream`, which is polled by hand here.
    let mut text =
        Box::pin(model.generate_in_background(sample.clone(), no_splitting(), greedy(16), never(), None).unwrap());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut polled = String::new();
    loop {
        match text.as_mut().poll_next(&mut context) {
            std::task::Poll::Ready(Some(chunk)) => polled.push_str(&chunk.unwrap()),
            std::task::Poll::Ready(None) => break,
            std::task::Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(polled, expected);

    let late: Vec<_> = start(1500, Some(Duration::ZERO)).collect();
    assert!(matches!(late.last(), Some(Err(Error::Timeout { .. }))), "{late:?}");
}

#[test]
fn panic_of_the_generating_thread_is_a_bug() {
    #[derive(Debug)]
    struct Panics;
    impl LogitsProcessor for Panics {
        fn process(&mut self, _row: &Row<'_>, _scores: &mut [f32]) {
            panic!("this panic is part of a test");
        }
    }
    let model = std::sync::Arc::new(load("odd-heads"));
    let controls = Controls { processors: vec![Box::new(Panics)], ..Controls::default() };
    let text = model.generate_in_background(samples()[1].clone(), no_splitting(), greedy(4), controls, None).unwrap();
    let chunks: Vec<_> = text.collect();
    let Some(Err(error)) = chunks.last() else { panic!("{chunks:?}") };
    assert!(matches!(error, Error::Panic), "{error}");
    assert_eq!(error.kind().exit_code(), 70);
}

#[test]
fn dropping_background_answer_ends_generation() {
    let model = std::sync::Arc::new(load("odd-heads"));
    let cancel = CancelToken::default();
    let options = options(json!({"max_new_tokens": 1500, "eos_token_id": []}));
    let sample = samples()[1].clone();
    let mut text = model.generate_in_background(sample, no_splitting(), options, &cancel, None).unwrap();
    text.next().unwrap().unwrap();
    drop(text);
    assert!(cancel.is_cancelled());
    // The thread drops the model within one step.
    let clock = std::time::Instant::now();
    while std::sync::Arc::strong_count(&model) > 1 {
        assert!(clock.elapsed() < Duration::from_secs(20), "the generation did not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn same_image_is_encoded_once() {
    let model = load("odd-heads");
    let ask = |text: &str, pictures: &[&str]| {
        let sample = text_sample(text, pictures);
        model.generate(&[sample], &no_splitting(), &greedy(4), never()).unwrap().remove(0)
    };
    let first = ask("<image>What is this?", &["wide.png"]);
    let bytes = model.feature_bytes();
    assert!(bytes > 0);
    assert_eq!(ask("<image>What is this?", &["wide.png"]).token_ids, first.token_ids);
    assert_eq!(model.feature_bytes(), bytes);
    let twice = ask("<image><image>Same?", &["wide.png", "tall.png"]);
    assert_eq!(model.feature_bytes(), 2 * bytes);
    model.set_feature_budget(0);
    assert_eq!(model.feature_bytes(), 0);
    assert_eq!(ask("<image><image>Same?", &["wide.png", "tall.png"]).token_ids, twice.token_ids);
    assert_eq!(model.feature_bytes(), 0);
}
