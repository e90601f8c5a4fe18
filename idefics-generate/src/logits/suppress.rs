//! Tokens that never come, or never come first; scores that are no numbers.

use super::{LogitsProcessor, Row, forbid};

/// Forbids tokens.
///
/// Source: `SuppressTokensLogitsProcessor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuppressTokens {
    /// The tokens.
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
    /// The tokens.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether a forced begin token comes first after a prompt of one slot, so that the answer begins after it.
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

/// Makes NaN 0 and brings infinities to the greatest and least finite number: it allows again what was forbidden.
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
