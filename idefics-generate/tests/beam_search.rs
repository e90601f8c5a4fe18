//! Beam search over a table of logits, compared with the reference's `generate` on the same table.

use idefics_generate::GenerationConfig;
use idefics_generate::beam::{BeamOptions, BeamSearch, BeamStep, Candidate, Hypothesis, SampleError};
use idefics_generate::logits::{ProcessorChain, Row, RowError, RowKey, Sampler, log_softmax};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use crate::fixtures::{Score, floats, read};

/// Largest accepted difference of scores.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Fixture {
    last: Vec<Vec<f32>>,
    before: Vec<Vec<f32>>,
    at: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    options: GenerationConfig,
    prompts: Vec<Vec<u32>>,
    sequences: Vec<Vec<u32>>,
    sequences_scores: Vec<Score>,
    /// For beam sampling: the indices drawn in each step, for each sample.
    #[serde(default)]
    draws: Vec<Vec<Vec<usize>>>,
}

struct Run<'a> {
    fixture: &'a Fixture,
    options: GenerationConfig,
    prompts: &'a [Vec<u32>],
    prompt_slots: usize,
    chain: ProcessorChain,
    search: BeamSearch,
}

impl<'a> Run<'a> {
    fn new(fixture: &'a Fixture, options: &GenerationConfig, prompts: &'a [Vec<u32>]) -> Self {
        let prompt_slots = prompts.iter().map(Vec::len).max().unwrap();
        let search = BeamSearch::new(BeamOptions::new(options, prompt_slots), prompts.len());
        let chain = ProcessorChain::new(options).unwrap();
        Self { fixture, options: options.clone(), prompts, prompt_slots, chain, search }
    }

    /// Computes the processed log-probabilities of every running row.
    fn log_probs(&mut self) -> Vec<f32> {
        let mut log_probs = Vec::new();
        for row in 0..self.search.n_rows() {
            let (sample, beam) = (row / self.options.num_beams(), row % self.options.num_beams());
            let prompt = &self.prompts[sample];
            let ids = [prompt, self.search.generated(row)].concat();
            let padding = self.prompt_slots - prompt.len();
            let last = &self.fixture.last[ids[ids.len() - 1] as usize];
            let before = &self.fixture.before[ids[ids.len() - 2] as usize];
            let at = &self.fixture.at[padding + ids.len() - 1];
            let mut scores: Vec<f32> = (0..last.len()).map(|id| last[id] + before[id] + at[id]).collect();
            log_softmax(&mut scores);
            self.chain.process(&Row { padding, sample, beam, ..Row::new(&ids, prompt.len()) }, &mut scores);
            log_probs.extend(scores);
        }
        log_probs
    }

    /// Returns the candidates of each sample at the given indices of `[num_beams · vocab_size]`.
    fn candidates(&self, log_probs: &[f32], drawn: &[Vec<usize>]) -> Vec<Vec<Candidate>> {
        let (num_beams, vocab_size) = (self.options.num_beams(), self.fixture.last.len());
        let candidate = |sample: usize, at: usize| {
            let (beam, token) = (at / vocab_size, at % vocab_size);
            let row = sample * num_beams + beam;
            let score = log_probs[row * vocab_size + token] + self.search.running_score(row);
            Candidate { beam, token: token as u32, score }
        };
        let sample_candidates =
            |(sample, drawn): (usize, &Vec<usize>)| drawn.iter().map(|&at| candidate(sample, at)).collect();
        drawn.iter().enumerate().map(sample_candidates).collect()
    }

    /// Returns the answers of all samples in the reference's format, filled up to the longest answer, with their
    /// scores.
    fn sequences(&self) -> (Vec<Vec<u32>>, Vec<f32>) {
        let answers = (0..self.prompts.len()).flat_map(|sample| self.search.answers(sample));
        let longest = answers.clone().map(|answer| answer.tokens.len()).max().unwrap();
        let fill = |answer: &Hypothesis| {
            let mut tokens = answer.tokens.clone();
            tokens.resize(longest, self.search.options().fill_token_id());
            (tokens, answer.score)
        };
        answers.map(fill).unzip()
    }
}

