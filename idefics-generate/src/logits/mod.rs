//! Logits processors on the host, and the choice of tokens.
//!
//! A [`ProcessorChain`] modifies each row of scores in the reference's order. Then [`argmax`] or a [`Sampler`] chooses
//! a token. A score of `-inf` forbids its token.
//!
//! Reference: `generation/logits_process.py` and `GenerationMixin._get_logits_processor`, Transformers 5.23.
//!
//! Numerics: scores are f32. Sums of exponentials and cumulative probabilities are accumulated in f64. On a CPU, torch
//! also accumulates cumulative sums in f64. Ties always go to the lowest id, while torch specifies no order.

mod bias;
mod chain;
mod length;
mod math;
mod repetition;
mod sampler;
mod suppress;
mod warpers;

pub use bias::{NoBadWords, SequenceBias};
pub use chain::ProcessorChain;
pub use length::{ExponentialDecayLengthPenalty, ForcedBosToken, ForcedEosToken, MinLength, MinNewTokens};
pub(crate) use math::top_k;
pub use math::{log_softmax, softmax};
pub use repetition::{EncoderNoRepeatNGram, EncoderRepetitionPenalty, NoRepeatNGram, RepetitionPenalty};
pub use sampler::{RowError, RowKey, Sampler, argmax};
pub use suppress::{InfNanRemove, SuppressTokens, SuppressTokensAtBegin};
pub use warpers::{Epsilon, Eta, MinP, Normalize, Temperature, TopH, TopK, TopP, Typical};

/// A row of the batch, whose next token is about to be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Prompt and generated tokens, without left padding.
    pub input_ids: &'a [u32],
    /// Number of tokens in `input_ids` that belong to the prompt.
    pub prompt_len: usize,
    /// Number of slots of left padding before `input_ids`. The reference counts them in every length.
    pub padding: usize,
    /// Index of the row's prompt in the batch.
    pub sample: usize,
    /// Index of the beam within the sample; 0 without beam search.
    pub beam: usize,
}

impl<'a> Row<'a> {
    /// Creates a row without padding, as the first row of a batch.
    pub fn new(input_ids: &'a [u32], prompt_len: usize) -> Self {
        Self { input_ids, prompt_len, padding: 0, sample: 0, beam: 0 }
    }

    /// Returns the tokens of the prompt.
    pub fn prompt(&self) -> &'a [u32] {
        &self.input_ids[..self.prompt_len.min(self.input_ids.len())]
    }

    /// Returns the number of generated tokens.
    pub fn n_generated(&self) -> usize {
        self.input_ids.len().saturating_sub(self.prompt_len)
    }

    /// Returns the number of slots: left padding, prompt and generated tokens. This is the reference's
    /// `input_ids.shape[-1]`.
    pub fn n_slots(&self) -> usize {
        self.padding + self.input_ids.len()
    }
}

/// A processor that modifies the scores of a row's next token. In each step, it is called for one row after another.
///
/// Source: `LogitsProcessor`.
pub trait LogitsProcessor: std::fmt::Debug + Send {
    /// Modifies `scores`, `[vocab_size]`, in place. They are logits in greedy search and sampling, and
    /// log-probabilities in beam search. A score of `-inf` forbids a token.
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]);

    /// Returns how the row ends if this processor allowed no token in the scores that it processed last. If every
    /// processor returns `None`, a row without an allowed token fails. Not used in beam search.
    fn ending(&self, _row: &Row<'_>) -> Option<RowEnd> {
        None
    }
}

/// How a row ends if a processor allows no next token for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowEnd {
    /// The answer is complete, as after an end token.
    Complete,
    /// The row fails.
    Failed(RowError),
}

/// Forbids tokens. Ids outside the vocabulary are ignored.
fn forbid(scores: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Forbids all tokens except `ids`, which get score 0.
fn force(scores: &mut [f32], ids: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = 0.0;
        }
    }
}
