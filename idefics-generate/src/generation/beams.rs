//! Beam search and beam sampling with a model. Every step reads the scores back to the host once.

use std::collections::HashMap;

use super::FinishReason;
use super::logprobs::{self, GeneratedLogprob, TokenLogprob};
use super::rows::Rows;
use super::stops::Stops;
use crate::beam::{BeamOptions, BeamSearch, Hypothesis, SampleError};
use crate::logits::{ProcessorChain, RowKey, Sampler, log_softmax};
use crate::{Error, GenerationConfig};

/// Beam search for the best answers of each sample.
#[derive(Debug)]
pub(super) struct Beams {
    chain: ProcessorChain,
    /// Draws the candidates of beam sampling; `None` for beam search.
    sampler: Option<Sampler>,
    /// Sampling key of each sample.
    keys: Vec<RowKey>,
    search: BeamSearch,
    /// For each row, the row whose tokens it continued in the last step.
    continued: Vec<usize>,
    /// Scores of the answers, once the search is over.
    scores: Option<Vec<f32>>,
    /// Log-probabilities, if requested.
    logprobs: Option<BeamLogprobs>,
}

/// The model's log-probabilities for the tokens of every hypothesis, stored per step. A hypothesis finds its own
/// values through its beam indices.
#[derive(Debug)]
struct BeamLogprobs {
    n_top: usize,
    steps: Vec<StepLogprobs>,
}

#[derive(Debug, Default)]
struct StepLogprobs {
    /// Log-probabilities of tokens that continued or ended a hypothesis, by row and token.
    taken: HashMap<(usize, u32), f32>,
    /// The most likely tokens of each row.
    top: Vec<Vec<TokenLogprob>>,
}

impl BeamLogprobs {
    /// Stores the log-probability of the newest token of each hypothesis that continued or ended in this step, and the
    /// most likely tokens of each row. `logits` are the scores from which the tokens were chosen.
    fn keep(&mut self, search: &BeamSearch, logits: &[f32], rows: &Rows) {
        let (width, num_beams) = (rows.width(logits), search.options().num_beams);
        let mut step = StepLogprobs::default();
        let log_probs: Vec<Vec<f32>> = (0..rows.len())
            .map(|row| {
                let mut log_probs = rows.scores_of(row, logits, width).to_vec();
                log_softmax(&mut log_probs);
                step.top.push(logprobs::likeliest(&log_probs, self.n_top));
                log_probs
            })
            .collect();
        for sample in 0..rows.n_samples() {
            let newest = search.hypotheses(sample).filter(|hypothesis| hypothesis.tokens.len() == search.n_generated());
            for hypothesis in newest {
                if let (Some(&id), Some(beam)) = (hypothesis.tokens.last(), hypothesis.beam_indices.last()) {
                    let row = sample * num_beams + beam;
                    step.taken.insert((row, id), log_probs[row][id as usize]);
                }
            }
        }
        self.steps.push(step);
    }

    /// Returns the log-probabilities of the tokens of an answer. `first_row` is the first row of its sample. Source:
    /// `compute_transition_scores`, which uses the scores after the logits processors instead.
    fn of(&self, answer: &Hypothesis, first_row: usize) -> Vec<GeneratedLogprob> {
        let path = answer.tokens.iter().zip(&answer.beam_indices).zip(&self.steps);
        path.map(|((&id, beam), step)| {
            let row = first_row + beam;
            GeneratedLogprob { token: TokenLogprob { id, logprob: step.taken[&(row, id)] }, top: step.top[row].clone() }
        })
        .collect()
    }
}

impl Beams {
    pub(super) fn new(
        config: &GenerationConfig,
        chain: ProcessorChain,
        seed: u64,
        n_top: Option<usize>,
        rows: &Rows,
    ) -> Self {
        let options = BeamOptions::new(config, rows.prompt_len());
        let num_beams = options.num_beams;
        Self {
            chain,
            sampler: config.do_sample().then(|| Sampler::new(seed)),
            keys: (0..rows.n_samples()).map(|sample| rows.key(sample * num_beams)).collect(),
            search: BeamSearch::new(options, rows.n_samples()),
            continued: Vec::new(),
            scores: None,
            logprobs: n_top.map(|n_top| BeamLogprobs { n_top, steps: Vec::new() }),
        }
    }

