//! Decoding token by token: the text or bytes that each token contributes.

use tokenizers::{Decoder, DecoderWrapper};

use super::Tokenizer;
use crate::error::ProcessorError;

/// The contribution of one token to the decoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// Text of the token.
    Text(String),
    /// One byte of a run of byte-fallback tokens. A run that is valid UTF-8 is text; otherwise each byte becomes
    /// U+FFFD.
    FallbackByte(u8),
    /// Bytes of a byte-level token. Each invalid UTF-8 sequence becomes U+FFFD.
    Bytes(Vec<u8>),
}

/// A decoder that decodes each token separately, like the decoders of Llama, Mistral, GPT-2 and most other generative
/// models.
///
/// Source: `decode_chain` of the decoders in the crate `tokenizers`.
#[derive(Debug, Clone)]
pub(crate) struct Fragments {
    kind: Kind,
    /// Maximum number of spaces dropped at the start of a text.
    n_dropped: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    ByteLevel,
    Chain { token_decoders: Vec<DecoderWrapper>, has_byte_fallback: bool },
}

impl Fragments {
    /// Splits a decoder into its steps. Returns `None` if the decoder needs several tokens together, so that a text
    /// must be decoded as a whole.
    fn from_decoder(decoder: &DecoderWrapper) -> Option<Fragments> {
        let parts = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            one => std::slice::from_ref(one),
        };
        if let [DecoderWrapper::ByteLevel(_)] = parts {
            return Some(Fragments { kind: Kind::ByteLevel, n_dropped: 0 });
        }
        let is_token_decoder =
            |part: &&DecoderWrapper| matches!(part, DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_));
        let token_decoders: Vec<_> = parts.iter().take_while(is_token_decoder).cloned().collect();
        let (has_byte_fallback, rest) = match &parts[token_decoders.len()..] {
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
        Some(Fragments { kind: Kind::Chain { token_decoders, has_byte_fallback }, n_dropped })
    }

    /// Returns the maximum number of spaces dropped at the start of a text.
    pub(crate) fn n_dropped(&self) -> usize {
        self.n_dropped
    }

    fn fragment(&self, token: String, is_first: bool) -> tokenizers::Result<Fragment> {
        let Kind::Chain { token_decoders, has_byte_fallback } = &self.kind else {
            return Ok(Fragment::Bytes(bytes_of(&token)));
        };
        let mut text = token;
        for decoder in token_decoders {
            // Some decoders treat the first token of a text differently.
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
    /// Returns the decoder for single tokens, or `None` if decoding needs several tokens together.
    pub(crate) fn fragments(&self) -> Option<Fragments> {
        Fragments::from_decoder(self.inner.get_decoder()?)
    }

    /// Returns the contribution of `id` to a decoded text, or `None` for an unknown id or a skipped special token.
    /// `is_first` says whether `id` is the first token of the text.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::decode`].
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

/// Returns the byte of a byte-fallback token such as `<0x0A>`.
///
/// Source: `ByteFallback::decode_chain`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Returns the bytes of a byte-level token. If a character of the token does not represent a byte, returns the UTF-8
/// bytes of the token's text.
///
/// Source: `ByteLevel::decode_chain`.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Returns the byte that a character of a byte-level vocabulary represents.
///
/// Source: GPT-2's `bytes_to_unicode`: printable bytes map to themselves, the others to U+0100 and up, in order.
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
    fn byte_level_characters_match_gpt2() {
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
    fn parses_byte_fallback_tokens() {
        for (token, byte) in [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0xA>", None), ("<0x0AB>", None)] {
            assert_eq!(fallback_byte(token), byte, "{token}");
        }
        assert_eq!(fallback_byte("<0xé>"), None);
    }

    #[test]
    fn only_decoders_of_single_tokens_give_fragments() {
        let fragments = |json: &str| Fragments::from_decoder(&serde_json::from_str(json).unwrap());
        let replace = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#;
        let fallback = r#"{"type": "ByteFallback"}"#;
        let fuse = r#"{"type": "Fuse"}"#;
        let strip = |stop: u32| format!(r#"{{"type": "Strip", "content": " ", "start": 1, "stop": {stop}}}"#);
        let sequence = |parts: &[&str]| format!(r#"{{"type": "Sequence", "decoders": [{}]}}"#, parts.join(", "));
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
        let metaspace = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}"#;
        let word_piece = r#"{"type": "WordPiece", "prefix": "", "cleanup": true}"#;
        assert_eq!(fragments(&sequence(&[replace, fallback, fuse, &strip(0)])).unwrap().n_dropped(), 1);
        for taken in [&sequence(&[replace, fallback, fuse]), byte_level, &sequence(&[byte_level]), metaspace, replace] {
            assert_eq!(fragments(taken).unwrap().n_dropped(), 0, "{taken}");
        }
        for other in [
            &sequence(&[replace, fallback, fuse, &strip(1)]),
            &sequence(&[replace, fallback, &strip(0)]),
            &sequence(&[fallback, replace]),
            &sequence(&[byte_level, replace]),
            word_piece,
        ] {
            assert!(fragments(other).is_none(), "{other}");
        }
    }
}
