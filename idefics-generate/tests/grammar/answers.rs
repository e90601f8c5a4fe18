//! Answers of small models with random weights, and of random scores.

use std::collections::BTreeSet;

use idefics_generate::logits::{ProcessorChain, Row, RowEnd, RowError};
use idefics_generate::processor::Sample;
use idefics_generate::{
    Answer, Controls, Error, FinishReason, GenerationConfig, GenerationError, Grammar, GrammarError, Idefics,
};
use serde_json::{Value, json};

use super::{Answered, BYTE_LEVEL, LLAMA, schema, validate};
use crate::common::{greedy, load, no_splitting, text_sample};

/// A schema under which answers are rarely long.
fn scene() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["shapes", "n"], "properties": {
        "shapes": {"type": "array", "maxItems": 3, "items": {"enum": ["circle", "star", "a \"cross\""]}},
        "n": {"type": "integer", "minimum": 0, "maximum": 20},
        "note": {"type": ["string", "null"], "maxLength": 5},
    }})
}

fn samples() -> [Sample; 3] {
    ["What is this?", "Describe the picture in detail.", "Hi"]
        .map(|question| text_sample(&format!("User: {question}<end_of_utterance>\nAssistant:"), &[]))
}

fn options(value: Value) -> GenerationConfig {
    let mut options = json!({"max_new_tokens": 250});
    options.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(options).unwrap()
}

fn run(model: &Idefics, samples: &[Sample], grammar: &Grammar, options: &GenerationConfig) -> Vec<Answer> {
    let grammar = Some(model.compile_grammar(grammar).unwrap());
    let controls = Controls { grammar, seed: 3, ..Controls::default() };
    model.generate(samples, &no_splitting(), options, controls).unwrap()
}

/// Returns the text of an answer without the space before it.
fn value(answer: &Answer) -> &str {
    answer.text.strip_prefix(' ').unwrap_or(&answer.text)
}

#[test]
fn finished_answers_of_every_family_satisfy_the_schema() {
    let sampled = options(json!({"do_sample": true, "top_k": 0, "temperature": 2.0}));
    for checkpoint in ["tiny-idefics2", "tiny-idefics3", "tiny-smolvlm", "idefics1-small"] {
        let model = load(checkpoint);
        let answers = run(&model, &samples(), &schema(scene()), &sampled);
        for answer in &answers {
            assert_eq!(answer.finish_reason, FinishReason::Stop, "{checkpoint}: {:?}", answer.text);
            assert_eq!(validate::check(&scene(), value(answer)), Ok(()), "{checkpoint}");
        }
    }
}

#[test]
fn answers_match_regex_and_choices() {
    let model = load("tiny-idefics2");
    let regex = regex::Regex::new(r"^[0-9]{2,4}/(é|世|-| a)+?[a-c]{0,3}$").unwrap();
    let grammar = Grammar::regex(regex.as_str()).unwrap();
    let sampled = options(json!({"do_sample": true, "num_return_sequences": 4, "max_new_tokens": 400}));
    for answer in run(&model, &samples(), &grammar, &sampled) {
        if answer.finish_reason == FinishReason::Stop {
            assert!(regex.is_match(value(&answer)), "{:?}", answer.text);
        }
    }
    let choices = ["yes", "no", "yes, but", "\"no\"\n", "é世"];
    let grammar = Grammar::choices(choices).unwrap();
    for options in [greedy(40), sampled] {
        let answers = run(&model, &samples(), &grammar, &options);
        assert!(answers.iter().all(|answer| choices.contains(&value(answer))), "{answers:?}");
        assert!(answers.iter().all(|answer| answer.finish_reason == FinishReason::Stop));
    }
}

