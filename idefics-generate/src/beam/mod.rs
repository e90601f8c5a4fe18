//! Beam search and beam sampling: which answers go on, which are finished, when to stop.
//!
//! [`BeamSearch`] holds no model and no prompt. Each step takes the processed log-probabilities of the next token of
//! every running beam, and says which tokens come next and which beams they continue, so that the caller can reorder
//! its cache.
//!
//! Reference: `GenerationMixin._beam_search` and its parts, Transformers 5.23.
//!
//! Axes: `rows` = samples × `num_beams`, row `sample * num_beams + beam`.
//!
//! Numerics: scores add up in f32, as in the reference; among equal candidates the lowest beam, then the lowest id,
//! where torch promises no order.

mod options;
mod sample;

use crate::generation_config::EarlyStopping;
use crate::logits::{RowError, RowKey, Sampler, top_k};

pub use options::BeamOptions;
use sample::{Sample, next_running};

/// Added to what may not be chosen. Finite, so that there is always something to choose. Source: `_beam_search`.
const BLOCKED: f32 = -1e9;

/// A way to continue one beam of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Which of the sample's running beams.
    pub beam: usize,
    /// Its next token.
    pub token: u32,
    /// The log-probability of the beam with that token: [`BeamSearch::running_score`] + that of the token.
    pub score: f32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// What was generated, its end token included; empty for a place that no answer took.
    pub tokens: Vec<u32>,
    /// For each token which running beam of the sample it continued: the reference's `beam_indices` less the rows of the
    /// samples before.
    pub beam_indices: Vec<usize>,
    /// Log-probability, divided by the length penalty once finished.
    pub score: f32,
    /// Whether it ended: by an end token, the length or a stop string.
    pub is_finished: bool,
}

/// What a step decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeamStep {
    /// The token of each row to run next, `[rows]`.
    pub next_tokens: Vec<u32>,
    /// The row that each row continues, `[rows]`: the caller takes row `i` of its cache from row `beam_idx[i]`.
    pub beam_idx: Vec<usize>,
    /// Whether the search is over. Nothing needs to be run then.
    pub is_done: bool,
}

/// The state of one batch of beam searches.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    options: BeamOptions,
    samples: Vec<Sample>,
    n_generated: usize,
    is_done: bool,
}

impl BeamSearch {
    /// Starts a search for `n_samples` prompts. Every beam of a sample begins with its prompt.
    pub fn new(options: BeamOptions, n_samples: usize) -> Self {
        let place = |score| Hypothesis { tokens: Vec::new(), beam_indices: Vec::new(), score, is_finished: false };
        // At first all beams of a sample are equal: only the first one counts.
        let running = (0..options.num_beams).map(|beam| place(if beam == 0 { 0.0 } else { BLOCKED })).collect();
        let finished = vec![place(BLOCKED); options.num_beams];
        let samples = vec![Sample { running, finished, can_improve: true }; n_samples];
        Self { options, samples, n_generated: 0, is_done: n_samples == 0 }
    }

    /// What it was started with.
    pub fn options(&self) -> &BeamOptions {
        &self.options
    }

    /// Running beams of all samples.
    pub fn n_rows(&self) -> usize {
        self.samples.len() * self.options.num_beams
    }

    /// What a running row has generated, [`BeamSearch::n_generated`] tokens.
    pub fn generated(&self, row: usize) -> &[u32] {
        &self.running(row).tokens
    }

    /// The log-probability of a running row.
    pub fn running_score(&self, row: usize) -> f32 {
        self.running(row).score
    }

    fn running(&self, row: usize) -> &Hypothesis {
        &self.samples[row / self.options.num_beams].running[row % self.options.num_beams]
    }

