//! Chooses a token from scores.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::math::top_k;

/// The reason why no token can be chosen from a row of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A score is NaN or `+inf`.
    #[error("a score is NaN or +inf; expected a finite number or -inf")]
    NonFinite,
    /// Every score is `-inf`.
    #[error("no token is allowed")]
    NothingAllowed,
    /// The grammar of the answer reached a limit on memory or time.
    #[error("the grammar needs more memory or time for the next token than is allowed")]
    GrammarLimit,
}

/// Checks that the scores are valid and returns the largest one.
fn greatest(scores: &[f32]) -> Result<f32, RowError> {
    if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
        return Err(RowError::NonFinite);
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY { Err(RowError::NothingAllowed) } else { Ok(max) }
}

/// Returns the token with the largest score. Ties go to the lowest id.
///
/// # Errors
/// [`RowError`].
pub fn argmax(scores: &[f32]) -> Result<u32, RowError> {
    let max = greatest(scores)?;
    let id = scores.iter().position(|&score| score == max);
    id.map(|id| id as u32).ok_or(RowError::NothingAllowed)
}

/// A key that identifies a row for sampling, so that its random numbers do not depend on the rest of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RowKey {
    /// Key of the sample that does not depend on the rest of the batch, for example a hash of its prompt.
    pub sample: u64,
    /// Index of the row among the answers of its sample.
    pub answer: u64,
}

impl RowKey {
    /// Returns the key of an answer to a prompt: a hash of the tokens (FNV-1a), and the index of the answer.
    pub fn of_prompt(prompt: &[u32], answer: usize) -> Self {
        let bytes = prompt.iter().flat_map(|id| id.to_le_bytes());
        let hash = bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self { sample: hash, answer: answer as u64 }
    }
}

/// Samples tokens. The result depends only on seed, row key, step and scores, not on the rest of the batch.
///
/// The random number generator is ChaCha8. For each draw, it is seeded with the seed, the row key and the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
}

impl Sampler {
    /// Creates a sampler with the given seed.
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

    /// Samples a token with the probabilities `softmax(scores)`. `step` is the number of tokens that the row has
    /// generated.
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
            drawn = Some(id as u32); // if rounding leaves a remainder, the last token is drawn
            if left < weight {
                break;
            }
            left -= weight;
        }
        drawn.ok_or(RowError::NothingAllowed)
    }

    /// Samples `k` different indices one after another, each with the probabilities `softmax(scores)` of those that are
    /// left. If fewer than `k` indices have a nonzero probability, indices with probability 0 follow in ascending
    /// order.
    ///
    /// # Errors
    /// [`RowError`].
    ///
    /// Source: `torch.multinomial` without replacement. Uses the Gumbel-max trick:
    /// <https://arxiv.org/abs/1903.06059>.
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

/// Draws a uniform number in `[0, 1)` with 53 random bits.
fn uniform(random: &mut impl RngCore) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Draws a number from the standard Gumbel distribution. It is always finite.
fn gumbel(random: &mut impl RngCore) -> f64 {
    let uniform = ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(-uniform.ln()).ln()
}
