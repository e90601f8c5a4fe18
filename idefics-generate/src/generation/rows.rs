//! The rows of a batch, and their end conditions.

use super::FinishReason;
use super::stops::Stops;
use crate::logits::{Row, RowEnd, RowError, RowKey};
use crate::{Error, GenerationConfig, Prompts};

/// All rows of a batch, `per_sample` rows for each sample.
#[derive(Debug)]
pub(super) struct Rows {
    /// The tokens in the slots of each row: padding, prompt, generated tokens, filler.
    pub(super) sequences: Vec<Vec<u32>>,
    pub(super) finished: Vec<Option<FinishReason>>,
    /// For each failed row, its error and the number of tokens generated before it.
    failures: Vec<Option<(RowError, usize)>>,
    /// Number of generated tokens in each row up to its end.
    lengths: Vec<usize>,
    per_sample: usize,
    /// Left padding of each sample, in slots.
    left_padding: Vec<usize>,
    /// Number of slots of a prompt, including padding.
    prompt_len: usize,
    filler: u32,
}

impl Rows {
    /// Creates `per_sample` equal rows for each prompt.
    pub(super) fn new(prompts: &Prompts, per_sample: usize, config: &GenerationConfig) -> Self {
        let n_rows = prompts.batch() * per_sample;
        Self {
            sequences: (0..n_rows).map(|row| prompts.row(row / per_sample).to_vec()).collect(),
            finished: vec![None; n_rows],
            failures: vec![None; n_rows],
            lengths: vec![0; n_rows],
            per_sample,
            left_padding: prompts.left_padding().to_vec(),
            prompt_len: prompts.seq(),
            filler: config.fill_token_id(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn n_samples(&self) -> usize {
        self.left_padding.len()
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Returns the number of tokens generated so far in every unfinished row.
    pub(super) fn n_generated(&self) -> usize {
        self.sequences[0].len() - self.prompt_len
    }

    /// Returns the prompt and generated tokens of a row, without padding.
    pub(super) fn tokens(&self, row: usize) -> &[u32] {
        &self.sequences[row][self.left_padding[row / self.per_sample]..]
    }

    /// Returns the padded prompt of a sample.
    pub(super) fn prompt(&self, sample: usize) -> &[u32] {
        &self.sequences[sample * self.per_sample][..self.prompt_len]
    }

    /// Returns the view of a row that logits processors get.
    pub(super) fn row(&self, row: usize) -> Row<'_> {
        let sample = row / self.per_sample;
        let padding = self.left_padding[sample];
        Row {
            input_ids: self.tokens(row),
            prompt_len: self.prompt_len - padding,
            padding,
            sample,
            beam: row % self.per_sample,
        }
    }

    /// Returns the sampling key of a row, which depends only on its own prompt.
    pub(super) fn key(&self, row: usize) -> RowKey {
        let sample = row / self.per_sample;
        RowKey::of_prompt(&self.prompt(sample)[self.left_padding[sample]..], row % self.per_sample)
    }

    /// Returns the vocabulary size of `scores`, which have one row per sample before the first token, and one row per
    /// answer or beam later.
    pub(super) fn width(&self, scores: &[f32]) -> usize {
        scores.len() / if self.n_generated() == 0 { self.n_samples() } else { self.len() }
    }

    /// Returns the scores of a row. `scores` is `[samples, width]` before the first token, and `[rows, width]` later.
    pub(super) fn scores_of<'s>(&self, row: usize, scores: &'s [f32], width: usize) -> &'s [f32] {
        let at = if self.n_generated() == 0 { row / self.per_sample } else { row };
        &scores[at * width..(at + 1) * width]
    }

    pub(super) fn last_tokens(&self) -> Vec<u32> {
        self.sequences.iter().map(|row| row[row.len() - 1]).collect()
    }

    /// Returns the parent of each row's last token, which is the token before it in the same answer. A parent is given
    /// as an index in the shared cache, counted from the end of the prompt, or `None` if the prompt itself precedes the
    /// token. Row `i` continues row `continued[i]`.
    pub(super) fn parents(&self, continued: &[usize]) -> Vec<Option<usize>> {
        let step = self.n_generated() - 1;
        let place = |row: &usize| step.checked_sub(1).map(|before| before * self.per_sample + row % self.per_sample);
        continued.iter().map(place).collect()
    }

    /// Appends a token to each row, or the filler to a finished row. Returns the appended tokens.
    pub(super) fn push(&mut self, mut next_tokens: Vec<u32>, config: &GenerationConfig, stops: &Stops<'_>) -> Vec<u32> {
        let is_late = stops.is_late();
        for (row, next_token) in next_tokens.iter_mut().enumerate() {
            if self.finished[row].is_some() {
                *next_token = self.filler;
                self.sequences[row].push(*next_token);
                continue;
            }
            self.sequences[row].push(*next_token);
            self.lengths[row] += 1;
            let n_slots = self.sequences[row].len();
            self.finished[row] = stops.finish(config, self.tokens(row), n_slots, is_late);
        }
        next_tokens
    }

    pub(super) fn all_finished(&self) -> bool {
        self.finished.iter().all(Option::is_some)
    }

    pub(super) fn finish_all(&mut self, reason: FinishReason) {
        self.finished.iter_mut().for_each(|finished| _ = finished.get_or_insert(reason));
    }

    /// Replaces the generated tokens of the rows by those of the running beams.
    pub(super) fn replace<'r>(&mut self, generated: impl Iterator<Item = &'r [u32]>) {
        for (row, generated) in self.sequences.iter_mut().zip(generated) {
            row.truncate(self.prompt_len);
            row.extend_from_slice(generated);
        }
    }

