//! Generation on a separate thread, for programs that must not block or that need a timeout.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use idefics_processor::{ProcessOptions, Sample};

use crate::{CancelToken, Controls, Error, GenerationConfig, GraphCapture, Idefics};

/// The chunks of an answer that is generated on a separate thread.
///
/// `BackgroundText` is both a blocking iterator and a [`Stream`] that works with any asynchronous runtime. Its chunks
/// are the same as those of [`TextStream`](crate::TextStream). When it is dropped, the generation stops within one
/// step.
#[derive(Debug)]
pub struct BackgroundText {
    shared: Arc<Shared>,
    cancel: CancelToken,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Result<String, Error>>,
    /// Whether no more chunks will be added.
    is_over: bool,
    /// Number of chunks added so far. The timeout thread compares it to detect progress.
    n_chunks: u64,
    waker: Option<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk, unless the answer has ended. An error is the last chunk of an answer.
    fn push(&self, chunk: Result<String, Error>) {
        let mut state = self.lock();
        if !state.is_over {
            state.is_over = chunk.is_err();
            state.chunks.push_back(chunk);
            state.n_chunks += 1;
        }
        self.notify(state);
    }

    fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        self.notify(state);
    }

    fn notify(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the answer ends. If no chunk arrives for `timeout`, cancels the generation and ends the answer with
    /// [`Error::Timeout`].
    fn watch(&self, timeout: Duration, cancel: &CancelToken) {
        let mut state = self.lock();
        while !state.is_over {
            let seen = state.n_chunks;
            let waited =
                self.changed.wait_timeout_while(state, timeout, |state| !state.is_over && state.n_chunks == seen);
            let (guard, wait) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if wait.timed_out() && !state.is_over && state.n_chunks == seen {
                cancel.cancel();
                drop(state);
                return self.push(Err(Error::Timeout { seconds: timeout.as_secs_f64() }));
            }
        }
    }
}

/// Marks the answer as ended when the generating thread ends. If the thread panics, the last item of the answer is
/// [`Error::Panic`].
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.push(Err(Error::Panic));
        }
        self.0.end();
    }
}

impl Idefics {
    /// Starts generating the answer to a sample on a separate thread. Graph capture is not used.
    ///
    /// If no chunk arrives for `timeout`, before the first chunk or between two chunks, the generation ends. The last
    /// item is then [`Error::Timeout`].
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread cannot be started. All other errors are items of the stream.
    pub fn generate_in_background(
        self: &Arc<Self>,
        sample: Sample,
        process: ProcessOptions,
        options: GenerationConfig,
        controls: impl Into<Controls<'static>>,
        timeout: Option<Duration>,
    ) -> Result<BackgroundText, Error> {
        // Graph capture is dropped: its device lease cannot move to another thread, and other threads may use the
        // device during the generation.
        let Controls {
            cancel,
            seed,
            processors,
            tokenizer,
            logprobs,
            prompt_logprobs,
            speculation,
            graph_capture: _,
            #[cfg(feature = "grammar")]
            grammar,
        } = controls.into();
        let shared = Arc::new(Shared::default());
        let text = BackgroundText { shared: shared.clone(), cancel: cancel.clone() };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map(|_| ()).map_err(|source| Error::Thread { source })
        };
        let (model, guard, token) = (self.clone(), EndGuard(shared.clone()), cancel.clone());
        spawn(
            "idefics-generate",
            Box::new(move || {
                let shared = &guard.0;
                let controls = Controls {
                    cancel: token,
                    seed,
                    processors,
                    tokenizer,
                    logprobs,
                    speculation,
                    graph_capture: GraphCapture::Never,
                    prompt_logprobs,
                    #[cfg(feature = "grammar")]
                    grammar,
                };
                match model.stream(&sample, &process, &options, controls) {
                    Ok(stream) => stream.for_each(|chunk| shared.push(chunk)),
                    Err(error) => shared.push(Err(error)),
                }
            }),
        )?;
        if let Some(timeout) = timeout {
            spawn("idefics-timeout", Box::new(move || shared.watch(timeout, &cancel)))?;
        }
        Ok(text)
    }
}

impl Iterator for BackgroundText {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_while(state, |state| state.chunks.is_empty() && !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).chunks.pop_front()
    }
}

impl Stream for BackgroundText {
    type Item = Result<String, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.shared.lock();
        match state.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(chunk)),
            None if state.is_over => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for BackgroundText {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.shared.end();
    }
}
