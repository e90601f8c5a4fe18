//! Streams text as it is generated.

use idefics_processor::{StreamDecoder, Tokenizer};

use crate::running::Running;
use crate::{Error, FinishReason, Generation};

/// The generated text of one row, in chunks of whole words. Chunks may be empty.
///
/// The chunks are the same as those of the reference's `TextStreamer` with `skip_prompt`. Each call of `next` generates
/// one token. Dropping the stream ends the generation.
#[derive(Debug)]
pub struct TextStream<'a> {
    running: Running<'a>,
    /// Number of tokens that have been decoded.
    n_tokens: usize,
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
        Self::of(Running::Generation(Box::new(generation)), tokenizer, skip_special_tokens)
    }

    /// Creates a stream of the text of the only answer.
    pub(crate) fn of(running: Running<'a>, tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        let decoder = StreamDecoder::new(tokenizer, skip_special_tokens);
        Self { running, n_tokens: 0, decoder, ended: false }
    }

    /// Returns the generation in its current state, and drops the stream.
    pub(crate) fn into_running(self) -> Running<'a> {
        self.running
    }

    /// Returns why the answer ended, if it has ended.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.running.finish_reason()
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = match self.running.token(self.n_tokens) {
            Ok(Some(token)) => {
                self.n_tokens += 1;
                self.decoder.push(token).map_err(Error::from)
            }
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