    /// Replaces the rows by the answers, `per_sample` for each sample. Shorter answers are filled up to the longest
    /// one.
    pub(super) fn conclude(&mut self, answers: Vec<(Vec<u32>, FinishReason)>, per_sample: usize, filler: u32) {
        let longest = answers.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        let prompts: Vec<Vec<u32>> = (0..self.n_samples()).map(|sample| self.prompt(sample).to_vec()).collect();
        self.lengths = answers.iter().map(|(tokens, _)| tokens.len()).collect();
        // All beams of a sample fail together.
        let failure_of = |answer: usize| self.failures[answer / per_sample * self.per_sample];
        self.failures = (0..answers.len()).map(failure_of).collect();
        let reason = |(failure, &(_, reason)): (&Option<_>, &(_, FinishReason))| match failure {
            None => Some(reason),
            Some(_) => Some(FinishReason::Failed),
        };
        self.finished = self.failures.iter().zip(&answers).map(reason).collect();
        let row = |(row, (mut tokens, _)): (usize, (Vec<u32>, FinishReason))| {
            tokens.resize(longest, filler);
            [prompts[row / per_sample].as_slice(), &tokens].concat()
        };
        self.sequences = answers.into_iter().enumerate().map(row).collect();
        self.per_sample = per_sample;
    }

    /// Returns the generated tokens of a row, including the end token.
    pub(super) fn generated(&self, row: usize) -> &[u32] {
        &self.sequences[row][self.prompt_len..self.prompt_len + self.lengths[row]]
    }

    /// Sets the length of every row to the number of tokens generated so far. Used in beam search, where each row is a
    /// running beam.
    pub(super) fn count(&mut self) {
        let n_generated = self.n_generated();
        self.lengths.fill(n_generated);
    }

    /// Ends a row without a further token.
    pub(super) fn end(&mut self, row: usize, end: RowEnd) {
        match end {
            RowEnd::Complete => self.finished[row] = Some(FinishReason::Stop),
            RowEnd::Failed(error) => self.end_failed(row, error),
        }
    }

    /// Ends a row for which no token can be chosen.
    pub(super) fn end_failed(&mut self, row: usize, error: RowError) {
        self.fail(row, error);
        self.finished[row] = Some(FinishReason::Failed);
    }

    /// Records that no token can be chosen for a row.
    pub(super) fn fail(&mut self, row: usize, error: RowError) {
        let failure = (error, self.n_generated());
        self.failures[row].get_or_insert(failure);
    }

    /// Returns whether the row has failed.
    pub(super) fn has_failed(&self, row: usize) -> bool {
        self.failures[row].is_some()
    }

    /// Returns the error of a row, if it failed.
    pub(super) fn failure(&self, row: usize) -> Option<Error> {
        let (error, n_tokens) = (*self.failures.get(row)?)?;
        // The error names the sample, because callers do not know its individual rows.
        let row = row / self.per_sample;
        Some(match error {
            RowError::NonFinite => Error::NonFinite { row, n_tokens },
            RowError::GrammarLimit => Error::GrammarLimit { row, n_tokens },
            _ => Error::NoAllowedToken { row },
        })
    }

    /// Returns the error of the first row, if every row has failed.
    pub(super) fn check_failures(&self) -> Result<(), Error> {
        match self.failure(0).filter(|_| self.failures.iter().all(Option::is_some)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
