//! Generation options, labels, batches, chat, completions and the manual page.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{answer, checkpoint, idefics, photo, text};

fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn guide_examples_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let is_ours = |line: &&str| line.contains("--prompt-file") && !line.contains("examples/idefics1/");
    let commands: Vec<&str> = readme.lines().filter(is_ours).collect();
    assert_eq!(commands.len(), 7);
    for command in commands {
        // The first three words are `idefics --model $M`.
        let words: Vec<&str> = command.split_whitespace().skip(3).collect();
        let file = folder.join(words[2].strip_prefix("examples/").unwrap());
        let mut args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        args[2] = file.to_str().unwrap().to_owned();
        let bad_words = args.iter().position(|arg| arg == "$B").unwrap();
        args[bad_words] = "[[474],[475]]".to_owned(); // token ids in the small vocabulary
        let new_tokens = args.iter().position(|arg| arg == "--max-new-tokens").unwrap() + 1;
        args[new_tokens] = "3".to_owned();
        let args: Vec<&str> = [&["--json"], args.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat();
        let answers = lines(&answer(&args));
        assert_eq!(answers.len(), if command.contains("batch-of-three") { 3 } else { 1 }, "{command}");
        assert!(answers.iter().all(|answer| !answer["token_ids"].as_array().unwrap().is_empty()), "{command}");
    }
}