#[test]
fn every_choice_is_reachable() {
    let choices = ["a", "ab", " a", "  ", "b\nc", "/", "\\d", "\u{7f}"];
    let grammar = Grammar::choices(choices).unwrap();
    for tokens in [&*LLAMA, &*BYTE_LEVEL] {
        let compiled = tokens.compile(&grammar);
        let found: BTreeSet<String> = (0..400)
            .map(|seed| match tokens.answer(&compiled, seed, 20) {
                Answered::Complete(text) => text,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, choices.iter().map(|&choice| choice.to_owned()).collect());
    }
}

#[test]
fn answers_do_not_depend_on_the_batch() {
    let model = load("tiny-idefics2");
    for value in [json!({}), json!({"do_sample": true, "temperature": 1.5, "num_return_sequences": 3})] {
        let options = options(value);
        let n = options.num_return_sequences();
        let together = run(&model, &samples(), &schema(scene()), &options);
        for (row, sample) in samples().into_iter().enumerate() {
            let alone = run(&model, &[sample], &schema(scene()), &options);
            let tokens = |answers: &[Answer]| answers.iter().map(|answer| answer.token_ids.clone()).collect::<Vec<_>>();
            assert_eq!(tokens(&alone), tokens(&together[row * n..(row + 1) * n]), "{options:?}, row {row}");
        }
    }
}

#[test]
fn streamed_answer_equals_the_whole_one() {
    let model = load("tiny-smolvlm");
    let [sample, ..] = samples();
    let whole = run(&model, std::slice::from_ref(&sample), &schema(scene()), &options(json!({})));
    let grammar = Some(model.compile_grammar(&schema(scene())).unwrap());
    let controls = Controls { grammar, ..Controls::default() };
    let mut streamed = String::new();
    let answer = model
        .generate_streaming(&sample, &no_splitting(), &options(json!({})), controls, |chunk| streamed.push_str(chunk))
        .unwrap();
    assert_eq!((&streamed, &answer.token_ids), (&whole[0].text, &whole[0].token_ids));
}

#[test]
fn answer_without_end_tokens_stops_where_the_grammar_is_complete() {
    let model = load("tiny-idefics2");
    let grammar = Grammar::choices(["yes", "no"]).unwrap();
    let without_end = options(json!({"eos_token_id": [], "do_sample": true}));
    let answers = run(&model, &samples(), &grammar, &without_end);
    for answer in &answers {
        assert!(["yes", "no"].contains(&value(answer)), "{answer:?}");
        assert_eq!(answer.finish_reason, FinishReason::Stop);
    }
    // The same in a stream: nothing follows the answer.
    let [sample, ..] = samples();
    let controls = Controls { grammar: Some(model.compile_grammar(&grammar).unwrap()), seed: 3, ..Controls::default() };
    let stream = model.stream(&sample, &no_splitting(), &without_end, controls).unwrap();
    let text: String = stream.map(Result::unwrap).collect();
    assert_eq!(text, answers[0].text);
    // A complete answer ends even if the end tokens are suppressed.
    let suppressed = options(json!({"suppress_tokens": [2, 476], "eos_token_id": [2, 476]}));
    let answers = run(&model, &samples(), &grammar, &suppressed);
    assert!(answers.iter().all(|answer| answer.finish_reason == FinishReason::Stop), "{answers:?}");
}

#[test]
fn row_without_an_allowed_token_fails() {
    let model = load("tiny-idefics2");
    let tokenizer = model.processor().tokenizer();
    let width = model.model().shape().vocab_size as u32;
    // All tokens that contain a digit are forbidden, so no number can begin. Only the space before it can be generated.
    let digits: Vec<u32> = (0..width).filter(|&id| tokenizer.piece(id).iter().any(u8::is_ascii_digit)).collect();
    let grammar = model.compile_grammar(&Grammar::regex("[0-9]+").unwrap()).unwrap();
    let controls = || Controls { grammar: Some(grammar.clone()), ..Controls::default() };
    let suppressed = options(json!({"suppress_tokens": digits}));
    let each = model.generate_each(&samples(), &no_splitting(), &suppressed, controls());
    assert!(matches!(each, Err(Error::NoAllowedToken { row: 0 })), "{each:?}");
}

#[test]
fn beams_and_forced_tokens_are_refused_by_name() {
    let model = load("tiny-idefics2");
    let grammar = Grammar::choices(["a"]).unwrap();
    let compiled = model.compile_grammar(&grammar).unwrap();
    for (value, expected) in [
        (json!({"num_beams": 2}), "num_beams"),
        (json!({"forced_bos_token_id": 30}), "forced_bos_token_id"),
        (json!({"forced_eos_token_id": 2}), "forced_eos_token_id"),
    ] {
        let options = options(value);
        let controls = Controls { grammar: Some(compiled.clone()), ..Controls::default() };
        match model.generate(&samples(), &no_splitting(), &options, controls) {
            Err(Error::Generation(GenerationError::Conflict { option, other: "grammar", .. })) => {
                assert_eq!(option, expected);
            }
            other => panic!("{other:?}"),
        }
        assert!(grammar.check_options(&options).is_err());
    }
    let controls = Controls { grammar: Some(LLAMA.compile(&grammar)), ..Controls::default() };
    let other = model.generate(&samples(), &no_splitting(), &greedy(3), controls);
    assert!(matches!(other, Err(Error::Grammar(GrammarError::OtherVocabulary { .. }))), "{other:?}");
}

#[test]
fn all_end_tokens_are_allowed_where_the_grammar_may_end() {
    let tokens = &*BYTE_LEVEL;
    let grammar = tokens.compile(&Grammar::regex("a+").unwrap());
    let a = tokens.tokenizer.token_to_id("a").unwrap();
    let comma = tokens.tokenizer.token_to_id(",").unwrap();
    let special = tokens.tokenizer.image_token_id();
    let ends = [tokens.eos_token_id, comma]; // an end token may be ordinary text
    let mut chain = ProcessorChain::new(&GenerationConfig::default()).unwrap();
    chain.push(grammar.mask(&ends));
    let mut allowed = |ids: &[u32]| {
        let mut scores = vec![0.0; tokens.width];
        chain.process(&Row::new(ids, 1), &mut scores);
        let allowed = |id: u32| scores[id as usize] == 0.0;
        assert!(!allowed(special) && !allowed(tokens.width as u32 - 1), "neither special tokens nor ids without text");
        (allowed(a), ends.map(allowed))
    };
    assert_eq!(allowed(&[7]), (true, [false, false]));
    assert_eq!(allowed(&[7, a]), (true, [true, true]));
    assert_eq!(allowed(&[7, a, a]), (true, [true, true]));
}

#[test]
fn invalid_scores_stay_visible() {
    let tokens = &*LLAMA;
    let mut chain = ProcessorChain::new(&GenerationConfig::default()).unwrap();
    chain.push(tokens.compile(&Grammar::choices(["a"]).unwrap()).mask(&[tokens.eos_token_id]));
    let mut scores = vec![0.0; tokens.width];
    scores[5] = f32::NAN;
    let row = Row::new(&[1], 1);
    chain.process(&row, &mut scores);
    assert!(scores[5].is_nan() && chain.ending(&row).is_none());
    let mut scores = vec![f32::NEG_INFINITY; tokens.width];
    chain.process(&row, &mut scores);
    assert_eq!(chain.ending(&row), Some(RowEnd::Failed(RowError::NothingAllowed)));
}

#[test]
fn json_has_at_most_one_space_between_tokens() {
    let tokens = &*LLAMA;
    let grammar = tokens.compile(&schema(json!({"type": "array", "items": {"type": "null"}, "maxItems": 4})));
    for seed in 0..50 {
        let Answered::Complete(text) = tokens.answer(&grammar, seed, 200) else { panic!("seed {seed}") };
        let spaces = text.split(|character: char| !character.is_whitespace());
        assert!(spaces.clone().all(|space| matches!(space, "" | " " | "\n")), "{text:?}");
    }
}

#[test]
fn regex_matches_the_whole_answer_after_one_space() {
    let tokens = &*BYTE_LEVEL;
    for pattern in [" a|b", "(?i)x{2}", "\\d\\s", "^(a|b)$", "a/b", "a?", "\\/\n\t", "[\"\\\\]+?", "é{1,2}|[α-ω]"] {
        let compiled = tokens.compile(&Grammar::regex(pattern).unwrap());
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        for seed in 0..20 {
            match tokens.answer(&compiled, seed, 100) {
                Answered::Complete(text) => assert!(whole.is_match(&text), "{pattern}: {text:?}"),
                other => assert_eq!(other, Answered::Cut, "{pattern}"),
            }
        }
    }
}
