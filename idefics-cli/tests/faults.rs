//! Errors of the program. Each has an exit code, and a one-line message that names the cause.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{checkpoint, idefics, photo, text, xtask_folder};

/// Runs the program, and checks that the exit code is `code` and that the error is one line that contains `culprit`.
fn refused(model: &Path, args: &[&str], code: i32, culprit: &str) {
    let output = idefics(model, args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(culprit), "{args:?}: no {culprit:?} in {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

fn copy(checkpoint: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(xtask_folder("checkpoints").join(checkpoint)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

fn edit(folder: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.path().join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn missing_image_folder_or_prompt_file_is_named() {
    refused(&checkpoint(), &["ask", "no-such.jpg", "What?"], 5, "no-such.jpg");
    refused(Path::new("./no-such-folder"), &["caption", &photo()], 5, "no-such-folder");
    refused(&checkpoint(), &["generate", "--prompt-file", "no-such.json"], 5, "no-such.json");
}

#[test]
fn arguments_in_the_wrong_order_and_empty_folders_are_named() {
    let photo = photo();
    refused(&checkpoint(), &["ask", "What is this?", &photo], 2, "give the images first and then the question");
    refused(&checkpoint(), &["ask", "What?", &photo, &photo], 2, "What? is not a file");
    refused(&checkpoint(), &["ask", "no-such.jpg", "What?"], 5, "no-such.jpg");
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
    for args in [&["caption", empty][..], &["ask", empty, "What?"], &["chat", empty]] {
        refused(&checkpoint(), args, 3, "there are no pictures; expected");
    }
    refused(folder.path(), &["caption", &photo], 4, "has no config.json; a model folder has config.json, tokenizer");
    refused(folder.path(), &["inspect"], 4, "has no config.json");
    fs::copy(&photo, folder.path().join("a.jpg")).unwrap();
    refused(&checkpoint(), &["caption", empty], 3, "cannot read videos and folders");
}

#[test]
fn truncated_checkpoint_is_named() {
    let folder = copy("tiny-idefics2");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(folder.path(), &["caption", &photo()], 4, "model.safetensors");
    fs::write(&path, &bytes[..5]).unwrap();
    refused(folder.path(), &["caption", &photo()], 4, "model.safetensors");
}

#[test]
fn missing_tensor_is_named() {
    let folder = copy("tiny-idefics2");
    edit(&folder, "config.json", |config| config["text_config"]["num_hidden_layers"] = json!(3));
    refused(folder.path(), &["caption", &photo()], 4, "model.text_model.layers.2.");
}

#[test]
fn folders_that_are_not_models_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("model.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    refused(&gguf, &["caption", &photo()], 4, "truncated GGUF: the number of tensors");
    refused(folder.path(), &["caption", &photo()], 4, "truncated GGUF: the number of tensors");
    refused(folder.path(), &["inspect"], 4, "truncated GGUF: the number of tensors");
    let adapter = json!({"peft_type": "LORA", "base_model_name_or_path": "org/base"});
    fs::write(folder.path().join("adapter_config.json"), adapter.to_string()).unwrap();
    refused(folder.path(), &["caption", &photo()], 4, "PEFT adapter of org/base");
    let folder = copy("tiny-idefics2");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 12\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    refused(folder.path(), &["caption", &photo()], 4, "git lfs pull");
    fs::write(folder.path().join("model.safetensors"), "<!DOCTYPE html>\n<title>Log in</title>").unwrap();
    refused(folder.path(), &["caption", &photo()], 4, "an HTML page");
}

#[test]
fn invalid_generation_option_in_the_model_folder_is_named() {
    let folder = copy("tiny-idefics2");
    let path = folder.path().join("generation_config.json");
    fs::write(&path, json!({"repetition_penalty": -2.0}).to_string()).unwrap();
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, "{\"text\": \"a\"}\n").unwrap();
    let batch = ["batch", rows.to_str().unwrap(), "--output", "-"];
    for args in [&["caption", &photo()][..], &batch] {
        refused(folder.path(), args, 4, "generation_config.json: `repetition_penalty` is -2");
    }
    let given = idefics(folder.path(), &["caption", &photo(), "--repetition-penalty", "1", "--max-new-tokens", "1"]);
    assert!(given.status.success(), "{}", text(&given.stderr));
    refused(folder.path(), &["caption", &photo(), "--repetition-penalty", "0"], 2, "error: `repetition_penalty`");
}

#[test]
fn temporary_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [folder.path().join("no-such"), file] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
        command.env("TMPDIR", &place).env_remove("IDEFICS_MODEL").args(["caption", &photo()]);
        let output = command.output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for word in [place.to_str().unwrap(), "temporary folder", "set TMPDIR", "--model"] {
            assert!(stderr.contains(word), "{stderr}");
        }
    }
}

#[test]
fn harmless_problems_of_a_folder_are_warnings() {
    let folder = copy("tiny-idefics2");
    edit(&folder, "preprocessor_config.json", |config| config["auto_map"] = json!({}));
    edit(&folder, "config.json", |config| config["text_config"]["max_position_embeddings"] = json!(16));
    let output = idefics(folder.path(), &["caption", &photo(), &photo(), "--max-new-tokens", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let warnings: Vec<&str> = stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{stderr}");
    assert!(warnings[0].starts_with("warning: ") && warnings[0].ends_with("`auto_map`"), "{stderr}");
    assert!(warnings[1].starts_with("warning: ") && warnings[1].contains("max_position_embeddings"), "{stderr}");
    let samples = folder.path().join("samples.jsonl");
    let row = json!({"text": "A prompt of more than sixteen tokens, whatever the tokenizer makes of its words."});
    fs::write(&samples, format!("{row}\n{row}\n")).unwrap();
    let args = ["batch", samples.to_str().unwrap(), "--output", "-", "--max-new-tokens", "2"];
    let output = idefics(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr).matches("max_position_embeddings").count(), 1, "{}", text(&output.stderr));
}

#[test]
fn non_finite_row_does_not_stop_the_others() {
    let folder = copy("wide-heads");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let table = &header["model.text_model.embed_tokens.weight"];
    let row = 4 * table["shape"][1].as_u64().unwrap() as usize;
    let tokenizer: Value = serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let id = tokenizer["model"]["vocab"]["Q"].as_u64().unwrap() as usize;
    let start = 8 + header_len + table["data_offsets"][0].as_u64().unwrap() as usize + id * row;
    bytes[start..start + row].chunks_mut(4).for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
    fs::write(&path, bytes).unwrap();
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, json!([{"text": "Hello"}, {"text": "Q?"}, {"text": "What"}]).to_string()).unwrap();
    let args = ["--json", "generate", "--prompt-file", prompts.to_str().unwrap(), "--max-new-tokens", "3"];
    let output = idefics(folder.path(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0]["token_ids"].is_array() && lines[2]["token_ids"].is_array());
    assert!(lines[1]["row"] == 1 && lines[1]["error"].as_str().unwrap().contains("not finite"), "{}", lines[1]);
    assert!(text(&output.stderr).contains("row 1"), "{}", text(&output.stderr));
}

#[test]
fn row_rejected_by_template_or_length_fails_alone() {
    let folder = copy("tiny-idefics2");
    let samples = folder.path().join("samples.jsonl");
    let rows = [
        json!({"text": "hi", "id": 1}),
        json!({"messages": [{"role": "user", "content": ""}], "id": 2}),
        json!({"text": "a b c d e f g h i j k l m n o p", "id": 3}),
        json!({"text": "yo", "id": 4}),
    ];
    fs::write(&samples, rows.map(|row| format!("{row}\n")).concat()).unwrap();
    let args = ["batch", samples.to_str().unwrap(), "--output", "-", "--max-length", "10"];
    let output = idefics(folder.path(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<bool> = lines.iter().map(|line| line["error"].is_string()).collect();
    assert_eq!(failed, [false, true, true, false], "{}", text(&output.stdout));
}

#[test]
fn configuration_with_zero_heads_is_rejected() {
    let folder = copy("tiny-idefics2");
    edit(&folder, "config.json", |config| config["text_config"]["num_attention_heads"] = json!(0));
    refused(folder.path(), &["caption", &photo()], 4, "text_config.num_attention_heads");
}

#[test]
fn shard_path_outside_the_folder_is_rejected() {
    let folder = copy("sliding-sharded");
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["lm_head.weight"] = json!("../elsewhere.safetensors");
    });
    refused(folder.path(), &["caption", &photo()], 4, "../elsewhere.safetensors");
}

#[test]
fn more_placeholders_than_images_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, json!({"text": "<image> and <image>", "images": [photo()]}).to_string()).unwrap();
    refused(&checkpoint(), &["generate", "--prompt-file", prompts.to_str().unwrap()], 3, "2");
    fs::write(&prompts, "[{\"text\": 3}]").unwrap();
    refused(&checkpoint(), &["generate", "--prompt-file", prompts.to_str().unwrap()], 3, "prompts.json");
    fs::write(&prompts, "[]").unwrap();
    refused(&checkpoint(), &["generate", "--prompt-file", prompts.to_str().unwrap()], 3, "prompts.json");
}

