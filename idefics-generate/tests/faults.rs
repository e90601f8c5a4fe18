//! Invalid model folders and samples: typed errors that name the fault.

use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use idefics_checkpoint::PicklePolicy;
use idefics_generate::inspect::inspect;
use idefics_generate::{
    DeviceChoice, Error, ErrorKind, GenerationConfig, GenerationError, Idefics1Config, Idefics2Config, Idefics3Config,
    InputError, ModelConfig, Prompts,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{
    copy, edit, edit_tensors, greedy, load, load_folder, never, no_splitting, text_sample, xtask_folder,
};

/// Loads a damaged copy of `odd-heads` and returns the kind and message of the error.
fn refused(damage: impl FnOnce(&Path)) -> (ErrorKind, String) {
    let folder = copy("odd-heads");
    damage(folder.path());
    let error = load_folder(folder.path()).expect_err("the folder is broken");
    assert!(!error.to_string().contains('\n'), "one line: {error}");
    (error.kind(), error.to_string())
}

#[test]
fn invalid_config_error_names_key() {
    let config = |key: &'static str, section: &'static str, value: Value| {
        refused(move |folder| edit(folder, "config.json", |config| config[section][key] = value))
    };
    for (section, key, value) in [
        ("text_config", "num_attention_heads", json!(0)),
        ("text_config", "hidden_size", json!(-3)),
        ("text_config", "hidden_size", json!("32")),
        ("text_config", "hidden_act", json!("mish")),
        ("text_config", "rms_norm_eps", json!(0.0)),
        ("text_config", "num_hidden_layers", json!(1_000_000)),
        ("vision_config", "num_attention_heads", json!(0)),
        ("vision_config", "patch_size", json!(0)),
        ("vision_config", "num_attention_heads", json!(7)),
        ("perceiver_config", "resampler_n_latents", json!(0)),
        ("perceiver_config", "num_key_value_heads", json!(2)),
    ] {
        let (kind, message) = config(key, section, value.clone());
        assert_eq!(kind, ErrorKind::Model, "{message}");
        assert!(message.contains("config.json") && message.contains(key), "{section}.{key} {value}: {message}");
    }
}

#[test]
fn unknown_family_error_names_family() {
    let (kind, message) = refused(|folder| edit(folder, "config.json", |config| config["model_type"] = json!("llava")));
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("llava") && message.contains("idefics2"), "{message}");
}

#[test]
fn errors_name_truncated_file_and_missing_tensor() {
    let (kind, message) = refused(|folder| {
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    });
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("model.safetensors") && message.contains("truncated"), "{message}");

    let (kind, message) = refused(|folder| {
        edit(folder, "config.json", |config| config["text_config"]["num_hidden_layers"] = json!(3));
    });
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("model.text_model.layers.2.") && message.contains("missing"), "{message}");
}

#[test]
fn folders_that_are_missing_or_lack_files_are_named() {
    let (kind, message) = refused(|folder| fs::remove_file(folder.join("config.json")).unwrap());
    assert_eq!(kind, ErrorKind::Model, "{message}");
    assert!(message.contains("has no config.json; a model folder has"), "{message}");
    let missing = load_folder(Path::new("no/such/folder")).unwrap_err();
    assert!(matches!(missing, Error::NoFolder { .. }), "{missing}");
    let inspected = inspect(Path::new("no/such/folder"), PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex());
    assert!(matches!(inspected, Err(Error::NoFolder { .. })));
}

#[test]
fn processor_and_model_must_agree_about_image_tokens() {
    let (kind, message) =
        refused(|folder| fs::write(folder.join("processor_config.json"), r#"{"image_seq_len": 64}"#).unwrap());
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("64") && message.contains("image_seq_len"), "{message}");
}

#[test]
fn tokenizer_and_model_must_agree_about_the_vocabulary() {
    let (kind, message) = refused(|folder| edit(folder, "config.json", |config| config["image_token_id"] = json!(7)));
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("image_token_id") && message.contains('7'), "{message}");
}

