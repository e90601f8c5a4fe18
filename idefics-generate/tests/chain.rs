//! Tests every processor and filter, alone and combined, against the reference's chain.

use std::collections::HashMap;

use idefics_generate::logits::{LogitsProcessor, ProcessorChain, Row, argmax, softmax};
use idefics_generate::{EarlyStopping, GenerationConfig, GenerationError, OneOrMany};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fixtures::{Score, floats, max_difference, read};

/// Largest accepted difference of filtered scores. For scores above 1, the difference is relative.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Fixture {
    scores: Vec<Vec<Score>>,
    batches: HashMap<String, Batch>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Batch {
    rows: Vec<Vec<u32>>,
    prompt_slots: usize,
}

#[derive(Deserialize)]
struct Case {
    options: Value,
    batch: String,
    scores: usize,
    expected: Vec<Vec<Score>>,
    /// Whether it is unspecified which of several equal scores the reference keeps. The scores are then compared after
    /// sorting.
    #[serde(default)]
    unordered: bool,
}

/// Parses options. A bias of `null` in the fixture means -inf.
fn options(mut options: Value) -> GenerationConfig {
    let biases = options.get_mut("sequence_bias").and_then(Value::as_array_mut);
    for bias in biases.into_iter().flatten().filter(|bias| bias[1].is_null()) {
        bias[1] = json!(-1e300);
    }
    serde_json::from_value(options).unwrap()
}

#[test]
fn filtered_scores_match_reference() {
    let fixture: Fixture = read("logits");
    let mut greatest = 0.0_f32;
    let mut failed = Vec::new();
    for case in &fixture.cases {
        let batch = &fixture.batches[&case.batch];
        let slots = batch.rows.iter().map(Vec::len).max().unwrap();
        let mut chain = ProcessorChain::new(&options(case.options.clone())).unwrap();
        for (row, expected) in batch.rows.iter().zip(&case.expected) {
            let padding = slots - row.len();
            let mut scores = floats(&fixture.scores[case.scores]);
            let row = Row { padding, ..Row::new(row, batch.prompt_slots - padding) };
            chain.process(&row, &mut scores);
            let mut expected = floats(expected);
            if case.unordered {
                scores.sort_by(f32::total_cmp);
                expected.sort_by(f32::total_cmp);
            }
            let difference = max_difference(&scores, &expected);
            greatest = greatest.max(difference);
            if difference > TOLERANCE {
                failed.push(format!("{difference:e} {} on {} scores {}", case.options, case.batch, case.scores));
            }
        }
    }
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(fixture.cases.len() > 200);
    println!("{} cases, greatest difference {greatest:e}", fixture.cases.len());
}

#[test]
fn padding_affects_only_row_length() {
    let mut chain =
        ProcessorChain::new(&options(json!({"no_repeat_ngram_size": 1, "repetition_penalty": 2.0}))).unwrap();
    let mut process = |padding| {
        let mut scores = [1.0; 4];
        chain.process(&Row { padding, ..Row::new(&[1, 3], 2) }, &mut scores);
        scores
    };
    assert_eq!(process(0), [1.0, f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]);
    assert_eq!(process(5), process(0));
}

#[test]
fn plain_greedy_search_needs_no_scores_on_host() {
    let needs = |value| ProcessorChain::new(&options(value)).unwrap().needs_scores();
    assert!(!needs(json!({})));
    assert!(!needs(json!({"temperature": 0.5, "top_p": 0.9, "top_k": 5})));
    assert!(!needs(json!({"min_length": 9, "eos_token_id": null})));
    assert!(needs(json!({"do_sample": true, "top_k": 0})));
    assert!(needs(json!({"repetition_penalty": 1.1})));
}

