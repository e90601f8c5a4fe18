//! Scores of one step, on the host: what may come next and how likely it is.
//!
//! A [`ProcessorChain`] changes one row of scores after another in the reference's order, then [`argmax`] or a
//! [`Sampler`] chooses. A score of `-inf` forbids its token.
//!
//! Reference: `generation/logits_process.py` and `GenerationMixin._get_logits_processor`, Transformers 5.23.
//!
//! Numerics: f32 scores; sums of exponentials and cumulative probabilities in f64, as torch accumulates the latter on
//! a CPU. Among equal scores the lowest id is the likeliest, everywhere; torch promises no order there.

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

/// What a processor knows of the row whose next token is being scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Tokens of the prompt and those generated so far, without left padding.
    pub input_ids: &'a [u32],
    /// How many of `input_ids` are the prompt.
    pub prompt_len: usize,
    /// Slots of left padding before `input_ids`. The reference counts them in every length.
    pub padding: usize,
    /// Which prompt of the batch the row belongs to.
    pub sample: usize,
    /// Which beam of the sample the row is; 0 without beams.
    pub beam: usize,
}

impl<'a> Row<'a> {
    /// The first row of a batch, not padded.
    pub fn new(input_ids: &'a [u32], prompt_len: usize) -> Self {
        Self { input_ids, prompt_len, padding: 0, sample: 0, beam: 0 }
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &'a [u32] {
        &self.input_ids[..self.prompt_len.min(self.input_ids.len())]
    }

    /// Tokens generated so far.
    pub fn n_generated(&self) -> usize {
        self.input_ids.len().saturating_sub(self.prompt_len)
    }

    /// Slots of the row: left padding, prompt, what was generated. The reference's `input_ids.shape[-1]`.
    pub fn n_slots(&self) -> usize {
        self.padding + self.input_ids.len()
    }
}

/// Changes the scores of a row's next token. The rows of one step come one after another.
///
/// Source: `LogitsProcessor`.
pub trait LogitsProcessor: std::fmt::Debug + Send {
    /// Changes `scores` in place, `[vocab_size]`: logits in greedy search and sampling, log-probabilities of the step
    /// in beam search. `-inf` forbids a token.
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]);
}

/// Forbids tokens; ids that the model cannot generate are passed over.
fn forbid(scores: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Leaves nothing but `ids`, each with score 0.
fn force(scores: &mut [f32], ids: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = 0.0;
        }
    }
}
