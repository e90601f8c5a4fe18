//! Penalties and bans for repetitions.

use super::{LogitsProcessor, Row, forbid};

/// Penalises each token in `ids` once: divides its score by `penalty` if the score is positive, and multiplies the
/// score by `penalty` if it is negative.
fn penalize(ids: &[u32], penalty: f32, seen: &mut Vec<bool>, scores: &mut [f32]) {
    seen.clear();
    seen.resize(scores.len(), false);
    for &id in ids {
        let id = id as usize;
        if id < scores.len() && !std::mem::replace(&mut seen[id], true) {
            let score = &mut scores[id];
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Forbids tokens that would repeat an n-gram of `said`: the last token of each n-gram whose first `n - 1` tokens are
/// also the last `n - 1` tokens of `input_ids`.
fn ban_ngrams(said: &[u32], input_ids: &[u32], n: usize, scores: &mut [f32]) {
    let Some(start) = (input_ids.len() + 1).checked_sub(n) else { return };
    let prefix = &input_ids[start..];
    for window in said.windows(n) {
        if let Some((&last, begin)) = window.split_last()
            && begin == prefix
        {
            forbid(scores, &[last]);
        }
    }
}

/// Penalises tokens of the prompt and of the answer so far.
///
/// Source: `RepetitionPenaltyLogitsProcessor`, which skips left padding.
#[derive(Debug, Clone, PartialEq)]
pub struct RepetitionPenalty {
    penalty: f32,
    seen: Vec<bool>,
}

impl RepetitionPenalty {
    /// Creates a processor. `penalty` is a factor above 0: values above 1 make repeated tokens less likely, values
    /// below 1 more likely.
    pub fn new(penalty: f32) -> Self {
        Self { penalty, seen: Vec::new() }
    }
}

impl LogitsProcessor for RepetitionPenalty {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        penalize(row.input_ids, self.penalty, &mut self.seen, scores);
    }
}

/// Favours tokens of the prompt.
///
/// Source: `EncoderRepetitionPenaltyLogitsProcessor`. As in the reference, the prompt is used as the encoder input.
/// Here, the prompt is taken without its left padding.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderRepetitionPenalty {
    penalty: f32,
    seen: Vec<bool>,
}

impl EncoderRepetitionPenalty {
    /// Creates a processor. `penalty` is a factor above 0: values above 1 make tokens of the prompt more likely.
    pub fn new(penalty: f32) -> Self {
        Self { penalty: (1.0 / f64::from(penalty)) as f32, seen: Vec::new() }
    }
}

impl LogitsProcessor for EncoderRepetitionPenalty {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        penalize(row.prompt(), self.penalty, &mut self.seen, scores);
    }
}

/// Forbids tokens that would repeat an n-gram of the prompt and the answer.
///
/// Source: `NoRepeatNGramLogitsProcessor`. Unlike in the reference, left padding is not part of any n-gram here, so
/// that a row does not depend on the other rows of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRepeatNGram {
    ngram_size: usize,
}

impl NoRepeatNGram {
    /// Creates a processor for n-grams of `ngram_size` tokens, at least 1.
    pub fn new(ngram_size: usize) -> Self {
        Self { ngram_size: ngram_size.max(1) }
    }
}

impl LogitsProcessor for NoRepeatNGram {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        ban_ngrams(row.input_ids, row.input_ids, self.ngram_size, scores);
    }
}

/// Forbids tokens that would complete an n-gram of the prompt.
///
/// Source: `EncoderNoRepeatNGramLogitsProcessor`. As in the reference, the prompt is used as the encoder input. Here,
/// the prompt is taken without its left padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderNoRepeatNGram {
    ngram_size: usize,
}

impl EncoderNoRepeatNGram {
    /// Creates a processor for n-grams of `ngram_size` tokens, at least 1.
    pub fn new(ngram_size: usize) -> Self {
        Self { ngram_size: ngram_size.max(1) }
    }
}

impl LogitsProcessor for EncoderNoRepeatNGram {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        ban_ngrams(row.prompt(), row.input_ids, self.ngram_size, scores);
    }
}
