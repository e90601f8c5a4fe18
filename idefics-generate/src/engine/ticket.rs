//! The caller's end of a request: the events of its answers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;

use crate::{Error, FinishReason, GeneratedLogprob, Usage};

/// An event of a request. [`Event::End`] or [`Event::Failed`] is the last one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The memory of the request is reserved.
    Admitted {
        /// Time that the request waited, preparation included.
        queued: Duration,
    },
    /// The computation of the prompt begins.
    Begun {
        /// Number of prompt tokens whose keys and values were known from earlier requests.
        cached_tokens: usize,
    },
    /// New tokens of an answer. Tokens that have not been read yet are merged into one event.
    Tokens {
        /// The number of the answer, from 0.
        answer: usize,
        /// The tokens, the end token included.
        tokens: Vec<u32>,
        /// Log-probability of each token; empty if they were not requested.
        logprobs: Vec<GeneratedLogprob>,
    },
    /// An answer ended.
    AnswerEnd {
        /// The number of the answer, from 0.
        answer: usize,
        /// Why it ended.
        reason: FinishReason,
    },
    /// The request ended. All its answers have ended before.
    End {
        /// Token counts; `completion_tokens` is the sum of all answers.
        usage: Usage,
    },
    /// The request failed.
    Failed(Error),
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    /// Whether the last event has been added.
    is_over: bool,
    /// Whether the ticket is gone.
    is_closed: bool,
    waker: Option<Waker>,
}

/// The events that the caller has not read yet. Their size is limited by the length of the answers, so the engine never
/// waits for a caller.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller has dropped the ticket.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Adds an event. Events after the last one are dropped.
    pub(super) fn push(&self, event: Event) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        state.is_over = matches!(event, Event::End { .. } | Event::Failed(_));
        match event {
            Event::Tokens { answer, tokens, logprobs } => state.add_tokens(answer, tokens, logprobs),
            event => state.events.push_back(event),
        }
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    /// Appends tokens to the unread event of the same answer, or adds a new event if there is none.
    fn add_tokens(&mut self, answer: usize, tokens: Vec<u32>, logprobs: Vec<GeneratedLogprob>) {
        for event in self.events.iter_mut().rev() {
            if let Event::Tokens { answer: other, tokens: unread, logprobs: unread_logprobs } = event
                && *other == answer
            {
                unread.extend(tokens);
                unread_logprobs.extend(logprobs);
                return;
            }
        }
        self.events.push_back(Event::Tokens { answer, tokens, logprobs });
    }
}

/// The events of a submitted request. Dropping the ticket cancels the request.
///
/// If the engine runs on the caller's thread, use [`Self::try_next`] between its steps. If it runs on a
/// [`Worker`](super::Worker)'s thread, the ticket is a blocking iterator and a [`Stream`].
#[derive(Debug)]
pub struct Ticket(Arc<Outbox>);

impl Ticket {
    pub(super) fn new() -> (Self, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::default());
        (Self(outbox.clone()), outbox)
    }

    /// Returns the next event if there is one.
    pub fn try_next(&self) -> Option<Event> {
        self.0.lock().events.pop_front()
    }

    /// Waits for the next event, at most for `timeout`. Returns `None` if there is none in this time, or if the last
    /// event has been read.
    pub fn next_within(&self, timeout: Duration) -> Option<Event> {
        let state = self.0.lock();
        let waiting = |state: &mut State| state.events.is_empty() && !state.is_over;
        let waited = self.0.changed.wait_timeout_while(state, timeout, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0.events.pop_front()
    }
}

impl Iterator for Ticket {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let state = self.0.lock();
        let waited = self.0.changed.wait_while(state, |state| state.events.is_empty() && !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).events.pop_front()
    }
}

impl Stream for Ticket {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.0.lock();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if state.is_over => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
    }
}