#[test]
fn rejects_invalid_options_by_name() {
    let refused = |value| ProcessorChain::new(&options(value)).map(|_| ()).unwrap_err();
    for value in [
        json!({"temperature": 0.0}),
        json!({"temperature": -1.0}),
        json!({"top_p": 1.5}),
        json!({"top_p": -0.1}),
        json!({"min_p": 1.1}),
        json!({"top_h": 0.0}),
        json!({"typical_p": 0.0}),
        json!({"epsilon_cutoff": 1.0}),
        json!({"eta_cutoff": -0.1}),
        json!({"repetition_penalty": 0.0}),
        json!({"num_beams": 0}),
        json!({"num_return_sequences": 0}),
    ] {
        let name = value.as_object().unwrap().keys().next().unwrap().clone();
        let mut value = value;
        value["do_sample"] = json!(true);
        let error = refused(value);
        assert!(matches!(error, GenerationError::OutOfRange { option, .. } if option == name), "{error}");
    }
    for (value, first, second) in [
        (json!({"num_return_sequences": 2}), "num_return_sequences", "do_sample"),
        (json!({"num_return_sequences": 3, "num_beams": 2}), "num_return_sequences", "num_beams"),
        (json!({"forced_eos_token_id": [2], "suppress_tokens": [1, 2]}), "forced_eos_token_id", "suppress_tokens"),
        (json!({"exponential_decay_length_penalty": [1, 1.1]}), "exponential_decay_length_penalty", "eos_token_id"),
    ] {
        let message = refused(value).to_string();
        assert!(message.contains(first) && message.contains(second), "{message}");
    }
    assert_eq!(refused(json!({"bad_words_ids": [[]]})), GenerationError::Empty { option: "bad_words_ids" });
    assert!(
        ProcessorChain::new(&options(json!({"temperature": 0.0}))).is_ok(),
        "greedy search ignores the temperature"
    );
    let wide = options(json!({"bad_words_ids": [[3, 9]]}));
    assert_eq!(wide.check_vocab(10), Ok(()));
    assert_eq!(wide.check_vocab(9), Err(GenerationError::TokenId { option: "bad_words_ids", id: 9, vocab_size: 9 }));
}

#[test]
fn early_stopping_json_matches_reference() {
    for (early_stopping, text) in
        [(EarlyStopping::FirstFull, "true"), (EarlyStopping::Heuristic, "false"), (EarlyStopping::Never, "\"never\"")]
    {
        assert_eq!(serde_json::to_string(&early_stopping).unwrap(), text);
        assert_eq!(serde_json::from_str::<EarlyStopping>(text).unwrap(), early_stopping);
    }
    assert!(serde_json::from_str::<EarlyStopping>("\"always\"").is_err());
}

/// Forbids everything except one token.
#[derive(Debug)]
struct Only(usize);

impl LogitsProcessor for Only {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        for (id, score) in scores.iter_mut().enumerate() {
            *score = if id == self.0 { *score } else { f32::NEG_INFINITY };
        }
    }
}