    /// Extends the beams by one token and returns the newest token of each beam. `logits` is `[samples, vocab_size]` in
    /// the first step, and `[rows, vocab_size]` later.
    ///
    /// A sample fails if no token can be chosen for it. Its beams then continue with arbitrary tokens, so that the
    /// other samples can go on.
    ///
    /// # Errors
    /// The error of the first sample, once every sample has failed.
    pub(super) fn step(&mut self, logits: &[f32], rows: &mut Rows, stops: &Stops<'_>) -> Result<Vec<u32>, Error> {
        let width = rows.width(logits);
        let mut log_probs = Vec::with_capacity(rows.len() * width);
        for row in 0..rows.len() {
            let start = log_probs.len();
            log_probs.extend_from_slice(rows.scores_of(row, logits, width));
            log_softmax(&mut log_probs[start..]);
            self.chain.process(&rows.row(row), &mut log_probs[start..]);
        }
        let num_beams = self.search.options().num_beams;
        let is_late = stops.is_late();
        // Each further iteration marks one more sample as failed.
        let step = loop {
            for row in (0..rows.len()).filter(|&row| rows.has_failed(row)) {
                log_probs[row * width..(row + 1) * width].fill(-(width as f32).ln());
            }
            let prompts: &Rows = rows;
            let is_stopped =
                |sample: usize, tokens: &[u32]| is_late || stops.completes(prompts.prompt(sample).iter().chain(tokens));
            let step = match &self.sampler {
                None => self.search.step(&log_probs, is_stopped),
                Some(sampler) => self.search.step_sampled(&log_probs, sampler, &self.keys, is_stopped),
            };
            match step {
                Ok(step) => break step,
                Err(SampleError { sample, error }) => {
                    self.search.give_up(sample);
                    (sample * num_beams..(sample + 1) * num_beams).for_each(|row| rows.fail(row, error));
                    rows.check_failures()?;
                }
            }
        };
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.keep(&self.search, logits, rows);
        }
        if step.is_done {
            let reason = if is_late { FinishReason::Time } else { FinishReason::Length };
            self.end(rows, stops, reason);
        } else {
            rows.replace((0..rows.len()).map(|row| self.search.generated(row)));
            rows.count();
            self.continued = step.beam_idx;
        }
        Ok(step.next_tokens)
    }

    /// Ends the search and replaces the rows by the answers. `reason` is the finish reason of answers that ended
    /// neither with an end token or a stop string, nor at their maximum length.
    pub(super) fn end(&mut self, rows: &mut Rows, stops: &Stops<'_>, reason: FinishReason) {
        self.search.end();
        let options = self.search.options();
        let mut answers = Vec::new();
        let mut scores = Vec::new();
        for sample in 0..rows.n_samples() {
            for answer in self.search.answers(sample) {
                let is_end = answer.tokens.last().is_some_and(|id| options.eos_token_ids.contains(id));
                let reason = if is_end || stops.completes(rows.prompt(sample).iter().chain(&answer.tokens)) {
                    FinishReason::Stop
                } else if answer.tokens.len() >= options.max_new_tokens {
                    FinishReason::Length
                } else {
                    reason
                };
                answers.push((answer.tokens.clone(), reason));
                scores.push(answer.score);
            }
        }
        rows.conclude(answers, options.num_return_sequences, options.fill_token_id());
        self.scores = Some(scores);
    }

    /// For each row, the row whose tokens it continued in the last step.
    pub(super) fn continued(&self) -> &[usize] {
        &self.continued
    }

    /// Returns the log-probabilities of each answer's tokens, if requested.
    pub(super) fn logprobs(&self) -> Option<Vec<Vec<GeneratedLogprob>>> {
        let (logprobs, num_beams) = (self.logprobs.as_ref()?, self.search.options().num_beams);
        let samples = 0..self.keys.len();
        let answers = samples.flat_map(|sample| self.search.answers(sample).iter().map(move |answer| (sample, answer)));
        Some(answers.map(|(sample, answer)| logprobs.of(answer, sample * num_beams)).collect())
    }

    /// Returns the scores of the answers, once the search is over.
    pub(super) fn scores(&self) -> Option<&[f32]> {
        self.scores.as_deref()
    }
}
