//! Prompt lists of IDEFICS v1. The cases of `cargo xtask verify` compare such prompts with the reference.

use idefics_processor::image::{ImageProcessorConfig, ImageSize};
use idefics_processor::{
    ErrorKind, Message, ProcessOptions, Processor, ProcessorError, PromptPart, Sample, latest_images,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{checkpoint, dot};

/// Loads an instruct checkpoint, which has `<end_of_utterance>`.
fn processor() -> Processor {
    Processor::from_folder(&checkpoint("idefics1-vector")).unwrap()
}

fn image() -> PromptPart {
    PromptPart::Image(dot())
}

fn words(text: &str) -> PromptPart {
    PromptPart::Text(text.to_owned())
}

fn text(parts: Vec<PromptPart>, options: &ProcessOptions) -> Result<String, ProcessorError> {
    Ok(processor().process(&[Sample::Prompt(parts)], options)?.prompts.remove(0))
}

#[test]
fn end_of_utterance_is_inserted_unless_disabled() {
    let parts = || vec![words("User:"), image(), words("What?"), words("\nAssistant:")];
    let image = "<fake_token_around_image><image><fake_token_around_image>";
    let ended = format!("<s>User:{image}What?<end_of_utterance>\nAssistant:");
    assert_eq!(text(parts(), &ProcessOptions::default()).unwrap(), ended);
    let plain = ProcessOptions { add_end_of_utterance_token: Some(false), ..ProcessOptions::default() };
    assert_eq!(text(parts(), &plain).unwrap(), format!("<s>User:{image}What?\nAssistant:"));
    let eos = ProcessOptions { add_eos_token: true, ..plain };
    assert_eq!(text(parts(), &eos).unwrap(), format!("<s>User:{image}What?\nAssistant:</s>"));
    let base = Processor::from_folder(&checkpoint("idefics1-float")).unwrap();
    let prompt = base.process(&[Sample::Prompt(parts())], &ProcessOptions::default()).unwrap().prompts.remove(0);
    assert_eq!(prompt, format!("<s>User:{image}What?\nAssistant:"), "base models have no <end_of_utterance>");
}

#[test]
fn prompt_list_parses_texts_urls_and_images() {
    let sample: Sample = serde_json::from_value(
        json!({"prompt": ["User:", {"image": "a.png"}, " https://host/b.jpg ", "see https://host"]}),
    )
    .unwrap();
    let Sample::Prompt(parts) = &sample else { panic!("expected a prompt list") };
    let is_image: Vec<bool> = parts.iter().map(|part| matches!(part, PromptPart::Image(_))).collect();
    assert_eq!(is_image, [false, true, true, false]);
    assert_eq!(sample.images().len(), 2);
}

#[test]
fn rejects_options_and_prompts_of_other_families() {
    let split = ProcessOptions { do_image_splitting: Some(true), ..ProcessOptions::default() };
    let error = text(vec![image()], &split).unwrap_err();
    assert!(matches!(error, ProcessorError::NoSplitting) && error.kind() == ErrorKind::Input);
    // An `<image>` in a text has no image. If it were accepted, it would hide all images from the tokens after it.
    let error = text(vec![image(), words("and <image>")], &ProcessOptions::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::ImageCount { placeholders: 2, images: 1, .. }), "{error}");
    let second = Processor::from_folder(&checkpoint("tiny-idefics2")).unwrap();
    let error = second.process(&[Sample::Prompt(vec![words("Hi")])], &ProcessOptions::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::PromptList { .. }));
    let text = [Sample::Text { text: "Hi".to_owned(), images: Vec::new(), videos: Vec::new() }];
    let turns = ProcessOptions { add_end_of_utterance_token: Some(true), ..ProcessOptions::default() };
    let end = ProcessOptions { add_eos_token: true, ..ProcessOptions::default() };
    for (options, option) in [(turns, "add_end_of_utterance_token"), (end, "add_eos_token")] {
        let error = second.process(&text, &options).unwrap_err();
        assert!(error.to_string().starts_with(option) && error.kind() == ErrorKind::Input, "{error}");
    }
    assert_eq!((second.family().model_type(), processor().family().model_type()), ("idefics2", "idefics"));
}

