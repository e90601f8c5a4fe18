//! The running and finished beams of one sample.

use super::{BLOCKED, BeamOptions, Candidate, Hypothesis};
use crate::generation_config::EarlyStopping;
use crate::logits::top_k;

/// The running and finished beams of one sample.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// The `num_beams` running beams, best first.
    pub(super) running: Vec<Hypothesis>,
    /// The `num_beams` places for finished answers, best first.
    pub(super) finished: Vec<Hypothesis>,
    /// Whether a running beam may still beat a finished answer. Once false, it stays false.
    pub(super) can_improve: bool,
}

/// Returns the `num_beams` best candidates, and the beams that result from them. A candidate that has ended (see
/// `hits`) is chosen only if there are too few others. Source: `_get_running_beams_for_next_iteration`.
pub(super) fn next_running(
    sample: &Sample,
    candidates: &[Candidate],
    hits: &[bool],
    num_beams: usize,
) -> Vec<(Candidate, Hypothesis)> {
    let blocked = |(candidate, &hit): (&Candidate, &bool)| candidate.score + if hit { BLOCKED } else { 0.0 };
    let scores: Vec<f32> = candidates.iter().zip(hits).map(blocked).collect();
    let next = top_k(&scores, num_beams)
        .into_iter()
        .map(|at| (candidates[at], sample.hypothesis(&candidates[at], scores[at], false)));
    next.collect()
}

impl Sample {
    /// Returns the tokens of the candidate's beam, followed by the candidate's token.
    pub(super) fn continued(&self, candidate: &Candidate) -> Vec<u32> {
        let tokens = &self.running[candidate.beam].tokens;
        tokens.iter().copied().chain([candidate.token]).collect()
    }

    /// Returns the candidate's beam, extended by the candidate's token.
    fn hypothesis(&self, candidate: &Candidate, score: f32, is_finished: bool) -> Hypothesis {
        let beams = &self.running[candidate.beam].beam_indices;
        let beam_indices = beams.iter().copied().chain([candidate.beam]).collect();
        Hypothesis { tokens: self.continued(candidate), beam_indices, score, is_finished }
    }

    /// Whether every place for a finished answer is taken.
    pub(super) fn is_full(&self) -> bool {
        self.finished.iter().all(|hypothesis| hypothesis.is_finished)
    }

    /// Adds candidates that ended to the finished answers if their scores are high enough. Only the best `num_beams`
    /// candidates are considered. Source: `_update_finished_beams`.
    pub(super) fn finish(&mut self, candidates: &[Candidate], hits: &[bool], options: &BeamOptions, n_tokens: usize) {
        let is_closed = options.early_stopping == EarlyStopping::FirstFull && self.is_full();
        let block = |is_blocked: bool| if is_blocked { BLOCKED } else { 0.0 };
        let mut scores: Vec<f32> = self.finished.iter().map(|hypothesis| hypothesis.score).collect();
        scores.extend(candidates.iter().zip(hits).enumerate().map(|(rank, (candidate, &hit))| {
            let score = options.penalized(candidate.score, n_tokens) + block(is_closed) + block(!self.can_improve);
            score + block(!hit || rank >= options.num_beams)
        }));
        let merged = top_k(&scores, options.num_beams).into_iter().map(|at| match at.checked_sub(options.num_beams) {
            None => self.finished[at].clone(),
            Some(rank) => self.hypothesis(&candidates[rank], scores[at], hits[rank] && rank < options.num_beams),
        });
        self.finished = merged.collect();
    }

    /// Whether the best running beam could still beat the worst finished answer. `n_tokens` includes the newest token.
    ///
    /// Source: `_check_early_stop_heuristic`.
    pub(super) fn may_improve(&self, options: &BeamOptions, n_tokens: usize) -> bool {
        let is_at_longest = options.early_stopping == EarlyStopping::Never && options.length_penalty > 0.0;
        let length = if is_at_longest { options.max_new_tokens } else { n_tokens };
        let Some(best) = self.running.first().map(|beam| options.penalized(beam.score, length)) else { return false };
        let worst = self.finished.iter().map(|hypothesis| hypothesis.score).fold(f32::INFINITY, f32::min);
        self.finished.iter().any(|hypothesis| best > if hypothesis.is_finished { worst } else { BLOCKED })
    }
}
