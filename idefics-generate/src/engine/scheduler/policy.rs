//! The sizes of the memory and of the model, and the rules of the scheduler that options can change.

use thiserror::Error;

/// A time or a duration in microseconds. The scheduler has no clock. The caller passes the time, which never decreases.
pub type Micros = u64;

/// One second.
pub const SECOND: Micros = 1_000_000;

/// Sizes of the model and of its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Number of pages of the KV cache.
    pub pages: u32,
    /// Number of tokens in a page.
    pub page_tokens: u32,
    /// Number of tokens in a chunk, a multiple of `page_tokens`. Prompts are always cut at multiples of it, whatever
    /// else runs.
    pub chunk_tokens: u32,
    /// Number of layers of the decoder.
    pub text_layers: u32,
    /// Number of layers that encode a picture. The connector counts as one of them.
    pub vision_layers: u32,
    /// Number of slabs of the context store, which holds the keys and values of images for cross-attention (IDEFICS
    /// v1); 0 for other models.
    pub slabs: u32,
}

/// The rules of the scheduler that options can change. [`Policy::default`] returns the documented defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Maximum number of rows of a decode step.
    pub max_batch: usize,
    /// Number of decode steps of a turn. If more than `max_batch` rows decode, other rows have the next turn.
    pub turn_steps: u32,
    /// Share of the time that decode steps get while prompts or solo jobs also have to run. Above 0 and below 1.
    pub decode_share: f64,
    /// Time that a slice may take even if a decode step is shorter.
    pub slice_floor: Micros,
    /// Maximum number of requests in the queue, in preparation or waiting.
    pub max_queue: usize,
    /// Maximum number of prompt tokens in the queue. A request that would be alone in the queue may exceed the limit,
    /// because a long prompt could otherwise never be served.
    pub max_queue_tokens: u64,
    /// Share of the queue that one tenant may fill. If a tenant uses more than this share of the pages, its requests
    /// start after those of other tenants. Above 0 and at most 1; 1 for a server with one tenant.
    pub tenant_share: f64,
    /// How long a request may stay in the queue, preparation included. After that, it ends with
    /// [`Ending::QueueTimeout`](super::Ending).
    pub queue_timeout: Micros,
    /// Maximum number of requests that may start before the first waiting request while the first does not fit.
    pub max_passes: u32,
    /// Time during which other requests may start before the first waiting request, counted from the moment when this
    /// request became the first.
    pub pass_window: Micros,
    /// Factor by which more tokens per second must be expected from a step with proposals than from a decode step. Above
    /// 1, it covers errors of the estimates; 0 verifies all proposals.
    pub min_gain: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_batch: 8,
            turn_steps: 8,
            decode_share: 0.5,
            slice_floor: 5_000,
            max_queue: 64,
            max_queue_tokens: 65_536,
            tenant_share: 1.0,
            queue_timeout: 30 * SECOND,
            max_passes: 8,
            pass_window: 2 * SECOND,
            min_gain: 1.1,
        }
    }
}

/// Why a scheduler cannot be created.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SettingError {
    /// A number is zero.
    #[error("{name} is 0; expected at least 1")]
    Zero {
        /// The field of [`Layout`] or [`Policy`].
        name: &'static str,
    },
    /// Chunks do not consist of whole pages.
    #[error("chunk_tokens is {chunk}; expected a multiple of page_tokens ({page})")]
    ChunkOfPages {
        /// [`Layout::chunk_tokens`].
        chunk: u32,
        /// [`Layout::page_tokens`].
        page: u32,
    },
    /// A share is out of its range.
    #[error("{name} is {value}; expected a number above 0 and {upper}")]
    Share {
        /// The field of [`Policy`].
        name: &'static str,
        /// Its value.
        value: f64,
        /// The upper bound, in words.
        upper: &'static str,
    },
    /// [`Policy::min_gain`] is out of its range.
    #[error("min_gain is {value}; expected a finite number of at least 0")]
    Gain {
        /// Its value.
        value: f64,
    },
}

/// Rejects sizes and rules with which a scheduler cannot work.
pub(super) fn check(layout: &Layout, policy: &Policy) -> Result<(), SettingError> {
    let numbers = [
        ("pages", u64::from(layout.pages)),
        ("page_tokens", u64::from(layout.page_tokens)),
        ("chunk_tokens", u64::from(layout.chunk_tokens)),
        ("text_layers", u64::from(layout.text_layers)),
        ("vision_layers", u64::from(layout.vision_layers)),
        ("max_batch", policy.max_batch as u64),
        ("turn_steps", u64::from(policy.turn_steps)),
        ("max_queue", policy.max_queue as u64),
    ];
    if let Some((name, _)) = numbers.into_iter().find(|(_, value)| *value == 0) {
        return Err(SettingError::Zero { name });
    }
    if !layout.chunk_tokens.is_multiple_of(layout.page_tokens) {
        return Err(SettingError::ChunkOfPages { chunk: layout.chunk_tokens, page: layout.page_tokens });
    }
    let share = policy.decode_share;
    if !(share > 0.0 && share < 1.0) {
        return Err(SettingError::Share { name: "decode_share", value: share, upper: "below 1" });
    }
    let share = policy.tenant_share;
    if !(share > 0.0 && share <= 1.0) {
        return Err(SettingError::Share { name: "tenant_share", value: share, upper: "at most 1" });
    }
    let gain = policy.min_gain;
    if !(gain.is_finite() && gain >= 0.0) {
        return Err(SettingError::Gain { value: gain });
    }
    Ok(())
}

impl Layout {
    /// Returns the number of pages for `tokens` tokens. The last page may be partly filled.
    pub(super) fn pages_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(u64::from(self.page_tokens))
    }

    /// Returns the maximum number of pages that a request can need. Its answers share the full pages of the prompt.
    pub(super) fn worst_case(&self, prompt_tokens: u32, max_tokens: u32, answers: u32) -> u64 {
        let one = self.pages_for(u64::from(prompt_tokens) + u64::from(max_tokens));
        let own = one - u64::from(prompt_tokens / self.page_tokens);
        one.saturating_add(own.saturating_mul(u64::from(answers.saturating_sub(1))))
    }
}
