//! Compares ids, decoded texts and streamed chunks with the reference, using the full vocabulary of the real Idefics2.

use idefics_processor::{Chat, Compatibility, Content, Message, ProcessOptions, Processor, Sample, StreamDecoder};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use crate::common::{Folder, dot, real};

/// The file of expected results that `xtask/reference/tokenizer_fixtures.py` writes.
#[derive(Deserialize)]
struct Fixture {
    transformers: String,
    image_seq_len: usize,
    texts: Vec<String>,
    variants: BTreeMap<String, Variant>,
    streams: Vec<Stream>,
    conversations: Vec<Conversation>,
    release4: Release4,
}

#[derive(Deserialize)]
struct Release4 {
    transformers: String,
    #[serde(flatten)]
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize, Clone)]
struct Variant {
    change: Map<String, Value>,
    do_image_splitting: bool,
    ids: Rows<Vec<u32>>,
    decoded: Rows<String>,
    skipped: Rows<String>,
}

/// One row per text, or the string `as legacy`, which means the rows of the variant `legacy`.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Rows<T> {
    Own(Vec<T>),
    #[allow(dead_code)]
    AsLegacy(String),
}

impl<T> Rows<T> {
    fn or<'a>(&'a self, legacy: &'a Self) -> &'a [T] {
        match (self, legacy) {
            (Self::Own(rows), _) | (_, Self::Own(rows)) => rows,
            _ => panic!("the legacy variant must have its own rows"),
        }
    }
}