    /// Tokens generated so far in every running row.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Whether the search is over.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes a step with the likeliest candidates. `log_probs` is `[rows, vocab_size]`: log-softmax of the logits, then
    /// processed. `is_stopped` says whether the tokens of an answer of a sample end it, end tokens and length aside.
    ///
    /// # Errors
    /// [`RowError::NonFinite`]; [`RowError::NothingAllowed`] where no beam of a sample that is still open may go on.
    ///
    /// # Panics
    /// If `log_probs` does not hold [`BeamSearch::n_rows`] rows of equal width.
    pub fn step(
        &mut self,
        log_probs: &[f32],
        is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<BeamStep, RowError> {
        let k = self.options.beams_to_keep();
        let candidates = self.candidates(log_probs, |_, scores| Ok(top_k(scores, k)))?;
        Ok(self.advance(&candidates, is_stopped))
    }

    /// Takes a step with drawn candidates: [`BeamSearch::step`] for beam sampling. `keys` is `[samples]`.
    ///
    /// # Errors
    /// [`RowError`].
    ///
    /// # Panics
    /// As [`BeamSearch::step`]; if there is not a key for each sample.
    pub fn step_sampled(
        &mut self,
        log_probs: &[f32],
        sampler: &Sampler,
        keys: &[RowKey],
        is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<BeamStep, RowError> {
        assert_eq!(keys.len(), self.samples.len(), "one key a sample");
        let (k, step) = (self.options.beams_to_keep(), self.n_generated);
        let draw = |sample: usize, scores: &[f32]| sampler.draw_without_replacement(keys[sample], step, scores, k);
        let candidates = self.candidates(log_probs, draw)?;
        Ok(self.advance(&candidates, is_stopped))
    }

    /// Whether a sample can take a step with these scores, `[num_beams, vocab_size]`: the log-probabilities of its rows.
    ///
    /// # Errors
    /// As [`BeamSearch::step`].
    pub fn check(&self, sample: usize, log_probs: &[f32]) -> Result<(), RowError> {
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

    /// What `choose` picks for each sample from the scores of all continuations, `[num_beams * vocab_size]`.
    fn candidates(
        &self,
        log_probs: &[f32],
        choose: impl Fn(usize, &[f32]) -> Result<Vec<usize>, RowError>,
    ) -> Result<Vec<Vec<Candidate>>, RowError> {
        let n_rows = self.n_rows();
        assert!(n_rows > 0 && log_probs.len().is_multiple_of(n_rows), "{n_rows} rows of equal width");
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
            self.check(index, &log_probs[index * num_beams * vocab_size..][..num_beams * vocab_size])?;
            let chosen = match scores.iter().any(|&score| score != f32::NEG_INFINITY) {
                true => choose(index, &scores)?,
                false => top_k(&scores, self.options.beams_to_keep()), // its answers stay as they are
            };
            let candidate =
                |at: usize| Candidate { beam: at / vocab_size, token: (at % vocab_size) as u32, score: scores[at] };
            candidates.push(chosen.into_iter().map(candidate).collect());
        }
        Ok(candidates)
    }

    /// Takes a step with given candidates, [`BeamOptions::beams_to_keep`] for each sample and at least `num_beams`,
    /// in the order of their rank: for callers who chose them elsewhere.
    ///
    /// # Panics
    /// If a sample has fewer than `num_beams` candidates or there are not as many lists as samples.
    pub fn advance(
        &mut self,
        candidates: &[Vec<Candidate>],
        mut is_stopped: impl FnMut(usize, &[u32]) -> bool,
    ) -> BeamStep {
        assert_eq!(candidates.len(), self.samples.len(), "candidates of every sample");
        let num_beams = self.options.num_beams;
        let n_tokens = self.n_generated + 1;
        let mut step = BeamStep { next_tokens: Vec::new(), beam_idx: Vec::new(), is_done: false };
        let mut all_hit = true;
        for (index, (sample, candidates)) in self.samples.iter_mut().zip(candidates).enumerate() {
            assert!(candidates.len() >= num_beams, "{} candidates for {num_beams} beams", candidates.len());
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

    /// Ends the search before its time: places that no finished answer took get the running beams, best first.
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

    /// The running and the finished beams of a sample; places that nothing took have no tokens.
    pub(crate) fn hypotheses(&self, sample: usize) -> impl Iterator<Item = &Hypothesis> {
        self.samples[sample].running.iter().chain(&self.samples[sample].finished)
    }

    /// The answers of a sample, best first, `num_return_sequences`.
    pub fn answers(&self, sample: usize) -> &[Hypothesis] {
        &self.samples[sample].finished[..self.options.num_return_sequences]
    }
}