#[test]
fn generation_options_take_effect() {
    let ask = |more: &[&str]| {
        lines(&answer(&[&["--json", "ask", &photo(), "What is this?", "--max-new-tokens", "5"], more].concat()))
    };
    let beams = ask(&["--num-beams", "3", "--num-return-sequences", "2", "--early-stopping", "never"]);
    assert_eq!(beams.len(), 2);
    assert!(beams[0]["score"].as_f64().unwrap() >= beams[1]["score"].as_f64().unwrap());

    let draw =
        |seed| ask(&["--do-sample", "--temperature", "3", "--top-k", "0", "--seed", seed])[0]["token_ids"].clone();
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));

    let logprobs = ask(&["--logprobs", "2", "--prompt-logprobs"]);
    assert_eq!(logprobs[0]["logprobs"].as_array().unwrap().len(), 5);
    assert_eq!(logprobs[0]["logprobs"][0]["top"].as_array().unwrap().len(), 2);
    let prompt_tokens = logprobs[0]["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(logprobs[0]["prompt_logprobs"].as_array().unwrap().len() as u64, prompt_tokens - 1);

    let forced = ask(&["--suppress-tokens", "2", "--forced-eos-token-id", "476", "--sequence-bias", "[[[40],1e4]]"]);
    let ids: Vec<u64> = forced[0]["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(ids[..4], [40; 4]);
}

#[test]
fn warns_about_useless_options_and_rejects_impossible_ones() {
    let ask =
        |more: &[&str]| idefics(&checkpoint(), &[&["ask", &photo(), "What?", "--max-new-tokens", "2"], more].concat());
    let output = ask(&["--top-p", "0.5"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "warning: `top_p` has no effect without `do_sample`\n");
    for more in [&["--num-beams", "1000000000000"][..], &["--do-sample", "--num-return-sequences", "100000"]] {
        let output = ask(more);
        assert_eq!(output.status.code(), Some(6), "{more:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(more[more.len() - 1]), "{}", text(&output.stderr));
    }
    let output = ask(&["--logprobs", "1", "--double-quant"]);
    assert!(output.status.success());
    let expected = "warning: --double-quant has no effect here; it works only with --quantize nf4 or --quantize fp4\n\
        warning: --logprobs has no effect here; it works only with --json\n";
    assert_eq!(text(&output.stderr), expected);
    for (more, expected) in [
        (
            &["--num-return-sequences", "2"][..],
            "`num_return_sequences` is 2; expected 1 in greedy search; several answers need",
        ),
        (&["--num-beams", "2", "--num-return-sequences", "3"], "num_beams"),
        (&["--do-sample", "--top-p", "1.5"], "top_p"),
        (&["--bad-words-ids", "[[99999]]"], "99999"),
    ] {
        let output = ask(more);
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[test]
fn classify_names_or_ranks_labels() {
    let labels = ["--labels", "cat,dog,a cup of coffee"];
    // The answer is a label, although the tiny model would say something else.
    let named = answer(&[&["classify", &photo()], &labels[..]].concat());
    assert!(["cat\n", "dog\n", "a cup of coffee\n"].contains(&named.as_str()), "{named}");
    let long = "a label of many words that needs many more than the twenty tokens of an answer without options";
    assert_eq!(answer(&["classify", &photo(), "--label", long]).trim_end(), long);
    let beams = idefics(&checkpoint(), &[&["classify", &photo(), "--num-beams", "2"], &labels[..]].concat());
    assert_eq!(beams.status.code(), Some(2));
    assert!(text(&beams.stderr).contains("`num_beams`"), "{}", text(&beams.stderr));
    let ranked = answer(&[&["classify", &photo(), "--rank"], &labels[..]].concat());
    let probabilities: Vec<f64> =
        ranked.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert_eq!(probabilities.len(), 3);
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-3 && probabilities.is_sorted_by(|a, b| a >= b));
    let json = lines(&answer(
        &[&["--json", "classify", &photo(), "--rank", "--calibrate", "--normalize-length"], &labels[..]].concat(),
    ));
    assert_eq!(json[0]["labels"][0]["label"], json[0]["text"]);
    let spaced = answer(&["classify", &photo(), "--rank", "--labels", "cat, dog,  a cup of coffee"]);
    assert_eq!(spaced, ranked);
    let idle = idefics(
        &checkpoint(),
        &["classify", &photo(), "--rank", "--labels", "a,b", "--num-beams", "3", "--logprobs", "1"],
    );
    assert!(idle.status.success());
    for option in ["num_beams", "logprobs"] {
        let warning = format!("warning: `{option}` has no effect with `--rank`");
        assert!(text(&idle.stderr).contains(&warning), "{}", text(&idle.stderr));
    }
    let twice = idefics(&checkpoint(), &["classify", &photo(), "--rank", "--labels", "cat,dog, cat"]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(text(&twice.stderr).contains("\"cat\""), "{}", text(&twice.stderr));
}

struct BatchFiles {
    folder: TempDir,
    rows: usize,
}

impl BatchFiles {
    /// Writes an input of `rows` rows of several lengths, with and without images. Row number `broken` names an invalid
    /// image.
    fn new(rows: usize, broken: Option<usize>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(photo(), folder.path().join("photo.jpg")).unwrap();
        fs::write(folder.path().join("broken.png"), "no picture").unwrap();
        let mut input = fs::File::create(folder.path().join("in.jsonl")).unwrap();
        for row in 0..rows {
            let words = "word ".repeat(row * 7 % 11);
            let line = match row % 3 {
                _ if Some(row) == broken => json!({"id": row, "text": "<image>", "images": ["broken.png"]}),
                0 if row % 9 == 0 => json!({"id": row, "text": format!("<image>{words}"), "images": ["photo.jpg"]}),
                _ => json!({"id": row, "text": format!("{row} {words}")}),
            };
            writeln!(input, "{line}").unwrap();
        }
        Self { folder, rows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, output: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
        command.arg("--model").arg(checkpoint()).arg("batch").arg(self.path("in.jsonl"));
        command.arg("--output").arg(self.path(output)).args(["--max-new-tokens", "3", "--batch-size", "4"]);
        command.args(["--do-image-splitting", "false"]);
        command
    }

    fn ids(&self, output: &str) -> Vec<u64> {
        let rows = lines(&fs::read_to_string(self.path(output)).unwrap());
        rows.iter().map(|row| row["id"].as_u64().unwrap()).collect()
    }
}

#[test]
fn killed_batch_resumes() {
    let files = BatchFiles::new(60, None);
    assert!(files.command("whole.jsonl").output().unwrap().status.success());
    let part_len = || fs::metadata(files.path("killed.jsonl.part")).map_or(0, |part| part.len());
    let mut kills = 0;
    for attempt in 0.. {
        let before = part_len().max(200); // more than the first line, which is not a row
        let mut child = files.command("killed.jsonl").stderr(Stdio::null()).spawn().unwrap();
        while part_len() <= before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(attempt * 3 % 20)); // the kill then hits any point of a group
        let _ = child.kill(); // SIGKILL, if it is still running
        if child.wait().unwrap().success() {
            break;
        }
        kills += 1;
        assert!(kills < 100, "no progress after {kills} kills");
    }
    assert!(kills > 0, "the run finished before it could be killed");
    let whole = fs::read_to_string(files.path("whole.jsonl")).unwrap();
    assert_eq!(fs::read_to_string(files.path("killed.jsonl")).unwrap(), whole, "after {kills} kills");
    assert_eq!(files.ids("killed.jsonl"), (0..files.rows as u64).collect::<Vec<_>>());
    let again = files.command("killed.jsonl").output().unwrap();
    assert!(again.status.success() && text(&again.stderr).contains("already complete"));
    let other = files.command("killed.jsonl").args(["--min-new-tokens", "2"]).output().unwrap();
    assert_eq!(other.status.code(), Some(5), "{}", text(&other.stderr));
}

#[test]
fn edited_input_runs_only_changed_rows() {
    let files = BatchFiles::new(12, Some(4));
    assert_eq!(files.command("out.jsonl").output().unwrap().status.code(), Some(1));
    let before = lines(&fs::read_to_string(files.path("out.jsonl")).unwrap());
    let input = fs::read_to_string(files.path("in.jsonl")).unwrap();
    let mut rows: Vec<String> = input.lines().map(str::to_owned).collect();
    rows[1] = json!({"id": 1, "text": "Another question"}).to_string();
    rows[4] = json!({"id": 4, "text": "No image"}).to_string();
    rows.remove(7);
    rows.reverse();
    fs::write(files.path("in.jsonl"), rows.join("\n")).unwrap();

    let output = files.command("out.jsonl").output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("1 answered rows are no longer in"), "{stderr}");
    assert_eq!(files.ids("out.jsonl"), [11, 10, 9, 8, 6, 5, 4, 3, 2, 1, 0]);
    for row in lines(&fs::read_to_string(files.path("out.jsonl")).unwrap()) {
        let id = row["id"].as_u64().unwrap();
        assert_eq!(row == before[id as usize], ![1, 4].contains(&id), "{row}");
    }
    let again = files.command("out.jsonl").output().unwrap();
    assert!(again.status.success() && text(&again.stderr).contains("already complete"));
}

#[test]
fn rejected_options_leave_no_files() {
    let files = BatchFiles::new(3, None);
    let refused = files.command("out.jsonl").args(["--num-beams", "0"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(["out.jsonl", "out.jsonl.part", "out.jsonl.lock"].iter().all(|name| !files.path(name).exists()));
    let refused = files.command("out.jsonl").args(["--bad-words-ids", "[[99999]]"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let output = files.command("out.jsonl").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn output_has_default_permissions() {
    use std::os::unix::fs::PermissionsExt;

    let files = BatchFiles::new(1, None);
    let output = files.command("out.jsonl").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mode = |name| fs::metadata(files.path(name)).unwrap().permissions().mode();
    assert_eq!(mode("out.jsonl"), mode("in.jsonl"));

    fs::write(files.path("out.jsonl"), [0xff]).unwrap();
    let output = files.command("out.jsonl").output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("out.jsonl") && !stderr.contains("standard output"), "{stderr}");
}

#[test]
fn invalid_rows_become_rows_with_errors() {
    let files = BatchFiles::new(9, Some(4));
    let mut input = fs::OpenOptions::new().append(true).open(files.path("in.jsonl")).unwrap();
    writeln!(input, "\n{{\"id\": \"last\", \"txt\": 1}}\nno json").unwrap();
    let output = files.command("out.jsonl").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let rows = lines(&fs::read_to_string(files.path("out.jsonl")).unwrap());
    assert_eq!(rows.len(), 11);
    let error = rows[4]["error"].as_str().unwrap();
    assert!(error.starts_with("image 0") && error.contains("broken.png"), "{error}");
    assert!(
        rows[9]["id"] == "last" && rows[9]["txt"] == 1 && rows[9]["error"].as_str().unwrap().contains("`text`"),
        "{}",
        rows[9]
    );
    assert!(rows[10]["line"] == 12 && rows[10]["error"].as_str().unwrap().contains("line 12"), "{}", rows[10]);
    let answered = rows.iter().filter(|row| row["text"].is_string()).count();
    assert_eq!(answered, 8);

    // Rows without a valid id are named by their line number, which cannot be confused with an id.
    let rows = "{\"id\": 1, \"text\": \"a\"}\n{\"id\"\n{\"id\": 2, \"text\": \"b\"}\n{\"id\": null}\n{\"id\": null}\n{\"text\": \"c\"}\n";
    fs::write(files.path("in.jsonl"), rows).unwrap();
    let output = files.command("names.jsonl").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let rows = lines(&fs::read_to_string(files.path("names.jsonl")).unwrap());
    let begins: Vec<(&str, u64)> = rows
        .iter()
        .map(|row| row.as_object().unwrap().iter().next().unwrap())
        .map(|(key, value)| (key.as_str(), value.as_u64().unwrap()))
        .collect();
    assert_eq!(begins, [("id", 1), ("line", 2), ("id", 2), ("line", 4), ("line", 5), ("line", 6)]);
    assert_eq!(
        rows.iter().map(|row| row["error"].is_string()).collect::<Vec<_>>(),
        [false, true, false, true, true, false]
    );

    fs::write(files.path("in.jsonl"), "{\"id\": 1, \"text\": \"a\"}\n{\"id\": 1, \"text\": \"b\"}\n").unwrap();
    for _ in 0..2 {
        let output = files.command("twice.jsonl").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let rows = lines(&fs::read_to_string(files.path("twice.jsonl")).unwrap());
        assert!(rows.len() == 2 && rows[0]["id"] == 1 && rows[0]["text"].is_string(), "{rows:?}");
        let error = rows[1]["error"].as_str().unwrap();
        assert!(rows[1]["line"] == 2 && error.contains("the id 1 is already used on line 1"), "{error}");
    }
}

#[test]
fn chat_runs_commands_and_answers_questions() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("talk.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_idefics"))
        .arg("--model")
        .arg(checkpoint())
        .args(["--json", "-v", "chat", "--max-new-tokens", "4", "--do-image-splitting", "false"])
        .env("XDG_STATE_HOME", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = format!(
        "/image {photo}\nWhat is this?\nAnd why?\n/undo\nHow many?\n/nothing\n/image missing.png\n/save {}\n/reset\nHello\n",
        saved.display(),
        photo = photo()
    );
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers = lines(&text(&output.stdout));
    assert_eq!(answers.len(), 4);
    assert!(answers[0]["usage"]["image_tokens"].as_u64().unwrap() > 0);
    assert_eq!(answers[3]["usage"]["image_tokens"], 0);
    let stderr = text(&output.stderr);
    for expected in ["1 image with", "1 question left", "/nothing is not a command", "missing.png", "started a new"] {
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    let talk: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let roles: Vec<&str> =
        talk["messages"].as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!(talk["messages"][2]["content"][0]["text"], "How many?");
    let again = answer(&["generate", "--prompt-file", saved.to_str().unwrap(), "--max-new-tokens", "2"]);
    assert!(again.ends_with('\n'));
}

#[test]
fn chat_with_a_failed_question_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("broken.png"), "no picture").unwrap();
    let chat = |args: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_idefics"))
            .arg("--model")
            .arg(checkpoint())
            .args(["chat", "--max-new-tokens", "2"])
            .args(args)
            .env("XDG_STATE_HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // the program may have ended already
        let output = child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let broken = folder.path().join("broken.png");
    let broken = broken.to_str().unwrap();
    let (code, stderr) = chat(&[], &format!("/image {broken}\nWhat is this?\nAnd now?\n"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.ends_with("error: 2 of 2 questions failed\n"), "{stderr}");
    let (code, stderr) = chat(&[], &format!("Hello\n/image {broken}\nWhat is this?\n"));
    assert!(code == Some(1) && stderr.ends_with("1 of 2 questions failed\n"), "{code:?} {stderr}");
    for (option, value) in [("--num-beams", "2"), ("--num-beams", "0")] {
        let (code, stderr) = chat(&[option, value], "Hello\n");
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("num_beams") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn prints_completions_manual_and_help() {
    let bash = answer(&["completions", "bash"]);
    assert!(bash.contains("_idefics") && bash.contains("--num-beams"));
    let man = answer(&["man"]);
    assert!(man.starts_with(".ie") || man.contains(".TH"), "{man}");
    assert!(man.contains("exponential\\-decay\\-length\\-penalty") && man.contains("IDEFICS CHAT"));
    let help = answer(&["help", "generate"]);
    assert!(help.contains("--typical-p") && help.contains("Example"));
}
