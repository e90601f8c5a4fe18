//! Limits what the steps of a tokenizer can make of a text.
//!
//! The steps in `tokenizer.json` can multiply a text: twelve steps that replace each `a` by ten make a trillion bytes
//! of one. A folder from another person could thus fill the memory. Each step has an upper bound for the length of its
//! result, so such a file is rejected before a step runs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::decoders::bpe::BPEDecoder;
use tokenizers::decoders::ctc::CTC;
use tokenizers::normalizers::replace::Replace;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use crate::checkpoint::shorten;
use crate::error::ProcessorError;

/// Maximum number of bytes that one token may decode to. The longest tokens of real vocabularies have a few hundred.
const MAX_DECODED_BYTES: usize = 1 << 14;
/// Maximum factor by which normalisation and splitting may lengthen a text. Real tokenizers have up to about 10.
const MAX_TEXT_GROWTH: f64 = 256.0;
/// Maximum number of bytes of all added tokens after normalisation. Real tokenizers have less than 100 kB. The index
/// that finds these tokens in a text needs about 100 bytes for each.
const MAX_ADDED_BYTES: f64 = (1 << 20) as f64;
/// Maximum number of times that a post-processor may repeat a text. Real ones write it once.
const MAX_COPIES: f64 = 8.0;

/// The parts of `tokenizer.json` that can lengthen a text before the model sees it.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default = "normalized")]
    normalized: bool,
}

/// The value of `normalized` that needs more room.
fn normalized() -> bool {
    true
}

/// Checks the steps of a tokenizer before it is built. `json` is its `tokenizer.json`; `more_tokens` are added tokens
/// from elsewhere.
///
/// # Errors
/// [`ProcessorError::Field`] that names the part that would lengthen a text too much, [`ProcessorError::Json`] if a part
/// is not valid.
pub(super) fn check_pipeline<'a>(
    path: &Path,
    json: &[u8],
    more_tokens: impl IntoIterator<Item = &'a AddedToken>,
) -> Result<(), ProcessorError> {
    let parts: Parts =
        serde_json::from_slice(json).map_err(|error| ProcessorError::Json { path: path.to_owned(), error })?;
    let refuse = |field, found, expected: &str| {
        Err(ProcessorError::Field { path: path.to_owned(), field, found, expected: expected.to_owned() })
    };
    let normalized =
        |n_bytes: f64| parts.normalizer.as_ref().map_or(n_bytes, |normalizer| normalized_bytes(normalizer, n_bytes));
    if normalized(1.0) > MAX_TEXT_GROWTH {
        let found = "able to make a text more than 256 times as long".to_owned();
        return refuse("normalizer", found, "steps that lengthen a text less");
    }
    let split = |n_bytes: f64| parts.pre_tokenizer.as_ref().map_or(n_bytes, |splitter| split_bytes(splitter, n_bytes));
    if split(normalized(1.0)) > MAX_TEXT_GROWTH {
        let found = "able to make a text more than 256 times as long, together with `normalizer`".to_owned();
        return refuse("pre_tokenizer", found, "steps that lengthen a text less");
    }
    if parts.post_processor.as_ref().is_some_and(|processor| copies(processor) > MAX_COPIES) {
        let found = "able to repeat a text more than 8 times".to_owned();
        return refuse("post_processor", found, "a template with the text once");
    }
    let own = parts.added_tokens.iter().map(|token| (&token.content, token.normalized));
    let added = own.chain(more_tokens.into_iter().map(|token| (&token.content, token.normalized)));
    let bytes = added.map(|(content, is_normalized)| match content.len() as f64 {
        n_bytes if is_normalized => normalized(n_bytes),
        n_bytes => n_bytes,
    });
    if bytes.sum::<f64>() > MAX_ADDED_BYTES {
        let found = "a list of tokens with more than 1048576 bytes after normalisation".to_owned();
        return refuse("added_tokens", found, "fewer or shorter tokens");
    }
    Ok(())
}

/// Checks that no token of a tokenizer decodes to more than [`MAX_DECODED_BYTES`].
///
/// # Errors
/// [`ProcessorError::TokenInvalid`] if a token is too long, [`ProcessorError::Field`] if the decoder lengthens the
/// longest token too much.
pub(super) fn check_decoder(tokenizer: &tokenizers::Tokenizer, path: &Path) -> Result<(), ProcessorError> {
    let longest = tokenizer.get_vocab(true).into_iter().max_by_key(|(token, id)| (token.len(), *id));
    let Some((token, id)) = longest else { return Ok(()) };
    if token.len() > MAX_DECODED_BYTES {
        let reason = "a token may have at most 16384 bytes";
        return Err(ProcessorError::TokenInvalid { path: path.to_owned(), token: shorten(&token), id, reason });
    }
    // Added tokens that are normalised are decoded in their normalised form.
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().values().filter(|token| token.normalized);
    let added = added.map(|token| token.content.len() as f64).fold(0.0, f64::max);
    let added = tokenizer.get_normalizer().map_or(added, |normalizer| normalized_bytes(normalizer, added));
    let longest = added.max(token.len() as f64);
    if tokenizer.get_decoder().is_some_and(|decoder| decoded_bytes(decoder, longest) > MAX_DECODED_BYTES as f64) {
        return Err(ProcessorError::Field {
            path: path.to_owned(),
            field: "decoder",
            found: format!("able to turn one token into more than {MAX_DECODED_BYTES} bytes"),
            expected: "steps that lengthen a token less".to_owned(),
        });
    }
    Ok(())
}

