//! Chat templates: rendering, protection from user text, and protection from malicious templates.

use idefics_processor::image::ImageSource;
use idefics_processor::{
    Chat, Content, ErrorKind, Message, ProcessOptions, ProcessedInputs, Processor, ProcessorError, Sample,
    SpecialTokensInText,
};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;

use crate::common::{Folder, dot, real};

fn user(content: Vec<Content>) -> Vec<Message> {
    vec![Message::new("user", content)]
}

/// Returns a conversation in which the assistant speaks next.
fn with_generation_prompt(messages: &[Message]) -> Chat {
    Chat::new(messages.to_vec()).with_generation_prompt()
}

fn process(
    messages: Vec<Message>,
    special_tokens_in_text: SpecialTokensInText,
) -> Result<ProcessedInputs, ProcessorError> {
    process_with(real(), messages, special_tokens_in_text)
}

fn process_with(
    processor: &Processor,
    messages: Vec<Message>,
    special_tokens_in_text: SpecialTokensInText,
) -> Result<ProcessedInputs, ProcessorError> {
    let options = ProcessOptions { special_tokens_in_text, ..Default::default() };
    processor.process(&[Sample::chat(messages)], &options)
}

fn count(ids: &[u32], id: u32) -> usize {
    ids.iter().filter(|&&other| other == id).count()
}

#[test]
fn renders_conversations_of_model_documentation() {
    let picture = || Content::image(dot());
    let cats: Vec<Message> = vec![
        Message::new("user", vec![picture(), Content::text("What do we see in this image?")]),
        Message::text("assistant", "In this image we can see two cats on the nets."),
        Message::new("user", vec![picture(), Content::text("And how about this image?")]),
    ];
    assert_eq!(
        real().render(&with_generation_prompt(&cats)).unwrap(),
        "User:<image>What do we see in this image?<end_of_utterance>\nAssistant: In this image we can see two cats on the \
         nets.<end_of_utterance>\nUser:<image>And how about this image?<end_of_utterance>\nAssistant:"
    );
    let two = user(vec![Content::text("What’s the difference between these two images?"), picture(), picture()]);
    assert_eq!(
        real().render(&with_generation_prompt(&two)).unwrap(),
        "User: What’s the difference between these two images?<image><image><end_of_utterance>\nAssistant:"
    );
    let system = [Message::text("system", "Be brief.")];
    assert_eq!(real().render(&Chat::new(system.to_vec())).unwrap(), "System: Be brief.<end_of_utterance>\n");
}

#[test]
fn keys_select_the_form_of_a_sample() {
    let parse = |value: serde_json::Value| serde_json::from_value::<Sample>(value);
    let text = parse(json!({"text": "<image>a", "images": ["images/a.png"]})).unwrap();
    assert_eq!(text.images(), [&ImageSource::Path("images/a.png".into())]);
    let messages = json!([
        {"role": "user", "content": [
            {"type": "image", "path": "a.png"}, {"type": "image", "url": "https://example.org/b.png"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, {"type": "image", "base64": "AAAA"},
            {"type": "text", "text": "hi"},
        ]},
        {"role": "assistant", "content": "a plain string"},
    ]);
    let mut sample = parse(json!({"messages": messages, "add_generation_prompt": true})).unwrap();
    sample.resolve_paths(Path::new("/cases"));
    let images = sample.images();
    assert_eq!(images[0], &ImageSource::Path("/cases/a.png".into()));
    assert!(matches!(images[1], ImageSource::Url(_)));
    assert!(images[2..].iter().all(|image| matches!(image, ImageSource::DataUrl(_))));
    let prompt =
        parse(json!({"prompt": ["User:", {"image": "a.png"}, "https://example.org/c.png", "Describe."]})).unwrap();
    assert_eq!(prompt.images().len(), 2);
}

#[test]
fn prompt_list_error_names_the_supported_family() {
    let error = real().process(&[Sample::Prompt(Vec::new())], &ProcessOptions::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::PromptList { row: 0 }));
    assert!(error.to_string().contains("idefics"));
    assert_eq!(error.kind(), ErrorKind::Input);
}

const SPECIAL: [&str; 6] = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "</s>", "<s>", "<unk>"];

