//! The built-in model, which is used without `--model`.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::text;

fn idefics(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_idefics")).env_remove("IDEFICS_MODEL").args(args).output().unwrap()
}

fn scene() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idefics-demo/images/scene.png");
    path.to_str().unwrap().to_owned()
}

#[test]
fn first_command_of_the_readme_gives_the_documented_caption() {
    let output = idefics(&["caption", &scene()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "A green cross, a yellow star and an orange square.\n");
    let said = text(&output.stderr);
    assert_eq!(said.matches("built-in model").count(), 1, "{said}");
    assert!(said.contains("--model"), "{said}");
}

#[test]
fn demo_answers_are_mostly_right() {
    let output = idefics(&["--json", "--seed", "3", "demo", "--count", "8"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 16, "{} answers", lines.len());
    let right = lines.iter().filter(|line| line["right"] == true).count();
    assert!(10 * right >= 8 * lines.len(), "{right} of {} right", lines.len());
    assert!(lines.iter().all(|line| (line["text"] == line["expected"]) == (line["right"] == true)));
}

#[test]
fn demo_saves_images_and_shows_none_in_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let output = idefics(&["demo", "--count", "2", "--save", folder.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.lines().last().unwrap().ends_with("right") && !said.contains('\u{1b}'), "{said}");
    for name in ["scene-0.png", "scene-1.png"] {
        let answer = idefics(&["caption", folder.path().join(name).to_str().unwrap()]);
        assert!(text(&answer.stdout).ends_with(".\n"), "{}", text(&answer.stdout));
    }
}

#[test]
fn inspect_describes_the_built_in_model() {
    let output = idefics(&["inspect"]);
    assert!(text(&output.stdout).starts_with("the built-in model\n"), "{}", text(&output.stdout));
}

#[test]
fn built_in_model_has_a_name_instead_of_a_temporary_path() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
        let output = command.args(args).env("TMPDIR", folder.path()).env_remove("IDEFICS_MODEL").output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(folder.path().to_str().unwrap()), "{args:?}: {said}");
        said
    };
    assert!(run(&["--device", "cpu", "-v", "ask", "hi"]).contains("loading the built-in model on cpu"));
    let placed = run(&["--device-map", "auto", "ask", "hi"]);
    assert!(placed.contains("error: the built-in model: only models with"), "{placed}");
    let inspected: Value = serde_json::from_str(&run(&["--json", "inspect"])).unwrap();
    assert!(inspected["folder"].is_null(), "{inspected}");
}
