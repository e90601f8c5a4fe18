//! Answers samples in two steps: first the processor prepares them, then the model generates.
//!
//! The first step does not use the model, so [`Idefics::prepare_ahead`] prepares the next samples while the model
//! answers the current ones.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use burn::tensor::Tensor;
use idefics_nn::supports_graph_capture;
use idefics_processor::image::ImageTile;
use idefics_processor::{ProcessOptions, ProcessedInputs, Sample, Tokenizer};

use crate::engine::{Prompt, Request, Session, SharedProcessors};
use crate::inputs::check_ids;
use crate::pipeline::milliseconds;
use crate::running::Running;
use crate::{
    Answer, Controls, Error, Generation, GenerationConfig, GenerationError, Idefics, InputError, LogitsToKeep, Prompts,
    TextStream, Timings,
};

/// Samples that are ready for the model: images are decoded, and text is tokenised.
#[derive(Debug)]
pub struct Prepared<'m> {
    model: &'m Idefics,
    inputs: ProcessedInputs,
    process: ProcessOptions,
    is_conversation: bool,
    preprocess_ms: f64,
}

/// A batch that is being answered, and what its answers are made from.
struct Run<'a> {
    running: Running<'a>,
    inputs: ProcessedInputs,
    timings: Timings,
}

impl Idefics {
    /// Processes the images and texts of samples.
    ///
    /// # Errors
    /// [`Error`] that names the invalid row or image.
    pub fn prepare(&self, samples: &[Sample], process: &ProcessOptions) -> Result<Prepared<'_>, Error> {
        let clock = Instant::now();
        let inputs = self.process(samples, process)?;
        Ok(Prepared {
            model: self,
            inputs,
            process: process.clone(),
            is_conversation: is_conversation(samples),
            preprocess_ms: milliseconds(clock),
        })
    }

    /// Prepares batches of samples on a separate thread and calls `answer` with each of them, in order. While one batch
    /// is answered, the next one is prepared. The first error of `answer` stops the work. This function then still
    /// waits until the running preparation has ended.
    ///
    /// # Errors
    /// Those of `answer`.
    pub fn prepare_ahead<B: AsRef<[Sample]> + Send, E>(
        &self,
        batches: impl IntoIterator<Item = B, IntoIter: Send>,
        process: &ProcessOptions,
        mut answer: impl FnMut(B, Result<Prepared<'_>, Error>) -> Result<(), E>,
    ) -> Result<(), E> {
        let batches = batches.into_iter();
        thread::scope(|scope| {
            // The channel has no buffer, so at most one prepared batch waits while another one is answered.
            let (sender, receiver) = sync_channel(0);
            let reader = scope.spawn(move || {
                for batch in batches {
                    let prepared = self.prepare(batch.as_ref(), process);
                    if sender.send((batch, prepared)).is_err() {
                        break; // `answer` failed, so the receiver is gone
                    }
                }
            });
            let answered = receiver.into_iter().try_for_each(|(batch, prepared)| answer(batch, prepared));
            reader.join().unwrap_or_else(|panic| resume_unwind(panic)); // keeps the panic's message and location
            answered
        })
    }

    /// Answers a batch of samples. Returns `num_return_sequences` answers per sample, in the order of the samples. An
    /// answer does not depend on the other samples.
    ///
    /// # Errors
    /// [`Error`] that names the invalid row, image or option.
    pub fn generate<'a>(
        &'a self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Vec<Answer>, Error> {
        self.prepare(samples, process)?.generate(options, controls)
    }

    /// Answers a batch like [`Idefics::generate`], but a row that fails does not affect the other rows.
    ///
    /// # Errors
    /// The whole call fails with an [`Error`] that names the invalid row, image or option. A single answer fails with
    /// [`Error::NonFinite`] or [`Error::NoAllowedToken`].
    pub fn generate_each<'a>(
        &'a self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        self.prepare(samples, process)?.generate_each(options, controls)
    }

    /// Answers one sample and calls `on_text` with each chunk of text as it is generated; see [`TextStream`].
    ///
    /// # Errors
    /// Those of [`Idefics::generate`], and [`GenerationError::Conflict`] if the options request several answers or
    /// beams.
    pub fn generate_streaming<'a>(
        &'a self,
        sample: &Sample,
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
        on_text: impl FnMut(&str),
    ) -> Result<Answer, Error> {
        self.prepare_one(sample, process, options)?.generate_streaming(options, controls, on_text)
    }

    /// Returns the text of one sample's answer as an iterator. Dropping it ends the generation.
    ///
    /// # Errors
    /// Those of [`Idefics::generate_streaming`].
    pub fn stream<'a>(
        &'a self,
        sample: &Sample,
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<TextStream<'a>, Error> {
        self.prepare_one(sample, process, options)?.stream(options, controls)
    }

    /// Prepares one sample, after checking that the answer can be streamed.
    fn prepare_one(
        &self,
        sample: &Sample,
        process: &ProcessOptions,
        options: &GenerationConfig,
    ) -> Result<Prepared<'_>, Error> {
        let sample = std::slice::from_ref(sample);
        check_streamable(&self.options(options, is_conversation(sample))?)?;
        self.prepare(sample, process)
    }
}

