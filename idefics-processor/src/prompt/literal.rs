//! User text kept literal: what a user types can never become a special token.
//!
//! A chat template writes special tokens and user text into one string, and a tokenizer cannot tell who wrote what. So
//! before the template runs, each special token that a user spelled is broken by a stand-in: a character that occurs
//! nowhere else takes the place of one of its characters. The template carries it through like any other character,
//! the tokenizer finds no special token there, and just before the text is cut into word pieces the character is put
//! back. The ids are then those of the literal spelling, and text without special tokens is not touched at all.

use serde::Deserialize;

/// What to do when the text of a message spells a special token, such as `<image>` or `</s>`.
///
/// It concerns `messages` only: in a sample's `text`, every special token counts, as in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SpecialTokensInText {
    /// Keep the spelling as ordinary text.
    #[default]
    Literal,
    /// Read it as the token, as the reference does by default. A user can then end turns and add images.
    Parse,
    /// Refuse the sample.
    Reject,
}

/// The stand-ins of one row, each with the character that it stands for.
#[derive(Debug, Clone, Default)]
pub struct Literals {
    pairs: Vec<(char, char)>,
    /// Characters that occur in the row already, sorted.
    taken: Vec<char>,
}

impl Literals {
    /// No stand-ins yet. `texts` is everything that can reach the rendered text: a stand-in is none of its characters.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut taken: Vec<char> =
            texts.into_iter().flat_map(str::chars).filter(|&character| is_candidate(character)).collect();
        taken.sort_unstable();
        taken.dedup();
        Self { pairs: Vec::new(), taken }
    }

    /// Whether any character of the row was replaced.
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Whether `character` is one of the stand-ins.
    pub(crate) fn is_stand_in(&self, character: char) -> bool {
        self.pairs.iter().any(|&(stand_in, _)| stand_in == character)
    }

    /// The character that the user wrote.
    pub(crate) fn restore_char(&self, character: char) -> char {
        match self.pairs.iter().find(|&&(stand_in, _)| stand_in == character) {
            Some(&(_, original)) => original,
            None => character,
        }
    }

    /// The text that the user wrote.
    pub(crate) fn restore(&self, text: &str) -> String {
        match self.is_empty() {
            true => text.to_owned(),
            false => text.chars().map(|character| self.restore_char(character)).collect(),
        }
    }

    /// Breaks every special token in `text`, and what could become one together with the text before or after it.
    pub(crate) fn protect(&mut self, text: &str, tokens: &[&str]) -> String {
        let mut protected = String::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let rest = &text[start..];
            let breaks = tokens.iter().any(|token| {
                rest.starts_with(token) // a whole token
                    || token.starts_with(rest) // the start of one, at the end of this text
                    || (start == 0 && continues(token, text)) // the end of one, at the start of this text
            });
            protected.push(if breaks { self.stand_in(character) } else { character });
        }
        protected
    }

    fn stand_in(&mut self, original: char) -> char {
        if let Some(&(stand_in, _)) = self.pairs.iter().find(|&&(_, known)| known == original) {
            return stand_in;
        }
        // Tokens have far fewer distinct characters than there are candidates, even where a text uses many of them up.
        let stand_in = CANDIDATES
            .into_iter()
            .flatten()
            .find(|&candidate| self.taken.binary_search(&candidate).is_err() && !self.is_stand_in(candidate))
            .unwrap_or(char::REPLACEMENT_CHARACTER);
        self.pairs.push((stand_in, original));
        stand_in
    }
}

/// Noncharacters first, which no text should hold, then private use, of which no text holds all.
const CANDIDATES: [std::ops::RangeInclusive<char>; 3] =
    ['\u{FDD0}'..='\u{FDEF}', '\u{F0000}'..='\u{FFFFD}', '\u{100000}'..='\u{10FFFD}'];

fn is_candidate(character: char) -> bool {
    CANDIDATES.iter().any(|range| range.contains(&character))
}

/// The first special token that `text` spells.
pub(crate) fn find_token<'a>(text: &str, tokens: &[&'a str]) -> Option<&'a str> {
    tokens.iter().copied().filter_map(|token| Some((text.find(token)?, token))).min().map(|(_, token)| token)
}

/// Whether `text` begins with what is left of `token` after some of its characters.
fn continues(token: &str, text: &str) -> bool {
    token.char_indices().skip(1).any(|(start, _)| text.starts_with(&token[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&str; 3] = ["<image>", "</s>", "<end_of_utterance>"];

    fn protect(text: &str) -> (String, Literals) {
        let mut literals = Literals::new([text]);
        (literals.protect(text, &TOKENS), literals)
    }

    #[test]
    fn breaks_tokens_and_their_halves_and_nothing_else() {
        for (text, changed) in [
            ("a < b and <b>bold</b>", 0),
            ("<image>", 1),
            ("<<image>>", 1),
            ("</s></s>", 2),
            ("an <ima", 1),
            ("ge> of a cat", 1),
            ("> quoted", 1),
            ("1 <", 1),
            ("", 0),
        ] {
            let (protected, literals) = protect(text);
            assert_eq!(protected.chars().zip(text.chars()).filter(|(a, b)| a != b).count(), changed, "{text:?}");
            assert!(find_token(&protected, &TOKENS).is_none());
            assert_eq!(literals.restore(&protected), text);
        }
    }

    #[test]
    fn stand_ins_are_characters_that_the_text_does_not_use() {
        let text = "\u{FDD0}\u{FDD1} <image>";
        let (protected, literals) = protect(text);
        assert_eq!(protected, "\u{FDD0}\u{FDD1} \u{FDD2}image>");
        assert_eq!(literals.restore(&protected), text);
    }
}
