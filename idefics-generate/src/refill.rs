//! Answers many batches: rows of the next batch start as soon as rows of earlier batches have ended.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::mpsc::sync_channel;
use std::thread;

use idefics_processor::{ProcessOptions, ProcessedInputs, Sample};

use crate::engine::{Collected, Engine, EngineOptions, Request, Speculation};
use crate::{Answer, Controls, Error, GenerationConfig, Idefics, Prepared, Timings};

/// Takes the answers of [`Idefics::answer_batches`].
pub trait AnswerSink<B> {
    /// The error that stops the work.
    type Error;

    /// Takes the answers to a sample of a batch, or the error of the sample. Samples end in any order.
    ///
    /// # Errors
    /// An error stops the work.
    fn answered(&mut self, batch: &B, sample: usize, answers: Result<Vec<Answer>, Error>) -> Result<(), Self::Error>;

    /// Takes back a batch whose samples have all been answered. Batches come back in their order.
    ///
    /// # Errors
    /// An error stops the work.
    fn finished(&mut self, batch: B) -> Result<(), Self::Error>;
}

/// A function that makes the options and controls of a batch, or of a sample that starts alone.
type Settings<'s, 'm> = &'s mut dyn FnMut() -> (GenerationConfig, Controls<'m>);

impl Idefics {
    /// Answers batches of samples, which are prepared on a separate thread. At most `rows` samples run at the
    /// same time. When one ends, the next one starts, even if it belongs to a later batch. If a batch cannot start
    /// because a sample is invalid, its samples start one by one. Each answer is the same as that of
    /// [`Self::generate_each`] for its batch.
    ///
    /// Beam search, graph capture and log-probabilities of prompts run one batch at a time instead.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn answer_batches<'m, B: AsRef<[Sample]> + Send, S: AnswerSink<B>>(
        &'m self,
        batches: impl IntoIterator<Item = B, IntoIter: Send>,
        process: &ProcessOptions,
        rows: usize,
        mut settings: impl FnMut() -> (GenerationConfig, Controls<'m>),
        sink: &mut S,
    ) -> Result<(), S::Error> {
        let batches = batches.into_iter();
        thread::scope(|scope| {
            // The channel has no buffer, so at most one prepared batch waits.
            let (sender, receiver) = sync_channel(0);
            let reader = scope.spawn(move || {
                for batch in batches {
                    let prepared = self.prepare(batch.as_ref(), process);
                    if sender.send((batch, prepared)).is_err() {
                        break; // `sink` failed, so the receiver is gone
                    }
                }
            });
            let mut refill = Refill { model: self, process, rows, engine: None, open: VecDeque::new() };
            let answered = loop {
                let next = match refill.wants_more() {
                    true if refill.open.is_empty() => receiver.recv().ok(),
                    true => receiver.try_recv().ok(),
                    false => None,
                };
                let done = match next {
                    Some((batch, prepared)) => refill.take(batch, prepared, &mut settings, sink),
                    None if refill.open.is_empty() => break Ok(()),
                    None => refill.step(sink),
                };
                if done.is_err() {
                    break done;
                }
            };
            drop(receiver);
            reader.join().unwrap_or_else(|panic| resume_unwind(panic)); // keeps the panic's message and location
            answered
        })
    }
}

/// A running engine, and the batches that have not been answered completely.
struct Refill<'m, 'p, B> {
    model: &'m Idefics,
    process: &'p ProcessOptions,
    /// Maximum number of samples that run at the same time.
    rows: usize,
    /// The engine, and the number of cache pages that it has for each sample; `None` before the first request.
    engine: Option<(Engine<'m>, usize)>,
    open: VecDeque<Open<B>>,
}

/// A batch that has not been answered completely.
struct Open<B> {
    batch: B,
    running: Vec<Item>,
}

/// A sample whose answers have not ended.
struct Item {
    /// Index in the batch.
    sample: usize,
    inputs: Rc<ProcessedInputs>,
    /// Row of `inputs`.
    row: usize,
    timings: Timings,
    collected: Collected,
}

impl<'m, B: AsRef<[Sample]>> Refill<'m, '_, B> {
    /// Returns whether fewer samples have been submitted than may run at the same time.
    fn wants_more(&self) -> bool {
        self.open.iter().map(|open| open.running.len()).sum::<usize>() < self.rows
    }