#[test]
fn special_tokens_in_user_text_stay_text() {
    let tokenizer = real().tokenizer();
    let plain = process(user(vec![Content::text("x")]), SpecialTokensInText::Literal).unwrap();
    for special in SPECIAL {
        let id = tokenizer.token_to_id(special).unwrap();
        for text in [special.to_owned(), format!("a{special}b"), format!("{special}{special}"), format!("\n{special} ")]
        {
            let inputs = process(user(vec![Content::text(&text)]), SpecialTokensInText::Literal).unwrap();
            assert_eq!(count(&inputs.input_ids[0], id), count(&plain.input_ids[0], id), "{text:?}");
            assert!(inputs.prompts[0].contains(&text));
            let decoded = tokenizer.decode(&inputs.input_ids[0], true).unwrap();
            assert!(decoded.contains(&text), "{text:?} in {decoded:?}");
        }
    }
}

#[test]
fn split_special_token_is_not_joined_across_parts() {
    let image = real().tokenizer().image_token_id();
    for halves in [["<ima", "ge>"], ["<", "image>"], ["<image", ">"], ["a <", "image> b"]] {
        let parts = halves.into_iter().map(Content::text).collect();
        let inputs = process(user(parts), SpecialTokensInText::Literal).unwrap();
        assert_eq!(count(&inputs.input_ids[0], image), 0, "{halves:?}");
        assert!(inputs.prompts[0].contains(&halves.concat()));
    }
}

#[test]
fn stand_in_characters_in_user_text_are_kept() {
    let text = "\u{FDD0}\u{FDD1}\u{F0000} <image> \u{FDD0}";
    let inputs = process(user(vec![Content::text(text)]), SpecialTokensInText::Literal).unwrap();
    assert!(real().tokenizer().decode(&inputs.input_ids[0], true).unwrap().contains(text));
}

#[test]
fn special_tokens_can_be_parsed_or_rejected() {
    let messages = || user(vec![Content::text("a</s>b")]);
    let inputs = process(messages(), SpecialTokensInText::Parse).unwrap();
    let eos = real().tokenizer().eos_token_id().unwrap();
    assert_eq!(count(&inputs.input_ids[0], eos), 1);
    let error = process(messages(), SpecialTokensInText::Reject).unwrap_err();
    assert!(matches!(&error, ProcessorError::SpecialTokenInText { row: 0, token, .. } if token == "</s>"));
    assert_eq!(error.kind(), ErrorKind::Input);
    // A placeholder without an image is an error before encoding, and not the fault of the template.
    for (content, typed) in [
        (vec![Content::text("<image>")], "1 <image> placeholder,"),
        (vec![Content::image(dot()), Content::text("<image> or <image>")], "2 <image> placeholders,"),
    ] {
        let error = process(user(content), SpecialTokensInText::Parse).unwrap_err();
        assert!(matches!(error, ProcessorError::PlaceholderInText { row: 0, .. }), "{error}");
        assert!(error.to_string().contains(typed) && error.kind() == ErrorKind::Input, "{error}");
    }
}

#[test]
fn unknown_part_types_are_named() {
    let part = |kind: &str| json!({"type": kind, "text": "x", "path": "a.png"});
    let messages = json!([
        {"role": "user", "content": [part("text"), part("picture"), part("image")]},
        {"role": "assistant", "content": "text"},
        {"role": "user", "content": [part("tool_result"), part("picture"), part("video")]},
    ]);
    let sample = Sample::try_from(json!({"messages": messages})).unwrap();
    assert_eq!(sample.unknown_part_types().into_iter().collect::<Vec<_>>(), ["picture", "tool_result"]);
    assert!(Sample::try_from(json!({"text": "x"})).unwrap().unknown_part_types().is_empty());
}

#[test]
fn misspelt_keys_of_samples_have_a_suggestion() {
    for (key, meant) in [("image", "images"), ("Video", "videos"), ("message", "messages"), ("prompts", "prompt")] {
        assert_eq!(Sample::similar_key(key), Some(meant));
    }
    for key in ["images", "text", "id", "source", "s", ""] {
        assert_eq!(Sample::similar_key(key), None, "{key}");
    }
    let error = Sample::try_from(json!({"id": 1, "message": []})).unwrap_err().to_string();
    assert!(error.contains("has none of them; write `messages` for `message`"), "{error}");
}