#[test]
fn rejects_answer_larger_than_memory() {
    let samples = [text_sample("Hi", &[])];
    let error = load("odd-heads").generate(&samples, &no_splitting(), &greedy(usize::MAX), never()).unwrap_err();
    assert!(matches!(error, Error::Generation(GenerationError::Memory { .. })), "{error}");
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn llama_section_has_llama_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text_config: Value| {
        let config = json!({"model_type": "idefics2", "text_config": text_config, "vision_config": null});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::from_folder(folder.path())
            .map(|config| config.downcast_ref::<Idefics2Config>().unwrap().text_config.clone())
    };
    // Defaults of the reference's `LlamaConfig` and `MistralConfig`.
    let sizes = json!({"model_type": "llama", "vocab_size": 32_003, "hidden_size": 64, "num_attention_heads": 4});
    let llama = read(sizes).unwrap();
    assert_eq!((llama.n_kv_heads(), llama.sliding_window, llama.intermediate_size), (4, None, 11_008));
    let mistral = read(json!({"vocab_size": 32_003})).unwrap();
    assert_eq!((mistral.n_kv_heads(), mistral.sliding_window, mistral.intermediate_size), (8, Some(4096), 14_336));
    assert!(read(json!({"model_type": "gemma"})).unwrap_err().to_string().contains("gemma"));
    let rope = json!({"vocab_size": 32_003, "rope_scaling": {"type": "default", "rope_type": "default"}});
    read(rope).unwrap();
}

#[test]
fn empty_sections_have_the_defaults_of_their_family() {
    let folder = tempfile::tempdir().unwrap();
    let read = |config: Value| {
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::from_folder(folder.path()).unwrap()
    };
    let empty = |model_type: &str| json!({"model_type": model_type, "image_token_id": 9, "vision_config": {}, "perceiver_config": {}});

    // Defaults of the reference's `Idefics2VisionConfig` and `Idefics2PerceiverConfig`.
    let config = read(empty("idefics2"));
    let config = config.downcast_ref::<Idefics2Config>().unwrap();
    assert_eq!((config.vision_config.hidden_size, config.vision_config.num_attention_heads), (768, 12));
    assert_eq!((config.perceiver_config.resampler_depth, config.perceiver_config.resampler_head_dim), (3, 96));
    assert_eq!(config, &Idefics2Config { image_token_id: 9, ..Idefics2Config::default() });

    // `Idefics3VisionConfig`. Its 7 x 7 patches need another `scale_factor` than the default.
    let mut file = empty("smolvlm");
    file["scale_factor"] = json!(7);
    let config = read(file);
    let config = config.downcast_ref::<Idefics3Config>().unwrap();
    assert_eq!((config.vision_config.hidden_size, config.vision_config.num_attention_heads), (1152, 16));

    // `IdeficsVisionConfig` and `IdeficsPerceiverConfig`.
    let config = read(empty("idefics"));
    let config = config.downcast_ref::<Idefics1Config>().unwrap();
    assert_eq!((config.vision_config.embed_dim, config.vision_config.intermediate_size), (768, 5120));
    assert_eq!((config.perceiver_config.resampler_depth, config.perceiver_config.qk_layer_norms_perceiver), (6, false));
    assert_eq!(config, &Idefics1Config::default());
}