#[test]
fn custom_processor_runs_before_filters() {
    let sampling = options(json!({"do_sample": true, "top_k": 2, "renormalize_logits": true}));
    let mut chain = ProcessorChain::new(&sampling).unwrap();
    chain.push(Box::new(Only(0)));
    let mut scores = [1.0, 5.0, 4.0, 3.0];
    chain.process(&Row::new(&[1], 1), &mut scores);
    assert_eq!(scores, [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    assert_eq!(argmax(&scores), Ok(0));
}

fn any_options() -> impl Strategy<Value = GenerationConfig> {
    let processors = (
        prop_oneof![Just(1.0), 0.3..3.0_f64],
        0..4_usize,
        proptest::option::of(proptest::collection::vec(proptest::collection::vec(0..12_u32, 1..4), 1..4)),
        proptest::option::of(0..8_usize),
        proptest::option::of((0..4_usize, 0.8..1.5_f64)),
        proptest::option::of(proptest::collection::vec(0..12_u32, 0..4)),
        proptest::collection::vec(0..12_u32, 1..3),
    );
    let filters = (
        any::<bool>(),
        prop_oneof![Just(1.0), 0.05..4.0_f64],
        0..14_usize,
        0.0..=1.0_f64,
        proptest::option::of(0.0..=1.0_f64),
        0.01..=1.0_f64,
        (0.0..0.9_f64, 0.0..0.9_f64, any::<bool>(), 1..4_usize, proptest::option::of(0.01..=1.0_f64)),
    );
    (processors, filters).prop_map(|(processors, filters)| {
        let (repetition_penalty, no_repeat_ngram_size, bad_words_ids, min_new_tokens, decay, suppress, eos) =
            processors;
        let (do_sample, temperature, top_k, top_p, min_p, typical_p, rest) = filters;
        let (epsilon_cutoff, eta_cutoff, renormalize_logits, num_beams, top_h) = rest;
        GenerationConfig {
            eos_token_id: Some(OneOrMany::Many(eos)),
            repetition_penalty: Some(repetition_penalty),
            no_repeat_ngram_size: Some(no_repeat_ngram_size),
            bad_words_ids,
            min_new_tokens,
            exponential_decay_length_penalty: decay,
            suppress_tokens: suppress.clone(),
            begin_suppress_tokens: suppress,
            do_sample: Some(do_sample),
            num_beams: Some(num_beams),
            temperature: Some(temperature),
            top_h,
            top_k: Some(top_k),
            top_p: Some(top_p),
            min_p,
            typical_p: Some(typical_p),
            epsilon_cutoff: Some(epsilon_cutoff),
            eta_cutoff: Some(eta_cutoff),
            renormalize_logits: Some(renormalize_logits),
            ..GenerationConfig::default()
        }
    })
}

fn any_scores() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![4 => -20.0..20.0_f32, 1 => Just(f32::NEG_INFINITY), 1 => Just(1.0_f32)];
    proptest::collection::vec(score, 12)
}

fn is_allowed(scores: &[f32]) -> Vec<bool> {
    scores.iter().map(|&score| score != f32::NEG_INFINITY).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn chain_never_allows_forbidden_tokens(
        options in any_options(),
        scores in any_scores(),
        ids in proptest::collection::vec(0..14_u32, 1..12),
    ) {
        let mut chain = ProcessorChain::new(&options).unwrap();
        let mut processed = scores.clone();
        chain.process(&Row::new(&ids, 1), &mut processed);
        prop_assert!(processed.iter().all(|score| !score.is_nan() && *score != f32::INFINITY));
        for (before, after) in is_allowed(&scores).into_iter().zip(is_allowed(&processed)) {
            prop_assert!(before || !after);
        }
        // Processing the same row again, after others, must give the same result.
        let mut again = scores;
        chain.process(&Row::new(&[3, 4, 3], 2), &mut [0.5; 12]);
        chain.process(&Row::new(&ids, 1), &mut again);
        prop_assert_eq!(processed, again);
    }

    #[test]
    fn filters_keep_most_likely_tokens(options in any_options(), scores in any_scores()) {
        let filters = GenerationConfig {
            do_sample: Some(true),
            repetition_penalty: None,
            no_repeat_ngram_size: None,
            bad_words_ids: None,
            min_new_tokens: None,
            exponential_decay_length_penalty: None,
            suppress_tokens: None,
            begin_suppress_tokens: None,
            typical_p: None, // may remove the most likely token
            ..options
        };
        let mut processed = scores.clone();
        ProcessorChain::new(&filters).unwrap().process(&Row::new(&[1], 1), &mut processed);
        let n_allowed = is_allowed(&scores).into_iter().filter(|&allowed| allowed).count();
        let n_kept = is_allowed(&processed).into_iter().filter(|&allowed| allowed).count();
        let min_tokens_to_keep = if filters.num_beams() > 1 { filters.eos_token_ids().len() + 1 } else { 1 };
        let min_tokens_to_keep = if filters.top_h.is_some() { 1 } else { min_tokens_to_keep };
        prop_assert!(n_kept >= n_allowed.min(min_tokens_to_keep), "{n_kept} of {n_allowed}");
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if n_allowed > 0 {
            prop_assert!(scores.iter().zip(is_allowed(&processed)).any(|(&score, kept)| kept && score == max));
            let total: f32 = softmax(&processed).iter().sum();
            prop_assert!((total - 1.0).abs() < 1e-5);
        }
    }
}
