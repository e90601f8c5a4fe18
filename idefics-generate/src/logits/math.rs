//! Softmax, sorting and entropy with the semantics of torch.

use std::cmp::Ordering;

/// Computes the probabilities of a row of scores, which sum to 1. A score of `-inf` has probability 0. If every score
/// is `-inf`, all probabilities are NaN.
pub fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut probs: Vec<f32> = scores.iter().map(|&score| (score - max).exp()).collect();
    let sum = probs.iter().map(|&prob| f64::from(prob)).sum::<f64>() as f32;
    for prob in &mut probs {
        *prob /= sum;
    }
    probs
}

/// Replaces scores by the natural logarithms of [`softmax`].
pub fn log_softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&score| f64::from((score - max).exp())).sum();
    let log_sum = sum.ln() as f32;
    for score in scores {
        *score = *score - max - log_sum;
    }
}

/// Compares two values for ascending order with NaN last, as in `torch.sort` and `torch.topk`.
pub(crate) fn ascending(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Returns the indices of `values` in ascending order of the values. Equal values keep their order.
pub(crate) fn argsort(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| ascending(values[a], values[b]));
    order
}

/// Returns the indices of the `k` largest values in descending order, or of all values if there are fewer. Ties go to
/// the lowest index.
pub(crate) fn top_k(values: &[f32], k: usize) -> Vec<usize> {
    let k = k.min(values.len());
    let before = |&a: &usize, &b: &usize| ascending(values[b], values[a]).then(a.cmp(&b));
    let mut order: Vec<usize> = (0..values.len()).collect();
    if 0 < k && k < order.len() {
        order.select_nth_unstable_by(k - 1, before);
    }
    order.truncate(k);
    order.sort_unstable_by(before);
    order
}

/// Returns the `k`-th largest value. `k` is limited to the range from 1 to the number of values. Returns `-inf` for an
/// empty row.
pub(crate) fn kth_greatest(values: &[f32], k: usize) -> f32 {
    let k = k.clamp(1, values.len().max(1));
    let mut values = values.to_vec();
    if values.is_empty() {
        return f32::NEG_INFINITY;
    }
    *values.select_nth_unstable_by(k - 1, |&a, &b| ascending(b, a)).1
}

/// Computes the entropy `-Σ p ln p` of the categorical distribution with these logits, in nats.
///
/// Source: `torch.distributions.Categorical.entropy`.
pub(crate) fn entropy(logits: &[f32]) -> f32 {
    let mut log_probs = logits.to_vec();
    log_softmax(&mut log_probs);
    let terms = log_probs.iter().map(|&log_prob| f64::from(log_prob.max(f32::MIN)) * f64::from(log_prob.exp()));
    -terms.sum::<f64>() as f32
}
