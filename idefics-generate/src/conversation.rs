//! A conversation that keeps what was computed: the next turn runs only what is new.

use std::time::Instant;

use idefics_nn::KvCache;
use idefics_processor::{Content, Message, ProcessOptions, Sample};

use crate::feature_cache::{ImageKey, image_key};
use crate::pipeline::milliseconds;
use crate::rank::common_prefix;
use crate::{Answer, Controls, Error, Generation, GenerationConfig, GenerationError, Idefics, TextStream, Timings};

/// Turns of a user and the model, over one cache.
///
/// The history may be changed in any way between turns: what the cache holds is compared with what the model would read
/// now, and from the first difference on, in words or in pictures, it is computed anew.
#[derive(Debug)]
pub struct Conversation<'a> {
    model: &'a Idefics,
    process: ProcessOptions,
    messages: Vec<Message>,
    /// What the cache holds.
    known: Option<Known>,
    computed: usize,
}

#[derive(Debug)]
struct Known {
    cache: KvCache,
    /// The token in each slot.
    ids: Vec<u32>,
    /// The pictures that the image tokens among them stand for, in order.
    images: Vec<ImageKey>,
}

impl<'a> Conversation<'a> {
    /// A conversation without turns.
    pub fn new(model: &'a Idefics, process: ProcessOptions) -> Self {
        Self { model, process, messages: Vec::new(), known: None, computed: 0 }
    }

    /// What was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What was said, to be changed.
    pub fn messages_mut(&mut self) -> &mut Vec<Message> {
        &mut self.messages
    }

    /// Prompt tokens that the last turn computed; those before were in the cache.
    pub fn computed_tokens(&self) -> usize {
        self.computed
    }

    /// Says something to the model and returns its answer, which becomes part of the history; `on_text` gets each chunk
    /// of it as it comes. After an error nothing was said.
    ///
    /// # Errors
    /// As [`Idefics::generate_streaming`].
    pub fn ask<'c>(
        &mut self,
        content: Vec<Content>,
        options: &GenerationConfig,
        controls: impl Into<Controls<'c>>,
        on_text: impl FnMut(&str),
    ) -> Result<Answer, Error> {
        self.messages.push(Message::new("user", content));
        let answer = self.answer(options, controls.into(), on_text);
        match &answer {
            Ok(answer) => self.messages.push(Message::text("assistant", answer.text.trim())),
            Err(_) => {
                self.messages.pop();
            }
        }
        answer
    }

    fn answer(
        &mut self,
        options: &GenerationConfig,
        controls: Controls<'_>,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, Error> {
        let sample = Sample::chat(self.messages.clone());
        let options = self.model.options(options, true)?;
        if !options.is_streamable() {
            let reason = "a conversation has one answer that grows a token at a time";
            let (option, other) = ("num_beams or num_return_sequences", "chat");
            return Err(GenerationError::Conflict { option, other, reason }.into());
        }
        let mut timings = Timings::default();
        let clock = Instant::now();
        let process = ProcessOptions { cancel: Some(controls.cancel.flag()), ..self.process.clone() };
        let processed = self.model.process(&[sample], &process)?;
        let tokenizer = self.model.processor().tokenizer_for(self.process.compatibility);
        let mut controls = controls; // as long as both they and the model live
        controls.tokenizer.get_or_insert(tokenizer);
        let ids = &processed.input_ids[0];
        let images: Vec<ImageKey> = processed.images[0].iter().map(image_key).collect();
        let prompts = self.model.prompts(std::slice::from_ref(ids), tokenizer)?;
        self.model.check(&prompts, &options)?;
        timings.preprocess_ms = milliseconds(clock);

        let known = self.known.take();
        let (reused, n_images) = known.as_ref().map_or((0, 0), |known| self.reusable(known, ids, &images));
        let image_hidden_states = self.model.encode_images(&processed.images[0][n_images..], &mut timings)?;
        let clock = Instant::now();
        let model = self.model.model();
        let generation = match known {
            Some(Known { mut cache, .. }) if reused > 0 => {
                cache.truncate(reused);
                Generation::resume(model, &prompts, image_hidden_states, cache, &options, controls)?
            }
            _ => Generation::start(model, &prompts, image_hidden_states, &options, controls)?,
        };
        self.computed = ids.len() - reused;
        timings.prefill_ms = milliseconds(clock);

        let clock = Instant::now();
        let mut stream = TextStream::new(generation, tokenizer, true);
        for chunk in stream.by_ref() {
            on_text(&chunk?);
        }
        timings.decode_ms = milliseconds(clock);
        let generation = stream.into_generation();
        let answer = self.model.answer(&generation, &processed, 0, &self.process, timings)?;
        let mut ids = generation.sequences()[0].clone();
        let cache = generation.into_cache();
        ids.truncate(cache.len());
        self.known = Some(Known { cache, ids, images });
        Ok(answer)
    }

    /// How many slots of the cache still hold what the model would read, and how many pictures are among them. At least
    /// one token is left to compute.
    fn reusable(&self, known: &Known, ids: &[u32], images: &[ImageKey]) -> (usize, usize) {
        let image_token_id = self.model.processor().tokenizer().image_token_id();
        let per_image = self.model.processor().image_seq_len();
        let same_images = known.images.iter().zip(images).take_while(|(known, image)| known == image).count();
        let mut reused = common_prefix(&known.ids, ids).min(ids.len() - 1);
        let slots: Vec<usize> = (0..reused).filter(|&slot| ids[slot] == image_token_id).collect();
        let n_images = same_images.min(slots.len() / per_image);
        // A picture is there as a whole or not at all.
        if let Some(&slot) = slots.get(n_images * per_image) {
            reused = slot;
        }
        (reused, n_images)
    }
}
