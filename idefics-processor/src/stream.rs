//! Streaming decoder: turns generated ids into text, word by word.

mod line;

use crate::error::ProcessorError;
use crate::tokenizer::{Fragments, Tokenizer};

use line::Line;

/// Decodes generated ids to text that can be shown immediately. It holds back the last word, because the next id may
/// still change it.
///
/// It emits the same chunks as the reference's `TextStreamer`. If the text so far ends in a line break or a Chinese
/// character, it emits everything; otherwise it emits the text up to the last space. Bytes of an incomplete character
/// are held back with their word.
///
/// The joined chunks of a line equal the result of [`Tokenizer::decode`] for all ids of the line. After a line break,
/// decoding starts anew, so a space at the start of the next line is dropped.
///
/// There is one exception, as in the reference. An invalid byte makes `decode` replace the whole run of byte tokens
/// before it by U+FFFD. That run may include Chinese characters and words that this decoder has already emitted.
///
/// Each id is decoded only once, unless the tokenizer's decoder needs several tokens together, as WordPiece does.
/// Then the whole line is decoded again for each id.
///
/// Source: `TextStreamer.put` and `.end`.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The decoder of single tokens; `None` if the tokenizer's decoder needs all ids of the line.
    fragments: Option<Fragments>,
    line: Line,
    /// Whether a token of the line has been decoded.
    has_begun: bool,
    /// All ids of the line; only used if `fragments` is `None`.
    ids: Vec<u32>,
}

impl<'a> StreamDecoder<'a> {
    /// Creates a decoder. `skip_special_tokens` leaves out special tokens such as `</s>` and `<end_of_utterance>`.
    pub fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        let fragments = tokenizer.fragments();
        let line = Line::new(fragments.as_ref().map_or(0, Fragments::n_dropped));
        Self { tokenizer, skip_special_tokens, fragments, line, has_begun: false, ids: Vec::new() }
    }

    /// Decodes the next id and returns the text that is now final. It may be empty.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, ProcessorError> {
        match &self.fragments {
            Some(fragments) => {
                let fragment = self.tokenizer.fragment(fragments, id, !self.has_begun, self.skip_special_tokens)?;
                if let Some(fragment) = fragment {
                    self.line.push(fragment);
                    self.has_begun = true;
                }
            }
            None => {
                self.ids.push(id);
                self.line.replace(&self.tokenizer.decode(&self.ids, self.skip_special_tokens)?);
            }
        }
        match self.line.last() {
            Some('\n') => Ok(self.end_line()),
            Some(last) if is_chinese(last) => Ok(self.line.emit(self.line.n_chars())),
            _ => Ok(self.line.emit(self.line.after_space())),
        }
    }

    /// Returns the text that was held back, and resets the decoder.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::decode`].
    pub fn end(&mut self) -> Result<String, ProcessorError> {
        Ok(self.end_line())
    }

    fn end_line(&mut self) -> String {
        let chunk = self.line.emit(self.line.n_chars());
        self.line = Line::new(self.fragments.as_ref().map_or(0, Fragments::n_dropped));
        self.has_begun = false;
        self.ids.clear();
        chunk
    }
}

/// Returns whether `character` is a CJK ideograph (not kana or Hangul).
///
/// Source: `TextStreamer._is_chinese_char`.
fn is_chinese(character: char) -> bool {
    matches!(u32::from(character),
        0x4E00..=0x9FFF
        | 0x3400..=0x4DBF
        | 0x20000..=0x2A6DF
        | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF
        | 0xF900..=0xFAFF
        | 0x2F800..=0x2FA1F)
}