    /// Starts the samples of a batch.
    fn take<S: AnswerSink<B>>(
        &mut self,
        batch: B,
        prepared: Result<Prepared<'m>, Error>,
        settings: Settings<'_, 'm>,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        let samples = 0..batch.as_ref().len();
        let mut open = Open { batch, running: Vec::new() };
        let mut results = Vec::new();
        if !samples.is_empty()
            && let Err(error) = self.start(0, prepared, settings, &mut open.running, &mut results)
        {
            if samples.len() == 1 {
                results.push((0, Err(error)));
            }
            for sample in samples.clone().filter(|_| samples.len() > 1) {
                let alone = self.model.prepare(&open.batch.as_ref()[sample..=sample], self.process);
                if let Err(error) = self.start(sample, alone, settings, &mut open.running, &mut results) {
                    results.push((sample, Err(error)));
                }
            }
        }
        for (sample, answers) in results {
            sink.answered(&open.batch, sample, answers)?;
        }
        self.open.push_back(open);
        self.finish(sink)
    }

    /// Gives back the batches whose samples have all been answered, in order.
    fn finish<S: AnswerSink<B>>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        while let Some(open) = self.open.pop_front_if(|open| open.running.is_empty()) {
            sink.finished(open.batch)?;
        }
        Ok(())
    }

    /// Submits prepared samples, the first of which has the index `first`. If the engine cannot generate their answers,
    /// generates these immediately and adds them to `results`.
    fn start(
        &mut self,
        first: usize,
        prepared: Result<Prepared<'m>, Error>,
        settings: Settings<'_, 'm>,
        running: &mut Vec<Item>,
        results: &mut Vec<(usize, Result<Vec<Answer>, Error>)>,
    ) -> Result<(), Error> {
        let (options, controls) = settings();
        let mut ready = prepared?.ready(&options, controls)?;
        if !ready.uses_engine() {
            let n_samples = ready.inputs.input_ids.len();
            let mut answers = ready.generate_each()?.into_iter();
            let n_answers = answers.len() / n_samples.max(1);
            let each = (first..first + n_samples).map(|sample| (sample, answers.by_ref().take(n_answers).collect()));
            results.extend(each);
            return Ok(());
        }
        let requests = ready.requests()?;
        self.make_room(&requests, ready.controls.speculation)?;
        let Some((engine, _)) = &mut self.engine else { return Ok(()) };
        let (inputs, timings) = (Rc::new(ready.inputs), ready.timings);
        let mut items = Vec::with_capacity(requests.len());
        for (row, request) in requests.into_iter().enumerate() {
            let collected = Collected::submit(engine, request)?;
            items.push(Item { sample: first + row, inputs: inputs.clone(), row, timings, collected });
        }
        running.append(&mut items);
        Ok(())
    }

    /// Makes sure that the memory of the engine is large enough for `rows` requests like these.
    fn make_room(&mut self, requests: &[Request<'m>], speculation: Speculation) -> Result<(), Error> {
        let (mut needed, mut answers) = (0, 1);
        for request in requests {
            needed = needed.max(request.pages(self.model.model())?);
            answers = answers.max(request.options.num_return_sequences());
        }
        if self.engine.as_ref().is_some_and(|(_, pages)| *pages >= needed) {
            return Ok(());
        }
        if let Some((engine, _)) = &mut self.engine {
            while engine.step()? {} // ends all answers, which stay in their tickets; the new engine starts empty
        }
        self.engine = None; // its memory is free before that of the next engine is allocated
        let pages = needed.saturating_mul(self.rows);
        let options = EngineOptions { speculation, ..EngineOptions::offline(pages, self.rows.saturating_mul(answers)) };
        self.engine = Some((Engine::of(self.model, options)?, needed));
        Ok(())
    }

    /// Runs a step of the engine, and passes the answers of samples that have ended to `sink`.
    fn step<S: AnswerSink<B>>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        let stepped = self.engine.as_mut().map_or(Ok(false), |(engine, _)| engine.step());
        let mut failed = stepped.err();
        for open in &mut self.open {
            for mut item in std::mem::take(&mut open.running) {
                item.collected.receive();
                if !item.collected.is_over() && failed.is_none() {
                    open.running.push(item);
                    continue;
                }
                let sample = item.sample;
                let answers = match failed.take() {
                    Some(error) => Err(error),
                    None => item.answers(self.model, self.process),
                };
                sink.answered(&open.batch, sample, answers)?;
            }
        }
        self.finish(sink)
    }
}

impl Item {
    /// Returns the answers to the sample, all of which have ended. An error names row 0, because each sample is
    /// reported alone, not as a row of a batch.
    fn answers(self, model: &Idefics, process: &ProcessOptions) -> Result<Vec<Answer>, Error> {
        let Self { inputs, row, timings, collected, .. } = self;
        let generated = collected.into_generated().map_err(|error| match error {
            Error::NonFinite { n_tokens, .. } => Error::NonFinite { row: 0, n_tokens },
            Error::NoAllowedToken { .. } => Error::NoAllowedToken { row: 0 },
            other => other,
        })?;
        generated.into_iter().map(|generated| model.answer(generated, &inputs, row, process, timings)).collect()
    }
}
