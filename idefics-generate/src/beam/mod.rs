//! Beam search and beam sampling: which beams continue, which are finished, and when to stop.
//!
//! [`BeamSearch`] contains no model and no prompt. Each step takes the processed log-probabilities of the next token
//! for every running beam. It returns the next tokens and the beams that they continue, so that the caller can reorder
//! its KV cache.
//!
//! Reference: `GenerationMixin._beam_search` and its parts, Transformers 5.23.
//!
//! Axes: `rows` = samples × `num_beams`. Beam `beam` of sample `sample` is row `sample * num_beams + beam`.
//!
//! Numerics: scores are summed in f32, as in the reference. Among equal scores, the lowest beam wins, then the lowest
//! token id. Torch does not specify the order.

mod options;
mod sample;

use crate::generation_config::EarlyStopping;
use crate::logits::{RowError, RowKey, Sampler, top_k};

pub use options::BeamOptions;
use sample::{Sample, next_running};

/// Added to the scores of candidates that should not be chosen. It is finite, so that a blocked candidate can still be
/// chosen if there is no other. Source: `_beam_search`.
const BLOCKED: f32 = -1e9;

/// A possible continuation of one beam of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Index among the running beams of the sample.
    pub beam: usize,
    /// The next token of the beam.
    pub token: u32,
    /// Log-probability of the continued beam: [`BeamSearch::running_score`] plus that of the token.
    pub score: f32,
}

/// An answer of the search, either still running or finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The generated tokens, end token included. Empty if this place in the list of finished answers is still free.
    pub tokens: Vec<u32>,
    /// For each token, the running beam that it continued, as an index within the sample. The reference's
    /// `beam_indices` are indices of rows of the whole batch instead.
    pub beam_indices: Vec<usize>,
    /// Log-probability of the answer. Once the answer is finished, it is divided by the length penalty.
    pub score: f32,
    /// Whether the answer ended, by an end token, a stop string or the maximum length.
    pub is_finished: bool,
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeamStep {
    /// The next token of each row, `[rows]`.
    pub next_tokens: Vec<u32>,
    /// For each new row, the old row that it continues, `[rows]`. Row `i` of the KV cache must become a copy of row
    /// `beam_idx[i]`.
    pub beam_idx: Vec<usize>,
    /// Whether the search is over, so that the model need not run again.
    pub is_done: bool,
}

/// The error of a step in which no token can be chosen for one of the samples. No sample has advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sample {sample}: {error}")]
pub struct SampleError {
    /// Index of the sample, from 0.
    pub sample: usize,
    /// What is wrong with the scores of the sample.
    pub error: RowError,
}

/// State of a batch of beam searches.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    options: BeamOptions,
    samples: Vec<Sample>,
    n_generated: usize,
    is_done: bool,
}

impl BeamSearch {
    /// Starts a search for `n_samples` prompts. Every beam of a sample starts from the same prompt.
    pub fn new(options: BeamOptions, n_samples: usize) -> Self {
        let place = |score| Hypothesis { tokens: Vec::new(), beam_indices: Vec::new(), score, is_finished: false };
        // All beams of a sample are equal at first. All but the first are blocked, so that the first step chooses
        // different tokens.
        let running = (0..options.num_beams).map(|beam| place(if beam == 0 { 0.0 } else { BLOCKED })).collect();
        let finished = vec![place(BLOCKED); options.num_beams];
        let samples = vec![Sample { running, finished, can_improve: true }; n_samples];
        Self { options, samples, n_generated: 0, is_done: n_samples == 0 }
    }

    /// The options of the search.
    pub fn options(&self) -> &BeamOptions {
        &self.options
    }

    /// Returns the number of running beams of all samples.
    pub fn n_rows(&self) -> usize {
        self.samples.len() * self.options.num_beams
    }

    /// Returns the [`BeamSearch::n_generated`] tokens that a running row has generated.
    pub fn generated(&self, row: usize) -> &[u32] {
        &self.running(row).tokens
    }

    /// Returns the log-probability of a running row.
    pub fn running_score(&self, row: usize) -> f32 {
        self.running(row).score
    }

    fn running(&self, row: usize) -> &Hypothesis {
        &self.samples[row / self.options.num_beams].running[row % self.options.num_beams]
    }