impl<'m> Prepared<'m> {
    /// Answers the samples; see [`Idefics::generate`].
    ///
    /// # Errors
    /// Those of [`Idefics::generate`].
    pub fn generate(self, options: &GenerationConfig, controls: impl Into<Controls<'m>>) -> Result<Vec<Answer>, Error> {
        self.generate_each(options, controls)?.into_iter().collect()
    }

    /// Answers the samples, each with its own error; see [`Idefics::generate_each`].
    ///
    /// # Errors
    /// Those of [`Idefics::generate_each`].
    pub fn generate_each(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        self.ready(options, controls.into())?.generate_each()
    }

    /// Answers a single sample and streams the text; see [`Idefics::generate_streaming`].
    ///
    /// # Errors
    /// Those of [`Idefics::generate_streaming`].
    pub fn generate_streaming(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, Error> {
        let (model, process, tokenizer) = (self.model, self.process.clone(), self.tokenizer());
        let Run { running, inputs, mut timings } = self.start_one(options, controls.into())?;
        let clock = Instant::now();
        let mut stream = TextStream::of(running, tokenizer, true);
        for chunk in stream.by_ref() {
            on_text(&chunk?);
        }
        timings.decode_ms = milliseconds(clock);
        let mut running = stream.into_running();
        let timings = timings.or_of(&running);
        model.answer(running.generated(0)?, &inputs, 0, &process, timings)
    }

    /// Returns the text of a single sample's answer as an iterator; see [`Idefics::stream`].
    ///
    /// # Errors
    /// Those of [`Idefics::generate_streaming`].
    pub fn stream(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
    ) -> Result<TextStream<'m>, Error> {
        let tokenizer = self.tokenizer();
        Ok(TextStream::of(self.start_one(options, controls.into())?.running, tokenizer, true))
    }

    /// Computes the logits after each token of the prompts, `[batch, seq, vocab_size]` in f32. Also returns the prompts
    /// as rows of tokens. Logits at padding are meaningless.
    ///
    /// # Errors
    /// [`InputError`] if the samples do not fit the model.
    pub fn logits(&self) -> Result<(Prompts, Tensor<3>), InputError> {
        let prompts = self.model.prompts(&self.inputs.input_ids, self.tokenizer())?;
        let images: Vec<ImageTile> = self.inputs.images.iter().flatten().cloned().collect();
        let logits = self.model.model().forward(&prompts, &images, LogitsToKeep::All)?;
        Ok((prompts, logits))
    }

    fn tokenizer(&self) -> &'m Tokenizer {
        self.model.processor().tokenizer_for(self.process.compatibility)
    }

    /// Computes the prompt of the only sample, after checking that there is exactly one sample and that its answer can
    /// be streamed.
    fn start_one(self, options: &GenerationConfig, controls: Controls<'m>) -> Result<Run<'m>, Error> {
        check_streamable(&self.model.options(options, self.is_conversation)?)?;
        match self.inputs.input_ids.len() {
            1 => {
                let mut run = self.ready(options, controls)?.start()?;
                run.running.begin()?;
                Ok(run)
            }
            _ => Err(single_answer_conflict("several samples").into()),
        }
    }

    /// Checks the options and token ids, before anything is computed.
    pub(crate) fn ready(self, options: &GenerationConfig, mut controls: Controls<'m>) -> Result<Ready<'m>, Error> {
        let tokenizer = self.tokenizer();
        let Self { model, mut inputs, is_conversation, preprocess_ms, process } = self;
        let options = model.options(options, is_conversation)?;
        let timings = Timings { preprocess_ms, ..Timings::default() };
        if let Some(bos_token_id) = options.bos_token_id {
            // Source: `_maybe_initialize_input_ids_for_generation`.
            let empty = inputs.input_ids.iter_mut().filter(|ids| ids.is_empty());
            empty.for_each(|ids| ids.push(bos_token_id));
        }
        controls.tokenizer.get_or_insert(tokenizer);
        let prompts = model.prompts(&inputs.input_ids, tokenizer)?;
        model.check(&prompts, &options)?;
        controls.check(&options, model.model().shape().vocab_size)?;
        Ok(Ready { model, inputs, process, prompts, options, controls, timings })
    }
}

/// Prompts whose options and token ids have been checked.
#[derive(Debug)]
pub(crate) struct Ready<'m> {
    pub(crate) model: &'m Idefics,
    pub(crate) inputs: ProcessedInputs,
    pub(crate) process: ProcessOptions,
    prompts: Prompts,
    pub(crate) options: GenerationConfig,
    pub(crate) controls: Controls<'m>,
    pub(crate) timings: Timings,
}

