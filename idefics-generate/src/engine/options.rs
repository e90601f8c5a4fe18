//! The settings of an engine.

use idefics_kernels::MAX_GEMV_ROWS;
use idefics_nn::PAGE_LEN;

use super::scheduler::{Layout, Policy};
use super::speculation::Speculation;
use crate::Model;

/// Default number of tokens of a chunk.
const CHUNK_TOKENS: usize = 256;

/// The settings of an [`Engine`](super::Engine).
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Number of pages of the KV cache; a page has [`PAGE_LEN`] tokens.
    pub pages: usize,
    /// Number of tokens of a chunk, a multiple of [`PAGE_LEN`]. Prompts are always cut at multiples of this number, so
    /// the last bits of answers depend on it.
    pub chunk_tokens: usize,
    /// Maximum number of images of all running requests, for models with cross-attention.
    pub max_images: usize,
    /// Whether requests share the keys and values of equal beginnings of their prompts.
    pub prefix_cache: bool,
    /// Whether decode steps use the same kernels for any number of rows, so that answers have the same bits alone and in
    /// company in every weight format. Steps then have at most [`MAX_GEMV_ROWS`] rows, and a single row is computed
    /// twice. Without this, the last bits of four-bit weights, and of GGUF blocks without AVX-512, differ between one row
    /// and several on the CPU, and those of all weights between [`MAX_GEMV_ROWS`] rows and more.
    pub reproducible: bool,
    /// Whether tokens are proposed from the text of an answer and verified several at a time, while a single answer is
    /// generated. The answers are the same, up to the last bits of some weight formats; see [`Speculation`].
    pub speculation: Speculation,
    /// Whether a panic in a step counts as a failure of the step. Otherwise, the panic unwinds to the caller, unless
    /// proposed tokens may be its cause: the answer then continues without proposals.
    pub isolates_panics: bool,
    /// The rules of the scheduler.
    pub policy: Policy,
}

impl EngineOptions {
    /// Settings for a server with `pages` pages.
    pub fn new(pages: usize) -> Self {
        Self {
            pages,
            chunk_tokens: CHUNK_TOKENS,
            max_images: u32::MAX as usize,
            prefix_cache: true,
            reproducible: false,
            speculation: Speculation::default(),
            isolates_panics: true,
            policy: Policy::default(),
        }
    }

    /// Settings for the caller's thread: at most `max_batch` answers run at once, and nothing is refused because the
    /// queue is long. Prompts run before decode steps, so that decode steps have many rows. A panic unwinds to the
    /// caller.
    pub fn offline(pages: usize, max_batch: usize) -> Self {
        let policy = Policy {
            max_batch,
            decode_share: 0.05,
            max_queue: usize::MAX,
            max_queue_tokens: u64::MAX,
            queue_timeout: u64::MAX,
            ..Policy::default()
        };
        Self { policy, isolates_panics: false, ..Self::new(pages) }
    }

    /// Returns the number of pages that a request needs at most: a prompt of `prompt_tokens` tokens with `answers`
    /// answers of up to `max_tokens` tokens.
    pub fn pages_of(prompt_tokens: usize, max_tokens: usize, answers: usize) -> usize {
        let one = prompt_tokens.saturating_add(max_tokens).div_ceil(PAGE_LEN);
        let own = one - prompt_tokens / PAGE_LEN; // full pages of the prompt are shared
        one.saturating_add(own.saturating_mul(answers.saturating_sub(1)))
    }

    /// Returns the rules of the scheduler.
    pub(super) fn policy(&self) -> Policy {
        let rows = if self.reproducible { MAX_GEMV_ROWS } else { usize::MAX };
        Policy { max_batch: self.policy.max_batch.min(rows), ..self.policy.clone() }
    }

    /// Returns the sizes that the scheduler needs.
    pub(super) fn layout(&self, model: &dyn Model) -> Layout {
        let size = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Layout {
            pages: size(self.pages),
            page_tokens: PAGE_LEN as u32,
            chunk_tokens: size(self.chunk_tokens),
            text_layers: size(model.decoder().n_layers()),
            vision_layers: size(model.shape().vision_layers + 1), // the connector is the last layer
            slabs: size(self.max_images),
        }
    }
}
