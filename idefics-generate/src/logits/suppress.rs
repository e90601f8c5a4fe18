//! Processors that forbid tokens, or that replace invalid scores.

use super::{LogitsProcessor, Row, forbid};

/// Forbids a list of tokens in every step.
///
/// Source: `SuppressTokensLogitsProcessor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuppressTokens {
    /// The forbidden tokens.
    pub suppress_tokens: Vec<u32>,
}

impl LogitsProcessor for SuppressTokens {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        forbid(scores, &self.suppress_tokens);
    }
}

/// Forbids a list of tokens as the first token of the answer.
///
/// Source: `SuppressTokensAtBeginLogitsProcessor`, with `begin_index` as `_get_logits_processor` computes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuppressTokensAtBegin {
    /// The forbidden tokens.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether a begin token is forced after a prompt of one slot. The answer then begins after that token.
    pub has_forced_bos: bool,
}

impl LogitsProcessor for SuppressTokensAtBegin {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let prompt_slots = row.padding + row.prompt_len;
        let begin_index = prompt_slots + usize::from(prompt_slots <= 1 && self.has_forced_bos);
        if row.n_slots() == begin_index {
            forbid(scores, &self.begin_suppress_tokens);
        }
    }
}

/// Replaces NaN by 0, `+inf` by the largest finite number, and `-inf` by the smallest finite number. Forbidden tokens
/// thus become possible again.
///
/// Source: `InfNanRemoveLogitsProcessor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfNanRemove;

impl LogitsProcessor for InfNanRemove {
    fn process(&mut self, _row: &Row<'_>, scores: &mut [f32]) {
        for score in scores {
            *score = if score.is_nan() { 0.0 } else { score.clamp(f32::MIN, f32::MAX) };
        }
    }
}
