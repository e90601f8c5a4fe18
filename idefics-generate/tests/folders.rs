//! Model folders as they occur in practice: with missing or superfluous files, and folders that are not models.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use idefics_checkpoint::{CheckpointError, CheckpointWarning, PicklePolicy};
use idefics_generate::inspect::inspect;
use idefics_generate::{
    DeviceChoice, Error, ErrorKind, GenerationConfig, GenerationWarning, Idefics, Idefics2Config, InputError,
    ModelConfig, ModelWarning,
};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::common::{copy, edit, edit_tensors, greedy, load, load_folder, never, no_splitting, text_sample};

/// Returns the token ids of an answer about an image.
fn answer(model: &Idefics) -> Vec<u32> {
    let samples = [text_sample("<image>What?", &["small.png"])];
    model.generate(&samples, &no_splitting(), &greedy(6), never()).unwrap().remove(0).token_ids
}

fn warnings(model: &Idefics) -> Vec<String> {
    let warnings: Vec<String> = model.warnings().iter().map(ToString::to_string).collect();
    assert!(warnings.iter().all(|warning| !warning.contains('\n')), "{warnings:?}");
    warnings
}

fn load_error(folder: &Path) -> (ErrorKind, String) {
    let error = load_folder(folder).expect_err("loading must fail");
    let message = error.to_string();
    assert!(!message.contains('\n') && !message.contains("os error"), "{message}");
    (error.kind(), message)
}

#[test]
fn committed_checkpoints_have_no_warnings() {
    for name in ["tiny-idefics2", "odd-heads", "wide-heads", "sliding-sharded", "idefics1-float", "idefics1-plain"] {
        assert_eq!(warnings(&load(name)), Vec::<String>::new(), "{name}");
    }
}

/// Copies a checkpoint and removes its last token from the tokenizer's files, the embeddings and the head.
fn without_last_token(checkpoint: &str, token: &str) -> tempfile::TempDir {
    let folder = copy(checkpoint);
    let other = |entry: &Value| entry["content"] != token && entry != token;
    edit(folder.path(), "tokenizer.json", |file| file["added_tokens"].as_array_mut().unwrap().retain(other));
    edit(folder.path(), "tokenizer_config.json", |file| {
        file["added_tokens_decoder"].as_object_mut().unwrap().retain(|_, entry| other(entry));
        file["additional_special_tokens"].as_array_mut().unwrap().retain(other);
    });
    edit(folder.path(), "config.json", |config| {
        let vocab_size = config["text_config"]["vocab_size"].as_u64().unwrap();
        config["text_config"]["vocab_size"] = json!(vocab_size - 1);
    });
    edit_tensors(folder.path(), |tensors| {
        let is_of_vocabulary = |name: &str| name == "lm_head.weight" || name.ends_with("embed_tokens.weight");
        for (_, _, shape, data) in tensors.iter_mut().filter(|(name, ..)| is_of_vocabulary(name)) {
            data.truncate(data.len() / shape[0] * (shape[0] - 1));
            shape[0] -= 1;
        }
    });
    folder
}

#[test]
fn base_checkpoint_without_end_of_utterance_works() {
    let folder = without_last_token("tiny-idefics2", "<end_of_utterance>");
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    let model = load_folder(folder.path()).unwrap();
    assert_eq!(warnings(&model), Vec::<String>::new());
    // With the token forbidden, the complete checkpoint must give the same answer.
    let mut whole = greedy(6);
    whole.bad_words_ids = Some(vec![vec![476]]);
    whole.eos_token_id = Some(idefics_generate::EosTokenId::One(2));
    let samples = [text_sample("<image>What?", &["small.png"])];
    let expected = load("tiny-idefics2").generate(&samples, &no_splitting(), &whole, never()).unwrap();
    assert_eq!(answer(&model), expected[0].token_ids);

    let samples = [text_sample("Hi", &[]), text_sample("One<end_of_utterance>\nTwo", &[])];
    let error = model.generate(&samples, &no_splitting(), &greedy(2), never()).unwrap_err();
    match &error {
        Error::Input(InputError::NoEmbedding { row: 1, token, id: 476, vocab_size: 476 }) => {
            assert_eq!(token, "<end_of_utterance>");
        }
        other => panic!("{other}"),
    }
    assert_eq!(error.kind(), ErrorKind::Input);
}

