//! The whole processor: all committed reference cases, folders with missing or broken files, and invalid rows.

use std::path::{Path, PathBuf};

use idefics_processor::image::{Alpha, ImageSource};
use idefics_processor::{
    Compatibility, ErrorKind, Message, PaddingSide, ProcessOptions, Processor, ProcessorError, Sample, TextLimits,
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::{Folder, checkpoint, dot, real};

#[derive(Deserialize)]
struct Case {
    family: String,
    checkpoint: PathBuf,
    samples: Vec<Sample>,
    #[serde(default)]
    processor: CaseProcessor,
    #[serde(default)]
    tolerance: std::collections::BTreeMap<String, f32>,
}

#[derive(Deserialize, Default)]
struct CaseProcessor {
    do_image_splitting: Option<bool>,
    alpha: Option<String>,
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/cases");
    let entries = std::fs::read_dir(folder).expect("the committed cases exist");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    cases
}

fn integers(tensor: &TensorView<'_>) -> Vec<i64> {
    tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn committed_cases_match_reference() {
    let mut compared = 0;
    for folder in cases() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        if case.family != "idefics2" || expected.tensor("processor.input_ids").is_err() {
            continue;
        }
        let processor = Processor::from_folder(&folder.join(&case.checkpoint)).unwrap();
        let mut samples = case.samples;
        samples.iter_mut().for_each(|sample| sample.resolve_paths(&folder));
        let alpha = if case.processor.alpha.as_deref() == Some("drop") { Alpha::Drop } else { Alpha::White };
        let do_image_splitting = case.processor.do_image_splitting;
        let inputs =
            processor.process(&samples, &ProcessOptions { do_image_splitting, alpha, ..Default::default() }).unwrap();

        let pad = processor.tokenizer().pad_token_id_or_fallback();
        let batch = inputs.padded(pad, PaddingSide::Left);
        let ids = expected.tensor("processor.input_ids").unwrap();
        assert_eq!(ids.shape(), [batch.batch, batch.seq], "{name}");
        assert_eq!(batch.input_ids, integers(&ids), "{name}");
        assert_eq!(batch.attention_mask, integers(&expected.tensor("processor.attention_mask").unwrap()), "{name}");

        if let Ok(pixels) = expected.tensor("processor.pixel_values") {
            let images = inputs.padded_images().expect(&name);
            assert_eq!(pixels.shape(), images.pixel_values_shape(), "{name}");
            let difference =
                images.pixel_values.iter().zip(floats(&pixels)).map(|(ours, theirs)| (ours - theirs).abs());
            let difference = difference.fold(0.0, f32::max);
            let tolerance = case.tolerance.get("processor.pixel_values").or(case.tolerance.get("*")).unwrap();
            assert!(difference <= *tolerance, "{name}: pixels differ by {difference}");
            let mask = expected.tensor("processor.pixel_attention_mask").unwrap();
            assert_eq!(images.pixel_attention_mask, integers(&mask), "{name}");
        }
        compared += 1;
    }
    assert!(compared >= 20, "only {compared} cases were compared");
}

#[test]
fn rows_of_a_batch_are_independent() {
    let samples = [
        Sample::Text {
            text: "User:<image>What?<end_of_utterance>\nAssistant:".into(),
            images: vec![dot()],
            videos: Vec::new(),
        },
        Sample::Text {
            text: "User: no image<end_of_utterance>\nAssistant:".into(),
            images: vec![],
            videos: Vec::new(),
        },
        Sample::chat(vec![Message::text("user", "and this?")]),
    ];
    let options = ProcessOptions { do_image_splitting: Some(true), ..Default::default() };
    let together = real().process(&samples, &options).unwrap();
    for (row, sample) in samples.iter().enumerate() {
        let alone = real().process(std::slice::from_ref(sample), &options).unwrap();
        assert_eq!(together.input_ids[row], alone.input_ids[0]);
        assert_eq!(together.prompts[row], alone.prompts[0]);
        assert_eq!(together.images[row], alone.images[0]);
    }
    assert_eq!(together.images[0].len(), 5);
    let left = together.padded(7, PaddingSide::Left);
    let right = together.padded(7, PaddingSide::Right);
    assert_eq!([left.batch, left.seq], [3, together.input_ids[0].len()]);
    let row = |batch: &[i64], row: usize| batch[row * left.seq..(row + 1) * left.seq].to_vec();
    let real_tokens = together.input_ids[1].len();
    assert_eq!(row(&left.input_ids, 1)[0], 7);
    assert_eq!(row(&left.attention_mask, 1).iter().sum::<i64>(), real_tokens as i64);
    assert_eq!(row(&left.input_ids, 1)[left.seq - real_tokens..], row(&right.input_ids, 1)[..real_tokens]);
    assert_eq!(row(&right.attention_mask, 1)[real_tokens..].iter().sum::<i64>(), 0);
}

#[test]
fn releases_differ_as_documented() {
    let modern = Folder::copy_of("mistral-tokenizer").change("tokenizer_config.json", |config| {
        config.insert("legacy".into(), json!(false));
    });
    let modern = modern.load().unwrap();
    let (four, five) = (Compatibility::Transformers4, Compatibility::Transformers5);
    let tokens = |processor: &Processor, text: &str, compatibility| {
        let options = ProcessOptions { compatibility, do_image_splitting: Some(false), ..Default::default() };
        let sample = Sample::Text { text: text.into(), images: vec![dot()], videos: Vec::new() };
        let ids = processor.process(&[sample], &options).unwrap().input_ids.remove(0);
        let tokens: Vec<String> = ids.iter().map(|&id| processor.tokenizer().id_to_token(id).unwrap()).collect();
        let last_fake = tokens.iter().rposition(|token| token == "<fake_token_around_image>").unwrap();
        tokens[last_fake + 1..].join(" ")
    };
    let turn = "User:<image>What is this?<end_of_utterance>\nAssistant:";
    let legacy = "▁What ▁is ▁this ? <end_of_utterance> ▁ <0x0A> Ass istant :";
    assert_eq!(tokens(real(), turn, four), legacy);
    assert_eq!(tokens(real(), turn, five), legacy);
    assert_eq!(tokens(&modern, turn, four), legacy);
    assert_eq!(tokens(&modern, turn, five), "▁What ▁is ▁this ? <end_of_utterance> <0x0A> Ass istant :");
    assert_eq!(tokens(real(), "<image> What", four), "▁ ▁What");
    assert_eq!(tokens(real(), "<image> What", five), "▁What");
}

#[test]
fn missing_files_give_defaults_of_reference_classes() {
    let folder = Folder::empty()
        .write("tokenizer.json", std::fs::read_to_string(checkpoint("tiny-idefics2").join("tokenizer.json")).unwrap());
    let processor = folder.load().unwrap();
    assert_eq!(processor.image_seq_len(), 64);
    assert!(!processor.image_config().do_image_splitting);
    assert!(processor.chat_template().is_none());
    assert_eq!(processor.tokenizer().pad_token_id(), None);
    assert_eq!(processor.tokenizer().pad_token_id_or_fallback(), 0);
    let sample = Sample::Text { text: "<image>".into(), images: vec![dot()], videos: Vec::new() };
    let inputs = processor.process(&[sample], &ProcessOptions::default()).unwrap();
    assert_eq!(inputs.input_ids[0].len(), 1 + 64 + 2);

    let error = Folder::copy_of("tiny-idefics2").remove("tokenizer.json").error();
    assert!(matches!(&error, ProcessorError::MissingFile { file: "tokenizer.json", .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Model);
    let error = Processor::from_folder(Path::new("no/such/folder")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileSystem);
    let error = Processor::from_folder(&checkpoint("tiny-idefics2").join("tokenizer.json")).unwrap_err();
    assert!(matches!(error, ProcessorError::NotThere { .. }), "{error}");
}

#[test]
fn chat_template_precedence_matches_reference() {
    let comment = |name: &str| format!("{{# {name} #}}");
    let rendered = |folder: &Folder| folder.load().unwrap().chat_template().unwrap().source().to_owned();
    let folder =
        Folder::copy_of("tiny-idefics2").remove("chat_template.json").change("tokenizer_config.json", |config| {
            config.insert(
                "chat_template".into(),
                json!([{"name": "other", "template": "x"}, {"name": "default", "template": comment("tokenizer")}]),
            );
        });
    assert_eq!(rendered(&folder), comment("tokenizer"));
    let folder = folder.write("chat_template.jinja", comment("jinja"));
    assert_eq!(rendered(&folder), comment("jinja"));
    let folder = folder.template(&comment("json"));
    assert_eq!(rendered(&folder), comment("json"));
    let folder = folder.change("processor_config.json", |config| {
        config.insert("chat_template".into(), json!({"default": comment("processor")}));
    });
    assert_eq!(rendered(&folder), comment("processor"));
    let folder = folder.change("processor_config.json", |config| {
        config.insert("chat_template".into(), json!(3));
    });
    assert!(matches!(folder.error(), ProcessorError::Field { field: "chat_template", .. }));
}

#[test]
fn errors_name_the_broken_file_and_field() {
    let tiny = || Folder::copy_of("tiny-idefics2");
    type Check = fn(&ProcessorError) -> bool;
    let cases: Vec<(Folder, &str, Check)> = vec![
        (tiny().write("config.json", "{"), "config.json", |error| matches!(error, ProcessorError::Json { .. })),
        (tiny().write("config.json", r#"{"model_type": "llava"}"#), "llava", |error| {
            matches!(error, ProcessorError::Family { .. })
        }),
        (tiny().write("tokenizer_config.json", "[]"), "tokenizer_config.json", |error| {
            matches!(error, ProcessorError::Json { .. })
        }),
        (tiny().write("tokenizer_config.json", r#"{"tokenizer_class": 3}"#), "`tokenizer_class` is 3", |error| {
            matches!(error, ProcessorError::Field { .. })
        }),
        (
            tiny().write("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": 1}}"#),
            "added_tokens_decoder",
            |error| matches!(error, ProcessorError::Field { .. }),
        ),
        (tiny().write("processor_config.json", r#"{"image_seq_len": 0}"#), "`image_seq_len` is 0", |error| {
            matches!(error, ProcessorError::Field { .. })
        }),
        (tiny().write("processor_config.json", r#"{"image_processor": []}"#), "`image_processor`", |error| {
            matches!(error, ProcessorError::Field { .. })
        }),
        (tiny().write("preprocessor_config.json", r#"{"rescale_factor": 0}"#), "rescale_factor", |error| {
            matches!(error, ProcessorError::ImageConfig { .. })
        }),
        (tiny().remove("chat_template.json").write("chat_template.json", "{"), "chat_template.json", |error| {
            matches!(error, ProcessorError::Json { .. })
        }),
        (tiny().write("tokenizer_config.json", " ".repeat(5 << 20)), "tokenizer_config.json", |error| {
            matches!(error, ProcessorError::FileTooLarge { .. })
        }),
    ];
    for (folder, named, check) in cases {
        let error = folder.error();
        assert!(check(&error), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        assert!(message.contains(named) && !message.contains('\n') && !message.ends_with('.'), "{message}");
    }
}

/// Returns the tiny checkpoint with an edited `tokenizer.json`.
fn tokenizer(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Folder {
    Folder::copy_of("tiny-idefics2").change("tokenizer.json", change)
}

#[test]
fn rejects_malicious_tokenizers() {
    for content in
        ["", "{", "[]", "{}", r#"{"version": "2.0"}"#, r#"{"version": "1.0", "model": {"type": "BPE"}}"#, "\u{0}"]
    {
        for class in ["LlamaTokenizer", "PreTrainedTokenizerFast"] {
            let folder = Folder::copy_of("tiny-idefics2").write("tokenizer.json", content).change(
                "tokenizer_config.json",
                |config| {
                    config.insert("tokenizer_class".into(), json!(class));
                },
            );
            assert_eq!(folder.error().kind(), ErrorKind::Model, "{content} {class}");
        }
    }
    let unigram = tokenizer(|json| {
        json["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": false})
    });
    assert!(matches!(unigram.error(), ProcessorError::Field { field: "model.type", .. }));
    let merges = tokenizer(|json| json["model"]["merges"] = json!(["no such", "merge at all", 7]));
    assert!(matches!(merges.error(), ProcessorError::Tokenizer { .. }));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(Folder::copy_of("tiny-idefics2").write("tokenizer.json", deep).error().kind(), ErrorKind::Model);

    let many = Folder::copy_of("tiny-idefics2").change("tokenizer_config.json", |config| {
        let tokens: Vec<String> = (0..5000).map(|index| format!("<extra_{index}>")).collect();
        config.insert("additional_special_tokens".into(), json!(tokens));
    });
    assert!(matches!(many.error(), ProcessorError::Field { field: "added_tokens", .. }));
    let long = Folder::copy_of("tiny-idefics2").change("tokenizer_config.json", |config| {
        config.insert("additional_special_tokens".into(), json!(["x".repeat(1 << 20)]));
    });
    let error = long.error();
    assert!(matches!(error, ProcessorError::TokenInvalid { .. }) && error.to_string().len() < 400, "{error}");
}

/// Returns the tiny checkpoint with an edited `tokenizer.json` whose steps are used as they are.
fn steps(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Folder {
    tokenizer(change).change("tokenizer_config.json", |config| {
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    })
}

#[test]
fn rejects_tokenizers_that_multiply_texts() {
    let regex = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"});
    let text = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
    let nested = json!({"type": "Sequence", "decoders": vec![&text; 12]});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let copies = vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 1000];
    let template = json!({"type": "TemplateProcessing", "single": copies, "pair": [], "special_tokens": {}});
    let added = json!({"content": "x".repeat(2 << 20), "id": 600, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    for (field, value) in [
        ("decoder", json!({"type": "Sequence", "decoders": vec![&regex; 12]})),
        ("decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, nested]})),
        ("decoder", json!({"type": "Sequence", "decoders": vec![json!({"type": "BPEDecoder", "suffix": ""}); 40]})),
        ("decoder", json!({"type": "Replace", "pattern": {"String": ""}, "content": " ".repeat(1 << 20)})),
        ("normalizer", json!({"type": "Sequence", "normalizers": vec![&text; 12]})),
        ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)})),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![&bytes; 40]})),
        ("post_processor", template),
        ("added_tokens", json!([added])),
    ] {
        let error = steps(|json| json[field] = value).error();
        assert!(matches!(error, ProcessorError::Field { field: named, .. } if named == field), "{error}");
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        assert!(message.contains(&format!("tokenizer.json: `{field}`")) && message.len() < 400, "{message}");
    }
    assert!(steps(|json| json["decoder"] = json!({"type": "Sequence", "decoders": [regex, text]})).load().is_ok());

    let long = tokenizer(|json| json["model"]["vocab"]["x".repeat((1 << 14) + 1)] = json!(474));
    let error = long.error();
    assert!(matches!(error, ProcessorError::TokenInvalid { .. }) && error.to_string().len() < 400, "{error}");
}

