//! Processors that forbid tokens, or that replace invalid scores.

use super::{LogitsProcessor, Row, forbid};

/// Forbids tokens.
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

/// Forbids tokens at the beginning of the answer.
///
/// Source: `SuppressTokensAtBeginLogitsProcessor`, with the begin index of `_get_logits_processor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuppressTokensAtBegin {
    /// The forbidden tokens.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether a begin token is forced after a prompt of one slot, so that the answer begins after it.
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

/// Replaces NaN by 0, and infinities by the largest and smallest finite number. This allows forbidden tokens
/// again.
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
