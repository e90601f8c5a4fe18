//! The choice of a token from its scores.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::math::top_k;

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A score is NaN or `+inf`.
    #[error("a score is not a number")]
    NonFinite,
    /// Every score is `-inf`.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// The greatest of valid scores.
fn greatest(scores: &[f32]) -> Result<f32, RowError> {
    if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
        return Err(RowError::NonFinite);
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY { Err(RowError::NothingAllowed) } else { Ok(max) }
}

/// The likeliest token, the lowest id among equals.
///
/// # Errors
/// [`RowError`].
pub fn argmax(scores: &[f32]) -> Result<u32, RowError> {
    let max = greatest(scores)?;
    let id = scores.iter().position(|&score| score == max);
    id.map(|id| id as u32).ok_or(RowError::NothingAllowed)
}

/// What makes the random numbers of a row its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RowKey {
    /// Which sample: a number that stays with it whatever else is in the batch.
    pub sample: u64,
    /// Which of the sample's answers.
    pub answer: u64,
}

/// Draws tokens. The same seed, row, step and scores give the same draw whatever else is in the batch.
///
/// The generator is ChaCha8, keyed anew for each draw with seed, row and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
}

impl Sampler {
    /// A sampler for one call.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn random(self, key: RowKey, step: usize) -> ChaCha8Rng {
        let mut seed = [0; 32];
        for (bytes, part) in seed.chunks_exact_mut(8).zip([self.seed, key.sample, key.answer, step as u64]) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
    }

    /// Draws a token with the probabilities `softmax(scores)`. `step` counts the row's tokens generated before.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn draw(&self, key: RowKey, step: usize, scores: &[f32]) -> Result<u32, RowError> {
        let max = greatest(scores)?;
        let weight = |score: f32| f64::from(score - max).exp();
        let total: f64 = scores.iter().map(|&score| weight(score)).sum();
        let mut left = uniform(&mut self.random(key, step)) * total;
        let mut drawn = None;
        for (id, weight) in scores.iter().map(|&score| weight(score)).enumerate().filter(|&(_, weight)| weight > 0.0) {
            drawn = Some(id as u32); // the last one where rounding leaves something over
            if left < weight {
                break;
            }
            left -= weight;
        }
        drawn.ok_or(RowError::NothingAllowed)
    }

    /// Draws `k` different positions one after another with the probabilities `softmax(scores)` of what is left, in
    /// the order of the draws. Where fewer than `k` are possible, impossible ones follow, the lowest first.
    ///
    /// # Errors
    /// [`RowError`].
    ///
    /// Source: `torch.multinomial` without replacement. The Gumbel-max trick: <https://arxiv.org/abs/1903.06059>.
    pub fn draw_without_replacement(
        &self,
        key: RowKey,
        step: usize,
        scores: &[f32],
        k: usize,
    ) -> Result<Vec<usize>, RowError> {
        let max = greatest(scores)?;
        let mut random = self.random(key, step);
        let perturbed = scores.iter().map(|&score| f64::from(score - max) + gumbel(&mut random));
        let perturbed: Vec<f32> = perturbed.map(|score| score as f32).collect();
        Ok(top_k(&perturbed, k))
    }
}

/// Uniform in `[0, 1)`, 53 bits.
fn uniform(random: &mut impl RngCore) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Standard Gumbel distribution; finite.
fn gumbel(random: &mut impl RngCore) -> f64 {
    let uniform = ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(-uniform.ln()).ln()
}
