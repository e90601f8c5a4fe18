//! Beam search and beam sampling over the model: scores are read once a step.

use super::FinishReason;
use super::rows::{Rows, Stops};
use crate::beam::{BeamOptions, BeamSearch};
use crate::logits::{ProcessorChain, RowKey, Sampler, log_softmax};
use crate::{Error, GenerationConfig};

/// A search for the best answers of each sample.
#[derive(Debug)]
pub(super) struct Beams {
    chain: ProcessorChain,
    /// `None` takes the likeliest candidates.
    sampler: Option<Sampler>,
    /// Of each sample.
    keys: Vec<RowKey>,
    search: BeamSearch,
    /// The row that each row continues.
    continued: Vec<usize>,
    /// Of the answers, once the search is over.
    scores: Option<Vec<f32>>,
}

impl Beams {
    pub(super) fn new(config: &GenerationConfig, chain: ProcessorChain, seed: u64, rows: &Rows) -> Self {
        let options = BeamOptions::new(config, rows.prompt_len());
        let num_beams = options.num_beams;
        Self {
            chain,
            sampler: config.do_sample().then(|| Sampler::new(seed)),
            keys: (0..rows.n_samples()).map(|sample| rows.key(sample * num_beams)).collect(),
            search: BeamSearch::new(options, rows.n_samples()),
            continued: Vec::new(),
            scores: None,
        }
    }

    /// Takes a step from `logits`, `[samples or rows, vocab_size]`, and says the newest token of each beam.
    pub(super) fn step(&mut self, logits: &[f32], rows: &mut Rows, stops: &Stops<'_>) -> Result<Vec<u32>, Error> {
        let width = rows.width(logits);
        let mut log_probs = Vec::with_capacity(rows.len() * width);
        for row in 0..rows.len() {
            let start = log_probs.len();
            log_probs.extend_from_slice(rows.scores_of(row, logits, width));
            log_softmax(&mut log_probs[start..]);
            self.chain.process(&rows.row(row), &mut log_probs[start..]);
        }
        let is_late = stops.is_late();
        let prompts: &Rows = rows;
        let is_stopped =
            |sample: usize, tokens: &[u32]| is_late || stops.completes(prompts.prompt(sample).iter().chain(tokens));
        let step = match &self.sampler {
            None => self.search.step(&log_probs, is_stopped),
            Some(sampler) => self.search.step_sampled(&log_probs, sampler, &self.keys, is_stopped),
        };
        let step = step.map_err(|error| {
            let is_bad = |row: &usize| log_probs[row * width..(row + 1) * width].iter().any(|score| score.is_nan());
            rows.error((0..rows.len()).find(is_bad).unwrap_or(0), error)
        })?;
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

    /// Ends the search: the rows become the answers. `reason` is why answers ended that neither an end token, nor a
    /// stop string, nor the length did.
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
        rows.conclude(answers, options.num_return_sequences, options.filler());
        self.scores = Some(scores);
    }

    /// The row that each row continued in the last step.
    pub(super) fn continued(&self) -> &[usize] {
        &self.continued
    }

    /// The scores of the answers, once the search is over.
    pub(super) fn scores(&self) -> Option<&[f32]> {
        self.scores.as_deref()
    }
}
