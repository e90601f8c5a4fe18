//! Sampling filters: they flatten the distribution or cut off its tail.
//!
//! Each filter keeps at least `min_tokens_to_keep` tokens: 1 or, in beam search, the number of end tokens plus 1.

use super::math::{argsort, entropy, kth_greatest, log_softmax, softmax, top_k};
use super::{LogitsProcessor, Row};

/// Forbids every token for which `remove` returns true.
fn remove_where(scores: &mut [f32], mut remove: impl FnMut(usize) -> bool) {
    for (id, score) in scores.iter_mut().enumerate() {
        if remove(id) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Divides scores by the temperature.
///
/// Source: `TemperatureLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Temperature above 0: values below 1 sharpen the distribution, and values above 1 flatten it.
    pub temperature: f32,
}

impl LogitsProcessor for Temperature {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        for score in scores {
            *score /= self.temperature;
        }
    }
}

/// Keeps the most likely tokens until their contribution to the entropy reaches the fraction `top_h` of the entropy
/// (top-H filtering). Only the 100 most likely tokens are considered.
///
/// Source: `TopHLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopH {
    /// Fraction of the entropy, in `(0, 1]`. At 1, rounding decides whether the last tokens are kept, as in the
    /// reference.
    pub top_h: f64,
}

/// Number of most likely tokens that top-H considers. Source: `TopHLogitsWarper.top_n`.
const TOP_H_TOKENS: usize = 100;

impl LogitsProcessor for TopH {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        let ids = top_k(scores, TOP_H_TOKENS);
        let logits: Vec<f32> = ids.iter().map(|&id| scores[id]).collect();
        let tau = entropy(&logits) * self.top_h as f32;
        let mut kept = vec![false; scores.len()];
        let mut cumulative = 0.0_f64;
        for (rank, (&id, prob)) in ids.iter().zip(softmax(&logits)).enumerate() {
            cumulative += f64::from(-prob * prob.ln());
            kept[id] = rank == 0 || cumulative as f32 <= tau;
        }
        remove_where(scores, |id| !kept[id]);
    }
}

/// Keeps the `top_k` most likely tokens, and all tokens that are as likely as the last of these.
///
/// Source: `TopKLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopK {
    /// Number of tokens to keep, at least 1.
    pub top_k: usize,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for TopK {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        let least = kth_greatest(scores, self.top_k.max(self.min_tokens_to_keep));
        for score in scores.iter_mut().filter(|score| **score < least) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Keeps the most likely tokens with a total probability of `top_p`.
///
/// Source: `TopPLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopP {
    /// Total probability of the tokens to keep, in `[0, 1]`.
    pub top_p: f64,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for TopP {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        let probs = softmax(scores);
        let n_allowed = scores.iter().filter(|&&score| score != f32::NEG_INFINITY).count();
        let order = top_k(scores, n_allowed);
        let tail = (1.0 - self.top_p) as f32;
        let mut cumulative = 0.0_f64;
        for &id in order.iter().skip(self.min_tokens_to_keep).rev() {
            cumulative += f64::from(probs[id]);
            if cumulative as f32 <= tail {
                scores[id] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Keeps tokens whose probability is at least `min_p` times that of the most likely token.
///
/// Source: `MinPLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MinP {
    /// Ratio of probabilities in `[0, 1]`.
    pub min_p: f64,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for MinP {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        let probs = softmax(scores);
        let least = self.min_p as f32 * probs.iter().copied().fold(0.0, f32::max);
        // Ranked by score, because tokens with different scores can all have probability 0.
        let kept = top_k(scores, self.min_tokens_to_keep);
        remove_where(scores, |id| probs[id] < least && !kept.contains(&id));
    }
}

/// Keeps the tokens whose surprise `-ln p` is closest to its expected value, the entropy, until their probabilities sum
/// to `mass`.
///
/// Source: `TypicalLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Typical {
    /// Total probability of the tokens to keep, in `(0, 1)`: the option `typical_p`.
    pub mass: f64,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for Typical {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        if scores.is_empty() {
            return;
        }
        let mut log_probs = scores.to_vec();
        log_softmax(&mut log_probs);
        let terms = log_probs.iter().map(|&log_prob| log_prob * log_prob.exp()).filter(|term| !term.is_nan());
        let entropy = -terms.map(f64::from).sum::<f64>() as f32;
        let shifted: Vec<f32> = log_probs.iter().map(|&log_prob| (-log_prob - entropy).abs()).collect();
        let order = argsort(&shifted);
        let probs = softmax(scores);
        let mass = self.mass as f32;
        let mut cumulative = 0.0_f64;
        let below = |&&id: &&usize| {
            cumulative += f64::from(probs[id]);
            (cumulative as f32) < mass
        };
        let last = order.iter().take_while(below).count().min(order.len() - 1);
        let limit = shifted[order[last]];
        for &id in order.iter().skip(self.min_tokens_to_keep) {
            if shifted[id] > limit {
                scores[id] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Keeps tokens with a probability of at least `epsilon`.
///
/// Source: `EpsilonLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epsilon {
    /// Minimum probability of a token, in `(0, 1)`: the option `epsilon_cutoff`.
    pub epsilon: f64,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for Epsilon {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        cut_below(scores, self.epsilon as f32, self.min_tokens_to_keep);
    }
}

/// Keeps tokens with a probability of at least `min(epsilon, sqrt(epsilon) · exp(-H))`, a threshold that falls with the
/// entropy `H`.
///
/// Source: `EtaLogitsWarper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eta {
    /// Upper limit of the threshold, in `(0, 1)`: the option `eta_cutoff`.
    pub epsilon: f64,
    /// Minimum number of tokens to keep; see the module documentation.
    pub min_tokens_to_keep: usize,
}

impl LogitsProcessor for Eta {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        let epsilon = self.epsilon as f32;
        let eta = epsilon.min(epsilon.sqrt() * (-entropy(scores)).exp());
        cut_below(scores, eta, self.min_tokens_to_keep);
    }
}

/// Forbids tokens less likely than `threshold`, except the `min_tokens_to_keep` best ones and tokens that tie with
/// them.
fn cut_below(scores: &mut [f32], threshold: f32, min_tokens_to_keep: usize) {
    let probs = softmax(scores);
    let kept = kth_greatest(scores, min_tokens_to_keep);
    for (score, prob) in scores.iter_mut().zip(probs) {
        if prob < threshold && *score < kept {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Normalises scores to log-probabilities. A row in which every token is forbidden stays unchanged.
///
/// Source: `LogitNormalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normalize;

impl LogitsProcessor for Normalize {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        if scores.iter().any(|&score| score != f32::NEG_INFINITY) {
            log_softmax(scores);
        }
    }
}