/// Returns an upper bound of the length that `decoder` gives a token of `n_bytes` bytes. The bounds are floats, which
/// cannot overflow.
///
/// Source: `decode_chain` of the decoders in the crate `tokenizers`.
fn decoded_bytes(decoder: &DecoderWrapper, n_bytes: f64) -> f64 {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().fold(n_bytes, |n_bytes, step| decoded_bytes(step, n_bytes))
        }
        DecoderWrapper::Replace(replace) => replaced_bytes(replace, n_bytes),
        // These replace a text by one space.
        DecoderWrapper::BPE(BPEDecoder { suffix: text, .. })
        | DecoderWrapper::CTC(CTC { word_delimiter_token: text, .. }) => substituted_bytes(text, " ", n_bytes),
        // A character of two bytes stands for one byte, which becomes the three bytes of U+FFFD if it is invalid.
        DecoderWrapper::ByteLevel(_) => 1.5 * n_bytes,
        DecoderWrapper::WordPiece(_) => n_bytes + 1.0, // a space in front
        // These only remove text or replace it by shorter text.
        DecoderWrapper::Metaspace(_)
        | DecoderWrapper::Fuse(_)
        | DecoderWrapper::Strip(_)
        | DecoderWrapper::ByteFallback(_) => n_bytes,
    }
}

/// Returns an upper bound of the length that `normalizer` gives a text of `n_bytes` bytes.
fn normalized_bytes(normalizer: &NormalizerWrapper, n_bytes: f64) -> f64 {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => {
            sequence.as_ref().iter().fold(n_bytes, |n_bytes, step| normalized_bytes(step, n_bytes))
        }
        NormalizerWrapper::Replace(replace) => replaced_bytes(replace, n_bytes),
        NormalizerWrapper::Prepend(prepend) => n_bytes + prepend.prepend.len() as f64,
        NormalizerWrapper::Precompiled(precompiled) => n_bytes * longest_entry(precompiled).max(1) as f64,
        // UTF-8 expands to at most three times its length in the canonical forms, and to eleven times in the
        // compatibility forms (U+FDFA).
        NormalizerWrapper::NFC(_) | NormalizerWrapper::NFD(_) => 3.0 * n_bytes,
        NormalizerWrapper::NFKC(_) | NormalizerWrapper::NFKD(_) => 11.0 * n_bytes,
        NormalizerWrapper::Lowercase(_) => 1.5 * n_bytes, // U+023A has two bytes, its lower case three
        // Spaces around characters of three bytes, decomposition, and lower case.
        NormalizerWrapper::BertNormalizer(_) => 5.0 / 3.0 * 3.0 * 1.5 * n_bytes,
        NormalizerWrapper::ByteLevel(_) => 2.0 * n_bytes,
        NormalizerWrapper::StripNormalizer(_) | NormalizerWrapper::StripAccents(_) | NormalizerWrapper::Nmt(_) => {
            n_bytes
        }
    }
}

/// Returns an upper bound of the length that `splitter` gives a text of `n_bytes` bytes.
fn split_bytes(splitter: &PreTokenizerWrapper, n_bytes: f64) -> f64 {
    match splitter {
        PreTokenizerWrapper::Sequence(sequence) => {
            sequence.as_ref().iter().fold(n_bytes, |n_bytes, step| split_bytes(step, n_bytes))
        }
        PreTokenizerWrapper::ByteLevel(_) => 2.0 * (n_bytes + 1.0), // a space in front
        PreTokenizerWrapper::Metaspace(metaspace) => {
            let length = metaspace.get_replacement().len_utf8() as f64;
            length * n_bytes + length // spaces, and one replacement in front
        }
        _ => n_bytes, // the others do not change the text
    }
}

/// Returns how often `processor` repeats a text.
fn copies(processor: &PostProcessorWrapper) -> f64 {
    match processor {
        PostProcessorWrapper::Sequence(sequence) => sequence.as_ref().iter().map(copies).product(),
        PostProcessorWrapper::Template(template) => {
            let pieces = json(&template.single);
            let texts = pieces.as_array().into_iter().flatten().filter(|piece| piece.get("Sequence").is_some());
            texts.count() as f64
        }
        _ => 1.0,
    }
}

