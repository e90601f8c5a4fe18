//! Streams text as it is generated.

use idefics_processor::{StreamDecoder, Tokenizer};

use crate::{Error, FinishReason, Generation};

/// The generated text of one row in chunks of whole words; chunks may be empty.
///
/// The chunks are the same as those of the reference's `TextStreamer` with `skip_prompt`. Each item takes one step
/// of the model. Dropping the stream ends the generation.
#[derive(Debug)]
pub struct TextStream<'a> {
    generation: Generation<'a>,
    decoder: StreamDecoder<'a>,
    ended: bool,
}

impl<'a> TextStream<'a> {
    /// Streams row 0 of a generation. `skip_special_tokens` removes `</s>`, `<end_of_utterance>` and the like.
    ///
    /// # Panics
    /// If the generation has more than one row.
    pub fn new(generation: Generation<'a>, tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        assert_eq!(generation.sequences().len(), 1, "only a generation with one row can be streamed");
        Self { generation, decoder: StreamDecoder::new(tokenizer, skip_special_tokens), ended: false }
    }

    /// The underlying generation.
    pub fn generation(&self) -> &Generation<'a> {
        &self.generation
    }

    /// The underlying generation in its current state.
    pub fn into_generation(self) -> Generation<'a> {
        self.generation
    }

    /// Why the answer ended, if it has.
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
