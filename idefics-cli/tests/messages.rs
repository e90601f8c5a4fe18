//! Error messages: the names, the wording and the advice in them.

use std::fs;
use std::path::Path;

use crate::{checkpoint, idefics, photo, text};

fn said(args: &[&str], code: i32) -> String {
    let output = match args {
        ["--model", model, args @ ..] => idefics(Path::new(model), args),
        args => idefics(&checkpoint(), args),
    };
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    stderr
}

#[test]
fn missing_files_are_named_without_error_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let (out, photo) = (out.to_str().unwrap(), photo());
    let nowhere = folder.path().join("no-such/out");
    let nowhere = nowhere.to_str().unwrap();
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, "[{\"text\": \"<image>\", \"images\": [\"no-such.png\"]}]").unwrap();
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, "{\"text\": \"a\"}\n").unwrap();
    let (prompts, rows) = (prompts.to_str().unwrap(), rows.to_str().unwrap());
    for args in [
        &["generate", "--prompt-file", "no-such.json"][..],
        &["generate", "--prompt-file", prompts],
        &["caption", "no-such.png"],
        &["ask", "no-such.png", "What?"],
        &["chat", "no-such.png"],
        &["classify", "no-such.png", "--labels", "a,b"],
        &["warm-up", "no-such.png"],
        &["batch", "no-such.jsonl", "--output", out],
        &["batch", rows, "--output", nowhere],
        &["demo", "--save", "/dev/null/no-such"],
        &["--model", "./no-such", "caption", &photo],
        &["--model", "./no-such", "quantize", "--to", "q4", out],
        &["--model", "./no-such", "inspect"],
        &["quantize", "--to", "q4", nowhere],
    ] {
        let message = said(args, 5);
        assert!(message.contains("no-such") && !message.contains("os error"), "{args:?}: {message}");
    }
    for args in [&["batch", rows, "--output", nowhere][..], &["quantize", "--to", "q4", nowhere]] {
        assert!(said(args, 5).ends_with("no-such: there is no such folder; create it, or write to another folder\n"));
    }
    let message = said(&["bench", "--random-weights", "no-such/config.json"], 5);
    assert!(message.contains("no-such") && !message.contains("os error"), "{message}");
    assert!(!folder.path().join("out.jsonl").exists());

    // With several images and in batches, the output row contains the message.
    let output = idefics(&checkpoint(), &["--json", "caption", "no-such.png", "no-such.png"]);
    assert!(!text(&output.stdout).contains("os error") && !text(&output.stderr).contains("os error"));
    fs::write(rows, "{\"text\": \"<image>\", \"images\": [\"no-such.png\"]}\n").unwrap();
    let output = idefics(&checkpoint(), &["batch", rows, "--output", "-"]);
    assert!(text(&output.stdout).contains("no-such.png") && !text(&output.stdout).contains("os error"));
}

#[test]
fn zero_and_negative_counts_are_rejected() {
    let photo = photo();
    for (args, option) in [
        (&["caption", &photo, "--page"][..], "--page"),
        (&["batch", "in.jsonl", "--output", "-", "--batch-size"], "--batch-size"),
        (&["caption", &photo, "--vision-batch"], "--vision-batch"),
        (&["bench", "--runs"], "--runs"),
    ] {
        for value in ["0", "-1", "many", "99999999999999999999999"] {
            let message = match value {
                "-1" => said(&[&args[..args.len() - 1], &[&format!("{option}=-1")]].concat(), 2),
                _ => said(&[args, &[value]].concat(), 2),
            };
            assert!(message.contains(option) && message.contains(value), "{message}");
            assert!(message.contains("expected a whole number of at least 1"), "{message}");
        }
    }
}

#[test]
fn label_option_accepts_commas() {
    let photo = photo();
    let labels = |args: &[&str]| {
        let args = [&["--json", "classify", &photo, "--rank"], args].concat();
        let output = idefics(&checkpoint(), &args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let labels = line["labels"].as_array().unwrap().iter().map(|label| label["label"].as_str().unwrap().to_owned());
        let mut labels: Vec<String> = labels.collect();
        labels.sort();
        labels
    };
    assert_eq!(labels(&["--label", "red, round", "--label", "blue"]), ["blue", "red, round"]);
    assert_eq!(labels(&["--labels", "blue,green", "--label", "red, round"]), ["blue", "green", "red, round"]);

    for rank in [&["--rank"][..], &[]] {
        for (args, word) in [
            (&["--labels", "a,,b"][..], "empty"),
            (&["--labels", "a,b,"], "empty"),
            (&["--label", " ", "--label", "b"], "empty"),
            (&["--labels", "a,b, a"], "\"a\""),
            (&["--labels", "a,b", "--label", "b"], "\"b\""),
            (&[], "--label"),
        ] {
            let message = said(&[&["classify", &photo], rank, args].concat(), 2);
            assert!(message.contains(word), "{args:?}: {message}");
        }
    }
}