#[test]
fn answers_and_scores_match_reference() {
    let fixture: Fixture = read("beam");
    let mut greatest = 0.0_f32;
    for (index, case) in fixture.cases.iter().enumerate() {
        let mut run = Run::new(&fixture, &case.options, &case.prompts);
        let mut draws = case.draws.iter();
        while !run.search.is_done() {
            let log_probs = run.log_probs();
            match draws.next() {
                Some(drawn) => {
                    let candidates = run.candidates(&log_probs, drawn);
                    run.search.advance(&candidates, |_, _| false);
                }
                None => {
                    assert!(case.draws.is_empty(), "case {index} continues after the reference's last step");
                    run.search.step(&log_probs, |_, _| false).unwrap();
                }
            }
        }
        assert_eq!(draws.len(), 0, "case {index} stops before the reference");
        let (sequences, scores) = run.sequences();
        assert_eq!(sequences, case.sequences, "case {index}: {:?}", case.options);
        for (score, expected) in scores.iter().zip(floats(&case.sequences_scores)) {
            greatest = greatest.max((score - expected).abs());
            assert!((score - expected).abs() <= TOLERANCE, "case {index}: {score} is not {expected}");
        }
    }
    assert!(fixture.cases.len() > 70);
    println!("{} cases, greatest difference {greatest:e}", fixture.cases.len());
}

fn options(value: serde_json::Value) -> GenerationConfig {
    serde_json::from_value(value).unwrap()
}

#[test]
fn sampled_answer_does_not_depend_on_batch() {
    let fixture: Fixture = read("beam");
    let options = options(json!({"do_sample": true, "num_beams": 3, "num_return_sequences": 3, "max_length": 12,
        "eos_token_id": 2, "temperature": 1.5}));
    let prompts: Vec<Vec<u32>> = vec![vec![1, 7], vec![4, 9], vec![8, 8]];
    let run = |order: &[usize]| {
        let prompts: Vec<Vec<u32>> = order.iter().map(|&at| prompts[at].clone()).collect();
        let keys: Vec<RowKey> = order.iter().map(|&at| RowKey { sample: at as u64, answer: 0 }).collect();
        let mut run = Run::new(&fixture, &options, &prompts);
        while !run.search.is_done() {
            let log_probs = run.log_probs();
            run.search.step_sampled(&log_probs, &Sampler::new(11), &keys, |_, _| false).unwrap();
        }
        (0..order.len()).map(|sample| run.search.answers(sample).to_vec()).collect::<Vec<_>>()
    };
    let together = run(&[0, 1, 2]);
    let turned = run(&[2, 0, 1]);
    assert_eq!(turned, [together[2].clone(), together[0].clone(), together[1].clone()]);
    assert_eq!(run(&[1])[0], together[1]);
}

#[test]
fn stop_string_ends_answer_like_end_token() {
    let fixture: Fixture = read("beam");
    let prompts = [vec![1, 7, 9]];
    let mut answers = [json!([6]), json!(null)].map(|eos| {
        let options = options(json!({"num_beams": 3, "max_length": 10, "eos_token_id": eos}));
        let mut run = Run::new(&fixture, &options, &prompts);
        while !run.search.is_done() {
            let log_probs = run.log_probs();
            run.search.step(&log_probs, |_, tokens| tokens.last() == Some(&6)).unwrap();
        }
        run.sequences()
    });
    assert!(answers[0].1[0].is_finite());
    let (with_eos, without) = answers.split_at_mut(1);
    assert_eq!(with_eos, without);
}

#[test]
fn search_without_allowed_tokens_is_an_error() {
    let options = BeamOptions::new(&options(json!({"num_beams": 2, "eos_token_id": 1})), 3);
    let mut search = BeamSearch::new(options, 1);
    let forbidden = [f32::NEG_INFINITY; 8];
    let failed = |error| Err(SampleError { sample: 0, error });
    assert_eq!(search.step(&forbidden, |_, _| false), failed(RowError::NothingAllowed));
    assert_eq!(search.step(&[f32::NAN; 8], |_, _| false), failed(RowError::NonFinite));
    assert_eq!(search.n_generated(), 0);
    assert!(search.step(&[-1.0, f32::NEG_INFINITY, -2.0, -3.0].repeat(2), |_, _| false).is_ok());
}

