//! Answers that follow a JSON schema, a regular expression or a list of choices.

use std::fs;

use serde_json::{Value, json};

use crate::{answer, checkpoint, idefics, photo, text};

/// A schema whose answers are short.
fn schema() -> Value {
    json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 20]}},
        "required": ["ok", "n"], "additionalProperties": false})
}

fn is_valid(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap();
    value.as_object().unwrap().len() == 2 && value["ok"].is_boolean() && [json!(1), json!(20)].contains(&value["n"])
}

#[test]
fn answers_follow_the_grammar() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    fs::write(&file, schema().to_string()).unwrap();
    let file = file.to_str().unwrap();
    let asked = answer(&["ask", &photo(), "What?", "--json-schema", file, "--max-new-tokens", "100"]);
    assert!(is_valid(&asked), "{asked}");
    let asked = answer(&["ask", &photo(), "When?", "--regex", "[12][0-9]{3}", "--max-new-tokens", "20"]);
    assert!(asked.trim().len() == 4 && asked.trim().parse::<u32>().is_ok_and(|year| year >= 1000), "{asked}");
    let caption = answer(&["caption", &photo(), "--choices", "a cat,a dog", "--choice", "red, blue"]);
    assert!(["a cat", "a dog", "red, blue"].contains(&caption.trim()), "{caption}");

    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, json!([{"text": "one"}, {"text": "two words"}]).to_string()).unwrap();
    let prompts = prompts.to_str().unwrap();
    let options = ["--json-schema", file, "--max-new-tokens", "100", "--do-sample"];
    let lines = answer(&[&["--json", "generate", "--prompt-file", prompts], &options[..]].concat());
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer["finish_reason"] == "stop"), "{lines}");
    assert!(answers.iter().all(|answer| is_valid(answer["text"].as_str().unwrap())), "{lines}");
}

#[test]
fn batch_follows_the_grammar_and_belongs_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("in.jsonl"), "{\"id\": 1, \"text\": \"one\"}\n{\"id\": 2, \"text\": \"two\"}\n").unwrap();
    let (input, output) = (path("in.jsonl"), path("out.jsonl"));
    let run = |choices: &str, more: &[&str]| {
        answer(&[&["batch", &input, "--output", &output, "--choices", choices], more].concat());
        let lines = fs::read_to_string(path("out.jsonl")).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(run("a,b", &[]).iter().all(|text| ["a", "b"].contains(&text.as_str())));
    // The output belongs to the first grammar, so a run with another grammar needs `--restart`.
    let other = idefics(&checkpoint(), &["batch", &input, "--output", &output, "--choices", "c,d"]);
    assert!(!other.status.success() && text(&other.stderr).contains("--restart"), "{}", text(&other.stderr));
    assert!(run("c,d", &["--restart"]).iter().all(|text| ["c", "d"].contains(&text.as_str())));
}

#[test]
fn cut_answer_is_reported() {
    let output = idefics(&checkpoint(), &["ask", &photo(), "What?", "--regex", "a{50}", "--max-new-tokens", "2"]);
    assert!(output.status.success());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cut after 2 tokens") && stderr.contains("--max-new-tokens"), "{stderr}");
}

#[test]
fn invalid_grammars_are_rejected_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = folder.path().join("missing.json").to_str().unwrap().to_owned();
    for (options, code, expected) in [
        (vec!["--json-schema", &file("a.json", "{\"not\": {}}")], 2, "a.json: the JSON schema is not supported"),
        (vec!["--json-schema", &file("b.json", "{")], 2, "b.json: the JSON schema is not valid JSON"),
        (vec!["--json-schema", &file("c.json", &" ".repeat(300 << 10))], 6, "c.json: the JSON schema has 307200 bytes"),
        (vec!["--json-schema", &missing], 5, "missing.json"),
        (vec!["--regex", "(a"], 2, "--regex: the regular expression is not valid: unclosed group"),
        (vec!["--regex", "[0-9+"], 2, "the regular expression is not valid: unclosed character class"),
        (vec!["--choices", "a,,b"], 2, "--choices: there are no choices, or a choice is empty"),
        (vec!["--regex", "a", "--choices", "b"], 2, "cannot be used with"),
        (vec!["--regex", "a", "--num-beams", "2"], 2, "`num_beams` and `grammar` cannot be combined"),
    ] {
        let output = idefics(folder.path(), &[&["ask", "What?"], &options[..]].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{options:?}: {stderr}");
        assert!(stderr.contains(expected), "{options:?}: {stderr}");
    }
}
