//! A request inside the scheduler: what was asked, how far it is, and the pages of its answers.

use super::Micros;
use super::pages::{PageId, Reservation};
use super::plan::{AnswerEnd, RowId};
use super::policy::Layout;
use super::prefix::ChunkKey;

/// The number of a request, in the order of submission. It is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub(super) u64);

impl SeqId {
    /// The number itself, for logs.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The request's answer number `answer`.
    pub fn answer(self, answer: u32) -> RowId {
        RowId { id: self, answer }
    }
}

/// Whose request it is: the number that the server gave the holder of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tenant(pub u32);

/// What runs after the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// So many answers, each a row of decode steps.
    Answers(u32),
    /// Beams, ranking or prompt log-probabilities: a tree of tokens over the request's own pages, a step at a time.
    Solo,
}

/// What is known of a request when it is submitted, before its images are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whose request it is.
    pub tenant: Tenant,
    /// Tokens of the prompt, image tokens included.
    pub prompt_tokens: u32,
    /// Tokens of an answer at most; of a solo job, the tokens of its tree.
    pub max_tokens: u32,
    /// What runs after the prompt.
    pub job: Job,
    /// Slabs of the context store, one for each image (IDEFICS v1); else 0.
    pub slabs: u32,
    /// When it ends at the latest.
    pub deadline: Option<Micros>,
}

impl Ask {
    /// Answers, 1 for a solo job.
    pub fn answers(&self) -> u32 {
        match self.job {
            Job::Answers(answers) => answers.max(1),
            Job::Solo => 1,
        }
    }
}

/// An image of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// The position after the last token that reads the image's vectors: if the prefix cache has the keys and values up
    /// to here, the image is not encoded. `u32::MAX` if answers read it too (cross-attention of IDEFICS v1).
    pub needed_until: u32,
    /// Patches, the measure of its cost.
    pub patches: u32,
}

/// What preparation found out about a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptShape {
    /// Tokens, image tokens included.
    pub tokens: u32,
    /// Images in the prompt's order.
    pub images: Vec<ImageShape>,
    /// Keys of the whole chunks, from [`chunk_keys`](super::chunk_keys); empty if nothing may be shared.
    pub keys: Vec<ChunkKey>,
}

/// Where a request is. [`State::Preparing`] and [`State::Waiting`] own no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its images and text are being prepared.
    Preparing,
    /// It waits for pages.
    Waiting,
    /// Its images are being encoded.
    Encoding {
        /// The image at work.
        image: u32,
        /// Layers of it that are done.
        layer: u32,
    },
    /// Its prompt is being computed.
    Prefilling {
        /// The position where the chunk at work begins.
        first: u32,
        /// Layers of it that are done.
        layer: u32,
    },
    /// The last, partial page of its prompt is copied for each further answer.
    Forking,
    /// Its answers grow by one token a step.
    Decoding,
    /// Its solo job runs.
    Solo {
        /// Steps that are done.
        step: u32,
    },
}

/// One answer of a request; while the prompt runs there is one.
#[derive(Debug, Default)]
pub struct Answer {
    pub(super) table: Vec<PageId>,
    pub(super) reservation: Reservation,
    pub(super) written: u32,
    pub(super) generated: u32,
    pub(super) ended: Option<AnswerEnd>,
}

impl Answer {
    /// Its pages in order: position `p` lies in page `p / page_tokens`.
    pub fn table(&self) -> &[PageId] {
        &self.table
    }

    /// Positions whose keys and values are written; the next token is written at this position.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Tokens of the answer so far. The last one is not yet written.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<AnswerEnd> {
        self.ended
    }
}

/// A request that has not ended.
#[derive(Debug)]
pub struct Sequence {
    pub(super) id: SeqId,
    pub(super) ask: Ask,
    pub(super) state: State,
    pub(super) prompt: PromptShape,
    pub(super) submitted: Micros,
    /// Tokens whose keys and values came from the prefix cache.
    pub(super) cached: u32,
    /// Whether its prompt has begun to run.
    pub(super) begun: bool,
    pub(super) answers: Vec<Answer>,
}

impl Sequence {
    pub(super) fn new(id: SeqId, ask: Ask, submitted: Micros) -> Self {
        let prompt = PromptShape { tokens: ask.prompt_tokens, ..PromptShape::default() };
        Self { id, ask, state: State::Preparing, prompt, submitted, cached: 0, begun: false, answers: Vec::new() }
    }

    /// Its number.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// What was asked.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Its prompt; only the length that was announced until it is prepared.
    pub fn prompt(&self) -> &PromptShape {
        &self.prompt
    }

    /// Tokens of the prompt whose keys and values came from the prefix cache.
    pub fn cached_tokens(&self) -> u32 {
        self.cached
    }

    /// Its answers: none before it is admitted, one until the prompt is computed, then all.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// Whether it is prepared or waits, and so takes a place in the queue.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.state, State::Preparing | State::Waiting)
    }

    /// Whether its prompt is at work or next.
    pub(super) fn in_prompt(&self) -> bool {
        matches!(self.state, State::Encoding { .. } | State::Prefilling { .. })
    }

    /// Whether no layer of a picture or chunk has begun that is not complete.
    pub(super) fn at_cut(&self) -> bool {
        matches!(self.state, State::Encoding { layer: 0, .. } | State::Prefilling { layer: 0, .. })
    }

    pub(super) fn worst_case(&self, layout: &Layout) -> u64 {
        layout.worst_case(self.prompt.tokens, self.ask.max_tokens, self.ask.answers())
    }

    /// Keys of the chunks that the prefix cache may replace: the last token's chunk is always computed.
    pub(super) fn sharable_keys(&self, layout: &Layout) -> &[ChunkKey] {
        let chunks = (self.prompt.tokens.saturating_sub(1) / layout.chunk_tokens) as usize;
        &self.prompt.keys[..chunks.min(self.prompt.keys.len())]
    }

    /// The state in which its prompt goes on, from image `image`.
    pub(super) fn next_image(&self, image: u32) -> State {
        let needed = |(index, shape): (usize, &ImageShape)| {
            (index >= image as usize && shape.needed_until > self.cached).then_some(index as u32)
        };
        match self.prompt.images.iter().enumerate().find_map(needed) {
            Some(image) => State::Encoding { image, layer: 0 },
            None => State::Prefilling { first: self.cached, layer: 0 },
        }
    }

    /// Whether one chunk is left and no picture, so that it may go before a longer prompt.
    pub(super) fn is_short(&self, layout: &Layout) -> bool {
        let State::Prefilling { first, .. } = self.state else { return false };
        self.prompt.tokens - first <= layout.chunk_tokens
    }
}
