//! A conversation that keeps its KV cache, so that each turn computes only new tokens.

use std::time::Instant;

use idefics_nn::KvCache;
use idefics_processor::{Content, Message, ProcessOptions, Sample};

use crate::feature_cache::{ImageKey, image_key};
use crate::pipeline::milliseconds;
use crate::rank::common_prefix;
use crate::running::{Generated, Running};
use crate::{Answer, Controls, Error, Generation, GenerationConfig, GenerationError, Idefics, TextStream, Timings};

/// A dialogue of user and model turns with one KV cache.
///
/// The history may be edited in any way between turns: the new prompt is compared with the contents of the cache,
/// and everything from the first difference in text or images is recomputed.
#[derive(Debug)]
pub struct Conversation<'a> {
    model: &'a Idefics,
    process: ProcessOptions,
    messages: Vec<Message>,
    /// The KV cache and its contents. `None` before the first answer, and after an error.
    known: Option<Known>,
    computed: usize,
}

#[derive(Debug)]
struct Known {
    cache: KvCache,
    /// The token in each slot.
    ids: Vec<u32>,
    /// The images that the image tokens represent, in order.
    images: Vec<ImageKey>,
}

impl<'a> Conversation<'a> {
    /// Creates a conversation without turns.
    pub fn new(model: &'a Idefics, process: ProcessOptions) -> Self {
        Self { model, process, messages: Vec::new(), known: None, computed: 0 }
    }

    /// Returns the history.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns the history for editing.
    pub fn messages_mut(&mut self) -> &mut Vec<Message> {
        &mut self.messages
    }

    /// Returns the number of prompt tokens that the last turn computed. The prompt tokens before them were in the KV
    /// cache.
    pub fn computed_tokens(&self) -> usize {
        self.computed
    }

    /// Sends a message to the model and returns the answer. The message and the answer are added to the history.
    /// `on_text` is called with each chunk of the answer as it is generated. After an error, the history is unchanged.
    ///
    /// # Errors
    /// See [`Idefics::generate_streaming`].
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
            let reason = "a conversation needs a single answer that is generated token by token";
            let (option, other) = ("num_beams or num_return_sequences", "chat");
            return Err(GenerationError::Conflict { option, other, reason }.into());
        }
        let mut timings = Timings::default();
        let clock = Instant::now();
        let process = ProcessOptions { cancel: Some(controls.cancel.flag()), ..self.process.clone() };
        let processed = self.model.process(&[sample], &process)?;
        let tokenizer = self.model.processor().tokenizer_for(self.process.compatibility);
        let mut controls = controls; // takes the shorter lifetime of the tokenizer
        controls.tokenizer.get_or_insert(tokenizer);
        let ids = &processed.input_ids[0];
        let images: Vec<ImageKey> = processed.images[0].iter().map(image_key).collect();
        let prompts = self.model.prompts(std::slice::from_ref(ids), tokenizer)?;
        self.model.check(&prompts, &options)?;
        controls.check(&options, self.model.model().shape().vocab_size)?;
        timings.preprocess_ms = milliseconds(clock);

        let known = self.known.take();
        let image_token_id = self.model.processor().tokenizer().image_token_id();
        let new_images: Vec<_> = images.iter().copied().zip(processed.tile_tokens[0].iter().copied()).collect();
        let reusable = |known: &Known| known.reusable(ids, &new_images, image_token_id);
        let (reused, n_images) = known.as_ref().map_or((0, 0), reusable);
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
        let Running::Generation(generation) = stream.into_running() else { unreachable!("a generation was streamed") };
        let answer = self.model.answer(Generated::of_row(&generation, 0), &processed, 0, &self.process, timings)?;
        let mut ids = generation.sequences()[0].clone();
        let cache = generation.into_cache();
        ids.truncate(cache.len());
        self.known = Some(Known { cache, ids, images });
        Ok(answer)
    }
}

impl Known {
    /// Returns the number of slots of the cache that can be reused for a prompt with the tokens `ids`, and the number
    /// of images in these slots. `images` are the images of the prompt, each with its number of image tokens. The last
    /// token of the prompt is never reused, because its logits are needed.
    fn reusable(&self, ids: &[u32], images: &[(ImageKey, usize)], image_token_id: u32) -> (usize, usize) {
        let common = common_prefix(&self.ids, ids).min(ids.len() - 1);
        let slots: Vec<usize> = (0..common).filter(|&slot| ids[slot] == image_token_id).collect();
        let (mut n_images, mut n_slots) = (0, 0);
        for (known, &(image, n_tokens)) in self.images.iter().zip(images) {
            if *known != image || n_slots + n_tokens > slots.len() {
                break;
            }
            (n_images, n_slots) = (n_images + 1, n_slots + n_tokens);
        }
        // An image is reused as a whole or not at all.
        (slots.get(n_slots).copied().unwrap_or(common), n_images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 7;

    #[test]
    fn images_are_reused_as_a_whole_or_not_at_all() {
        let images = [1, 2, 3].map(|key| ([key; 32], key as usize)); // the image `n` has `n` tokens
        let prompt = |more: &[u32]| [&[1, IMAGE, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE, IMAGE, 4][..], more].concat();
        let known = Known {
            cache: KvCache::new(0, Vec::new(), 0),
            ids: prompt(&[5]),
            images: images.map(|(key, _)| key).to_vec(),
        };
        let reusable = |ids: &[u32], images: &[(ImageKey, usize)]| known.reusable(ids, images, IMAGE);
        assert_eq!(reusable(&prompt(&[5, 6]), &images), (11, 3));
        assert_eq!(reusable(&prompt(&[6]), &images), (10, 3));
        assert_eq!(reusable(&prompt(&[5]), &images), (10, 3), "one token must be computed");
        let mut other = images;
        other[1].0 = [9; 32];
        assert_eq!(reusable(&prompt(&[6]), &other), (3, 1), "the second image differs");
        let cut = [1, IMAGE, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE, 4];
        assert_eq!(reusable(&cut, &[images[0], images[1], ([4; 32], 2)]), (6, 2), "the third image differs");
        assert_eq!(reusable(&[1, 2], &[]), (1, 0));
    }
}