#[test]
fn rejects_roles_that_are_not_words() {
    for role in ["", "us er", "<image>", "user\n", &"r".repeat(65)] {
        let error = process(vec![Message::text(role, "x")], SpecialTokensInText::Literal).unwrap_err();
        assert!(matches!(error, ProcessorError::Role { row: 0, message: 0, .. }), "{role:?}");
    }
}

#[test]
fn rejects_template_with_wrong_number_of_placeholders() {
    for (template, placeholders) in [("{{ messages[0].content[1].text }}", 0), ("<image><image>", 2)] {
        let processor = Folder::copy_of("tiny-idefics2").template(template).load().unwrap();
        let messages = user(vec![Content::image(dot()), Content::text("x")]);
        let error = process_with(&processor, messages, SpecialTokensInText::Literal).unwrap_err();
        let expected = matches!(error, ProcessorError::TemplateLossy { images: 1, placeholders: found, .. } if found == placeholders);
        assert!(expected, "{error}");
        assert_eq!(error.kind(), ErrorKind::Model);
    }
}

#[test]
fn messages_without_chat_template_are_an_error() {
    let processor = Folder::copy_of("tiny-idefics2").remove("chat_template.json").load().unwrap();
    let error = process_with(&processor, user(vec![Content::text("x")]), SpecialTokensInText::Literal).unwrap_err();
    assert!(matches!(error, ProcessorError::NoChatTemplate { row: 0 }));
}

#[test]
fn supports_template_features_of_real_checkpoints() {
    let messages = [Message::text("system", " Be brief. "), Message::text("user", "a|b")];
    for (template, expected) in [
        ("{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}", "12"),
        ("{{ bos_token }}{{ messages[0]['content'][0]['text'] | trim }}{{ eos_token + '\n' }}", "<s>Be brief.</s>\n"),
        ("{{ messages[0].content[0].text.strip().upper() ~ '!' }}", "BE BRIEF.!"),
        ("{% for m in messages[1:] %}{{ loop.index0 }}{{ m.role.capitalize() }}{% endfor %}", "0User"),
        ("{{ messages[1].content[0].text.split('|')[-1] }}{{ 'a-b'.replace('-', '+') }}", "ba+b"),
        ("{% macro say(m) %}[{{ m.role }}]{% endmacro %}{{ say(messages[1]) }}", "[user]"),
        ("{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(', ') }}", "user"),
        ("{{ messages[1].content[0] | tojson }}", r#"{"type": "text", "text": "a|b"}"#),
        ("{% if tools is not none or documents %}no{% endif %}{% if x is defined %}no{% endif %}", ""),
        ("{{ (messages + messages) | length }}{{ [1, 2] + [3] }}{{ 1 + 0.5 }}", "4[1, 2, 3]1.5"),
        ("{{ ', '.join(['a', 'b']) }}", "a, b"),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %},{% endfor %}", "system,user,"),
        ("{{ '%s=%03d' % ('n', 7) }}{{ '-' * 3 }}{{ 'key=a=b'.partition('=')[2] }}", "n=007---a=b"),
        ("{% set sep = joiner(', ') %}{% for m in messages %}{{ sep() }}{{ m.role }}{% endfor %}", "system, user"),
        ("{{ {'b': 'é', 'a': [1]} | tojson(sort_keys=true, ensure_ascii=true) }}", r#"{"a": [1], "b": "\u00e9"}"#),
        ("  {% if true %}\n    x\n  {% endif %}\n y", "    x\n y"),
    ] {
        let processor = Folder::copy_of("tiny-idefics2").template(template).load().unwrap();
        assert_eq!(processor.render(&with_generation_prompt(&messages)).unwrap(), expected, "{template}");
    }
    let dated = Folder::copy_of("tiny-idefics2").template("{{ strftime_now('%Y') }}").load().unwrap();
    assert_eq!(dated.render(&with_generation_prompt(&messages)).unwrap().len(), 4);
}

#[test]
fn templates_of_text_models_get_strings() {
    let template = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}";
    let processor = Folder::copy_of("tiny-idefics2").template(template).load().unwrap();
    let parts = vec![Content::text("Look."), Content::text("What?")];
    let messages = [Message::text("system", "Be brief."), Message::new("user", parts)];
    assert_eq!(processor.render(&with_generation_prompt(&messages)).unwrap(), "[system]Be brief.[user]Look.\nWhat?");
    // An image cannot be written as a string, so the template's own error is reported.
    let messages = [Message::new("user", vec![Content::image(dot()), Content::text("What?")])];
    let error = processor.render(&with_generation_prompt(&messages)).unwrap_err();
    assert!(matches!(error, ProcessorError::Render { .. }), "{error}");
}

