//! What passes between the scheduler and those who use it: steps, their outcomes, ends and refusals.

use std::ops::Range;

use thiserror::Error;

use super::Micros;
use super::pages::PageId;
use super::sequence::SeqId;

/// One answer of a request, a row of decode steps.
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
    /// Nothing, until something is submitted or prepared, or until a request may time out.
    Idle {
        /// When [`Scheduler::plan`](super::Scheduler::plan) is called at the latest.
        until: Option<Micros>,
    },
    /// One token for each row. Each writes the slot `written` of its table. One verdict a row.
    Decode(Vec<RowId>),
    /// Some layers of a picture or of a chunk of a prompt.
    Slice(Slice),
    /// Copies of the last, partial page of a prompt for each further answer. One verdict, for answer 0.
    Fork {
        /// The request.
        id: SeqId,
        /// What to copy; the targets are new.
        copies: Vec<PageCopy>,
    },
    /// A step of a solo job, which may write the slots after the prompt in the table of answer 0. One verdict, for
    /// answer 0.
    Solo(SeqId),
}

/// Some layers of one request's prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slice {
    /// Layers of a picture; its vectors are there after the last. One verdict, for answer 0.
    Vision {
        /// The request.
        id: SeqId,
        /// The image, by its place in [`PromptShape::images`](super::PromptShape::images).
        image: u32,
        /// The layers.
        layers: Range<u32>,
    },
    /// Layers of a chunk. One verdict, for answer 0; but after the last layer of the last chunk of a prompt that
    /// is to be answered, one for each answer, with its first token.
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
    /// Slots that are written in the source, from the first.
    pub slots: u32,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran. The verdicts that [`StepPlan`] asks for; a missing one fails its request.
    Rows(Vec<(RowId, Verdict)>),
    /// It did not run to its end, and nothing of it counts.
    Failed(RowFault),
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A token was chosen, and the answer goes on (unless it has reached its length).
    Token,
    /// The answer ended with this token; of a solo job: it has its result.
    Ended(AnswerEnd),
    /// The layers, the copies or the step of a solo job are done.
    Done,
    /// The whole picture's vectors are there, from the cache of image vectors.
    ImageReady,
    /// The row cannot go on. Its request ends, other rows do not.
    Failed(RowFault),
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnswerEnd {
    /// By an end token, a stop string, or the end of its grammar.
    Stop,
    /// By its length.
    Length,
}

/// Why a row or a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum RowFault {
    /// Its logits are not finite.
    #[error("the model computed a number that is not finite")]
    NonFinite,
    /// Bias, forbidden words and grammar left no token.
    #[error("no token is allowed at this place of the answer")]
    NoAllowedToken,
    /// The grammar failed.
    #[error("the grammar failed")]
    Grammar,
    /// The device reported an error.
    #[error("the device reported an error")]
    Device,
    /// The step panicked.
    #[error("the step panicked")]
    Panic,
    /// A verdict was missing or of the wrong kind, or a promised page was not there: a defect of this program.
    #[error("internal error: the step broke a rule of the scheduler")]
    Internal,
}

/// How a request ended. Every request that was submitted ends once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All its answers ended, or its solo job has its result.
    Finished,
    /// Its caller no longer wants it.
    Cancelled,
    /// Its reader has not read for too long.
    SlowReader,
    /// Its deadline passed.
    Deadline,
    /// It waited too long for its turn.
    QueueTimeout,
    /// Its images or text could not be prepared.
    BadInput,
    /// Its prepared prompt needs more than there is.
    NeverFits {
        /// Pages that it needs.
        pages: u64,
        /// Pages that there are.
        total: u32,
    },
    /// The server ends.
    Drained,
    /// It failed.
    Failed(RowFault),
}

/// Something that callers of a request want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It was admitted: it has all the pages that it will need.
    Admitted {
        /// The request.
        id: SeqId,
        /// How long it was prepared and waited.
        queued: Micros,
    },
    /// Its prompt begins to run.
    Begun {
        /// The request.
        id: SeqId,
        /// Tokens of the prompt that are not computed again.
        cached_tokens: u32,
    },
    /// One of its answers ended.
    Answer {
        /// The answer.
        row: RowId,
        /// How.
        end: AnswerEnd,
    },
    /// It ended, and its pages are back. Nothing about it follows.
    Ended {
        /// The request.
        id: SeqId,
        /// How.
        ending: Ending,
    },
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The queue holds as many requests or prompt tokens as it may.
    #[error("the queue is full; try again in {} s", retry_after.div_ceil(1_000_000))]
    QueueFull {
        /// When there will probably be room.
        retry_after: Micros,
    },
    /// The tenant fills its share of the queue.
    #[error("this key has as many waiting requests as it may; try again in {} s", retry_after.div_ceil(1_000_000))]
    TenantLimit {
        /// When there will probably be room.
        retry_after: Micros,
    },
    /// It needs more pages than there are.
    #[error(
        "prompt and answers need {pages} pages of the KV cache, which has {total}; ask for fewer tokens or answers"
    )]
    NeverFits {
        /// Pages that it needs.
        pages: u64,
        /// Pages that there are.
        total: u32,
    },
    /// It needs more slabs of the context store than there are.
    #[error("the images need {slabs} slabs of the context store, which has {total}; send fewer images")]
    TooManyImages {
        /// Slabs that it needs.
        slabs: u32,
        /// Slabs that there are.
        total: u32,
    },
    /// The server ends.
    #[error("the server is shutting down")]
    Draining,
}
