//! Answers, reports and lists that the program prints to standard output.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::{answer, checkpoint, idefics, photo, text, xtask_folder};

#[test]
fn caption_prints_one_line_per_image() {
    let one = answer(&["caption", &photo(), "--max-new-tokens", "4"]);
    assert!(one.ends_with('\n') && one.len() > 1);
    let two = answer(&["caption", &photo(), &photo(), "--max-new-tokens", "4"]);
    assert_eq!(two, format!("{0}: {one}{0}: {one}", photo()));
}

#[test]
fn json_and_streamed_text_agree() {
    let ask = ["ask", &photo(), "What is this?", "--max-new-tokens", "6"];
    let streamed = answer(&ask);
    let json: Value = serde_json::from_str(&answer(&[&["--json"][..], &ask].concat())).unwrap();
    assert_eq!(streamed, format!("{}\n", json["text"].as_str().unwrap()));
    assert!(json["prompt"].as_str().unwrap().ends_with("What is this?<end_of_utterance>\nAssistant:"));
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 6);
    assert_eq!(json["usage"]["completion_tokens"], 6);
    assert_eq!(json["usage"]["image_tokens"], 5 * 4); // the folder splits images: five tiles of four tokens
    for stage in ["preprocess_ms", "vision_ms", "connector_ms", "prefill_ms", "decode_ms"] {
        assert!(json["timings"][stage].as_f64().unwrap() > 0.0, "{stage}");
    }
}

#[test]
fn speculation_changes_no_token() {
    for command in [&["caption"][..], &["ask"]] {
        let photo = photo();
        let mut args = vec![command[0], &photo];
        if command[0] == "ask" {
            args.push("What is this?");
        }
        args.extend(["--json", "--max-new-tokens", "60", "--eos-token-id", "2"]);
        let with = |setting: &str| {
            let answer: Value =
                serde_json::from_str(&answer(&[&["--speculate", setting][..], &args].concat())).unwrap();
            answer["token_ids"].clone()
        };
        let without = with("off");
        assert!(without.as_array().unwrap().len() > 1);
        assert_eq!(["auto", "1", "7"].map(with), [(); 3].map(|()| without.clone()));
    }
    let refused = idefics(&checkpoint(), &["--speculate", "8", "caption", &photo()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("expected auto, off, or a number of tokens from 1 to 7"));
}

#[test]
fn batch_with_zero_one_and_two_images_matches_reference() {
    let case: Value = serde_json::from_slice(&fs::read(xtask_folder("cases/two-images/case.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let images = xtask_folder("cases/two-images");
    let samples = case["samples"].to_string().replace("images/", &format!("{}/images/", images.display()));
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, samples).unwrap();
    let bad_words = case["generate"]["greedy"]["bad_words_ids"].to_string();
    let output = idefics(
        &xtask_folder("checkpoints/odd-heads"),
        &[
            "--json",
            "generate",
            "--prompt-file",
            prompts.to_str().unwrap(),
            "--max-new-tokens",
            "12",
            "--bad-words-ids",
            &bad_words,
            "--eos-token-id",
            "2,476",
            "--do-image-splitting",
            "false",
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = case["texts"]["greedy"].as_array().unwrap();
    assert_eq!(answers.len(), expected.len());
    for (answer, expected) in answers.iter().zip(expected) {
        assert!(expected.as_str().unwrap().ends_with(answer["text"].as_str().unwrap()), "{answer} {expected}");
    }
    let images: Vec<&Value> = answers.iter().map(|answer| &answer["usage"]["image_tokens"]).collect();
    assert_eq!(images, [&json!(10), &json!(5), &json!(0)]);
}

#[test]
fn inspect_reports_parameters_and_memory() {
    let inspection: Value = serde_json::from_str(&answer(&["--json", "--device", "cpu", "inspect"])).unwrap();
    assert_eq!(inspection["family"], "idefics2");
    assert_eq!(inspection["device"], "cpu");
    assert_eq!(inspection["dtype"], "as stored");
    assert!(inspection["precisions"][0]["weights"]["mapped"].as_u64().unwrap() > 0);
    let parts = inspection["parts"].as_array().unwrap();
    let parameters: u64 = parts.iter().map(|part| part["parameters"].as_u64().unwrap()).sum();
    assert_eq!(inspection["parameters"], parameters);
    assert!(answer(&["inspect"]).contains("perceiver_resampler"));
}

#[test]
fn answer_does_not_depend_on_thread_count() {
    let ask = ["ask", &photo(), "What is this?", "--max-new-tokens", "6"];
    let one = answer(&[&["--threads", "1"][..], &ask].concat());
    assert_eq!(one, answer(&[&["--threads", "3"][..], &ask].concat()));
}

#[test]
fn help_has_examples() {
    let output = idefics(&checkpoint(), &["--help"]);
    assert!(text(&output.stdout).contains("Examples:") && text(&output.stdout).contains("Exit codes:"));
}

#[test]
fn warm_up_reports_time_of_both_answers() {
    let json: Value = serde_json::from_str(&answer(&["--json", "warm-up", &photo(), &photo()])).unwrap();
    assert!(json["first_ms"].as_f64().unwrap() > 0.0 && json["second_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(json["kept"], false);
    assert!(answer(&["warm-up", &photo()]).starts_with("first answer "));
}

#[test]
fn lists_devices_and_rejects_missing_ones() {
    let listed = answer(&["devices"]);
    assert!(listed.lines().any(|line| line.starts_with("cpu ") && line.contains("f32, bf16, f16")), "{listed}");
    for line in answer(&["--json", "devices"]).lines() {
        let device: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(device["device"].is_string() && device["dtypes"].as_array().is_some_and(|dtypes| !dtypes.is_empty()));
    }
    let with_isa = |level| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
        command.arg("devices").env("IDEFICS_ISA", level).output().unwrap()
    };
    let capped = text(&with_isa("plain").stdout);
    assert!(capped.lines().any(|line| line.starts_with("cpu ") && line.contains(" plain ")), "{capped}");
    let unknown = with_isa("sse9");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).starts_with("error: IDEFICS_ISA: \"sse9\""), "{}", text(&unknown.stderr));

    let output = idefics(&checkpoint(), &["--device", "cuda:77", "inspect"]);
    assert!(text(&output.stderr).starts_with("error: device cuda:77: "), "{}", text(&output.stderr));
    assert!(!output.status.success());
}
