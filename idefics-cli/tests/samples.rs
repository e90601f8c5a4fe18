//! Samples in prompt files: image sources, invalid forms and their error messages.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::{checkpoint, idefics, photo, text};

/// A one-pixel GIF in base64.
const DOT: &str = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

fn generate(folder: &Path, samples: &Value, options: &[&str]) -> Output {
    let prompts = folder.join("prompts.json");
    fs::write(&prompts, samples.to_string()).unwrap();
    let prompts = prompts.to_str().unwrap();
    let args = [&["--json", "generate", "--prompt-file", prompts, "--max-new-tokens", "1"], options].concat();
    idefics(&checkpoint(), &args)
}

fn sample(image: &str) -> Value {
    json!({"text": "<image>What?", "images": [image]})
}

#[test]
fn image_sources_are_restricted_by_options() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::copy(photo(), photos.join("inside.jpg")).unwrap();
    fs::copy(photo(), folder.path().join("outside.jpg")).unwrap();
    let below = photos.to_str().unwrap();
    let data = format!("data:image/avif;base64,{DOT}");
    for (image, options, code) in [
        ("outside.jpg", &[][..], 0),
        ("outside.jpg", &["--allow-sources", "files"], 0),
        ("outside.jpg", &["--allow-sources", "urls,data"], 3),
        ("outside.jpg", &["--images-below", below], 3),
        ("photos/../outside.jpg", &["--images-below", below], 3),
        ("/etc/hostname", &["--images-below", below], 3),
        ("photos/inside.jpg", &["--images-below", below], 0),
        ("http://127.0.0.1:9/a.png", &["--allow-sources", "files,data"], 3),
        (DOT, &["--allow-sources", "data"], 0),
        (DOT, &["--allow-sources", "none"], 3),
        (&data, &[], 0),
        (&data, &["--allow-sources", "files"], 3),
    ] {
        let output = generate(folder.path(), &sample(image), options);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{image} {options:?}: {stderr}");
        if code != 0 {
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains("--allow-sources") || stderr.contains("--images-below"), "{stderr}");
        }
    }
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, format!("{}\n{}\n", sample("outside.jpg"), sample(DOT))).unwrap();
    let rows = rows.to_str().unwrap();
    let args = ["batch", rows, "--output", "-", "--max-new-tokens", "1", "--allow-sources", "data"];
    let output = idefics(&checkpoint(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["error"].as_str().unwrap().contains("outside.jpg"), "{}", lines[0]);
    assert!(lines[1]["text"].is_string(), "{}", lines[1]);
}

#[test]
fn errors_name_the_invalid_field() {
    let folder = tempfile::tempdir().unwrap();
    for (samples, expected) in [
        (json!("x"), "the sample is the string \"x\""),
        (json!([{"text": "a"}, {"text": 3}]), "sample 1: `text` is 3"),
        (json!({"messages": [{"role": "user", "content": ["x"]}]}), "`messages[0].content[0]`"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "1 image part in `messages`"),
    ] {
        let output = generate(folder.path(), &samples, &[]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{samples}: {stderr}");
        assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{samples}: {stderr}");
    }
}

#[test]
fn warns_once_about_each_ignored_key() {
    let folder = tempfile::tempdir().unwrap();
    let samples =
        json!([{"text": "a", "id": 1, "imges": ["b.png"]}, {"text": "b", "source": 2, "images": null, "imges": []}]);
    let output = generate(folder.path(), &samples, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let warnings: Vec<&str> = stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{stderr}");
    for (warning, key) in warnings.into_iter().zip(["imges", "source"]) {
        assert!(warning.starts_with(&format!("warning: `{key}` ")), "{stderr}");
    }
}

#[test]
fn misspelt_keys_and_unknown_parts_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let parts = json!([{"type": "picture", "path": "a.png"}, {"type": "text", "text": "What?"}]);
    let samples = json!([
        {"text": "What?", "image": "a.png"},
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": parts}]},
    ]);
    let output = generate(folder.path(), &samples, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let warnings: Vec<&str> = stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{stderr}");
    assert!(warnings[0].contains("parts of the type \"picture\""), "{stderr}");
    assert_eq!(warnings[1], "warning: `image` of the samples is ignored; write `images`");

    let rows = folder.path().join("rows.jsonl");
    let with_images = json!({"text": "<image>", "images": [DOT], "image": "a.png"});
    let lines: Vec<String> = samples.as_array().unwrap().iter().chain([&with_images]).map(Value::to_string).collect();
    fs::write(&rows, lines.join("\n")).unwrap();
    let args = ["batch", rows.to_str().unwrap(), "--output", "-", "--max-new-tokens", "1"];
    let output = idefics(&checkpoint(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let warnings: Vec<&str> = stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{stderr}");
    assert!(warnings[0].starts_with("warning: line 1: `image` is only copied"), "{stderr}");
    assert!(warnings[1].contains("\"picture\""), "{stderr}");

    let output = generate(folder.path(), &json!({"message": []}), &[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("write `messages` for `message`"), "{}", text(&output.stderr));
}

#[test]
fn placeholder_in_a_parsed_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let sample = json!({"messages": [{"role": "user", "content": "What is an <image>?"}]});
    assert!(generate(folder.path(), &sample, &[]).status.success());
    let output = generate(folder.path(), &sample, &["--special-tokens-in-text", "parse"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 <image> placeholder,"), "{}", text(&output.stderr));
}

#[test]
fn accepts_extra_message_keys_and_separate_images() {
    let folder = tempfile::tempdir().unwrap();
    let place = json!({"type": "image"});
    let talk = |content: Value| json!({"id": 1, "messages": [{"role": "user", "name": "Ada", "content": content}]});
    let mut apart = talk(json!([place, {"type": "text", "text": "What?"}]));
    apart["images"] = json!([DOT]);
    let within = talk(json!([{"type": "image", "base64": DOT}, {"type": "text", "text": "What?"}]));
    let prompt = |sample: &Value| {
        let output = generate(folder.path(), sample, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (answer["prompt"].clone(), answer["token_ids"].clone())
    };
    assert_eq!(prompt(&apart), prompt(&within));
}