#[test]
fn tokens_without_embedding_are_rejected_only_in_prompts() {
    for (checkpoint, prompt) in
        [("tiny-idefics2", json!({"text": "One<extra_1>Two"})), ("idefics1-float", json!({"prompt": ["One<extra_1>"]}))]
    {
        let folder = copy(checkpoint);
        let extra = |index: u32, id: u64| {
            json!({"id": id, "content": format!("<extra_{index}>"), "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false})
        };
        let mut first = 0;
        edit(folder.path(), "tokenizer.json", |file| {
            let last = file["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap()).max();
            first = last.unwrap() + 1;
            let tokens = file["added_tokens"].as_array_mut().unwrap();
            tokens.extend((0..6).map(|index| extra(index, first + u64::from(index))));
        });
        edit(folder.path(), "tokenizer_config.json", |file| {
            if let Some(tokens) = file["added_tokens_decoder"].as_object_mut() {
                tokens.extend((0..6).map(|index| ((first + u64::from(index)).to_string(), extra(index, 0))));
            }
        });
        let model = load_folder(folder.path()).unwrap();
        let [warning] = model.warnings() else { panic!("{:?}", model.warnings()) };
        assert!(
            matches!(warning, ModelWarning::TokensWithoutEmbedding { tokens, .. } if tokens.len() == 6),
            "{warning}"
        );
        let said = warning.to_string();
        assert!(said.contains(&format!("6 tokens from id {first} on")) && !said.contains("extra"), "{said}");
        let ask = |sample: Value| {
            let samples = [serde_json::from_value(sample).unwrap()];
            model.generate(&samples, &no_splitting(), &greedy(2), never())
        };
        assert!(ask(json!({"text": "One and two"})).is_ok(), "{checkpoint}");
        let error = ask(prompt).unwrap_err();
        assert!(error.to_string().contains("`<extra_1>`") && error.kind() == ErrorKind::Input, "{checkpoint}: {error}");
    }
}

#[test]
fn warns_once_about_unknown_image_processor_keys() {
    let folder = copy("wide-heads");
    edit(folder.path(), "preprocessor_config.json", |config| {
        config["auto_map"] = json!({"AutoImageProcessor": "mine.Mine"});
        config["max_image_size"] = json!({"longest_edge": 364});
        config["use_fast"] = json!(true);
    });
    let model = load_folder(folder.path()).unwrap();
    let [warning] = &warnings(&model)[..] else { panic!("{:?}", model.warnings()) };
    assert!(
        warning.contains("preprocessor_config.json") && warning.ends_with("`auto_map`, `max_image_size`"),
        "{warning}"
    );
    assert_eq!(answer(&model), answer(&load("wide-heads")));
}

#[test]
fn unused_tensors_are_counted() {
    let folder = copy("wide-heads");
    edit_tensors(folder.path(), |tensors| {
        let extra = |name: &str| (name.to_owned(), Dtype::F32, vec![2, 2], vec![0; 16]);
        tensors.push(extra("model.text_model.layers.0.self_attn.rotary_emb.inv_freq")); // old files contain this tensor
        tensors.extend((7..20).map(|layer| extra(&format!("model.text_model.layers.{layer}.mlp.up_proj.weight"))));
    });
    let model = load_folder(folder.path()).unwrap();
    let [ModelWarning::Checkpoint(CheckpointWarning::Unused { names, .. })] = model.warnings() else {
        panic!("{:?}", model.warnings());
    };
    assert_eq!(names.len(), 13);
    assert!(warnings(&model)[0].contains("13 tensors") && warnings(&model)[0].contains("and 5 more"));
    assert_eq!(answer(&model), answer(&load("wide-heads")));
    let inspection = inspect(folder.path(), PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex()).unwrap();
    assert_eq!(inspection.warnings, model.warnings());
}

#[test]
fn shards_take_precedence_over_index() {
    let folder = copy("sliding-sharded");
    edit(folder.path(), "model.safetensors.index.json", |index| {
        index["weight_map"]["model.text_model.rotary_emb.inv_freq"] = json!("model-00005-of-00005.safetensors");
    });
    let model = load_folder(folder.path()).unwrap();
    let [warning] = &warnings(&model)[..] else { panic!("{:?}", model.warnings()) };
    assert!(warning.contains("index.json") && warning.contains("rotary_emb.inv_freq"), "{warning}");
    assert_eq!(answer(&model), answer(&load("sliding-sharded")));
}

#[test]
fn git_lfs_pointer_error_names_file() {
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
        "chat_template.json",
    ] {
        let folder = copy("tiny-idefics2");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 4912345678\n";
        fs::write(folder.path().join(file), pointer).unwrap();
        let (kind, message) = load_error(folder.path());
        assert_eq!(kind, ErrorKind::Model, "{message}");
        assert!(message.contains(file) && message.contains("git lfs pull"), "{message}");
    }
}

#[test]
fn rejects_adapter_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = "HuggingFaceM4/idefics2-8b";
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": base, "r": 8});
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let (kind, message) = load_error(folder.path());
    assert_eq!(kind, ErrorKind::Model);
    assert!(message.contains("adapter of HuggingFaceM4/idefics2-8b") && message.contains("merge"), "{message}");
    assert!(matches!(ModelConfig::from_folder(folder.path()), Err(Error::Adapter { .. })));
    let inspected = inspect(folder.path(), PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex());
    assert!(matches!(inspected, Err(Error::Adapter { .. })));
    // Some trainers add the model's configuration; others write only the adapter's weights.
    fs::write(folder.path().join("config.json"), r#"{"model_type": "idefics2"}"#).unwrap();
    assert!(matches!(load_folder(folder.path()), Err(Error::Adapter { .. })));
    fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), [0; 16]).unwrap();
    assert!(load_error(folder.path()).1.contains("adapter of an unnamed base model"));
}

