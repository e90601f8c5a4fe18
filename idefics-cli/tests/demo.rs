//! The program without `--model`: the model that it carries.

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
fn the_first_command_of_the_readme_is_right() {
    let output = idefics(&["caption", &scene()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "A green cross, a yellow star and an orange square.\n");
    let said = text(&output.stderr);
    assert_eq!(said.matches("built-in model").count(), 1, "{said}");
    assert!(said.contains("--model"), "{said}");
}

#[test]
fn it_answers_questions_and_its_answers_are_mostly_right() {
    let output = idefics(&["--json", "--seed", "3", "demo", "--count", "8"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 16, "{} answers", lines.len());
    let right = lines.iter().filter(|line| line["right"] == true).count();
    assert!(10 * right >= 8 * lines.len(), "{right} of {} right", lines.len());
    assert!(lines.iter().all(|line| (line["text"] == line["expected"]) == (line["right"] == true)));
}

#[test]
fn the_demo_keeps_its_pictures_and_draws_none_into_a_pipe() {
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
fn inspect_knows_the_built_in_model() {
    let output = idefics(&["inspect"]);
    assert!(text(&output.stdout).starts_with("the built-in model\n"), "{}", text(&output.stdout));
}
