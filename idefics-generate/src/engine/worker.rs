//! A thread that owns a model and its engine.

use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::scheduler::Counts;
use super::{Engine, EngineError, EngineOptions, Request, Ticket};
use crate::{Error, Idefics, Timings};

/// What the engine's thread is told to do.
enum Order {
    Submit(Box<Request<'static>>, SyncSender<Result<Ticket, Error>>),
    /// Takes no more requests, and ends at this time at the latest.
    Drain(Instant),
}

/// The progress of an engine's thread.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Pulse {
    /// Number of steps so far.
    pub steps: u64,
    /// Time since the last step or the last look into the inbox.
    pub age: Duration,
    /// Requests and pages after the last step.
    pub counts: Counts,
    /// Number of failed steps within the last minute.
    pub incidents: usize,
    /// Time of all steps, by stage.
    pub timings: Timings,
    /// Whether the thread still runs.
    pub is_running: bool,
}

#[derive(Debug)]
struct LastBeat {
    at: Instant,
    pulse: Pulse,
}

/// A thread with a model and an [`Engine`], which answers the requests of other threads. When the worker is dropped,
/// requests that have not ended fail.
#[derive(Debug)]
pub struct Worker {
    model: Arc<Idefics>,
    inbox: Sender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
    beat: Arc<Mutex<LastBeat>>,
}

impl Worker {
    /// Starts the thread, which calls `open` to load the model, and waits until the model is loaded.
    ///
    /// # Errors
    /// Those of `open` and of [`Engine::new`]; [`Error::Thread`] if the thread cannot be started.
    pub fn start(
        open: impl FnOnce() -> Result<Arc<Idefics>, Error> + Send + 'static,
        options: impl FnOnce(&Idefics) -> EngineOptions + Send + 'static,
    ) -> Result<Self, Error> {
        let (inbox, orders) = channel();
        let (ready, opened) = sync_channel(1);
        let pulse = Pulse {
            steps: 0,
            age: Duration::ZERO,
            counts: Counts::default(),
            incidents: 0,
            timings: Timings::default(),
            is_running: true,
        };
        let beat = Arc::new(Mutex::new(LastBeat { at: Instant::now(), pulse }));
        let thread = std::thread::Builder::new().name("idefics-engine".to_owned()).spawn({
            let beat = beat.clone();
            move || {
                let guard = EndGuard(beat.clone());
                let model = match open() {
                    Ok(model) => model,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                match Engine::of(&model, options(&model)) {
                    Ok(engine) => {
                        if ready.send(Ok(model.clone())).is_ok() {
                            run(engine, &model, &orders, &beat);
                        }
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
                drop(guard);
            }
        });
        let thread = thread.map_err(|source| Error::Thread { source })?;
        let model = opened.recv().unwrap_or(Err(EngineError::Stopped.into()))?;
        Ok(Self { model, inbox, thread: Mutex::new(Some(thread)), beat })
    }

    /// Returns the model, to prepare prompts with.
    pub fn model(&self) -> &Arc<Idefics> {
        &self.model
    }

    /// Submits a request. Waits until the step that runs now has ended. If the request has no tokenizer, the tokenizer
    /// of the model is used.
    ///
    /// # Errors
    /// Those of [`Engine::submit`]; [`EngineError::Stopped`] if the thread has ended.
    pub fn submit(&self, request: Request<'static>) -> Result<Ticket, Error> {
        let (answer, answered) = sync_channel(1);
        self.send(Order::Submit(Box::new(request), answer))?;
        answered.recv().unwrap_or(Err(EngineError::Stopped.into()))
    }

    /// Refuses new requests from now on, and waits until all earlier requests have ended. Requests that have not ended
    /// within this time fail.
    pub fn drain(&self, within: Duration) {
        let now = Instant::now();
        let end = now.checked_add(within).unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()));
        if self.send(Order::Drain(end)).is_ok()
            && let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            _ = thread.join(); // the guard has noted a panic
        }
    }

    /// Returns the progress of the thread.
    pub fn pulse(&self) -> Pulse {
        let beat = self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        Pulse { age: beat.at.elapsed(), ..beat.pulse }
    }

    fn send(&self, order: Order) -> Result<(), EngineError> {
        self.inbox.send(order).map_err(|_| EngineError::Stopped)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

/// Notes that the thread has ended, even if it panicked.
struct EndGuard(Arc<Mutex<LastBeat>>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pulse.is_running = false;
    }
}

/// Answers requests until the worker is drained or dropped.
fn run<'m>(mut engine: Engine<'m>, model: &'m Idefics, orders: &Receiver<Order>, beat: &Mutex<LastBeat>) {
    let mut end: Option<Instant> = None;
    let mut steps = 0;
    let mut is_busy = true;
    loop {
        loop {
            // An idle engine waits for the next order.
            let order = match is_busy || end.is_some() {
                true => orders.try_recv(),
                false => orders.recv().map_err(|_| TryRecvError::Disconnected),
            };
            match order {
                Ok(Order::Submit(request, answer)) => {
                    let mut request: Request<'m> = *request;
                    request.tokenizer.get_or_insert(model.processor().tokenizer());
                    _ = answer.send(engine.submit(request)); // fails if the caller is gone, which drops the ticket
                    is_busy = true;
                }
                Ok(Order::Drain(at)) => {
                    engine.drain();
                    end = Some(end.map_or(at, |end| end.min(at)));
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    end = Some(Instant::now());
                    break;
                }
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return engine.stop();
        }
        is_busy = engine.step().unwrap_or(true); // after an error, all requests have failed
        steps += u64::from(is_busy);
        let pulse = Pulse {
            steps,
            age: Duration::ZERO,
            counts: engine.counts(),
            incidents: engine.incidents(),
            timings: engine.timings(),
            is_running: true,
        };
        *beat.lock().unwrap_or_else(PoisonError::into_inner) = LastBeat { at: Instant::now(), pulse };
        if !is_busy && end.is_some() {
            return;
        }
    }
}