#[test]
fn raise_exception_message_is_in_the_error() {
    let processor =
        Folder::copy_of("tiny-idefics2").template("{{ raise_exception('roles must alternate') }}").load().unwrap();
    let error = processor.render(&with_generation_prompt(&[Message::text("user", "x")])).unwrap_err();
    assert!(matches!(error, ProcessorError::Render { row: 0, .. }));
    assert!(error.to_string().contains("roles must alternate"), "{error}");
}

#[test]
fn rejects_invalid_templates_at_load() {
    for template in ["{% for %}", "{{ a b }}", "{% if x %}", "{{ 'x", "{% unknown %}", "{{ 'x' | unknown }}"] {
        let error = Folder::copy_of("tiny-idefics2").template(template).error();
        assert!(matches!(error, ProcessorError::Template { .. }), "{template}: {error}");
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(error.to_string().contains("chat_template.json"));
    }
    let error = Folder::copy_of("tiny-idefics2").template(&"x".repeat(300 << 10)).error();
    assert!(matches!(error, ProcessorError::FileTooLarge { .. }), "{error}");
}

#[test]
fn malicious_templates_end_in_an_error() {
    let doubling = "{% set x = x ~ x %}".repeat(60);
    let hostile = [
        // Too many steps.
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}".to_owned(),
        // Unlimited recursion.
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% macro f(x) %}{{ f(x ~ x) }}{{ f(x ~ x) }}{% endmacro %}{{ f('x') }}".to_owned(),
        // Exponential growth, by every operation that can double a value.
        format!("{{% set x = 'xxxxxxxx' %}}{doubling}{{{{ x }}}}"),
        format!("{{% set x = 'xxxxxxxx' %}}{}{{{{ x }}}}", "{% set x = x + x %}".repeat(60)),
        format!("{{% set x = ['x'] %}}{}{{{{ x }}}}", "{% set x = x + x %}".repeat(60)),
        format!("{{% set x = ['x'] %}}{}{{{{ x }}}}", "{% set x = [x, x] %}".repeat(60)),
        format!("{{% set x = ['x'] %}}{}{{{{ x | string }}}}", "{% set x = {'a': x, 'b': x} %}".repeat(60)),
        format!("{{% set x = ['x'] %}}{}{{{{ x | tojson }}}}", "{% set x = (x, x) %}".repeat(60)),
        format!("{{% set x = 'xx' %}}{}{{{{ x }}}}", "{% set x = x.replace('x', x) %}".repeat(60)),
        format!("{{% set x = 'xx' %}}{}{{{{ x }}}}", "{% set x = x | replace('x', x) %}".repeat(60)),
        format!("{{% set x = 'xx' %}}{}{{{{ x }}}}", "{% set x = x.join([x, x, x]) %}".repeat(60)),
        format!("{{% set x = 'xx' %}}{}{{{{ x }}}}", "{% set x = [x, x, x] | join(x) %}".repeat(60)),
        format!("{{% set x = 'xx' %}}{}{{{{ x }}}}", "{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60)),
        format!("{{% macro f(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{{{{ {}'x'{} }}}}", "f(".repeat(40), ")".repeat(40)),
        "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor %}".to_owned(),
        "{% set n = namespace(x=['x'], s='') %}{% for i in range(5000) %}{% set n.s = n.s ~ 'xxxxxxxxxxxxxxxxxxxxxxxx' %}\
         {% set n.x = n.x + [n.s] %}{% endfor %}".to_owned(),
        // Attempts to load other templates.
        "\n{% include 'a' %}".to_owned(),
        "{% import 'a' as b %}".to_owned(),
        "{%- extends 'a' %}".to_owned(),
        // Very large sizes, and a function that does not exist.
        "{{ 'x' | indent(1000000000) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ [1] | slice(1000000000) }}".to_owned(),
        "{{ 'x' * 100000000 }}{{ 'x'.center(100000000) }}{{ [1] * 100000000 }}".to_owned(),
        "{{ '%*d' % (1000000000, 1) }}{{ 10 ** (10 ** 10) }}".to_owned(),
        "{{ {} | tojson(indent=1000000000) }}".to_owned(),
        "{{ debug() }}".to_owned(),
    ];
    for template in hostile {
        let processor = Folder::copy_of("tiny-idefics2").template(&template).load().unwrap();
        let error = processor.render(&with_generation_prompt(&[Message::text("user", "x")])).expect_err(&template);
        assert!(
            matches!(error, ProcessorError::TemplateLimit { .. } | ProcessorError::Render { .. }),
            "{template}: {error}"
        );
        assert_eq!(error.kind(), ErrorKind::Model);
    }
}

