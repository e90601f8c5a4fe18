//! Tolerances for 16-bit floats: a normalised mean square error for logits, and ties at which tokens may differ.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use idefics_generate::logits::{LogitsProcessor, Row};

/// Maximum mean square error of logits, relative to their mean square.
pub(super) const NMSE: f64 = 1e-3;

/// Computes Σ (ours − expected)² / Σ expected² over the elements for which `compared(flat index)` holds.
pub(super) fn nmse(ours: &[f32], expected: &[f32], compared: impl Fn(usize) -> bool) -> f64 {
    let (mut error_sum, mut expected_sum) = (0.0f64, 0.0f64);
    for index in (0..ours.len()).filter(|&index| compared(index)) {
        error_sum += (f64::from(ours[index]) - f64::from(expected[index])).powi(2);
        expected_sum += f64::from(expected[index]).powi(2);
    }
    error_sum / expected_sum
}

/// Returns the largest difference of two scores whose order an error of [`NMSE`] can swap. This is twice the root mean
/// square error of a score.
pub(super) fn margin(scores: &[f32]) -> f64 {
    let squares = scores.iter().filter(|score| score.is_finite()).map(|score| f64::from(*score).powi(2));
    let (sum, count) = squares.fold((0.0, 0), |(sum, count), square| (sum + square, count + 1));
    2.0 * (NMSE * sum / f64::from(count.max(1))).sqrt()
}

/// Whether the two best tokens were tied, keyed by (sample, number of tokens generated before). Recorded during greedy
/// search.
#[derive(Debug, Clone, Default)]
pub(super) struct Ties(Arc<Mutex<HashMap<(usize, usize), bool>>>);

impl Ties {
    /// Whether there was a tie after `n_generated` tokens.
    pub(super) fn has(&self, sample: usize, n_generated: usize) -> bool {
        let ties = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ties.get(&(sample, n_generated)).copied().unwrap_or(false)
    }
}

/// A logits processor that records ties and leaves the scores unchanged.
impl LogitsProcessor for Ties {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &score in scores.iter() {
            if score > first {
                (first, second) = (score, first);
            } else if score > second {
                second = score;
            }
        }
        let is_tie = f64::from(first) - f64::from(second) <= margin(scores);
        let mut ties = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ties.insert((row.sample, row.n_generated()), is_tie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_within_the_margin_are_ties() {
        let mut ties = Ties::default();
        let ids = [1, 2, 3];
        let wide = 1.0 + 2.0 * NMSE.sqrt() as f32;
        ties.process(&Row::new(&ids, 3), &mut [1.0, 1.01, -1.0, f32::NEG_INFINITY]);
        ties.process(&Row::new(&ids, 2), &mut [1.0, wide + 0.1, -1.0, f32::NEG_INFINITY]);
        assert!(ties.has(0, 0) && !ties.has(0, 1) && !ties.has(0, 2) && !ties.has(1, 0));
    }

    #[test]
    fn nmse_is_relative_to_expected_values() {
        assert_eq!(nmse(&[1.0, 2.0, 9.0], &[1.0, 1.0, 1.0], |index| index < 2), 0.5);
        assert!(nmse(&[f32::NAN], &[1.0], |_| true).is_nan());
    }
}
