//! Text from tokens as they come, in whole words.

use crate::error::ProcessorError;
use crate::tokenizer::Tokenizer;

/// Turns generated ids into text that can be shown at once: it holds back the word that the next id may still change.
///
/// What comes out is what the reference's `TextStreamer` prints, chunk for chunk: everything at the end of a line and
/// after a Chinese character, otherwise up to the last space. Bytes of an unfinished character are held back with the
/// word that they are in.
///
/// After a line break decoding starts afresh, so a space that begins the next line is dropped, as the reference drops it.
///
/// Source: `TextStreamer.put` and `.end`.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// Ids since the last line break.
    pending: Vec<u32>,
    /// How many characters of their text were given out.
    emitted: usize,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder before the first generated id. `skip_special_tokens` leaves out `</s>`, `<end_of_utterance>` and the
    /// like.
    pub fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, pending: Vec::new(), emitted: 0 }
    }

    /// Takes the next id and returns the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, ProcessorError> {
        self.pending.push(id);
        let text = self.tokenizer.decode(&self.pending, self.skip_special_tokens)?;
        if text.ends_with('\n') {
            let chunk = text.chars().skip(self.emitted).collect();
            self.pending.clear();
            self.emitted = 0;
            return Ok(chunk);
        }
        let certain = match text.chars().next_back() {
            Some(last) if is_chinese(last) => text.chars().count(),
            _ => text.rfind(' ').map_or(0, |space| text[..=space].chars().count()),
        };
        let chunk: String = text.chars().take(certain).skip(self.emitted).collect();
        self.emitted += chunk.chars().count();
        Ok(chunk)
    }

    /// Returns what was held back. The decoder is then as new.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn end(&mut self) -> Result<String, ProcessorError> {
        let text = match self.pending.is_empty() {
            true => String::new(),
            false => self.tokenizer.decode(&self.pending, self.skip_special_tokens)?,
        };
        let rest = text.chars().skip(self.emitted).collect();
        self.pending.clear();
        self.emitted = 0;
        Ok(rest)
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