#[test]
fn text_file_named_as_an_image_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("photo.png");
    fs::write(&image, "This is no picture.").unwrap();
    refused(&checkpoint(), &["ask", image.to_str().unwrap(), "What?"], 3, "photo.png");
    refused(&checkpoint(), &["ask", image.to_str().unwrap(), "What?"], 3, "error: image 0");
}

#[test]
fn image_header_with_too_many_pixels_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("huge.png");
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(60_000u32.to_be_bytes());
    png.extend(60_000u32.to_be_bytes());
    png.extend([8, 2, 0, 0, 0]);
    png.extend(crc32(&png[12..]).to_be_bytes());
    png.extend(b"\0\0\0\0IEND\xaeB`\x82");
    fs::write(&image, png).unwrap();
    refused(&checkpoint(), &["ask", image.to_str().unwrap(), "What?"], 3, "huge.png");
}

/// Computes the CRC-32 of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn bad_image_does_not_stop_the_others() {
    let output = idefics(&checkpoint(), &["caption", "no-such.jpg", &photo(), "--max-new-tokens", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such.jpg") && text(&output.stderr).contains("1 of 2"));
    assert!(text(&output.stdout).starts_with(&format!("{}: ", photo())), "{}", text(&output.stdout));
}

#[test]
fn invalid_options_are_rejected() {
    refused(&checkpoint(), &["caption", &photo(), "--max-new-tokens", "0"], 2, "max_new_tokens");
    refused(&checkpoint(), &["caption", &photo(), "--eos-token-id", "2", "--bad-words-ids", "[[99999]]"], 2, "99999");
    refused(&checkpoint(), &["caption", &photo(), "--max-new-tokens", "1000000000000"], 6, "GiB");
    refused(&checkpoint(), &["--activations", "int8", "caption", &photo()], 2, "--activations int8 has no effect");
    refused(&checkpoint(), &["--dtype", "f64", "caption", &photo()], 2, "f64");
    refused(&checkpoint(), &["describe", &photo()], 2, "describe");
    refused(&checkpoint(), &["--device", "cuda:7", "caption", &photo()], 2, "cuda");
}