#[test]
fn missing_tokens_are_appended_to_the_vocabulary() {
    let drop_specials = |json: &mut serde_json::Map<String, Value>| {
        json["added_tokens"]
            .as_array_mut()
            .unwrap()
            .retain(|token| !token["content"].as_str().unwrap().contains("image"));
    };
    let folder = tokenizer(drop_specials).change("tokenizer_config.json", |config| {
        config.remove("added_tokens_decoder");
        config.remove("additional_special_tokens");
    });
    let folder = folder.remove("special_tokens_map.json");
    let processor = folder.load().unwrap();
    let tokenizer = processor.tokenizer();
    // The vocabulary has 474 tokens. As in the reference, `<end_of_utterance>` and then the appended tokens follow.
    assert_eq!((tokenizer.fake_token_id(), tokenizer.image_token_id()), (475, 476));
    let same = Folder::copy_of("tiny-idefics2").change("tokenizer_config.json", |config| {
        config.insert("image_token".into(), json!("<end_of_utterance>"));
    });
    assert!(matches!(same.error(), ProcessorError::TokenInvalid { .. }));
}

#[test]
fn errors_name_the_row_and_the_image() {
    let row = |text: &str, images: Vec<ImageSource>| Sample::Text { text: text.into(), images, videos: Vec::new() };
    let process = |samples: &[Sample]| real().process(samples, &ProcessOptions::default()).unwrap_err();
    assert!(matches!(process(&[]), ProcessorError::EmptyBatch));

    let error = process(&[row("a", vec![]), row("<image> and <image>", vec![dot()])]);
    assert!(matches!(error, ProcessorError::ImageCount { row: 1, placeholders: 2, images: 1, .. }));
    assert_eq!(error.to_string(), "row 1: the text has 2 <image> placeholders; expected 1, one per image");
    assert_eq!(error.kind(), ErrorKind::Input);

    let gone = ImageSource::Path("no/such.png".into());
    let error = process(&[row("a", vec![]), row("<image><image>", vec![dot(), gone])]);
    assert!(matches!(error, ProcessorError::Image { row: 1, image: 1, .. }));
    assert_eq!(error.kind(), ErrorKind::FileSystem);
    assert!(error.to_string().starts_with("row 1, image 1: no/such.png"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    let error = process(&[row("<image>", vec![b"not an image".to_vec().into()])]);
    assert_eq!(error.kind(), ErrorKind::Input);

    let error = process(&[Sample::chat(vec![])]);
    assert!(matches!(error, ProcessorError::EmptyMessages { row: 0 }));
    let text_limits = TextLimits { max_text_bytes: 10, ..Default::default() };
    let options = ProcessOptions { text_limits, ..Default::default() };
    let error = real().process(&[row("a text of some length", vec![])], &options).unwrap_err();
    assert!(matches!(error, ProcessorError::TextTooLarge { row: 0, limit: 10, .. }));
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn long_repetitive_texts_keep_every_character() {
    for text in ["a".repeat(100_000), " ".repeat(100_000), "👩‍👩‍👧".repeat(20_000), "▁".repeat(50_000), "<".repeat(100_000)]
    {
        // A quadratic algorithm would take minutes here.
        let ids = |text: &str| {
            let sample = Sample::chat(vec![Message::text("user", text)]);
            real().process(&[sample], &ProcessOptions::default()).unwrap().input_ids.remove(0)
        };
        let (ids, none) = (ids(&text), ids("x"));
        let found = real().tokenizer().decode(&ids, false).unwrap();
        let around = real().tokenizer().decode(&none, false).unwrap();
        let n_chars = found.chars().count() - (around.chars().count() - 1);
        assert_eq!(n_chars, text.chars().count(), "{:?}", text.chars().next());
    }
}
