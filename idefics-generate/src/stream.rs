//! Streams text as it is generated.

use idefics_processor::{StreamDecoder, Tokenizer};

use crate::{Error, FinishReason, Generation};

/// The generated text of one row, in chunks of whole words. Chunks may be empty.
///
/// The chunks are the same as those of the reference's `TextStreamer` with `skip_prompt`. Each call of `next` runs one
/// step of the model. Dropping the stream ends the generation.
#[derive(Debug)]
pub struct TextStream<'a> {
    generation: Generation<'a>,
    decoder: StreamDecoder<'a>,
    ended: bool,
}

impl<'a> TextStream<'a> {
    /// Creates a stream of the text of row 0. `skip_special_tokens` removes special tokens such as `</s>` and
    /// `<end_of_utterance>` from the text.
    ///
    /// # Panics
    /// If the generation has more than one row.
    pub fn new(generation: Generation<'a>, tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        assert_eq!(generation.sequences().len(), 1, "only a generation with one row can be streamed");
        Self { generation, decoder: StreamDecoder::new(tokenizer, skip_special_tokens), ended: false }
    }

    /// Returns the underlying generation.
    pub fn generation(&self) -> &Generation<'a> {
        &self.generation
    }

    /// Returns the underlying generation in its current state, and drops the stream.
    pub fn into_generation(self) -> Generation<'a> {
        self.generation
    }

    /// Returns why the answer ended, if it has ended.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.generation.finish_reason(0)
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = match self.generation.step() {
            Ok(Some(tokens)) => self.decoder.push(tokens[0]).map_err(Error::from),
            Ok(None) => {
                self.ended = true;
                self.decoder.end().map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        self.ended |= chunk.is_err();
        Some(chunk)
    }
}