#[test]
fn other_samples_continue_without_a_failed_one() {
    let options = || BeamOptions::new(&options(json!({"num_beams": 2, "max_new_tokens": 3, "eos_token_id": 9})), 3);
    let allowed: Vec<f32> = (0..8).map(|index| -0.5 - index as f32).collect();
    let failed = [[f32::NEG_INFINITY; 8], [f32::NAN; 8]];
    let (sampler, keys) = (Sampler::new(5), [RowKey { sample: 1, answer: 0 }, RowKey::default()]);
    for (first, do_sample) in [(0, false), (1, false), (0, true), (1, true)] {
        let step = |search: &mut BeamSearch, log_probs: &[f32], keys: &[RowKey]| match do_sample {
            true => search.step_sampled(log_probs, &sampler, keys, |_, _| false),
            false => search.step(log_probs, |_, _| false),
        };
        let mut alone = BeamSearch::new(options(), 1);
        let mut both = BeamSearch::new(options(), 2);
        let error = step(&mut both, &[&allowed[..], &failed[first]].concat(), &keys).unwrap_err();
        assert_eq!(error.sample, 1);
        both.give_up(1);
        while !alone.is_done() {
            step(&mut alone, &allowed, &keys[..1]).unwrap();
            step(&mut both, &[&allowed[..], &[-2.0; 8]].concat(), &keys).unwrap();
        }
        assert!(both.is_done());
        assert_eq!(both.answers(0), alone.answers(0));
    }
}

#[test]
fn filler_matches_reference() {
    let filler = |eos: serde_json::Value, pad: serde_json::Value| {
        BeamOptions::new(&options(json!({"eos_token_id": eos, "pad_token_id": pad})), 3).fill_token_id()
    };
    assert_eq!(filler(json!([5, 6]), json!(7)), 7);
    assert_eq!(filler(json!([5, 6]), json!(0)), 5, "a pad token of 0 counts as missing");
    assert_eq!(filler(json!(5), json!(null)), 5);
    assert_eq!(filler(json!(null), json!(7)), 7);
}

/// Checks that each row continues the row that the step names.
fn check_step(before: &BeamSearch, after: &BeamSearch, step: &BeamStep) {
    for (row, (&token, &from)) in step.next_tokens.iter().zip(&step.beam_idx).enumerate() {
        assert_eq!(row / after.options().num_beams, from / after.options().num_beams, "beams stay in their sample");
        assert_eq!(after.generated(row), [before.generated(from), &[token]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn search_ends_with_distinct_sorted_answers(
        num_beams in 2..5_usize,
        length_penalty in -1.0..2.0_f64,
        early_stopping in prop_oneof![Just(json!(true)), Just(json!(false)), Just(json!("never"))],
        eos in proptest::collection::btree_set(0..24_u32, 0..3),
        do_sample in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let fixture: Fixture = read("beam");
        let options = options(json!({"num_beams": num_beams, "num_return_sequences": num_beams, "max_length": 11,
            "length_penalty": length_penalty, "early_stopping": early_stopping, "eos_token_id": eos,
            "do_sample": do_sample}));
        let prompts = [vec![1, 2, 3], vec![5, 6]];
        let keys = [RowKey::default(), RowKey { sample: 1, answer: 0 }];
        let mut run = Run::new(&fixture, &options, &prompts);
        while !run.search.is_done() {
            let log_probs = run.log_probs();
            let before = run.search.clone();
            let step = match do_sample {
                true => run.search.step_sampled(&log_probs, &Sampler::new(seed), &keys, |_, _| false).unwrap(),
                false => run.search.step(&log_probs, |_, _| false).unwrap(),
            };
            check_step(&before, &run.search, &step);
            prop_assert!(run.search.n_generated() <= 8);
        }
        for sample in 0..2 {
            let answers = run.search.answers(sample);
            prop_assert!(answers.iter().all(|answer| answer.is_finished && answer.tokens.len() <= 8));
            prop_assert!(answers.is_sorted_by(|a, b| a.score >= b.score));
            for (at, answer) in answers.iter().enumerate() {
                prop_assert!(answers[..at].iter().all(|other| other.tokens != answer.tokens));
                let (last, begin) = answer.tokens.split_last().unwrap();
                prop_assert!(eos.contains(last) || answer.tokens.len() == 8);
                prop_assert!(!begin.iter().any(|id| eos.contains(id)));
            }
        }
    }
}
