//! Processors that depend on the length of a row. As in the reference, the length of a row is its number of slots,
//! including left padding.

use super::{LogitsProcessor, Row, forbid, force};

/// Forbids end tokens until a row has `min_length` slots.
///
/// Source: `MinLengthLogitsProcessor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinLength {
    /// Minimum number of slots of a row: left padding, prompt and answer.
    pub min_length: usize,
    /// The end tokens.
    pub eos_token_ids: Vec<u32>,
}

impl LogitsProcessor for MinLength {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_slots() < self.min_length {
            forbid(scores, &self.eos_token_ids);
        }
    }
}

/// Forbids end tokens until `min_new_tokens` have been generated.
///
/// Source: `MinNewTokensLengthLogitsProcessor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinNewTokens {
    /// Minimum number of new tokens.
    pub min_new_tokens: usize,
    /// The end tokens.
    pub eos_token_ids: Vec<u32>,
}

impl LogitsProcessor for MinNewTokens {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_generated() < self.min_new_tokens {
            forbid(scores, &self.eos_token_ids);
        }
    }
}

/// Forces the next token to be `bos_token_id` if the prompt has only one slot.
///
/// Source: `ForcedBOSTokenLogitsProcessor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForcedBosToken {
    /// The forced token.
    pub bos_token_id: u32,
}

impl LogitsProcessor for ForcedBosToken {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_slots() == 1 {
            force(scores, &[self.bos_token_id]);
        }
    }
}

/// Forces one of `eos_token_ids` into the last slot before `max_length`.
///
/// Source: `ForcedEOSTokenLogitsProcessor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedEosToken {
    /// Maximum number of slots in a row.
    pub max_length: usize,
    /// The tokens that are allowed in the last slot.
    pub eos_token_ids: Vec<u32>,
}

impl LogitsProcessor for ForcedEosToken {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_slots() + 1 == self.max_length {
            force(scores, &self.eos_token_ids);
        }
    }
}

/// Makes end tokens exponentially more likely with every token after the first `start` tokens.
///
/// Source: `ExponentialDecayLengthPenalty`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExponentialDecayLengthPenalty {
    /// Number of new tokens without the penalty.
    pub start: usize,
    /// Base of the exponential growth: after `start + n` new tokens, `|score| · (factorⁿ - 1)` is added to the score.
    pub factor: f64,
    /// The end tokens.
    pub eos_token_ids: Vec<u32>,
}

impl LogitsProcessor for ExponentialDecayLengthPenalty {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let Some(n) = row.n_generated().checked_sub(self.start).filter(|&n| n > 0) else { return };
        let gain = (self.factor.powi(n.min(i32::MAX as usize) as i32) - 1.0) as f32;
        for (at, &id) in self.eos_token_ids.iter().enumerate() {
            let is_first = !self.eos_token_ids[..at].contains(&id);
            if let Some(score) = scores.get_mut(id as usize).filter(|score| is_first && score.is_finite()) {
                *score += score.abs() * gain.min(f32::MAX);
            }
        }
    }
}
