//! `cargo xtask verify`: its help and its errors.

#![allow(clippy::unwrap_used)] // also in helper functions

use std::path::Path;
use std::process::{Command, Output};

fn verify(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("verify").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn case_of_the_help_exists() {
    let help = text(&verify(&["--help"]).stdout);
    let case =
        help.split_whitespace().skip_while(|word| *word != "Examples:").skip_while(|word| *word != "--case").nth(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(case.unwrap());
    assert!(folder.join("case.json").is_file(), "{}", folder.display());
}

#[test]
fn missing_case_is_named_without_an_error_number() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing = folder.path().join("no-such");
    for (case, reason) in [
        (missing.as_path(), "no such folder"),
        (file.as_path(), "not a folder"),
        (folder.path(), "case.json: there is no"),
    ] {
        let output = verify(&["--case", case.to_str().unwrap()]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(case.to_str().unwrap()) && said.contains(reason), "{said}");
        assert!(!said.contains("os error"), "{said}");
    }
}
