//! Input of `batch`: standard input, byte order marks, line endings, ids, and keys of the user.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::{checkpoint, idefics, photo, text};

fn rows(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn batch(folder: &Path, input: &[u8], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.current_dir(folder).arg("--model").arg(checkpoint()).arg("batch").args(args);
    command.args(["--max-new-tokens", "2", "--do-image-splitting", "false"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn answers_standard_input_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(photo(), folder.path().join("photo.jpg")).unwrap();
    let mut input = String::new();
    for row in 0..20 {
        let line = match row % 3 {
            0 => json!({"id": row, "text": "<image>", "images": ["photo.jpg"]}), // relative to the working folder
            _ => json!({"id": row, "text": "word ".repeat(row * 7 % 11)}),
        };
        input += &format!("{line}\n");
    }
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let streamed = rows(&text(&output.stdout));
    let ids: Vec<u64> = streamed.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    assert!(streamed.iter().all(|row| row["text"].is_string()));
    let beside: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["photo.jpg"]);

    // With an output file, the rows are the same. If the input is given again, the answers are reused.
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "out.jsonl"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    let kept = fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
    assert_eq!(rows(&kept), streamed);
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "out.jsonl"]);
    assert!(output.status.success() && text(&output.stderr).contains("already complete"), "{}", text(&output.stderr));
    let longer = format!("{input}{}\n", json!({"id": "more", "text": "more"}));
    let output = batch(folder.path(), longer.as_bytes(), &["-", "--output", "out.jsonl"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let longer = fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
    assert!(longer.starts_with(&kept) && longer.lines().count() == 21);
}

#[test]
fn ignores_byte_order_mark_and_windows_line_endings() {
    let folder = tempfile::tempdir().unwrap();
    let input = b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n{\"id\": \"x\", \"text\": \"c\"}";
    let output = batch(folder.path(), input, &["-", "--output", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = rows(&text(&output.stdout));
    assert_eq!([&rows[0]["line"], &rows[1]["line"], &rows[2]["id"]], [&json!(1), &json!(3), &json!("x")]);

    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, b"\xef\xbb\xbf{\r\n\"text\": \"a\"}\r\n").unwrap();
    let generate = ["generate", "--prompt-file", prompts.to_str().unwrap(), "--max-new-tokens", "2"];
    let output = idefics(&checkpoint(), &generate);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let utf16: Vec<u8> = "\u{feff}{\"text\": \"a\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let output = batch(folder.path(), &utf16, &["-", "--output", "-"]);
    assert!(output.status.code() == Some(3) && text(&output.stderr).contains("UTF-16"), "{}", text(&output.stderr));
    fs::write(&prompts, utf16).unwrap();
    let output = idefics(&checkpoint(), &generate);
    assert!(output.status.code() == Some(3) && text(&output.stderr).contains("UTF-16"), "{}", text(&output.stderr));
}

#[test]
fn copies_user_keys_to_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let input = [
        json!({"id": 1, "text": "a", "label": "cat", "meta": {"split": [1, null]}, "score": 3}),
        json!({"question": "b?", "text": "b", "error": "no error"}),
        json!({"id": 3, "text": 5, "label": "dog"}),
        json!({"id": 4, "label": "bird"}),
    ];
    let input: String = input.iter().map(|line| format!("{line}\n")).collect();
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "-"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let rows = rows(&text(&output.stdout));
    assert_eq!(rows[0]["label"], "cat");
    assert_eq!(rows[0]["meta"], json!({"split": [1, null]}));
    assert_eq!(rows[1]["question"], "b?");
    assert!(rows[1].get("error").is_none() && rows[1]["text"].is_string(), "{}", rows[1]);
    assert!(rows[0].get("score").is_none());
    for key in ["score", "error"] {
        assert!(stderr.contains(&format!("warning: `{key}` of the samples is dropped")), "{stderr}");
    }
    assert!(rows[2]["label"] == "dog" && rows[2]["error"].is_string());
    assert!(rows[3]["label"] == "bird" && rows[3]["error"].is_string());
}

#[test]
fn copies_numbers_of_any_length_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let row =
        |id: &str| format!(r#"{{"id": {id}, "text": "a", "big": -99999999999999999999, "own": [1.10, {{"x":1e2}}]}}"#);
    // The first two ids are equal as f64, and so are the next two. All are kept as written.
    let ids = ["18446744073709551616", "18446744073709551617", "1", "1.0", r#""\u0061""#];
    let input = ids.map(|id| row(id) + "\n").concat();
    let expected = |output: &str| {
        for (line, id) in output.lines().zip(ids) {
            let id = id.replace("\\u0061", "a");
            let begin = format!(r#"{{"id":{id},"big":-99999999999999999999,"own":[1.10, {{"x":1e2}}],"text":"#);
            assert!(line.starts_with(&begin), "{line}");
        }
    };
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    expected(&text(&output.stdout));
    assert_eq!(text(&output.stdout).lines().count(), 5);

    let kept = || fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
    let to_file = |input: &str| batch(folder.path(), input.as_bytes(), &["-", "--output", "out.jsonl"]);
    let output = to_file(&input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    expected(&kept());
    let output = to_file(&input);
    assert!(text(&output.stderr).contains("already complete"), "{}", text(&output.stderr));
    let output = to_file(&format!("{input}{}\n", row("2")));
    assert!(output.status.success(), "{}", text(&output.stderr));
    expected(&kept());
    assert_eq!(kept().lines().count(), 6);
}

#[test]
fn row_with_too_much_text_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["a".to_owned(), "word ".repeat(1 << 20), "b".to_owned()];
    let input: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
    let output = batch(folder.path(), input.as_bytes(), &["-", "--output", "-"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let rows = rows(&text(&output.stdout));
    assert!(rows[0]["text"].is_string() && rows[2]["text"].is_string(), "{}", text(&output.stdout));
    let error = rows[1]["error"].as_str().unwrap();
    assert!(error.contains("5242880 bytes of text; at most 1048576"), "{error}");
}

#[test]
fn retries_failed_rows() {
    let folder = tempfile::tempdir().unwrap();
    let input = format!("{}\n{}\n", json!({"text": "a"}), json!({"text": "<image>", "images": ["late.jpg"]}));
    fs::write(folder.path().join("in.jsonl"), input).unwrap();
    let args = ["in.jsonl", "--output", "out.jsonl"];
    let output = batch(folder.path(), b"", &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    fs::copy(photo(), folder.path().join("late.jpg")).unwrap();
    let output = batch(folder.path(), b"", &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = rows(&fs::read_to_string(folder.path().join("out.jsonl")).unwrap());
    assert!(rows.len() == 2 && rows.iter().all(|row| row["text"].is_string()));
}

#[test]
fn rejects_empty_input_and_output_equal_to_input() {
    let folder = tempfile::tempdir().unwrap();
    for empty in [&b""[..], b"\n \r\n\n"] {
        let output = batch(folder.path(), empty, &["-", "--output", "out.jsonl"]);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("standard input: contains no samples"));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::write(folder.path().join("in.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let output = batch(folder.path(), b"", &["in.jsonl", "--output", "./in.jsonl", "--restart"]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("in.jsonl"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(folder.path().join("in.jsonl")).unwrap(), "{\"text\": \"a\"}\n");
}
