//! Text from tokens as they come, in whole words.

mod line;

use crate::error::ProcessorError;
use crate::tokenizer::{Fragments, Tokenizer};

use line::Line;

/// Turns generated ids into text that can be shown at once: it holds back the word that the next id may still change.
///
/// Its chunks are those that the reference's `TextStreamer` prints: everything at the end of a line and
/// after a Chinese character, otherwise up to the last space. Bytes of an unfinished character are held back with the
/// word that they are in.
///
/// Joined, the chunks of a line are what [`Tokenizer::decode`] makes of all ids of that line; after a line break
/// decoding starts afresh, so a space that begins the next line is dropped, as the reference drops it. One exception
/// is the reference's too: a byte that completes no character makes `decode` turn the whole run of bytes before it
/// into U+FFFD, also the Chinese characters and words of it that were shown already.
///
/// Each id is decoded once. Only for decoders that look at several tokens (word pieces, for example) is the line
/// decoded anew with each id.
///
/// Source: `TextStreamer.put` and `.end`.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// `None` if the decoder needs the whole line.
    fragments: Option<Fragments>,
    line: Line,
    /// Whether a token of the line was decoded.
    has_begun: bool,
    /// The ids of the line, where all of them are needed.
    ids: Vec<u32>,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder before the first generated id. `skip_special_tokens` leaves out `</s>`, `<end_of_utterance>` and the
    /// like.
    pub fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        let fragments = tokenizer.fragments();
        let line = Line::new(fragments.as_ref().map_or(0, Fragments::n_dropped));
        Self { tokenizer, skip_special_tokens, fragments, line, has_begun: false, ids: Vec::new() }
    }

    /// Takes the next id and returns the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
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

    /// Returns what was held back. The decoder is then as new.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
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

/// CJK ideographs, without kana and Hangul. Source: `TextStreamer._is_chinese_char`.
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
