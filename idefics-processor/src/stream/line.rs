//! The decoded text of one line, which grows by a token at a time.

use crate::tokenizer::Fragment;

/// What stands for bytes that are no character.
const REPLACEMENT: char = '\u{FFFD}';

/// The text that decoding all tokens of a line at once would give, of which only what was not emitted is kept.
///
/// Each token is decoded once. The text of most tokens is settled as soon as they come. Bytes are not: the next one
/// may complete a character, and decoders with byte fallback even turn a whole run of bytes into U+FFFD when a later
/// one does not fit.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Number of characters that were emitted.
    emitted: usize,
    settled: Text,
    open: Open,
}

/// The bytes at the end whose text may still change.
#[derive(Debug, Clone)]
enum Open {
    None,
    /// A run of byte-fallback tokens: text if all of it is UTF-8, otherwise one U+FFFD a byte.
    Run {
        n_bytes: usize,
        /// The settled text with the characters of the run behind it; its `rest` has those of the run alone.
        text: Text,
        /// The last character's bytes while it is incomplete.
        tail: Vec<u8>,
        is_broken: bool,
    },
    /// The start of a character in a byte-level vocabulary.
    Tail(Vec<u8>),
}

/// A text of which the emitted characters are only counted.
#[derive(Debug, Clone, Default)]
struct Text {
    rest: String,
    /// Number of characters, emitted ones included.
    n_chars: usize,
    last: Option<char>,
    /// Number of characters up to the last space, that one included.
    after_space: usize,
    /// Number of spaces that are still dropped at the start.
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
    /// An empty line, at the start of which the decoder drops up to `n_dropped` spaces.
    pub(super) fn new(n_dropped: usize) -> Line {
        Line { emitted: 0, settled: Text { n_dropped, ..Text::default() }, open: Open::None }
    }

    /// Adds a token.
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

    /// Replaces the text by another decoding of the whole line.
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
        let characters = std::str::from_utf8(utf8).unwrap_or_default(); // was checked
        characters.chars().for_each(|character| self.settled.push(character, self.emitted));
    }

    /// Ends a run of bytes.
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

    /// The open text, if it is made of characters.
    fn characters(&self) -> Option<&Text> {
        match &self.open {
            Open::Run { text, tail, is_broken: false, .. } if tail.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Number of U+FFFD at the end that may still become characters, or more of them.
    fn n_replacements(&self) -> usize {
        match &self.open {
            Open::Run { n_bytes, .. } if self.characters().is_none() => *n_bytes,
            Open::Tail(_) => 1,
            _ => 0,
        }
    }

    /// Number of characters of the line, as far as it is known.
    pub(super) fn n_chars(&self) -> usize {
        self.characters().unwrap_or(&self.settled).n_chars + self.n_replacements()
    }

    /// The last character.
    pub(super) fn last(&self) -> Option<char> {
        if self.n_replacements() > 0 { Some(REPLACEMENT) } else { self.characters().unwrap_or(&self.settled).last }
    }

    /// Number of characters up to the last space, that one included.
    pub(super) fn after_space(&self) -> usize {
        self.characters().unwrap_or(&self.settled).after_space
    }

    /// Emits the characters up to number `end` that were not emitted yet.
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

/// Takes up to `n_chars` characters off the front of a text, and subtracts their number.
fn split(text: &mut String, n_chars: &mut usize) -> String {
    let mut end = 0;
    for character in text.chars().take(*n_chars) {
        end += character.len_utf8();
        *n_chars -= 1;
    }
    text.drain(..end).collect()
}