impl<'m> Ready<'m> {
    /// Returns whether the engine can generate these answers. The engine has no beam search, no log-probabilities of
    /// prompts and no captured steps, and its kernels for cache pages exist only on the CPU.
    pub(crate) fn uses_engine(&self) -> bool {
        let model = self.model.model();
        let is_plain = self.options.num_beams() == 1 && !self.controls.prompt_logprobs;
        is_plain && model.is_on_one_device() && !supports_graph_capture(&model.device())
    }

    /// Turns the prompts into requests for an engine. Takes the images and the logits processors out of `self`.
    ///
    /// # Errors
    /// [`Error::Input`] if a token id is outside the vocabulary, or if the tokens of a prompt need another number of
    /// images than the prompt has.
    pub(crate) fn requests(&mut self) -> Result<Vec<Request<'m>>, Error> {
        let Self { model, inputs, prompts, options, controls, .. } = self;
        check_ids(prompts.input_ids(), prompts.seq(), model.model().shape().vocab_size)?;
        let image_token_id = model.processor().tokenizer().image_token_id();
        controls.add_mask(options);
        let processors = SharedProcessors::new(std::mem::take(&mut controls.processors));
        let images = std::mem::take(&mut inputs.images);
        let request = |(sample, (images, tile_tokens)): (usize, (Vec<ImageTile>, &Vec<usize>))| {
            let prompt = Prompt::of_row(prompts, sample, images, tile_tokens, image_token_id)?;
            Ok(Request {
                seed: controls.seed,
                tokenizer: controls.tokenizer,
                logprobs: controls.logprobs,
                cancel: controls.cancel.clone(),
                processors: processors.for_request(),
                ..Request::new(prompt, options.clone())
            })
        };
        images.into_iter().zip(&inputs.tile_tokens).enumerate().map(request).collect()
    }

    /// Answers the samples, each with its own error.
    ///
    /// # Errors
    /// Those of [`Idefics::generate_each`].
    pub(crate) fn generate_each(self) -> Result<Vec<Result<Answer, Error>>, Error> {
        let (model, process) = (self.model, self.process.clone());
        let Run { mut running, inputs, mut timings } = self.start()?;
        let clock = Instant::now();
        running.finish()?;
        timings.decode_ms = milliseconds(clock);
        let timings = timings.or_of(&running);
        let n_answers = running.answers_per_sample();
        let answer = |index| {
            let generated = running.generated(index)?;
            model.answer(generated, &inputs, index / n_answers, &process, timings)
        };
        Ok((0..inputs.input_ids.len() * n_answers).map(answer).collect())
    }

    /// Computes the prompts, or submits them to an engine.
    fn start(mut self) -> Result<Run<'m>, Error> {
        if self.uses_engine() {
            let session = Session::start(self.model, self.requests()?, self.controls.speculation)?;
            return Ok(Run { running: Running::Engine(Box::new(session)), inputs: self.inputs, timings: self.timings });
        }
        self.start_generation()
    }

    /// Encodes the images and runs the prompts, so that only the decode steps remain.
    fn start_generation(self) -> Result<Run<'m>, Error> {
        let Self { model, mut inputs, prompts, options, controls, mut timings, .. } = self;
        let images: Vec<ImageTile> = std::mem::take(&mut inputs.images).into_iter().flatten().collect();
        let image_hidden_states = model.encode_images(&images, &mut timings)?;
        drop(images);

        let clock = Instant::now();
        let generation = Generation::start(model.model(), &prompts, image_hidden_states, &options, controls)?;
        model.sync()?;
        timings.prefill_ms = milliseconds(clock);
        Ok(Run { running: Running::Generation(Box::new(generation)), inputs, timings })
    }
}

fn is_conversation(samples: &[Sample]) -> bool {
    samples.iter().any(|sample| matches!(sample, Sample::Messages(_)))
}

fn check_streamable(options: &GenerationConfig) -> Result<(), GenerationError> {
    if options.is_streamable() { Ok(()) } else { Err(single_answer_conflict("num_beams or num_return_sequences")) }
}

fn single_answer_conflict(option: &'static str) -> GenerationError {
    let reason = "only a single answer that is generated token by token can be streamed";
    GenerationError::Conflict { option, other: "streaming", reason }
}
