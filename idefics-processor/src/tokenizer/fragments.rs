//! What each token adds to a decoded text, for decoders that work on one token after the other.

use tokenizers::{Decoder, DecoderWrapper};

use super::Tokenizer;
use crate::error::ProcessorError;

/// What a token adds to a decoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// Characters.
    Text(String),
    /// One byte of a run of such tokens, which is text if all of it is UTF-8, and otherwise one U+FFFD a byte.
    FallbackByte(u8),
    /// Bytes of a byte-level vocabulary, of which each invalid sequence becomes U+FFFD.
    Bytes(Vec<u8>),
}

/// A decoder whose text is the text of its tokens, one after the other: the decoders of Llama's, Mistral's, GPT-2's
/// and most other generative models.
///
/// Source: `decode_chain` of the decoders in the crate `tokenizers`.
#[derive(Debug, Clone)]
pub(crate) struct Fragments {
    kind: Kind,
    /// Number of spaces that are dropped at the start of a text.
    n_dropped: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    ByteLevel,
    Chain { of_token: Vec<DecoderWrapper>, has_byte_fallback: bool },
}

impl Fragments {
    /// `None` for a decoder that looks at several tokens, whose text has to be decoded as a whole.
    fn of(decoder: &DecoderWrapper) -> Option<Fragments> {
        let parts = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            one => std::slice::from_ref(one),
        };
        if let [DecoderWrapper::ByteLevel(_)] = parts {
            return Some(Fragments { kind: Kind::ByteLevel, n_dropped: 0 });
        }
        let is_of_token =
            |part: &&DecoderWrapper| matches!(part, DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_));
        let of_token: Vec<_> = parts.iter().take_while(is_of_token).cloned().collect();
        let (has_byte_fallback, rest) = match &parts[of_token.len()..] {
            [DecoderWrapper::ByteFallback(_), rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let n_dropped = match rest {
            [] | [DecoderWrapper::Fuse(_)] => 0,
            [DecoderWrapper::Fuse(_), DecoderWrapper::Strip(strip)] if strip.content == ' ' && strip.stop == 0 => {
                strip.start
            }
            _ => return None,
        };
        Some(Fragments { kind: Kind::Chain { of_token, has_byte_fallback }, n_dropped })
    }

    /// Number of spaces that are dropped at the start of a text.
    pub(crate) fn n_dropped(&self) -> usize {
        self.n_dropped
    }

    fn fragment(&self, token: String, is_first: bool) -> tokenizers::Result<Fragment> {
        let Kind::Chain { of_token, has_byte_fallback } = &self.kind else {
            return Ok(Fragment::Bytes(bytes_of(&token)));
        };
        let mut text = token;
        for decoder in of_token {
            // Some treat the first token of a text in another way.
            let tokens = if is_first { vec![text] } else { vec![String::new(), text] };
            text = decoder.decode_chain(tokens)?.pop().unwrap_or_default();
        }
        Ok(match fallback_byte(&text).filter(|_| *has_byte_fallback) {
            Some(byte) => Fragment::FallbackByte(byte),
            None => Fragment::Text(text),
        })
    }
}

impl Tokenizer {
    /// How the decoder works on one token after the other; `None` if it does not.
    pub(crate) fn fragments(&self) -> Option<Fragments> {
        Fragments::of(self.inner.get_decoder()?)
    }

    /// What `id` adds to a decoded text, of which it may be the first token; `None` for an id that is no token or is
    /// skipped.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub(crate) fn fragment(
        &self,
        fragments: &Fragments,
        id: u32,
        is_first: bool,
        skip_special_tokens: bool,
    ) -> Result<Option<Fragment>, ProcessorError> {
        let Some(token) = self.inner.id_to_token(id) else { return Ok(None) };
        if skip_special_tokens && self.inner.get_added_vocabulary().is_special_token(&token) {
            return Ok(None);
        }
        self.guarded("decoding", || fragments.fragment(token, is_first).map(Some))
    }
}

/// The byte that `<0x0A>` names. Source: `ByteFallback::decode_chain`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The bytes of a byte-level token; a token with a character that names no byte is taken as it is.
///
/// Source: `ByteLevel::decode_chain`.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a character of a byte-level vocabulary stands for.
///
/// Source: GPT-2's `bytes_to_unicode`: printable bytes are themselves, the others follow from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_characters_are_gpt2s() {
        let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let others = (0..=255).filter(|byte| !printable(byte)).zip(0x100..);
        let named = (0..=255).filter(printable).map(|byte| (byte, u32::from(byte))).chain(others);
        let mut n_bytes = 0;
        for (byte, code) in named {
            assert_eq!(byte_of(char::from_u32(code).unwrap()), Some(byte));
            n_bytes += 1;
        }
        assert_eq!(n_bytes, 256);
        assert_eq!((0..0x11_0000).filter_map(char::from_u32).filter_map(byte_of).count(), 256);
        assert_eq!(bytes_of("ĠAĊÃ©"), b" A\n\xC3\xA9");
        assert_eq!(bytes_of("Ġ 世"), "Ġ 世".as_bytes());
    }

    #[test]
    fn byte_tokens_are_recognised() {
        for (token, byte) in [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0xA>", None), ("<0x0AB>", None)] {
            assert_eq!(fallback_byte(token), byte, "{token}");
        }
        assert_eq!(fallback_byte("<0xé>"), None);
    }

    #[test]
    fn only_decoders_of_one_token_are_taken_apart() {
        let of = |json: &str| Fragments::of(&serde_json::from_str(json).unwrap());
        let replace = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#;
        let fallback = r#"{"type": "ByteFallback"}"#;
        let fuse = r#"{"type": "Fuse"}"#;
        let strip = |stop: u32| format!(r#"{{"type": "Strip", "content": " ", "start": 1, "stop": {stop}}}"#);
        let sequence = |parts: &[&str]| format!(r#"{{"type": "Sequence", "decoders": [{}]}}"#, parts.join(", "));
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
        let metaspace = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}"#;
        let word_piece = r#"{"type": "WordPiece", "prefix": "", "cleanup": true}"#;
        assert_eq!(of(&sequence(&[replace, fallback, fuse, &strip(0)])).unwrap().n_dropped(), 1);
        for taken in [&sequence(&[replace, fallback, fuse]), byte_level, &sequence(&[byte_level]), metaspace, replace] {
            assert_eq!(of(taken).unwrap().n_dropped(), 0, "{taken}");
        }
        for other in [
            &sequence(&[replace, fallback, fuse, &strip(1)]),
            &sequence(&[replace, fallback, &strip(0)]),
            &sequence(&[fallback, replace]),
            &sequence(&[byte_level, replace]),
            word_piece,
        ] {
            assert!(of(other).is_none(), "{other}");
        }
    }
}