#[test]
fn literal_text_of_templates_is_limited() {
    let template =
        format!("{{% set x %}}{{% for i in range(100000) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(200 << 10));
    let processor = Folder::copy_of("tiny-idefics2").template(&template).load().unwrap();
    let error = processor.render(&with_generation_prompt(&[Message::text("user", "x")])).unwrap_err();
    assert!(matches!(error, ProcessorError::TemplateLimit { .. }), "{error}");
}

/// Generates random text from special tokens, parts of special tokens, and arbitrary characters.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => prop::sample::select(SPECIAL.to_vec()).prop_map(str::to_owned),
        3 => prop::sample::select(vec!["<", ">", "<ima", "ge>", "</", "s>", "▁", " ", "\n", "\u{FDD0}"]).prop_map(str::to_owned),
        2 => any::<char>().prop_map(String::from),
        2 => "[a-z ]{1,8}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_image_parts_become_image_tokens(texts in prop::collection::vec(any_text(), 1..4), images in 0..2usize) {
        let (tokenizer, per_image) = (real().tokenizer(), real().image_seq_len());
        let mut content: Vec<Content> = texts.iter().map(Content::text).collect();
        content.extend(std::iter::repeat_n(Content::image(dot()), images));
        let options = ProcessOptions { do_image_splitting: Some(false), ..Default::default() };
        let sample = Sample::chat(user(content));
        let inputs = real().process(&[sample], &options).unwrap();
        let ids = &inputs.input_ids[0];
        prop_assert_eq!(count(ids, tokenizer.image_token_id()), images * per_image);
        prop_assert_eq!(count(ids, tokenizer.fake_token_id()), images * 2 - images.saturating_sub(1));
        prop_assert_eq!(count(ids, tokenizer.end_of_utterance_id().unwrap()), 1);
        prop_assert_eq!(count(ids, tokenizer.eos_token_id().unwrap()), 0);
        prop_assert_eq!(count(ids, tokenizer.bos_token_id().unwrap()), 1);
    }

    #[test]
    fn user_text_survives_encoding_and_decoding(text in any_text()) {
        let inputs = process(user(vec![Content::text(&text)]), SpecialTokensInText::Literal).unwrap();
        prop_assert!(inputs.prompts[0].contains(&text));
        // SentencePiece encodes `▁` as a space.
        let decoded = real().tokenizer().decode(&inputs.input_ids[0], true).unwrap();
        prop_assert!(decoded.contains(&text.replace('▁', " ")), "{:?} in {:?}", text, decoded);
    }

    #[test]
    fn protection_does_not_change_text_without_special_tokens(text in "[a-z <>/▁\n\u{e9}\u{8a9e}0-9.]{0,40}") {
        prop_assume!(SPECIAL.iter().all(|special| !text.contains(special)));
        let messages = || user(vec![Content::text(&text)]);
        let literal = process(messages(), SpecialTokensInText::Literal).unwrap();
        let parsed = process(messages(), SpecialTokensInText::Parse).unwrap();
        prop_assert_eq!(literal, parsed);
    }
}
