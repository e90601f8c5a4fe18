//! Protection of user text: a special token that a user types is encoded as ordinary text.
//!
//! A chat template writes special tokens and user text into one string, and the tokenizer cannot tell them apart. So
//! before the template runs, one character of each special token in user text is replaced by a stand-in: a character
//! that occurs nowhere else in the row. The template copies it like any other character, and the tokenizer finds no
//! special token there. Before the text is split into word pieces, the original character is restored. The ids are
//! therefore those of the literal text, and text without special tokens is not changed at all.

use serde::Deserialize;

/// How to handle the text of a special token, such as `<image>` or `</s>`, in a message.
///
/// It applies to `messages` only. In a sample's `text`, special tokens are always parsed, as in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SpecialTokensInText {
    /// Encode it as ordinary text.
    #[default]
    Literal,
    /// Parse it as the special token, as the reference does by default. Users can then end turns and add images.
    Parse,
    /// Reject the sample.
    Reject,
}

/// The stand-in characters that mask special tokens in one row, with the characters that they replace.
#[derive(Debug, Clone, Default)]
pub struct Literals {
    /// Pairs of stand-in and original character.
    pairs: Vec<(char, char)>,
    /// Candidate stand-ins that already occur in the row, sorted.
    taken: Vec<char>,
}

impl Literals {
    /// Creates an empty set. `texts` must contain everything that can reach the rendered text, because stand-ins are
    /// chosen among the characters that do not occur in it.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut taken: Vec<char> =
            texts.into_iter().flat_map(str::chars).filter(|&character| is_candidate(character)).collect();
        taken.sort_unstable();
        taken.dedup();
        Self { pairs: Vec::new(), taken }
    }

    /// Returns whether no character of the row has been replaced.
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Returns whether `character` is one of the stand-ins.
    pub(crate) fn is_stand_in(&self, character: char) -> bool {
        self.pairs.iter().any(|&(stand_in, _)| stand_in == character)
    }

    /// Returns the original character if `character` is a stand-in, or else `character` itself.
    pub(crate) fn restore_char(&self, character: char) -> char {
        match self.pairs.iter().find(|&&(stand_in, _)| stand_in == character) {
            Some(&(_, original)) => original,
            None => character,
        }
    }

    /// Replaces all stand-ins in `text` by their original characters.
    pub(crate) fn restore(&self, text: &str) -> String {
        match self.is_empty() {
            true => text.to_owned(),
            false => text.chars().map(|character| self.restore_char(character)).collect(),
        }
    }

    /// Masks every special token in `text`. A part of a special token at the start or end of `text` is masked too,
    /// because it could become a whole token together with the neighbouring text.
    pub(crate) fn protect(&mut self, text: &str, tokens: &[&str]) -> String {
        let mut protected = String::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let rest = &text[start..];
            let breaks = tokens.iter().any(|token| {
                rest.starts_with(token) // a whole token
                    || token.starts_with(rest) // the start of a token, at the end of this text
                    || (start == 0 && continues(token, text)) // the end of a token, at the start of this text
            });
            protected.push(if breaks { self.stand_in(character) } else { character });
        }
        protected
    }

    fn stand_in(&mut self, original: char) -> char {
        if let Some(&(stand_in, _)) = self.pairs.iter().find(|&&(_, known)| known == original) {
            return stand_in;
        }
        // There are far more candidates than distinct characters in the tokens, even if the texts already contain many
        // of the candidates.
        let stand_in = CANDIDATES
            .into_iter()
            .flatten()
            .find(|&candidate| self.taken.binary_search(&candidate).is_err() && !self.is_stand_in(candidate))
            .unwrap_or(char::REPLACEMENT_CHARACTER);
        self.pairs.push((stand_in, original));
        stand_in
    }
}

/// Candidate stand-ins: first Unicode noncharacters, which text should not contain, then private-use characters. No
/// text contains all private-use characters.
const CANDIDATES: [std::ops::RangeInclusive<char>; 3] =
    ['\u{FDD0}'..='\u{FDEF}', '\u{F0000}'..='\u{FFFFD}', '\u{100000}'..='\u{10FFFD}'];

fn is_candidate(character: char) -> bool {
    CANDIDATES.iter().any(|range| range.contains(&character))
}

/// Returns the special token that occurs first in `text`.
pub(crate) fn find_token<'a>(text: &str, tokens: &[&'a str]) -> Option<&'a str> {
    tokens.iter().copied().filter_map(|token| Some((text.find(token)?, token))).min().map(|(_, token)| token)
}

/// Returns whether `text` begins with a proper suffix of `token`.
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
    fn masks_tokens_and_partial_tokens_only() {
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
    fn stand_ins_do_not_occur_in_the_text() {
        let text = "\u{FDD0}\u{FDD1} <image>";
        let (protected, literals) = protect(text);
        assert_eq!(protected, "\u{FDD0}\u{FDD1} \u{FDD2}image>");
        assert_eq!(literals.restore(&protected), text);
    }
}
