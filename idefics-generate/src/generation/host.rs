//! Greedy search with logits processors, and sampling. Every step reads the scores back to the host once.

use super::Rows;
use crate::logits::{ProcessorChain, RowKey, Sampler, argmax};
use crate::{Error, GenerationConfig};

/// Chooses tokens from scores on the host.
#[derive(Debug)]
pub(super) struct OnHost {
    chain: ProcessorChain,
    /// Draws the tokens; `None` for greedy search.
    sampler: Option<Sampler>,
    keys: Vec<RowKey>,
}

impl OnHost {
    pub(super) fn new(config: &GenerationConfig, chain: ProcessorChain, seed: u64, rows: &Rows) -> Self {
        let sampler = config.do_sample().then(|| Sampler::new(seed));
        Self { chain, sampler, keys: (0..rows.len()).map(|row| rows.key(row)).collect() }
    }

    /// Computes the processed scores of a row. `logits` is `[samples, vocab_size]` for the first token, and
    /// `[rows, vocab_size]` later.
    pub(super) fn scores(&mut self, row: usize, logits: &[f32], rows: &Rows) -> Vec<f32> {
        let width = rows.width(logits);
        let mut scores = rows.scores_of(row, logits, width).to_vec();
        self.chain.process(&rows.row(row), &mut scores);
        scores
    }

    /// Returns the next token of each row, or 0 for rows that have finished or that end in this step without a token.
    ///
    /// # Errors
    /// The error of the first row, once every row has failed.
    pub(super) fn choose(&mut self, logits: &[f32], rows: &mut Rows) -> Result<Vec<u32>, Error> {
        let mut next_tokens = vec![0; rows.len()];
        for (row, next_token) in next_tokens.iter_mut().enumerate() {
            if rows.finished[row].is_some() {
                continue;
            }
            let scores = self.scores(row, logits, rows);
            if let Some(end) = self.chain.ending(&rows.row(row)) {
                rows.end(row, end);
                continue;
            }
            let chosen = match &self.sampler {
                None => argmax(&scores),
                Some(sampler) => sampler.draw(self.keys[row], rows.n_generated(), &scores),
            };
            match chosen {
                Ok(token) => *next_token = token,
                Err(error) => rows.end_failed(row, error),
            }
        }
        rows.check_failures()?;
        Ok(next_tokens)
    }
}