#[derive(Deserialize)]
struct Stream {
    ids: Vec<u32>,
    skip_special_tokens: bool,
    chunks: Vec<String>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<FixtureMessage>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

/// A message whose images are not stored, because any image gives the same ids.
#[derive(Deserialize)]
struct FixtureMessage {
    role: String,
    content: Vec<FixtureContent>,
}

#[derive(Deserialize)]
struct FixtureContent {
    text: Option<String>,
}

impl Conversation {
    fn messages(&self) -> Vec<Message> {
        let content = |content: &FixtureContent| match &content.text {
            Some(text) => Content::text(text),
            None => Content::image(dot()),
        };
        let message = |message: &FixtureMessage| {
            Message::new(&message.role, message.content.iter().map(content).collect::<Vec<_>>())
        };
        self.messages.iter().map(message).collect()
    }
}

fn fixture() -> Fixture {
    let text = include_str!("fixtures/text.json");
    serde_json::from_str(text).expect("the fixture has the format of its script")
}

fn processor(variant: &Variant, image_seq_len: usize) -> Processor {
    let folder = Folder::copy_of("mistral-tokenizer").change("tokenizer_config.json", |config| {
        for (key, value) in &variant.change {
            match value {
                Value::Null => config.remove(key),
                value => config.insert(key.clone(), value.clone()),
            };
        }
    });
    let folder = folder.change("processor_config.json", |config| {
        config.insert("image_seq_len".to_owned(), json!(image_seq_len));
    });
    folder.load().expect("every variant loads")
}

fn sample(text: &str) -> Sample {
    Sample::Text { text: text.to_owned(), images: vec![dot(); text.matches("<image>").count()], videos: Vec::new() }
}

fn compare(variants: &BTreeMap<String, Variant>, fixture: &Fixture, compatibility: Compatibility) {
    let legacy = &variants["legacy"];
    for (name, variant) in variants {
        let processor = processor(variant, fixture.image_seq_len);
        let do_image_splitting = Some(variant.do_image_splitting);
        let options = ProcessOptions { compatibility, do_image_splitting, ..Default::default() };
        let tokenizer = processor.tokenizer_for(compatibility);
        for (index, text) in fixture.texts.iter().enumerate() {
            let inputs = processor.process(&[sample(text)], &options).expect("the text is processed");
            let ids = &variant.ids.or(&legacy.ids)[index];
            assert_eq!(&inputs.input_ids[0], ids, "{name}: {text:?}");
            let decoded = tokenizer.decode(ids, false).expect("ids are decoded");
            assert_eq!(decoded, variant.decoded.or(&legacy.decoded)[index], "{name}: {text:?} decoded");
            let skipped = tokenizer.decode(ids, true).expect("ids are decoded");
            assert_eq!(skipped, variant.skipped.or(&legacy.skipped)[index], "{name}: {text:?} without special tokens");
        }
    }
}

#[test]
fn fixture_has_the_documented_releases() {
    let fixture = fixture();
    assert_eq!(fixture.transformers, "5.23.0");
    assert_eq!(fixture.release4.transformers, "4.57.6");
    assert!(fixture.texts.len() > 100 && fixture.variants.len() > 8 && fixture.streams.len() > 50);
}

#[test]
fn ids_and_texts_match_release_5_for_all_folder_variants() {
    let fixture = fixture();
    compare(&fixture.variants, &fixture, Compatibility::Transformers5);
}

#[test]
fn ids_and_texts_match_release_4() {
    let fixture = fixture();
    compare(&fixture.release4.variants, &fixture, Compatibility::Transformers4);
}

#[test]
fn conversations_match_reference() {
    let fixture = fixture();
    let processor = processor(&fixture.variants["legacy"], fixture.image_seq_len);
    for conversation in &fixture.conversations {
        let mut chat = Chat::new(conversation.messages());
        chat.add_generation_prompt = conversation.add_generation_prompt;
        let text = processor.render(&chat).expect("the template renders");
        assert_eq!(text, conversation.text);
        let inputs =
            processor.process(&[chat.into()], &ProcessOptions::default()).expect("the conversation is processed");
        assert_eq!(inputs.input_ids[0], conversation.ids, "{text:?}");
    }
}

#[test]
fn streamed_chunks_match_reference() {
    for stream in fixture().streams {
        let mut decoder = StreamDecoder::new(real().tokenizer(), stream.skip_special_tokens);
        let mut chunks: Vec<String> = stream.ids.iter().map(|&id| decoder.push(id).expect("ids are decoded")).collect();
        chunks.push(decoder.end().expect("ids are decoded"));
        assert_eq!(chunks, stream.chunks, "{:?}", stream.ids);
    }
}

#[test]
fn special_ids_match_checkpoint() {
    let tokenizer = real().tokenizer();
    assert_eq!(tokenizer.vocab_size(), 32003);
    assert_eq!(tokenizer.max_id(), 32002);
    assert_eq!(
        [tokenizer.unk_token_id(), tokenizer.bos_token_id(), tokenizer.eos_token_id()],
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!(tokenizer.pad_token_id(), Some(0));
    assert_eq!(
        [tokenizer.fake_token_id(), tokenizer.image_token_id(), tokenizer.end_of_utterance_id().unwrap()],
        [32000, 32001, 32002]
    );
    assert_eq!(tokenizer.id_to_token(32001).as_deref(), Some("<image>"));
    assert_eq!(tokenizer.token_to_id("<image>"), Some(32001));
    assert_eq!(tokenizer.token_to_id("no such token"), None);
    // As in the reference, unknown ids are skipped.
    assert_eq!(tokenizer.decode(&[99_999], false).expect("unknown ids are skipped"), "");
}

/// Returns the expected text of a stream. All ids of a line are decoded together, because the stream decoder starts
/// anew after each line break.
fn whole_text(ids: &[u32], skip_special_tokens: bool) -> String {
    let decode = |ids: &[u32]| real().tokenizer().decode(ids, skip_special_tokens).expect("ids are decoded");
    let mut text = String::new();
    let mut stretch = Vec::new();
    for &id in ids {
        stretch.push(id);
        let decoded = decode(&stretch);
        if decoded.ends_with('\n') {
            text.push_str(&decoded);
            stretch.clear();
        }
    }
    if stretch.is_empty() { text } else { text + &decode(&stretch) }
}

fn streamed(ids: &[u32], skip_special_tokens: bool) -> String {
    let mut decoder = StreamDecoder::new(real().tokenizer(), skip_special_tokens);
    let mut text: String = ids.iter().map(|&id| decoder.push(id).expect("ids are decoded")).collect();
    text.push_str(&decoder.end().expect("ids are decoded"));
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Tests random ids, and characters of one to four bytes as byte tokens. There are no invalid bytes, because they
    /// could make `decode` change text that has already been emitted.
    #[test]
    fn chunks_of_any_ids_join_to_the_whole_text(
        parts in prop::collection::vec(
            prop_oneof![
                prop_oneof![0_u32..3, 259_u32..32003].prop_map(|id| vec![id]),
                any::<char>().prop_map(|character| character.to_string().bytes().map(|byte| 3 + u32::from(byte)).collect()),
            ],
            1..30,
        ),
        skip_special_tokens in any::<bool>(),
    ) {
        let ids = parts.concat();
        prop_assert_eq!(streamed(&ids, skip_special_tokens), whole_text(&ids, skip_special_tokens));
    }

    /// Tests ids of an encoded text. The chunks must join to that text.
    #[test]
    fn chunks_of_encoded_text_join_to_the_text(text in "([a-zA-Z,.!?]{1,8}|[äéßñ]{1,4}|[дж한글かな]{1,4}|[你好世界。]{1,4}|[😀👩🎉]{1,2}| |\n)(([a-z]{1,8}|[äéßñ]{1,4}|[дж한글かな]{1,4}|[你好世界。]{1,4}|[😀👩🎉]{1,2}|\n) ?){0,12}") {
        let lines: Vec<&str> = text.split('\n').map(str::trim_start).collect(); // spaces at the start of a line are dropped
        let text = lines.join("\n");
        let ids = real().tokenizer().encode(&text, false).expect("the text is encoded");
        prop_assert_eq!(streamed(&ids, true), text);
    }
}
