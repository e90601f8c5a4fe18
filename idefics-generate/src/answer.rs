//! What becomes of a sample.

use std::ops::AddAssign;

use serde::Serialize;

use crate::{FinishReason, GeneratedLogprob, GenerationWarning};

/// What became of one sample. As JSON, one object of `idefics --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answer {
    /// What was generated, without special tokens.
    pub text: String,
    /// The text that the model read, image tokens included.
    pub prompt: String,
    /// The generated tokens, the end token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Where the time went; of a batch, for all its rows together.
    pub timings: Timings,
    /// Why no decode step was replayed although one was to be recorded, see [`Replays`](crate::Replays).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_refusal: Option<String>,
    /// Of a beam search: the log-probability of the answer with the length penalty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// Of each generated token, if [`Controls::logprobs`](crate::Controls::logprobs) asked for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<GeneratedLogprob>,
    /// Of each prompt token after the first, if
    /// [`Controls::prompt_logprobs`](crate::Controls::prompt_logprobs) asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<f32>>,
    /// Warnings about the answer. Not in the JSON object.
    #[serde(skip)]
    pub warnings: Vec<GenerationWarning>,
}

/// Tokens of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, image tokens included, padding not.
    pub prompt_tokens: usize,
    /// Of those, tokens that stand for images.
    pub image_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
}

/// Wall-clock time of each stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Reading, decoding and resizing images; tokens.
    pub preprocess_ms: f64,
    /// The vision tower.
    pub vision_ms: f64,
    /// The connector.
    pub connector_ms: f64,
    /// The prompt through the decoder.
    pub prefill_ms: f64,
    /// All further tokens.
    pub decode_ms: f64,
}

impl AddAssign for Timings {
    fn add_assign(&mut self, more: Self) {
        self.preprocess_ms += more.preprocess_ms;
        self.vision_ms += more.vision_ms;
        self.connector_ms += more.connector_ms;
        self.prefill_ms += more.prefill_ms;
        self.decode_ms += more.decode_ms;
    }
}
