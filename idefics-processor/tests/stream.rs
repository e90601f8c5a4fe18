//! The streaming decoder decodes each id once. Its chunks must equal those of a decoder that decodes the whole line
//! again for each id.

use std::sync::LazyLock;

use idefics_processor::{Compatibility, Processor, StreamDecoder, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{Folder, checkpoint, real};

/// Returns the chunks of the reference's `TextStreamer`, which decodes the whole line again for each id.
fn reference_chunks(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let decode = |ids: &[u32]| tokenizer.decode(ids, skip_special_tokens).expect("ids are decoded");
    let is_chinese = |c: char| {
        matches!(u32::from(c),
            0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
            | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
    };
    let (mut cache, mut printed, mut chunks) = (Vec::new(), 0, Vec::new());
    for &id in ids {
        cache.push(id);
        let text: Vec<char> = decode(&cache).chars().collect();
        let end = match text.last() {
            Some('\n') => text.len(),
            Some(&last) if is_chinese(last) => text.len(),
            _ => text.iter().rposition(|&c| c == ' ').map_or(0, |at| at + 1),
        };
        chunks.push(text[printed.min(end)..end].iter().collect());
        printed = printed.max(end);
        if text.last() == Some(&'\n') {
            cache.clear();
            printed = 0;
        }
    }
    chunks.push(decode(&cache).chars().skip(printed).collect());
    chunks
}

fn chunks(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let mut decoder = StreamDecoder::new(tokenizer, skip_special_tokens);
    let mut chunks: Vec<String> = ids.iter().map(|&id| decoder.push(id).expect("ids are decoded")).collect();
    chunks.push(decoder.end().expect("ids are decoded"));
    chunks
}

/// Returns the tiny checkpoint with another decoder in its `tokenizer.json`.
fn with_decoder(decoder: Value) -> Processor {
    let folder = Folder::copy_of("tiny-idefics2").change("tokenizer.json", |file| {
        file.insert("decoder".to_owned(), decoder);
    });
    folder.load().expect("the folder loads")
}

/// Returns tokenizers with all decoders of the committed checkpoints, and with decoders of other models. With
/// `Transformers4`, a tokenizer uses the decoder of `tokenizer.json`.
fn tokenizers() -> &'static [(&'static str, Processor, Compatibility)] {
    static ALL: LazyLock<Vec<(&'static str, Processor, Compatibility)>> = LazyLock::new(|| {
        use Compatibility::{Transformers4, Transformers5};
        let load = |name: &str| Processor::from_folder(&checkpoint(name)).expect("the committed checkpoint loads");
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let fuse = json!({"type": "Fuse"});
        let sequence = |decoders: &[&Value]| with_decoder(json!({"type": "Sequence", "decoders": decoders}));
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
        let strip = json!({"type": "Strip", "content": " ", "start": 3, "stop": 0});
        vec![
            ("mistral", load("mistral-tokenizer"), Transformers5),
            ("mistral as shipped", load("mistral-tokenizer"), Transformers4),
            ("byte level", load("byte-level"), Transformers5),
            ("idefics1", load("idefics1-plain"), Transformers5),
            ("small", load("sliding-sharded"), Transformers4),
            ("without byte fallback", sequence(&[&replace, &fuse]), Transformers4),
            (
                "three spaces are dropped",
                sequence(&[&replace, &json!({"type": "ByteFallback"}), &fuse, &strip]),
                Transformers4,
            ),
            ("metaspace", with_decoder(metaspace), Transformers4),
            ("word pieces", with_decoder(json!({"type": "WordPiece", "prefix": "##", "cleanup": true})), Transformers4),
            ("joined by spaces", with_decoder(Value::Null), Transformers4),
        ]
    });
    &ALL
}

