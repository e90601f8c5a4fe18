//! The beams of one sample: those that run and those that have ended.

use super::{BLOCKED, BeamOptions, Candidate, Hypothesis};
use crate::generation_config::EarlyStopping;
use crate::logits::top_k;

/// The beams of one sample.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Best first, `num_beams`.
    pub(super) running: Vec<Hypothesis>,
    /// Best first, `num_beams`.
    pub(super) finished: Vec<Hypothesis>,
    /// Whether a running beam may still improve the finished ones. Once false it stays so.
    pub(super) can_improve: bool,
}

/// The beams that go on: the best candidates, those that ended last. Source: `_get_running_beams_for_next_iteration`.
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
    /// The tokens of a running beam with a candidate's.
    pub(super) fn continued(&self, candidate: &Candidate) -> Vec<u32> {
        let tokens = &self.running[candidate.beam].tokens;
        tokens.iter().copied().chain([candidate.token]).collect()
    }

    /// A running beam with a candidate's token.
    fn hypothesis(&self, candidate: &Candidate, score: f32, is_finished: bool) -> Hypothesis {
        let beams = &self.running[candidate.beam].beam_indices;
        let beam_indices = beams.iter().copied().chain([candidate.beam]).collect();
        Hypothesis { tokens: self.continued(candidate), beam_indices, score, is_finished }
    }

    /// Whether every place for a finished answer is taken.
    pub(super) fn is_full(&self) -> bool {
        self.finished.iter().all(|hypothesis| hypothesis.is_finished)
    }

    /// Puts candidates that ended among the finished answers, where they are good enough. Only the first `num_beams`
    /// candidates may enter. Source: `_update_finished_beams`.
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

    /// Whether the best running beam could still be better than the worst answer; `n_tokens` include the newest.
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
