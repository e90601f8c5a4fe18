//! `train-demo`: a short run that is killed and resumed, and an unwritable output folder.

#![allow(clippy::unwrap_used)] // also in helper functions

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A run with three steps in each part and a checkpoint after every step.
fn train(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["train-demo", "--tower-steps", "3", "--steps", "3", "--more-steps", "3", "--save-every", "1"]);
    command.args(["--eval-every", "100", "--count", "2", "--out"]).arg(out);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn killed_run_resumes_to_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| folder.path().join(name));
    let output = train(&whole).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    for part in ["tower/step-00000001", "round-1/step-00000002", "round-2/step-00000001"] {
        let mut child = train(&cut).spawn().unwrap();
        while !cut.join(part).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    let output = train(&cut).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let [whole, cut] = [&whole, &cut].map(|out| std::fs::read(out.join("model").join(name)).unwrap());
        assert!(whole == cut, "{name} differs");
    }
}

#[test]
fn unwritable_folder_is_a_file_system_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let output = train(&file.join("out")).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("file") && said.trim().lines().count() == 1, "{said}");
}
