//! A request inside the scheduler: what was asked, its progress, and the pages of its answers.

use super::Micros;
use super::pages::{PageId, Reservation};
use super::plan::{AnswerEnd, RowId};
use super::policy::Layout;
use super::prefix::ChunkKey;

/// The number of a request, in the order of submission. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub(super) u64);

impl SeqId {
    /// Returns the number itself, for logs.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Returns the row of the request's answer with the number `answer`.
    pub fn answer(self, answer: u32) -> RowId {
        RowId { id: self, answer }
    }
}

/// The owner of requests, as a number that the server gives to the holder of an access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tenant(pub u32);

/// What runs after the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// This number of answers. Each answer is a row of decode steps.
    Answers(u32),
    /// A job that is not batched: beams, ranking or prompt log-probabilities. It runs one step at a time. Its tokens
    /// form a tree in the request's own pages.
    Solo,
}

/// The data of a request at submission, before its images are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The owner of the request.
    pub tenant: Tenant,
    /// Number of tokens of the prompt, image tokens included.
    pub prompt_tokens: u32,
    /// Maximum number of tokens of an answer, or of the tree of a solo job.
    pub max_tokens: u32,
    /// What runs after the prompt.
    pub job: Job,
    /// Number of slabs of the context store: one for each image in IDEFICS v1, otherwise 0.
    pub slabs: u32,
    /// Time at which the request ends at the latest.
    pub deadline: Option<Micros>,
}

impl Ask {
    /// Returns the number of answers; 1 for a solo job.
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
    /// The position after the last token that needs the image's vectors. If the prefix cache has the keys and values up
    /// to this position, the image is not encoded. `u32::MAX` if the answers need the image too, for the
    /// cross-attention of IDEFICS v1.
    pub needed_until: u32,
    /// Number of patches, which determines the time to encode the image.
    pub patches: u32,
}

/// The sizes and keys of a prompt, which are known once it is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptShape {
    /// Number of tokens, image tokens included.
    pub tokens: u32,
    /// Images in the prompt's order.
    pub images: Vec<ImageShape>,
    /// Keys of the whole chunks, from [`chunk_keys`](super::chunk_keys); empty if nothing may be shared.
    pub keys: Vec<ChunkKey>,
}

/// The state of a request. In [`State::Preparing`] and [`State::Waiting`], it owns no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its images and text are being prepared.
    Preparing,
    /// It waits for pages.
    Waiting,
    /// Its images are being encoded.
    Encoding {
        /// Index of the image that is being encoded.
        image: u32,
        /// Number of layers that are done for this image.
        layer: u32,
    },
    /// Its prompt is being computed.
    Prefilling {
        /// The position where the current chunk begins.
        first: u32,
        /// Number of layers that are done for this chunk.
        layer: u32,
    },
    /// It waits for the step that copies the last, partly filled page of its prompt for each further answer.
    Forking,
    /// Its answers grow by one token in each decode step.
    Decoding,
    /// Its solo job runs.
    Solo {
        /// Number of steps that are done.
        step: u32,
    },
}

/// One answer of a request. While the prompt is being computed, the request has only one.
#[derive(Debug, Default)]
pub struct Answer {
    pub(super) table: Vec<PageId>,
    pub(super) reservation: Reservation,
    pub(super) written: u32,
    pub(super) generated: u32,
    pub(super) ended: Option<AnswerEnd>,
    /// Whether a step that verified proposals failed, so that no more proposals are verified.
    pub(super) refuses_proposals: bool,
}

impl Answer {
    /// Returns the page table. Entry `p / page_tokens` is the page of position `p`.
    pub fn table(&self) -> &[PageId] {
        &self.table
    }

    /// Returns the number of positions whose keys and values are written: those of the prompt and of all tokens but the
    /// last. It is also the position that is written next.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Returns the number of tokens of the answer so far. The keys and values of the last token are not written yet.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Returns how the answer ended. `None` if it has not ended.
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
    /// Number of prompt tokens whose keys and values came from the prefix cache.
    pub(super) cached: u32,
    /// Whether the computation of its prompt has begun.
    pub(super) begun: bool,
    pub(super) answers: Vec<Answer>,
}

impl Sequence {
    pub(super) fn new(id: SeqId, ask: Ask, submitted: Micros) -> Self {
        let prompt = PromptShape { tokens: ask.prompt_tokens, ..PromptShape::default() };
        Self { id, ask, state: State::Preparing, prompt, submitted, cached: 0, begun: false, answers: Vec::new() }
    }

    /// Returns the number of the request.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// Returns the data of the request at submission.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// Returns the state of the request.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the sizes of the prompt. Before the prompt is prepared, only its announced length is known.
    pub fn prompt(&self) -> &PromptShape {
        &self.prompt
    }

    /// Returns the number of prompt tokens whose keys and values came from the prefix cache.
    pub fn cached_tokens(&self) -> u32 {
        self.cached
    }

    /// Returns the answers: none before admission, one until the prompt is computed, and then all.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// Whether the request is in the queue: in preparation or waiting.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.state, State::Preparing | State::Waiting)
    }

    /// Whether its prompt is being computed or waits for its turn.
    pub(super) fn in_prompt(&self) -> bool {
        matches!(self.state, State::Encoding { .. } | State::Prefilling { .. })
    }

    /// Whether its prompt is at a cut: no picture or chunk has been computed in part.
    pub(super) fn at_cut(&self) -> bool {
        matches!(self.state, State::Encoding { layer: 0, .. } | State::Prefilling { layer: 0, .. })
    }

    pub(super) fn worst_case(&self, layout: &Layout) -> u64 {
        layout.worst_case(self.prompt.tokens, self.ask.max_tokens, self.ask.answers())
    }

    /// Returns the keys of the chunks that may come from the prefix cache. The chunk of the last token is always
    /// computed.
    pub(super) fn sharable_keys(&self, layout: &Layout) -> &[ChunkKey] {
        let chunks = (self.prompt.tokens.saturating_sub(1) / layout.chunk_tokens) as usize;
        &self.prompt.keys[..chunks.min(self.prompt.keys.len())]
    }

    /// Returns the next state of the prompt when the images before `image` are done. An image is skipped if all tokens
    /// that need its features are cached.
    pub(super) fn next_image(&self, image: u32) -> State {
        let needed = |(index, shape): (usize, &ImageShape)| {
            (index >= image as usize && shape.needed_until > self.cached).then_some(index as u32)
        };
        match self.prompt.images.iter().enumerate().find_map(needed) {
            Some(image) => State::Encoding { image, layer: 0 },
            None => State::Prefilling { first: self.cached, layer: 0 },
        }
    }

    /// Whether at most one chunk and no picture is left to compute. Such a prompt may be a guest.
    pub(super) fn is_short(&self, layout: &Layout) -> bool {
        let State::Prefilling { first, .. } = self.state else { return false };
        self.prompt.tokens - first <= layout.chunk_tokens
    }
}
