//! From samples to answers, in two steps: what the processor does, and what the model does.
//!
//! The first needs no model: [`Idefics::prepare_ahead`] does it for the next samples while the model answers the last.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use burn::tensor::Tensor;
use idefics_processor::image::ImageTile;
use idefics_processor::{ProcessOptions, ProcessedInputs, Sample, Tokenizer};

use crate::pipeline::milliseconds;
use crate::{
    Answer, Controls, Error, Generation, GenerationConfig, GenerationError, Idefics, InputError, LogitsToKeep, Prompts,
    TextStream, Timings,
};

/// Samples whose pictures are decoded and whose words are tokens.
#[derive(Debug)]
pub struct Prepared<'m> {
    model: &'m Idefics,
    inputs: ProcessedInputs,
    process: ProcessOptions,
    is_conversation: bool,
    preprocess_ms: f64,
}

/// A generation whose prompt was run.
struct Run<'a> {
    generation: Generation<'a>,
    inputs: ProcessedInputs,
    timings: Timings,
}

impl Idefics {
    /// Reads the images and the words of samples.
    ///
    /// # Errors
    /// [`Error`] naming the row or image at fault.
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

    /// Calls `answer` with each batch of samples, prepared, in order; the next one is prepared on a thread of its own
    /// meanwhile. Ends with the first error of `answer`, when the batch that is being prepared is.
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
            // Nothing waits between the two: one batch is ready at most while another is answered.
            let (sender, receiver) = sync_channel(0);
            let reader = scope.spawn(move || {
                for batch in batches {
                    let prepared = self.prepare(batch.as_ref(), process);
                    if sender.send((batch, prepared)).is_err() {
                        break; // an answer failed
                    }
                }
            });
            let answered = receiver.into_iter().try_for_each(|(batch, prepared)| answer(batch, prepared));
            reader.join().unwrap_or_else(|panic| resume_unwind(panic)); // with the place that it was seen at
            answered
        })
    }

    /// Answers a batch of samples: `num_return_sequences` answers for the first, then those for the second. A row's
    /// answer does not depend on the others.
    ///
    /// # Errors
    /// [`Error`] naming the row, image or option at fault.
    pub fn generate<'a>(
        &'a self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Vec<Answer>, Error> {
        self.prepare(samples, process)?.generate(options, controls)
    }

    /// As [`Idefics::generate`], where an answer that fails does not keep the others back.
    ///
    /// # Errors
    /// Of the batch: [`Error`] naming the row, image or option at fault. Of one answer: [`Error::NonFinite`] or
    /// [`Error::NoAllowedToken`].
    pub fn generate_each<'a>(
        &'a self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        self.prepare(samples, process)?.generate_each(options, controls)
    }

    /// Answers one sample, calling `on_text` with each chunk of text as it comes; see [`TextStream`].
    ///
    /// # Errors
    /// As [`Idefics::generate`], and [`GenerationError::Conflict`] for options that give more than one row.
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

    /// The text of one sample's answer as an iterator; dropping it ends the generation.
    ///
    /// # Errors
    /// As [`Idefics::generate_streaming`].
    pub fn stream<'a>(
        &'a self,
        sample: &Sample,
        process: &ProcessOptions,
        options: &GenerationConfig,
        controls: impl Into<Controls<'a>>,
    ) -> Result<TextStream<'a>, Error> {
        self.prepare_one(sample, process, options)?.stream(options, controls)
    }

    /// One sample, unless its answer cannot be streamed.
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
    /// As [`Idefics::generate`].
    ///
    /// # Errors
    /// As [`Idefics::generate`].
    pub fn generate(self, options: &GenerationConfig, controls: impl Into<Controls<'m>>) -> Result<Vec<Answer>, Error> {
        self.generate_each(options, controls)?.into_iter().collect()
    }

    /// As [`Idefics::generate_each`].
    ///
    /// # Errors
    /// As [`Idefics::generate_each`].
    pub fn generate_each(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let (model, process) = (self.model, self.process.clone());
        let Run { mut generation, inputs, mut timings } = self.start(options, controls.into())?;
        let clock = Instant::now();
        while generation.step()?.is_some() {}
        timings.decode_ms = milliseconds(clock);
        let answer = |row| match generation.failure(row) {
            Some(error) => Err(error),
            None => model.answer(&generation, &inputs, row, &process, timings),
        };
        Ok((0..inputs.input_ids.len() * generation.answers_per_sample()).map(answer).collect())
    }

    /// As [`Idefics::generate_streaming`].
    ///
    /// # Errors
    /// As [`Idefics::generate_streaming`].
    pub fn generate_streaming(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, Error> {
        let (model, process, tokenizer) = (self.model, self.process.clone(), self.tokenizer());
        let Run { generation, inputs, mut timings } = self.start_one(options, controls.into())?;
        let clock = Instant::now();
        let mut stream = TextStream::new(generation, tokenizer, true);
        for chunk in stream.by_ref() {
            on_text(&chunk?);
        }
        timings.decode_ms = milliseconds(clock);
        model.answer(stream.generation(), &inputs, 0, &process, timings)
    }

    /// As [`Idefics::stream`].
    ///
    /// # Errors
    /// As [`Idefics::generate_streaming`].
    pub fn stream(
        self,
        options: &GenerationConfig,
        controls: impl Into<Controls<'m>>,
    ) -> Result<TextStream<'m>, Error> {
        let tokenizer = self.tokenizer();
        Ok(TextStream::new(self.start_one(options, controls.into())?.generation, tokenizer, true))
    }

    /// The samples as rows of tokens, and the logits after each of these, `[batch, seq, vocab_size]` in f32; rows of
    /// padding mean nothing.
    ///
    /// # Errors
    /// [`InputError`] for samples that do not fit the model.
    pub fn logits(&self) -> Result<(Prompts, Tensor<3>), InputError> {
        let prompts = self.model.prompts(&self.inputs.input_ids, self.tokenizer())?;
        let images: Vec<ImageTile> = self.inputs.images.iter().flatten().cloned().collect();
        let logits = self.model.model().forward(&prompts, &images, LogitsToKeep::All)?;
        Ok((prompts, logits))
    }

    fn tokenizer(&self) -> &'m Tokenizer {
        self.model.processor().tokenizer_for(self.process.compatibility)
    }

    /// Everything up to the first token of the one row that a stream has.
    fn start_one(self, options: &GenerationConfig, controls: Controls<'m>) -> Result<Run<'m>, Error> {
        check_streamable(&self.model.options(options, self.is_conversation)?)?;
        match self.inputs.input_ids.len() {
            1 => self.start(options, controls),
            _ => Err(one_answer("several samples").into()),
        }
    }

    /// Everything up to the first token.
    fn start(self, options: &GenerationConfig, mut controls: Controls<'m>) -> Result<Run<'m>, Error> {
        let tokenizer = self.tokenizer();
        let Self { model, mut inputs, is_conversation, preprocess_ms, .. } = self;
        let options = model.options(options, is_conversation)?;
        let mut timings = Timings { preprocess_ms, ..Timings::default() };
        if let Some(bos_token_id) = options.bos_token_id {
            // Source: `_maybe_initialize_input_ids_for_generation`.
            let empty = inputs.input_ids.iter_mut().filter(|ids| ids.is_empty());
            empty.for_each(|ids| ids.push(bos_token_id));
        }
        controls.tokenizer.get_or_insert(tokenizer);
        let prompts = model.prompts(&inputs.input_ids, tokenizer)?;
        model.check(&prompts, &options)?;

        let images: Vec<ImageTile> = std::mem::take(&mut inputs.images).into_iter().flatten().collect();
        let image_hidden_states: Option<Tensor<3>> = model.encode_images(&images, &mut timings)?; // [n_images, n_vectors, d]
        drop(images);

        let clock = Instant::now();
        let generation = Generation::start(model.model(), &prompts, image_hidden_states, &options, controls)?;
        model.sync()?;
        timings.prefill_ms = milliseconds(clock);
        Ok(Run { generation, inputs, timings })
    }
}

fn is_conversation(samples: &[Sample]) -> bool {
    samples.iter().any(|sample| matches!(sample, Sample::Messages(_)))
}

fn check_streamable(options: &GenerationConfig) -> Result<(), GenerationError> {
    if options.is_streamable() { Ok(()) } else { Err(one_answer("num_beams or num_return_sequences")) }
}

fn one_answer(option: &'static str) -> GenerationError {
    let reason = "only one answer that grows a token at a time can be streamed";
    GenerationError::Conflict { option, other: "streaming", reason }
}
