//! The types that the scheduler and its users exchange: steps, outcomes, notices and refusals.

use std::ops::Range;

use thiserror::Error;

use super::Micros;
use super::pages::PageId;
use super::sequence::SeqId;

/// Identifies one answer of a request. Each answer is one row in a decode step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The request.
    pub id: SeqId,
    /// The answer's number, from 0.
    pub answer: u32,
}

/// What the executor runs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepPlan {
    /// There is nothing to run until a request is submitted or prepared, or reaches a time limit.
    Idle {
        /// Time at which [`Scheduler::plan`](super::Scheduler::plan) must be called at the latest: the next time limit
        /// of a request.
        until: Option<Micros>,
    },
    /// A decode step: one token for each row. Each row writes to the slot at position `Answer::written` of its page
    /// table. The outcome has one verdict for each row.
    Decode(Vec<RowId>),
    /// A decode step in which a single row has several tokens: its last token, and proposals for the tokens after it.
    /// The row writes to the slots from position `Answer::written` on. The outcome has one verdict for the row. Only the
    /// tokens that the verdict counts are kept; the slots of the others are written again later.
    Verify {
        /// The row.
        row: RowId,
        /// Number of tokens of the step, at least 2. The row gets between one token and this number of tokens.
        tokens: u32,
    },
    /// Some layers of a picture or of a chunk of a prompt.
    Slice(Slice),
    /// Copies the last, partial page of a prompt for each further answer. The outcome has one verdict, for answer 0.
    Fork {
        /// The request.
        id: SeqId,
        /// The pages to copy. The targets are newly allocated.
        copies: Vec<PageCopy>,
    },
    /// A step of a solo job. It may write to any slot after the prompt in the page table of answer 0. The outcome has
    /// one verdict, for answer 0.
    Solo(SeqId),
}

/// Some layers of one request's prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slice {
    /// Layers of the vision tower and the connector, run on one picture. The picture's vectors are ready after the last
    /// layer. The outcome has one verdict, for answer 0.
    Vision {
        /// The request.
        id: SeqId,
        /// Index of the image in [`PromptShape::images`](super::PromptShape::images).
        image: u32,
        /// The layers.
        layers: Range<u32>,
    },
    /// Layers of the decoder, run on one chunk. The outcome has one verdict, for answer 0. After the last layer of the
    /// last chunk, it has instead one verdict for the first token of each answer, unless the request is a solo job.
    Chunk {
        /// The request.
        id: SeqId,
        /// Positions of the chunk's tokens.
        tokens: Range<u32>,
        /// The layers.
        layers: Range<u32>,
    },
}

/// A page to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The source.
    pub from: PageId,
    /// The target.
    pub to: PageId,
    /// Number of slots to copy, counted from the start of the page.
    pub slots: u32,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The step ran, with the verdicts that [`StepPlan`] describes. A missing verdict fails its request.
    Rows(Vec<(RowId, Verdict)>),
    /// The step did not complete. All its results are discarded.
    Failed(RowFault),
}

/// The result of a step for one row or one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A token was chosen, and the answer continues (unless it has reached its maximum length).
    Token,
    /// This number of tokens was chosen in a [`StepPlan::Verify`], and the answer continues (unless it has reached its
    /// maximum length).
    Tokens(u32),
    /// The answer ended in this step.
    Ended {
        /// Number of tokens that were chosen in the step. It is 0 if the answer was complete before the step.
        tokens: u32,
        /// How the answer ended.
        end: AnswerEnd,
    },
    /// The solo job has its result.
    Solved,
    /// The layers, the copies or the step of a solo job are done.
    Done,
    /// All vectors of the picture were found in the cache of image vectors, so no further layers are needed.
    ImageReady,
    /// The row cannot continue. Its request ends, but other requests continue.
    Failed(RowFault),
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnswerEnd {
    /// With an end token, a stop string, or the end of the grammar that constrains it.
    Stop,
    /// At its maximum length.
    Length,
}

/// Why a row or a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum RowFault {
    /// The logits are not finite.
    #[error("the model computed a number that is not finite")]
    NonFinite,
    /// The logit bias, the forbidden words and the grammar together forbid every token.
    #[error("no token is allowed at this position of the answer")]
    NoAllowedToken,
    /// The grammar that constrains the answer reported an error.
    #[error("the grammar of the answer reported an error")]
    Grammar,
    /// The device reported an error.
    #[error("the device reported an error")]
    Device,
    /// The step panicked.
    #[error("the step panicked")]
    Panic,
    /// A verdict was missing or of the wrong kind, or a reserved page was not available. This is a defect of the
    /// program.
    #[error("internal error: the step broke a rule of the scheduler")]
    Internal,
}

/// How a request ended. Every submitted request ends exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All its answers ended, or its solo job has its result.
    Finished,
    /// Its caller cancelled it.
    Cancelled,
    /// Its client has not read its output for too long.
    SlowReader,
    /// Its deadline passed.
    Deadline,
    /// It was in the queue for too long; see [`Policy::queue_timeout`](super::Policy::queue_timeout).
    QueueTimeout,
    /// Its images or text could not be prepared.
    BadInput,
    /// Its prepared prompt needs more pages than the KV cache has.
    NeverFits {
        /// Number of pages that the request needs.
        pages: u64,
        /// Number of pages of the KV cache.
        total: u32,
    },
    /// The server is shutting down.
    Drained,
    /// A row or a step of the request failed.
    Failed(RowFault),
}

/// An event of a request that the caller should be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The request was admitted. All pages that it can need are reserved or already its own.
    Admitted {
        /// The request.
        id: SeqId,
        /// Time that the request was in the queue, preparation included.
        queued: Micros,
    },
    /// The computation of the prompt begins.
    Begun {
        /// The request.
        id: SeqId,
        /// Tokens of the prompt whose keys and values came from the prefix cache.
        cached_tokens: u32,
    },
    /// An answer of the request ended.
    Answer {
        /// The answer.
        row: RowId,
        /// Number of tokens of the answer, the end token included.
        tokens: u32,
        /// How the answer ended.
        end: AnswerEnd,
    },
    /// The request ended, and its pages are released. No further notice about it follows.
    Ended {
        /// The request.
        id: SeqId,
        /// How the request ended.
        ending: Ending,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The queue is full: the limit of requests or of prompt tokens is reached.
    #[error("the queue is full; try again in {} s", retry_after.div_ceil(1_000_000))]
    QueueFull {
        /// Estimated time until the queue has room.
        retry_after: Micros,
    },
    /// The tenant has reached its share of the queue.
    #[error("this key has reached its share of the queue; try again in {} s", retry_after.div_ceil(1_000_000))]
    TenantLimit {
        /// Estimated time until the queue has room.
        retry_after: Micros,
    },
    /// The request needs more pages than the KV cache has.
    #[error(
        "prompt and answers need {pages} pages of the KV cache, but it has {total}; ask for fewer tokens or answers"
    )]
    NeverFits {
        /// Number of pages that the request needs.
        pages: u64,
        /// Number of pages of the KV cache.
        total: u32,
    },
    /// The images of the request need more slabs than the context store has; see
    /// [`Layout::slabs`](super::Layout::slabs).
    #[error("the images need {slabs} slabs of the context store, but it has {total}; send fewer images")]
    TooManyImages {
        /// Number of slabs that the request needs.
        slabs: u32,
        /// Number of slabs of the context store.
        total: u32,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
}