    /// Returns the number of tokens that each running row has generated.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Whether the search is over.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Extends every running beam by one token, with the best candidates.
    ///
    /// `log_probs`, `[rows, vocab_size]`, is the log-softmax of the logits, changed by the logits processors.
    /// `is_stopped` takes a sample and the tokens of an answer. It returns whether the answer ends for a reason other
    /// than an end token or the maximum length, for example because of a stop string.
    ///
    /// # Errors
    /// [`SampleError`], which names the first sample that cannot advance. Its `error` is [`RowError::NonFinite`] if one
    /// of the sample's scores is NaN or positive infinity, and [`RowError::NothingAllowed`] if the sample is unfinished
    /// and every token is forbidden. [`BeamSearch::give_up`] lets the other samples advance.
    ///
    /// # Panics
    /// If there are no samples, or `log_probs` does not consist of [`BeamSearch::n_rows`] rows of equal width.
    pub fn step(
        &mut self,
        log_probs: &[f32],
        is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<BeamStep, SampleError> {
        let k = self.options.beams_to_keep();
        let candidates = self.candidates(log_probs, |_, scores| Ok(top_k(scores, k)))?;
        Ok(self.advance(&candidates, is_stopped))
    }

    /// Like [`BeamSearch::step`], but draws the candidates with `sampler`. `keys`, `[samples]`, holds the key from
    /// which the random numbers of each sample are derived.
    ///
    /// # Errors
    /// The errors of [`BeamSearch::step`].
    ///
    /// # Panics
    /// In the cases of [`BeamSearch::step`], or if `keys` does not have one key per sample.
    pub fn step_sampled(
        &mut self,
        log_probs: &[f32],
        sampler: &Sampler,
        keys: &[RowKey],
        is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<BeamStep, SampleError> {
        assert_eq!(keys.len(), self.samples.len(), "`keys` must have one key per sample");
        let (k, step) = (self.options.beams_to_keep(), self.n_generated);
        let draw = |sample: usize, scores: &[f32]| sampler.draw_without_replacement(keys[sample], step, scores, k);
        let candidates = self.candidates(log_probs, draw)?;
        Ok(self.advance(&candidates, is_stopped))
    }

    /// Ends the search of a sample for which no token can be chosen. Later steps still need log-probabilities for the
    /// rows of this sample. They must be finite, and have no effect.
    pub fn give_up(&mut self, sample: usize) {
        self.samples[sample].can_improve = false;
    }

    /// Checks that a sample can advance with the log-probabilities of its rows, `[num_beams, vocab_size]`.
    fn check(&self, sample: usize, log_probs: &[f32]) -> Result<(), RowError> {
        let sample = &self.samples[sample];
        let mut is_any_allowed = false;
        let rows = log_probs.chunks((log_probs.len() / self.options.num_beams).max(1));
        for (log_probs, hypothesis) in rows.zip(&sample.running) {
            for score in log_probs.iter().map(|log_prob| log_prob + hypothesis.score) {
                if score.is_nan() || score == f32::INFINITY {
                    return Err(RowError::NonFinite);
                }
                is_any_allowed |= score != f32::NEG_INFINITY;
            }
        }
        if is_any_allowed || !sample.can_improve { Ok(()) } else { Err(RowError::NothingAllowed) }
    }

    /// Returns the candidates of each sample. `choose` takes a sample and the scores of all its continuations,
    /// `[num_beams * vocab_size]`, and returns the indices of the chosen continuations.
    fn candidates(
        &self,
        log_probs: &[f32],
        choose: impl Fn(usize, &[f32]) -> Result<Vec<usize>, RowError>,
    ) -> Result<Vec<Vec<Candidate>>, SampleError> {
        let n_rows = self.n_rows();
        assert!(
            n_rows > 0 && log_probs.len().is_multiple_of(n_rows),
            "`log_probs` must be {n_rows} rows of equal width"
        );
        let vocab_size = log_probs.len() / n_rows;
        let num_beams = self.options.num_beams;
        let mut scores = Vec::with_capacity(num_beams * vocab_size);
        let mut candidates = Vec::with_capacity(self.samples.len());
        for (index, sample) in self.samples.iter().enumerate() {
            scores.clear();
            for (beam, hypothesis) in sample.running.iter().enumerate() {
                let start = (index * num_beams + beam) * vocab_size;
                scores.extend(log_probs[start..start + vocab_size].iter().map(|log_prob| log_prob + hypothesis.score));
            }
            let failed = |error| SampleError { sample: index, error };
            self.check(index, &log_probs[index * num_beams * vocab_size..][..num_beams * vocab_size])
                .map_err(failed)?;
            let chosen = match scores.iter().any(|&score| score != f32::NEG_INFINITY) {
                true => choose(index, &scores).map_err(failed)?,
                false => top_k(&scores, self.options.beams_to_keep()), // no effect, since `can_improve` is false
            };
            let candidate =
                |at: usize| Candidate { beam: at / vocab_size, token: (at % vocab_size) as u32, score: scores[at] };
            candidates.push(chosen.into_iter().map(candidate).collect());
        }
        Ok(candidates)
    }

    /// Extends every running beam by one token, with candidates that the caller has chosen. `candidates` has one list
    /// per sample, best candidate first. A list should have [`BeamOptions::beams_to_keep`] candidates, and must have at
    /// least `num_beams`.
    ///
    /// # Panics
    /// If the number of lists is not the number of samples, or a list has fewer than `num_beams` candidates.
    pub fn advance(
        &mut self,
        candidates: &[Vec<Candidate>],
        mut is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> BeamStep {
        assert_eq!(candidates.len(), self.samples.len(), "`candidates` must have one list per sample");
        let num_beams = self.options.num_beams;
        let n_tokens = self.n_generated + 1;
        let mut step = BeamStep { next_tokens: Vec::new(), beam_idx: Vec::new(), is_done: false };
        let mut all_hit = true;
        for (index, (sample, candidates)) in self.samples.iter_mut().zip(candidates).enumerate() {
            assert!(
                candidates.len() >= num_beams,
                "a sample has {} candidates; expected at least {num_beams}",
                candidates.len()
            );
            let hits: Vec<bool> = candidates
                .iter()
                .map(|candidate| {
                    n_tokens >= self.options.max_new_tokens
                        || self.options.eos_token_ids.contains(&candidate.token)
                        || is_stopped(index, &sample.continued(candidate))
                })
                .collect();
            all_hit &= hits.iter().all(|&hit| hit);
            let next = next_running(sample, candidates, &hits, num_beams);
            sample.finish(candidates, &hits, &self.options, n_tokens);
            for (candidate, hypothesis) in &next {
                step.next_tokens.push(candidate.token);
                step.beam_idx.push(index * num_beams + candidate.beam);
                debug_assert_eq!(hypothesis.tokens.len(), n_tokens);
            }
            sample.running = next.into_iter().map(|(_, hypothesis)| hypothesis).collect();
            sample.can_improve &= sample.may_improve(&self.options, n_tokens);
        }
        self.n_generated = n_tokens;
        let all_full = self.samples.iter().all(Sample::is_full);
        let is_early = self.options.early_stopping == EarlyStopping::FirstFull && all_full;
        self.is_done = all_hit || is_early || !self.samples.iter().any(|sample| sample.can_improve);
        step.is_done = self.is_done;
        step
    }

    /// Ends the search early. Free places for finished answers are filled with the running beams, best first.
    pub fn end(&mut self) {
        self.is_done = true;
        let n_tokens = self.n_generated.max(1);
        for sample in &mut self.samples {
            let mut running = sample.running.iter().filter(|beam| beam.score > BLOCKED / 2.0);
            for place in sample.finished.iter_mut().filter(|place| !place.is_finished) {
                if let Some(beam) = running.next() {
                    *place = Hypothesis { score: self.options.penalized(beam.score, n_tokens), ..beam.clone() };
                }
            }
        }
    }

    /// Returns the running and finished beams of a sample. Places without an answer have no tokens.
    pub(crate) fn hypotheses(&self, sample: usize) -> impl Iterator<Item = &Hypothesis> {
        self.samples[sample].running.iter().chain(&self.samples[sample].finished)
    }

    /// Returns the `num_return_sequences` answers of a sample, best first.
    pub fn answers(&self, sample: usize) -> &[Hypothesis] {
        &self.samples[sample].finished[..self.options.num_return_sequences]
    }
}