#[test]
fn special_tokens_in_messages_stay_text() {
    let message = |text: &str| Sample::chat(vec![Message::text("user", text)]);
    let processor = processor();
    let ids = |text: &str| processor.process(&[message(text)], &ProcessOptions::default()).unwrap().input_ids.remove(0);
    let tokenizer = processor.tokenizer();
    let typed = ids("a <image></s><end_of_utterance> b");
    let count = |id: u32| typed.iter().filter(|&&found| found == id).count();
    assert_eq!(count(tokenizer.image_token_id()), 0);
    assert_eq!(count(tokenizer.eos_token_id().unwrap()), 0);
    assert_eq!(count(tokenizer.end_of_utterance_id().unwrap()), 1, "only the token that ends the turn");
}

#[test]
fn reads_old_and_new_preprocessor_configs() {
    let read = |json: Value| ImageProcessorConfig::from_idefics1_object(json.as_object().unwrap().clone());
    let square = |side| ImageSize::Exact { height: side, width: side };
    assert_eq!(read(json!({})).unwrap(), ImageProcessorConfig::idefics1());
    assert_eq!(read(json!({"image_size": 448, "image_num_channels": 3})).unwrap().size, square(448));
    assert_eq!(read(json!({"size": {"height": 56, "width": 56}})).unwrap().size, square(56));
    for (refused, field) in [
        (json!({"image_num_channels": 1}), "image_num_channels"),
        (json!({"image_size": "large"}), "image_size"),
        (json!({"size": {"shortest_edge": 3, "longest_edge": 4}}), "size"),
        (json!({"do_resize": false}), "do_resize"),
        (json!({"do_image_splitting": true}), "do_image_splitting"),
        (json!({"image_processor_type": "Idefics2ImageProcessor"}), "image_processor_type"),
    ] {
        assert!(read(refused).unwrap_err().to_string().contains(field), "{field}");
    }
}

proptest! {
    #[test]
    fn token_sees_latest_image_since_last_end(ids in prop::collection::vec(0_u32..6, 0..60)) {
        const IMAGE: u32 = 5;
        const EOS: u32 = 2;
        let seen = latest_images(&ids, IMAGE, Some(EOS));
        prop_assert_eq!(seen.len(), ids.len());
        let mut images = 0_usize;
        for (index, (&id, &seen)) in ids.iter().zip(&seen).enumerate() {
            images += usize::from(id == IMAGE);
            // The latest image, or none if there is no image yet or a text has ended since.
            let since = ids[..index].iter().rposition(|&before| before == IMAGE || before == EOS);
            let is_over = id != IMAGE && since.is_none_or(|since| ids[since] == EOS);
            prop_assert_eq!(seen, if is_over { None } else { Some(images - 1) });
        }
    }

    #[test]
    fn prompt_list_has_one_image_token_per_image(
        parts in prop::collection::vec(prop::option::of("[ a-z\n]{0,12}"), 0..8)
    ) {
        let list: Vec<PromptPart> =
            parts.iter().map(|part| part.as_ref().map_or_else(image, |text| words(text))).collect();
        let processor = processor();
        let processed = processor.process(&[Sample::Prompt(list)], &ProcessOptions::default()).unwrap();
        let images = parts.iter().filter(|part| part.is_none()).count();
        prop_assert_eq!(processed.images[0].len(), images);
        let tokens = processed.input_ids[0].iter().filter(|&&id| id == processor.tokenizer().image_token_id());
        prop_assert_eq!(tokens.count(), images);
        prop_assert_eq!(processed.input_ids[0].first().copied(), processor.tokenizer().bos_token_id());
    }
}
