//! Options of beam search.

use crate::generation_config::{EarlyStopping, GenerationConfig};

/// Options of beam search. Source: `_beam_search`.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOptions {
    /// Number of beams per sample, at least 1.
    pub num_beams: usize,
    /// Number of answers per sample, at most `num_beams`.
    pub num_return_sequences: usize,
    /// Maximum number of tokens in an answer, at least 1: `max_length` minus the length of the prompt with its left
    /// padding.
    pub max_new_tokens: usize,
    /// Exponent of the length penalty. The log-probability of an answer is divided by its number of tokens, end token
    /// included, raised to this power.
    pub length_penalty: f64,
    /// When the search stops looking for better answers.
    pub early_stopping: EarlyStopping,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Token that pads shorter answers to the length of the longest one; see [`BeamOptions::fill_token_id`].
    pub pad_token_id: Option<u32>,
}

impl BeamOptions {
    /// Takes the options of beam search from `options`. `prompt_slots` is the length of the prompts, including left
    /// padding.
    pub fn new(options: &GenerationConfig, prompt_slots: usize) -> Self {
        let num_beams = options.num_beams().max(1);
        Self {
            num_beams,
            num_return_sequences: options.num_return_sequences().clamp(1, num_beams),
            max_new_tokens: options.max_length().saturating_sub(prompt_slots).max(1),
            length_penalty: options.length_penalty(),
            early_stopping: options.early_stopping(),
            eos_token_ids: options.eos_token_ids().to_vec(),
            pad_token_id: options.pad_token_id,
        }
    }

    /// Returns the number of candidates per sample and step. It is so large that at least `num_beams` candidates remain
    /// after those with an end token are removed.
    pub fn beams_to_keep(&self) -> usize {
        (1 + self.eos_token_ids.len()).max(2) * self.num_beams
    }

    /// Returns the token that pads shorter answers: the pad token, or the first end token if the pad token is 0 or
    /// missing. Without end tokens, it is the pad token, or 0 if that is missing. (In that case, the reference uses -1,
    /// which is not a token.)
    pub fn fill_token_id(&self) -> u32 {
        match self.eos_token_ids.first() {
            Some(&eos) => self.pad_token_id.filter(|&pad| pad != 0).unwrap_or(eos),
            None => self.pad_token_id.unwrap_or(0),
        }
    }

    /// Returns the log-probability `score` of an answer, divided by the length penalty for its `n_tokens` tokens.
    pub(super) fn penalized(&self, score: f32, n_tokens: usize) -> f32 {
        score / (n_tokens as f64).powf(self.length_penalty) as f32
    }
}