#[test]
fn rejects_unsupported_options_by_name() {
    let model = load("odd-heads");
    let mut options = greedy(2);
    options.other.insert("penalty_alpha".to_owned(), json!(0.6));
    let error = model.generate(&[text_sample("Hi", &[])], &no_splitting(), &options, never()).unwrap_err();
    assert!(
        matches!(error, Error::Generation(GenerationError::Unsupported { option: "penalty_alpha", .. })),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[test]
fn too_many_placeholders_error_names_row() {
    let samples = [text_sample("Hi", &[]), text_sample("<image><image>", &["small.png"])];
    let error = load("odd-heads").generate(&samples, &no_splitting(), &greedy(2), never()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains('1') && error.to_string().contains('2'), "{error}");
}

#[test]
fn ids_and_image_tokens_are_checked_on_the_host() {
    let model = load("odd-heads");
    let prompts = Prompts::pad_left(&[vec![1, 2], vec![1, 477]], 0).unwrap();
    let too_large = prompts.upload(477, &Device::flex()).unwrap_err();
    assert_eq!(too_large, InputError::TokenId { row: 1, id: 477, vocab_size: 477 });
    let image = model.processor().tokenizer().image_token_id();
    let prompts = Prompts::pad_left(&[vec![1, image, image]], 0).unwrap();
    let mut cache = model.model().cache(&prompts, 0);
    let error = model.model().prefill(&prompts, None, &mut cache).unwrap_err();
    assert_eq!(error, InputError::ImageTokenCount { tokens: 2, vectors: 0 });
    let holes = Prompts::from_padded(vec![1, 2, 3], &[true, false, true], 3);
    assert_eq!(holes, Err(InputError::Padding { row: 0 }));
}

#[test]
fn empty_prompt_needs_bos_token() {
    let folder = copy("odd-heads");
    edit(folder.path(), "tokenizer.json", |tokenizer| tokenizer["post_processor"] = Value::Null); // it adds `<s>`
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    let model = load_folder(folder.path()).unwrap();
    let ask = |text: &str, bos_token_id| {
        let options = GenerationConfig { bos_token_id, ..greedy(2) };
        model.generate(&[text_sample(text, &[])], &no_splitting(), &options, never())
    };
    let error = ask("", None).unwrap_err();
    assert!(matches!(error, Error::Input(InputError::Empty { row: 0 })), "{error}");
    assert_eq!(ask("", Some(1)).unwrap()[0].usage.prompt_tokens, 1);
    assert_eq!(ask("Hi", Some(1)).unwrap()[0].token_ids, ask("Hi", None).unwrap()[0].token_ids);
    let error = ask("", Some(99_999)).unwrap_err();
    assert!(matches!(error, Error::Input(InputError::TokenId { row: 0, id: 99_999, .. })), "{error}");
}

#[test]
fn forbidding_every_token_is_an_error() {
    let model = load("odd-heads");
    let mut options = greedy(2);
    options.bad_words_ids = Some((0..477).map(|id| vec![id]).collect());
    options.eos_token_id = Some(idefics_generate::EosTokenId::Many(vec![]));
    let error = model.generate(&[text_sample("Hi", &[])], &no_splitting(), &options, never()).unwrap_err();
    assert!(matches!(error, Error::NoAllowedToken { row: 0 }), "{error}");
}

#[test]
fn overflow_is_a_numeric_error() {
    let folder = copy("odd-heads");
    // Huge weights make the logits overflow.
    edit_tensors(folder.path(), |tensors| {
        let head = tensors.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
        head.3 = head.3.chunks(4).flat_map(|_| f32::MAX.to_le_bytes()).collect();
    });
    let model = load_folder(folder.path()).unwrap();
    let error = model.generate(&[text_sample("Hi", &[])], &no_splitting(), &greedy(2), never()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { row: 0, n_tokens: 0 }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Numeric);
}

#[test]
fn inspection_counts_every_parameter() {
    let folder = xtask_folder("checkpoints/odd-heads");
    let inspection = inspect(&folder, PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex()).unwrap();
    assert_eq!(inspection.family, "idefics2");
    let model = idefics_generate::Idefics2::from_folder(&folder, &Device::flex(), DType::F32, |_| ()).unwrap();
    assert_eq!(inspection.parameters, burn::module::Module::num_params(&model));
    let of = |name: &str| inspection.precisions.iter().find(|held| held.name == name).unwrap().weights;
    assert_eq!(of("f32").total(), 4 * inspection.parameters as u64);
    assert!(of("nf4").total() < of("int8").total() && of("int8").total() < of("f32").total());
    assert_eq!(inspection.file_bytes, inspection.parts.iter().map(|part| part.file_bytes).sum::<usize>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_config_is_parsed_or_rejected(
        section in prop::sample::select(vec!["text_config", "vision_config", "perceiver_config"]),
        key in prop::sample::select(vec![
            "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "patch_size",
            "image_size", "rope_theta", "rope_scaling", "rms_norm_eps", "sliding_window", "vocab_size", "hidden_act",
        ]),
        value in prop_oneof![
            any::<i64>().prop_map(|number| json!(number)),
            any::<f64>().prop_map(|number| json!(number)),
            "[a-z0-9]{0,6}".prop_map(|text| json!(text)),
            Just(Value::Null), Just(json!([])), Just(json!({"rope_type": "llama3"})),
        ],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "idefics2", section: {key: value}});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        if let Ok(config) = ModelConfig::from_folder(folder.path()) {
            // Every accepted configuration can be assembled, without a division by zero. Nothing is allocated.
            config.assemble(&Device::flex()).unwrap();
        }
    }
}
