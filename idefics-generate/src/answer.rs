//! The result for one sample.

use std::ops::AddAssign;

use serde::Serialize;

use crate::running::Running;
use crate::{FinishReason, GeneratedLogprob, GenerationWarning};

/// The result for one sample. `idefics --json` prints it as a JSON object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answer {
    /// The generated text without special tokens.
    pub text: String,
    /// The prompt text, image tokens included.
    pub prompt: String,
    /// The generated tokens, end token included.
    pub token_ids: Vec<u32>,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Time of each stage. For a batch, this is the time of all rows together.
    pub timings: Timings,
    /// Reason why no decode step is replayed although graph capture was requested; see
    /// [`GraphCapture`](crate::GraphCapture).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_refusal: Option<String>,
    /// In beam search, the log-probability of the answer divided by the length penalty; otherwise `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// Log-probability of each generated token, if requested with
    /// [`Controls::logprobs`](crate::Controls::logprobs).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<GeneratedLogprob>,
    /// Log-probability of each prompt token after the first, if requested with
    /// [`Controls::prompt_logprobs`](crate::Controls::prompt_logprobs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<f32>>,
    /// Warnings about the answer. They are not serialised.
    #[serde(skip)]
    pub warnings: Vec<GenerationWarning>,
}

/// Token counts of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Number of prompt tokens, including image tokens but not padding.
    pub prompt_tokens: usize,
    /// Number of prompt tokens that represent images.
    pub image_tokens: usize,
    /// Number of generated tokens, including the end token.
    pub completion_tokens: usize,
}

/// Wall-clock time of each stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Reading, decoding and resizing images, and tokenising the prompt.
    pub preprocess_ms: f64,
    /// The vision tower.
    pub vision_ms: f64,
    /// The connector.
    pub connector_ms: f64,
    /// Running the decoder on the prompt.
    pub prefill_ms: f64,
    /// All decode steps, which generate the tokens after the first.
    pub decode_ms: f64,
}

impl Timings {
    /// Returns the engine's times if the batch runs in an engine, and otherwise `self`. The preprocessing time is
    /// always that of `self`, because preprocessing is not done in the engine.
    pub(crate) fn or_of(self, running: &Running<'_>) -> Self {
        running.timings().map_or(self, |timings| Self { preprocess_ms: self.preprocess_ms, ..timings })
    }
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