#[test]
fn warns_about_adapter_next_to_weights() {
    let folder = copy("wide-heads");
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "org/base"});
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let model = load_folder(folder.path()).unwrap();
    let [warning] = &warnings(&model)[..] else { panic!("{:?}", model.warnings()) };
    assert!(warning.contains("adapter of org/base is not applied") && warning.contains("merge"), "{warning}");
    assert_eq!(answer(&model), answer(&load("wide-heads")));
}

#[test]
fn invalid_gguf_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let with_ending = folder.path().join("model-q4.gguf");
    let without = folder.path().join("model");
    for path in [&with_ending, &without] {
        fs::write(path, b"GGUF\x03\0\0\0\0\0\0\0").unwrap();
    }
    for path in [&with_ending, &without, &folder.path().to_owned()] {
        let (kind, message) = load_error(path);
        assert_eq!(kind, ErrorKind::Model);
        assert!(message.contains("truncated GGUF") || message.contains("several models"), "{message}");
        let inspected = inspect(path, PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex());
        assert!(matches!(inspected, Err(Error::Checkpoint(CheckpointError::Gguf(_)))));
    }
}

#[test]
fn warns_about_unsupported_options_of_folder() {
    let folder = copy("odd-heads");
    let options = json!({"penalty_alpha": 0.6, "guidance_scale": 1.0, "eos_token_id": [2, 99_999],
        "bad_words_ids": [[99_999]], "forced_bos_token_id": 99_999, "sequence_bias": [[[3], 1.0], [[4, 99_999], 2.0]]});
    fs::write(folder.path().join("generation_config.json"), options.to_string()).unwrap();
    let model = load_folder(folder.path()).unwrap();
    let warnings = warnings(&model);
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    for option in ["penalty_alpha", "eos_token_id", "bad_words_ids", "forced_bos_token_id", "sequence_bias"] {
        let named = format!("generation_config.json: `{option}`");
        assert!(warnings.iter().any(|warning| warning.contains(&named)), "{option}: {warnings:?}");
    }
    let kept = model.generation_config();
    assert_eq!(kept.eos_token_ids(), [2]);
    assert_eq!(kept.sequence_bias, Some(vec![(vec![3], 1.0)]));
    assert_eq!((&kept.bad_words_ids, kept.forced_bos_token_id), (&None, None));
    answer(&model);
}