/// Generates random ids: words, bytes of whole characters, arbitrary bytes, line breaks, special tokens and unknown
/// ids.
fn ids(tokenizer: &Tokenizer) -> BoxedStrategy<Vec<u32>> {
    let n = tokenizer.max_id() + 3;
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>"));
    let bytes: Vec<u32> = (0..=255).filter_map(byte).collect();
    let all_bytes = if bytes.is_empty() { vec![0] } else { bytes };
    let encode = |text: &str| tokenizer.encode(text, false).expect("the text is encoded");
    let words: Vec<Vec<u32>> =
        [" the", "\n", " ", "世界", " 世", "é", "👩‍🚀", "x y", "</s>", "�", "한", "  ", "ab\n"].map(encode).to_vec();
    let characters: Vec<Vec<u32>> = ["世", "é", "😀", " ", "a", "\n"]
        .iter()
        .map(|text| text.bytes().filter_map(byte).collect())
        .filter(|ids: &Vec<u32>| !ids.is_empty())
        .chain([vec![1]])
        .collect();
    let part = prop_oneof![
        3 => (0..n).prop_map(|id| vec![id]),
        3 => prop::sample::select(words),
        3 => prop::sample::select(characters),
        1 => prop::sample::select(all_bytes).prop_map(|id| vec![id]),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat()).boxed()
}

fn tokenizer_and_ids() -> impl Strategy<Value = (usize, Vec<u32>)> {
    (0..tokenizers().len()).prop_flat_map(|which| {
        let (_, processor, compatibility) = &tokenizers()[which];
        (Just(which), ids(processor.tokenizer_for(*compatibility)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn chunks_match_decoding_the_whole_line_each_time(
        (which, ids) in tokenizer_and_ids(), skip_special_tokens in any::<bool>()
    ) {
        let (name, processor, compatibility) = &tokenizers()[which];
        let tokenizer = processor.tokenizer_for(*compatibility);
        let expected = reference_chunks(tokenizer, &ids, skip_special_tokens);
        prop_assert_eq!(chunks(tokenizer, &ids, skip_special_tokens), expected, "{}: {:?}", name, ids);
    }

    /// With a byte-level vocabulary, the chunks join to the whole text even across line breaks and with invalid bytes.
    #[test]
    fn byte_level_chunks_join_to_the_whole_text(ids in prop::collection::vec(0..480_u32, 0..60), skip: bool) {
        let (_, processor, compatibility) = &tokenizers()[2];
        let tokenizer = processor.tokenizer_for(*compatibility);
        prop_assert_eq!(chunks(tokenizer, &ids, skip).concat(), tokenizer.decode(&ids, skip).expect("ids are decoded"));
    }

    /// The ids are words without line breaks, and bytes of whole characters. Text that has been emitted for them is
    /// final.
    #[test]
    fn chunks_of_a_line_join_to_the_whole_text(
        parts in prop::collection::vec(
            prop_oneof![
                (259_u32..32003).prop_map(|id| vec![id]),
                any::<char>().prop_filter("one line", |c| *c != '\n').prop_map(|character| {
                    character.to_string().bytes().map(|byte| 3 + u32::from(byte)).collect()
                }),
            ],
            0..40,
        ),
        skip: bool,
    ) {
        let (ids, tokenizer) = (parts.concat(), real().tokenizer());
        let whole = tokenizer.decode(&ids, skip).expect("ids are decoded");
        let mut shown = String::new();
        for chunk in chunks(tokenizer, &ids, skip) {
            shown.push_str(&chunk);
            prop_assert!(whole.starts_with(&shown), "{:?} is not a prefix of {:?}", shown, whole);
        }
        prop_assert_eq!(shown, whole);
    }
}

#[test]
fn byte_runs_match_reference() {
    let tokenizer = real().tokenizer();
    let bytes = |bytes: &[u8]| bytes.iter().map(|&byte| 3 + u32::from(byte)).collect::<Vec<_>>();
    for (given, expected) in [
        (&b"\xE4\xB8\x96"[..], "世"),                        // emitted after its last byte
        (b"\xE4\xB8\x96\xFF", "世\u{FFFD}\u{FFFD}\u{FFFD}"), // `decode` gives four U+FFFD, but 世 was emitted before
        (b"\xE4\xB8", "\u{FFFD}\u{FFFD}"),
        (b"  a", " a"),
        (b"", ""),
    ] {
        let ids = bytes(given);
        assert_eq!(chunks(tokenizer, &ids, false).concat(), expected, "{given:?}");
        assert_eq!(chunks(tokenizer, &ids, false), reference_chunks(tokenizer, &ids, false), "{given:?}");
    }
}
