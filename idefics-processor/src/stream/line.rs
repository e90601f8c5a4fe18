//! The decoded text of the current line, extended token by token.

use crate::tokenizer::Fragment;

/// The replacement for bytes that are not valid UTF-8.
const REPLACEMENT: char = '\u{FFFD}';

/// The text of a line. It equals the text from decoding all tokens of the line together. Only text that has not been
/// emitted yet is stored.
///
/// Each token is decoded once. The text of most tokens is final immediately. Bytes are not final: the next byte may
/// complete a character, and decoders with byte fallback replace a whole run of bytes by U+FFFD if a later byte makes
/// it invalid.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Number of characters already emitted.
    emitted: usize,
    /// Text that later tokens cannot change.
    settled: Text,
    /// Text at the end that later tokens may change.
    open: Open,
}

/// Bytes at the end of the line whose text may still change.
#[derive(Debug, Clone)]
enum Open {
    None,
    /// A run of byte-fallback tokens: text if the whole run is valid UTF-8, otherwise one U+FFFD per byte.
    Run {
        n_bytes: usize,
        /// The settled text after the characters of the run are appended, except that its `rest` has only those
        /// characters.
        text: Text,
        /// Bytes of the last character while it is incomplete.
        tail: Vec<u8>,
        /// Whether the run is invalid UTF-8, and stays so whatever bytes follow.
        is_broken: bool,
    },
    /// The start of an incomplete character in a byte-level vocabulary.
    Tail(Vec<u8>),
}

/// A text whose emitted characters are only counted, not stored.
#[derive(Debug, Clone, Default)]
struct Text {
    /// The characters that have not been emitted yet.
    rest: String,
    /// Number of characters, including emitted ones.
    n_chars: usize,
    /// The last character, even if it was emitted.
    last: Option<char>,
    /// Number of characters up to and including the last space.
    after_space: usize,
    /// Number of spaces still to drop at the start of the line.
    n_dropped: usize,
}

impl Text {
    fn push(&mut self, character: char, emitted: usize) {
        if character == ' ' && self.n_dropped > 0 {
            self.n_dropped -= 1;
            return;
        }
        self.n_dropped = 0;
        if self.n_chars >= emitted {
            self.rest.push(character);
        }
        self.n_chars += 1;
        self.last = Some(character);
        if character == ' ' {
            self.after_space = self.n_chars;
        }
    }
}

impl Line {
    /// Creates an empty line. Up to `n_dropped` spaces at its start are dropped.
    pub(super) fn new(n_dropped: usize) -> Line {
        Line { emitted: 0, settled: Text { n_dropped, ..Text::default() }, open: Open::None }
    }

    /// Appends a token.
    pub(super) fn push(&mut self, fragment: Fragment) {
        match fragment {
            Fragment::Text(text) => {
                self.settle();
                text.chars().for_each(|character| self.settled.push(character, self.emitted));
            }
            Fragment::FallbackByte(byte) => self.push_byte(byte),
            Fragment::Bytes(bytes) => self.push_bytes(&bytes),
        }
    }

    /// Replaces the text of the line by a new decoding of all its tokens.
    pub(super) fn replace(&mut self, text: &str) {
        self.settled = Text::default();
        self.open = Open::None;
        text.chars().for_each(|character| self.settled.push(character, self.emitted));
    }

    fn push_byte(&mut self, byte: u8) {
        if let Open::None | Open::Tail(_) = self.open {
            let text = Text { rest: String::new(), ..self.settled };
            self.open = Open::Run { n_bytes: 0, text, tail: Vec::new(), is_broken: false };
        }
        let Open::Run { n_bytes, text, tail, is_broken } = &mut self.open else { return };
        *n_bytes += 1;
        if *is_broken {
            return;
        }
        tail.push(byte);
        match std::str::from_utf8(tail) {
            Ok(characters) => {
                characters.chars().for_each(|character| text.push(character, self.emitted));
                tail.clear();
            }
            Err(error) => *is_broken = error.error_len().is_some(),
        }
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        let mut tail = match std::mem::replace(&mut self.open, Open::None) {
            Open::Tail(tail) => tail,
            _ => Vec::new(),
        };
        tail.extend(bytes);
        let mut rest = tail.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            self.push_settled(valid);
            let Some(length) = error.error_len() else {
                self.open = Open::Tail(invalid.to_vec());
                return;
            };
            self.settled.push(REPLACEMENT, self.emitted);
            rest = &invalid[length..];
        }
        self.push_settled(rest);
    }

    fn push_settled(&mut self, utf8: &[u8]) {
        let characters = std::str::from_utf8(utf8).unwrap_or_default(); // the caller checked that it is UTF-8
        characters.chars().for_each(|character| self.settled.push(character, self.emitted));
    }

    /// Makes the text of the open bytes final, because the next token does not continue them.
    fn settle(&mut self) {
        match std::mem::replace(&mut self.open, Open::None) {
            Open::None => {}
            Open::Run { text, tail, is_broken: false, .. } if tail.is_empty() => {
                let mut rest = std::mem::take(&mut self.settled.rest);
                rest.push_str(&text.rest);
                self.settled = Text { rest, ..text };
            }
            Open::Run { n_bytes, .. } => (0..n_bytes).for_each(|_| self.settled.push(REPLACEMENT, self.emitted)),
            Open::Tail(_) => self.settled.push(REPLACEMENT, self.emitted),
        }
    }

    /// Returns the text of the open run, if all its bytes form complete characters so far.
    fn characters(&self) -> Option<&Text> {
        match &self.open {
            Open::Run { text, tail, is_broken: false, .. } if tail.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Returns the number of U+FFFD at the end of the line that later bytes may still change.
    fn n_replacements(&self) -> usize {
        match &self.open {
            Open::Run { n_bytes, .. } if self.characters().is_none() => *n_bytes,
            Open::Tail(_) => 1,
            _ => 0,
        }
    }

    /// Returns the number of characters in the line so far.
    pub(super) fn n_chars(&self) -> usize {
        self.characters().unwrap_or(&self.settled).n_chars + self.n_replacements()
    }

    /// Returns the last character of the line.
    pub(super) fn last(&self) -> Option<char> {
        if self.n_replacements() > 0 { Some(REPLACEMENT) } else { self.characters().unwrap_or(&self.settled).last }
    }

    /// Returns the number of characters up to and including the last space.
    pub(super) fn after_space(&self) -> usize {
        self.characters().unwrap_or(&self.settled).after_space
    }

    /// Emits the first `end` characters of the line, without those already emitted.
    pub(super) fn emit(&mut self, end: usize) -> String {
        let mut n_chars = end.saturating_sub(self.emitted);
        let mut chunk = split(&mut self.settled.rest, &mut n_chars);
        if let Open::Run { text, tail, is_broken: false, .. } = &mut self.open
            && tail.is_empty()
        {
            chunk.push_str(&split(&mut text.rest, &mut n_chars));
        }
        chunk.extend(std::iter::repeat_n(REPLACEMENT, n_chars.min(self.n_replacements())));
        self.emitted = self.emitted.max(end);
        chunk
    }
}

/// Removes up to `n_chars` characters from the start of `text` and returns them. Subtracts their number from
/// `n_chars`.
fn split(text: &mut String, n_chars: &mut usize) -> String {
    let mut end = 0;
    for character in text.chars().take(*n_chars) {
        end += character.len_utf8();
        *n_chars -= 1;
    }
    text.drain(..end).collect()
}