#[test]
fn quantization_config_quantises_on_load() {
    for (section, format, double_quant) in [
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "fp4", false),
        (json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true}), "nf4", true),
        (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "int8", false),
    ] {
        let folder = copy("small-wide-heads");
        edit(folder.path(), "config.json", |config| config["quantization_config"] = section.clone());
        let model = load_folder(folder.path()).unwrap();
        let [ModelWarning::QuantizedOnLoad { format: found, .. }] = model.warnings() else {
            panic!("{:?}", model.warnings());
        };
        assert_eq!(*found, format, "{section}");
        let asked = idefics_generate::WeightOptions {
            dtype: Some(burn::tensor::DType::F32),
            quantize: format.parse().unwrap(),
            double_quant,
            ..Default::default()
        };
        let load = |options| {
            let folder = crate::common::xtask_folder("checkpoints/small-wide-heads");
            Idefics::from_folder(&folder, &Device::flex(), options, |_| ()).unwrap()
        };
        let samples = [text_sample("<image>What?", &["small.png"])];
        let logits = |model: &Idefics| crate::common::next_logits(model, &samples);
        let expected = logits(&load(asked));
        assert_eq!(crate::common::difference(logits(&model), expected.clone()), 0.0, "{section}");
        assert!(crate::common::difference(expected, logits(&load(burn::tensor::DType::F32.into()))) > 1e-3);
        let memory = |config: &ModelConfig| {
            let checkpoint = idefics_checkpoint::Checkpoint::open(folder.path()).unwrap();
            config.memory(Some(&checkpoint), &Device::flex(), None).unwrap().total()
        };
        let config = ModelConfig::from_folder(folder.path()).unwrap();
        let mut plain = config.downcast_ref::<Idefics2Config>().unwrap().clone();
        plain.quantization_config = None;
        assert!(memory(&config) < memory(&plain.into()), "{section}");
    }
    let folder = copy("small-wide-heads");
    edit(folder.path(), "config.json", |config| {
        config["quantization_config"] = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "int3"});
    });
    assert!(load_error(folder.path()).1.contains("bnb_4bit_quant_type"));
    // Modules in the list are not quantised.
    edit(folder.path(), "config.json", |config| {
        config["quantization_config"] = json!({"load_in_8bit": true, "llm_int8_skip_modules":
            ["lm_head", "model.vision_model", "model.connector", "model.text_model"]});
    });
    let model = load_folder(folder.path()).unwrap();
    assert_eq!(answer(&model), answer(&load("small-wide-heads")));
}

#[test]
fn prompt_may_exceed_trained_context() {
    let samples = [text_sample("<image>What is in the left corner, and what is above it?", &["small.png"])];
    let ask = |folder: &Path| {
        let model = load_folder(folder).unwrap();
        model.generate(&samples, &no_splitting(), &greedy(6), never()).unwrap().remove(0)
    };
    for (checkpoint, section) in [("wide-heads", Some("text_config")), ("idefics1-float", None)] {
        let folder = copy(checkpoint);
        let expected = ask(folder.path());
        assert!(expected.warnings.is_empty());
        edit(folder.path(), "config.json", |config| match section {
            Some(section) => config[section]["max_position_embeddings"] = json!(16),
            None => config["max_position_embeddings"] = json!(16),
        });
        let answer = ask(folder.path());
        assert_eq!(answer.token_ids, expected.token_ids, "{checkpoint}");
        let n_tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens;
        assert_eq!(answer.warnings, [GenerationWarning::BeyondContext { n_tokens, context: 16 }]);
    }
}

/// Loads a model in which the embedding of one token is NaN.
fn model_with_nan() -> Idefics {
    let folder = copy("wide-heads");
    let tokenizer: Value = serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let id = tokenizer["model"]["vocab"]["Q"].as_u64().unwrap() as usize;
    edit_tensors(folder.path(), |tensors| {
        let table = tensors.iter_mut().find(|(name, ..)| name.ends_with("embed_tokens.weight")).unwrap();
        let row = 4 * table.2[1];
        table.3[id * row..(id + 1) * row]
            .chunks_mut(4)
            .for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
    });
    // The model is loaded without conversion. Memory-mapped values are not checked, so loading does not find the NaN.
    Idefics::from_folder(folder.path(), &Device::flex(), None, |_| ()).unwrap()
}

#[test]
fn non_finite_row_fails_alone() {
    let model = model_with_nan();
    let rows = ["Hello there", "Question Q?", "What is it?"].map(|text| text_sample(text, &[]));
    let sampled = GenerationConfig { do_sample: Some(true), ..greedy(4) };
    let beams = GenerationConfig { num_beams: Some(2), ..greedy(4) };
    let penalised = GenerationConfig { repetition_penalty: Some(1.1), ..greedy(4) };
    for options in [greedy(4), penalised, sampled, beams] {
        let answers = model.generate_each(&rows, &no_splitting(), &options, never()).unwrap();
        assert_eq!(answers.len(), 3);
        for (row, answer) in answers.iter().enumerate() {
            match answer {
                Err(Error::NonFinite { row: 1, n_tokens: 0 }) => assert_eq!(row, 1),
                Ok(answer) => {
                    let alone = model.generate(&rows[row..=row], &no_splitting(), &options, never()).unwrap();
                    assert_eq!(answer.token_ids, alone[0].token_ids, "row {row}");
                }
                Err(error) => panic!("row {row}: {error}"),
            }
        }
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
        let error = model.generate(&rows, &no_splitting(), &options, never()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 1, .. }), "{error}");
        let error = model.generate(&rows[1..2], &no_splitting(), &options, never()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 0, n_tokens: 0 }), "{error}");
    }
}