fn replaced_bytes(replace: &Replace, n_bytes: f64) -> f64 {
    match json(replace)["pattern"]["String"].as_str() {
        Some(text) => substituted_bytes(text, &replace.content, n_bytes),
        None => inserted_bytes(&replace.content, n_bytes), // a regular expression
    }
}

/// Returns an upper bound of the length after `text` was replaced by `content`.
fn substituted_bytes(text: &str, content: &str, n_bytes: f64) -> f64 {
    match text.len() {
        0 => inserted_bytes(content, n_bytes),
        length => n_bytes * (content.len() as f64 / length as f64).max(1.0),
    }
}

/// Returns the length after `content` was inserted around each byte. No pattern has more matches.
fn inserted_bytes(content: &str, n_bytes: f64) -> f64 {
    n_bytes + (n_bytes + 1.0) * content.len() as f64
}

/// Returns the length of the longest replacement in a map of `sentencepiece`, in bytes.
///
/// The map starts with the length of its index as an `u32`. After the index come the replacements, each with a zero
/// byte at its end.
fn longest_entry(precompiled: &impl Serialize) -> usize {
    let map = json(precompiled)["precompiled_charsmap"].as_str().and_then(|map| BASE64.decode(map).ok());
    let map = map.unwrap_or_default();
    let length = map.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    let replacements = map.get(length.saturating_add(4)..).unwrap_or_default();
    replacements.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}

/// Returns the JSON form of a step, which has its private fields.
fn json(step: &impl Serialize) -> Value {
    serde_json::to_value(step).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokenizers::{Decoder as _, NormalizedString, Normalizer as _};

    use super::*;

    fn decoder(json: &str) -> DecoderWrapper {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn decoded_length_is_bounded_and_the_bound_is_reached() {
        for (json, token, expected) in [
            (r#"{"type": "Replace", "pattern": {"String": "ab"}, "content": "xyzxyz"}"#, "abab", 12),
            (r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#, "word", 4),
            (r#"{"type": "Replace", "pattern": {"Regex": "(?=.)|$"}, "content": "xy"}"#, "abc", 11),
            (r#"{"type": "BPEDecoder", "suffix": "</w>"}"#, "word", 4),
            (r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#, "ÿÿ", 6),
            (r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}"#, "word", 4),
            (r#"{"type": "Fuse"}"#, "word", 4),
            (r#"{"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}"#, "a|b", 3),
        ] {
            let decoder = decoder(json);
            assert_eq!(decoded_bytes(&decoder, token.len() as f64), expected as f64, "{json}");
            let decoded = decoder.decode_chain(vec![token.to_owned()]).unwrap();
            assert_eq!(decoded.concat().len(), expected, "{json}: {decoded:?}");
        }
        // The second token of a text gets a space in front.
        let word_piece = decoder(r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###);
        assert_eq!(decoded_bytes(&word_piece, 4.0), 5.0);
        assert_eq!(word_piece.decode_chain(vec!["a".to_owned(), "word".to_owned()]).unwrap()[1].len(), 5);
    }

    #[test]
    fn normalized_length_is_bounded() {
        for (json, text) in [
            (r#"{"type": "NFC"}"#, "\u{1D160}"),
            (r#"{"type": "NFD"}"#, "\u{390}ệ"),
            (r#"{"type": "NFKC"}"#, "\u{FDFA}"),
            (r#"{"type": "NFKD"}"#, "\u{FDFA}"),
            (r#"{"type": "Lowercase"}"#, "\u{23A}İ"),
            (r#"{"type": "ByteLevel"}"#, "世\n"),
            (r#"{"type": "Prepend", "prepend": "▁"}"#, "word"),
            (r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#, "a b"),
            (
                r#"{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": false,
                    "lowercase": true}"#,
                "世\u{23A}",
            ),
        ] {
            let normalizer: NormalizerWrapper = serde_json::from_str(json).unwrap();
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized).unwrap();
            let bound = normalized_bytes(&normalizer, text.len() as f64);
            assert!(normalized.get().len() as f64 <= bound, "{json}: {:?}", normalized.get());
            assert!(normalized.get().len() > text.len(), "{json} lengthens the text");
        }
    }

    #[test]
    fn longest_replacement_of_a_map_is_found() {
        let map = [&8u32.to_le_bytes()[..], b"12345678ab\0abcde\0c\0"].concat();
        assert_eq!(longest_entry(&serde_json::json!({"precompiled_charsmap": BASE64.encode(&map)})), 5);
        assert_eq!(longest_entry(&serde_json::json!({"precompiled_charsmap": BASE64.encode(&map[..3])})), 0);
    }

    #[test]
    fn steps_of_a_sequence_multiply() {
        let step = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}"#;
        let steps = |n: usize| format!(r#"{{"type": "Sequence", "decoders": [{}]}}"#, vec![step; n].join(", "));
        assert_eq!(decoded_bytes(&decoder(&steps(3)), 2.0), 2000.0);
        assert_eq!(decoded_bytes(&decoder(&steps(1000)), 2.0), f64::INFINITY);
    }
}
