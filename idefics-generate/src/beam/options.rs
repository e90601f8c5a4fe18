//! What beam search needs to know.

use crate::generation_config::{EarlyStopping, GenerationConfig};

/// What beam search needs to know. Source: `_beam_search`.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOptions {
    /// Beams of each sample, at least 1.
    pub num_beams: usize,
    /// Answers of each sample, at most `num_beams`.
    pub num_return_sequences: usize,
    /// Tokens of an answer at most, at least 1: `max_length` less the slots of the prompt.
    pub max_new_tokens: usize,
    /// The log-probability of an answer is divided by its tokens, end token included, to this power.
    pub length_penalty: f64,
    /// When to stop.
    pub early_stopping: EarlyStopping,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// What shorter answers are filled with; see [`BeamOptions::filler`].
    pub pad_token_id: Option<u32>,
}

impl BeamOptions {
    /// The options of a call after prompts of `prompt_slots`, left padding included.
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

    /// Candidates of each sample and step: enough for `num_beams` to go on whatever ends.
    pub fn beams_to_keep(&self) -> usize {
        (1 + self.eos_token_ids.len()).max(2) * self.num_beams
    }

    /// What shorter answers are filled with: the pad token, or the first end token where the pad token is 0 or missing.
    /// Without end tokens the reference fills with -1, which is no token: here it is the pad token, or 0.
    pub fn filler(&self) -> u32 {
        match self.eos_token_ids.first() {
            Some(&eos) => self.pad_token_id.filter(|&pad| pad != 0).unwrap_or(eos),
            None => self.pad_token_id.unwrap_or(0),
        }
    }

    /// A log-probability divided for an answer of `n_tokens`.
    pub(super) fn penalized(&self, score: f32, n_tokens: usize) -> f32 {
        score / (n_tokens as f64).powf(self.length_penalty) as f32
    }
}
