//! `--quantize` and `idefics quantize`. Both give the same answers, and folders are written completely or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{answer, checkpoint, idefics, photo, text, xtask_folder};

fn quantize(model: &Path, to: &str, out: &Path, more: &[&str]) -> std::process::Output {
    idefics(model, &[&["quantize", "--to", to, out.to_str().unwrap()], more].concat())
}

/// Returns the names and contents of all files in a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    files.map(|file| (text(file.file_name().as_encoded_bytes()), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn quantised_folder_matches_quantising_on_load() {
    let scratch = tempfile::tempdir().unwrap();
    for (format, more) in [("int8", None), ("nf4", None), ("nf4", Some("--double-quant")), ("fp4", None), ("q4", None)]
    {
        let out = scratch.path().join(format!("{format}{}", more.unwrap_or_default()));
        let written = quantize(&checkpoint(), format, &out, more.as_slice());
        assert!(written.status.success(), "{}", text(&written.stderr));
        assert_eq!(text(&written.stdout).trim(), out.to_str().unwrap());
        let ask = ["--json", "ask", &photo(), "What is this?", "--max-new-tokens", "8", "--logprobs", "1"];
        let ids = |line: &str| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            (answer["token_ids"].clone(), answer["logprobs"].clone())
        };
        let on_load = answer(&[&["--quantize", format][..], more.as_slice(), &ask].concat());
        let on_disk = idefics(&out, &ask);
        assert!(on_disk.status.success(), "{format}: {}", text(&on_disk.stderr));
        assert_eq!(ids(&on_load), ids(&text(&on_disk.stdout)), "{format}");
    }
}

#[test]
fn gguf_files_answer_like_their_source() {
    let scratch = tempfile::tempdir().unwrap();
    let source = xtask_folder("checkpoints/tiny-smolvlm2");
    let ask =
        ["--json", "--dtype", "f32", "ask", &photo(), "What is this?", "--max-new-tokens", "8", "--logprobs", "1"];
    let answered = |model: &Path| -> serde_json::Value {
        let output = idefics(model, &ask);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let expected = answered(&source);
    for to in ["f32", "q8_0", "q4_k_m"] {
        let out = scratch.path().join(to);
        let written = quantize(&source, &format!("gguf:{to}"), &out, &[]);
        assert!(written.status.success(), "{}", text(&written.stderr));
        let tower = if to == "f32" { "mmproj-model-f32.gguf" } else { "mmproj-model-q8_0.gguf" };
        let names: Vec<String> = contents(&out).into_keys().collect();
        assert!(names.contains(&format!("model-{to}.gguf")) && names.contains(&tower.to_owned()), "{names:?}");
        assert!(
            names.contains(&"tokenizer.json".to_owned()) && !names.contains(&"config.json".to_owned()),
            "{names:?}"
        );
        let found = answered(&out);
        assert_eq!(found["token_ids"].as_array().unwrap().len(), 8);
        if to == "f32" {
            assert_eq!(found["token_ids"], expected["token_ids"]);
            // Without the other files, the metadata alone still describes the same model.
            for name in names.iter().filter(|name| !name.ends_with(".gguf")) {
                fs::remove_file(out.join(name)).unwrap();
            }
            assert_eq!(answered(&out)["token_ids"], expected["token_ids"]);
            // Without the vision tower, the model answers questions about text only.
            let elsewhere = scratch.path().join("elsewhere.gguf");
            fs::rename(out.join(tower), &elsewhere).unwrap();
            let without = idefics(&out, &["ask", &photo(), "What is this?"]);
            assert_eq!(without.status.code(), Some(3));
            let stderr = text(&without.stderr);
            assert!(stderr.contains("cannot read images") && stderr.contains("--mmproj"), "{stderr}");
            // Messages name the user's files, not the temporary links to them.
            let with_tower =
                |args: &[&str]| idefics(&out, &[&["--mmproj", elsewhere.to_str().unwrap()], args].concat());
            let seen = with_tower(&["-v", "ask", &photo(), "What is this?", "--max-new-tokens", "1"]);
            assert!(seen.status.success(), "{}", text(&seen.stderr));
            assert!(text(&seen.stderr).contains(&format!("loading {} on", out.display())), "{}", text(&seen.stderr));
            fs::write(&elsewhere, &fs::read(&elsewhere).unwrap()[..100]).unwrap();
            let damaged = with_tower(&["ask", "hi"]);
            assert_eq!(damaged.status.code(), Some(4));
            assert!(text(&damaged.stderr).contains(elsewhere.to_str().unwrap()), "{}", text(&damaged.stderr));
            let template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}";
            fs::write(out.join("chat_template.jinja"), template).unwrap();
            let asked = idefics(&out, &["--json", "ask", "What is red?", "--max-new-tokens", "1"]);
            assert!(asked.status.success(), "{}", text(&asked.stderr));
            let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
            assert_eq!(answer["prompt"], "user: What is red?");
        }
    }
}

#[test]
fn activations_of_gguf_blocks_can_be_rounded() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source"); // has rows of 32 weights, and a RoPE scaling that GGUF can describe
    fs::create_dir(&source).unwrap();
    for (name, bytes) in contents(&xtask_folder("checkpoints/tiny-idefics3")) {
        fs::write(source.join(name), bytes).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_slice(&contents(&source)["config.json"]).unwrap();
    for key in ["rope_scaling", "rope_parameters"] {
        config["text_config"].as_object_mut().unwrap().remove(key);
    }
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    for (to, code) in [("q8_0", 0), ("f32", 2)] {
        let out = scratch.path().join(to);
        let written = quantize(&source, &format!("gguf:{to}"), &out, &[]);
        assert!(written.status.success(), "{}", text(&written.stderr));
        let answer = idefics(&out, &["--activations", "int8", "ask", &photo(), "What?", "--max-new-tokens", "2"]);
        assert_eq!(answer.status.code(), Some(code), "{to}: {}", text(&answer.stderr));
    }
}

#[cfg(unix)]
#[test]
fn quantised_folder_has_default_permissions() {
    use std::os::unix::fs::PermissionsExt;

    let scratch = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(scratch.path().join(name)).unwrap().permissions().mode();
    fs::write(scratch.path().join("file"), "").unwrap();
    fs::create_dir(scratch.path().join("folder")).unwrap();
    assert!(quantize(&checkpoint(), "q4", &scratch.path().join("out"), &[]).status.success());
    assert_eq!(mode("out"), mode("folder"));
    for file in contents(&scratch.path().join("out")).keys() {
        assert_eq!(mode(&format!("out/{file}")), mode("file"), "{file}");
    }
}

#[test]
fn inspect_counts_the_same_parameters_after_quantising() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("nf4");
    assert!(quantize(&checkpoint(), "nf4", &out, &[]).status.success());
    let parameters = |model: &Path| {
        let inspection: serde_json::Value =
            serde_json::from_slice(&idefics(model, &["--json", "inspect"]).stdout).unwrap();
        let parts = inspection["parts"].as_array().unwrap().iter().map(|part| part["parameters"].as_u64().unwrap());
        let parts: Vec<u64> = parts.collect();
        assert_eq!(inspection["parameters"], parts.iter().sum::<u64>());
        parts
    };
    assert_eq!(parameters(&out), parameters(&checkpoint()));
}

#[test]
fn inspect_names_the_formats_of_quantised_layers() {
    for (checkpoint, expected) in [
        ("small-quantized", "nf4"),
        ("tiny-idefics3-awq", "14 int4 (awq, groups of 16)"),
        ("tiny-idefics2-gptq-act-order", "14 int4 (gptq, groups of 32)"),
        ("tiny-smolvlm2-compressed", "14 int4 (compressed-tensors, groups of 4)"),
    ] {
        let output = idefics(&xtask_folder(&format!("checkpoints/{checkpoint}")), &["inspect"]);
        let stdout = text(&output.stdout);
        let line = stdout.lines().find(|line| line.starts_with("quantised")).unwrap_or_default();
        assert!(line.contains(expected), "{checkpoint}: {stdout}{}", text(&output.stderr));
    }
}

#[test]
fn unsupported_packings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in contents(&xtask_folder("checkpoints/tiny-idefics3-awq")) {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"gemm\"", "\"gemv\"", "quantization_config.version is \"gemv\"; expected gemm"),
        ("\"bits\": 4", "\"bits\": 3", "quantization_config.bits is 3; expected 4"),
        ("\"awq\"", "\"aqlm\"", "quantization_config.quant_method"),
    ] {
        fs::write(&path, config.replace(from, to)).unwrap();
        let output = idefics(folder.path(), &["ask", &photo(), "What is this?"]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[test]
fn rejects_invalid_formats_options_and_paths() {
    let scratch = tempfile::tempdir().unwrap();
    let refused = |model: &Path, to: &str, out: &Path, code: i32, word: &str| {
        let output = quantize(model, to, out, &[]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    };
    let out = scratch.path().join("out");
    refused(&checkpoint(), "none", &out, 2, "--to none");
    refused(&checkpoint(), "int3", &out, 2, "expected none, int8, nf4, fp4, q4");
    for (to, option) in [
        ("q4", &["--quantize", "q4"][..]),
        ("nf4", &["--dtype", "bf16"]),
        ("int8", &["--double-quant"]),
        ("q4", &["--double-quant"]),
        ("gguf:q4_0", &["--double-quant"]),
    ] {
        let output = quantize(&checkpoint(), to, &out, option);
        assert_eq!(output.status.code(), Some(2), "{option:?}");
        assert!(text(&output.stderr).contains(option[0]), "{}", text(&output.stderr));
    }
    refused(&xtask_folder("checkpoints/small-quantized"), "q4", &out, 4, "already quantised to nf4");
    refused(&xtask_folder("checkpoints/tiny-idefics3-awq"), "q4", &out, 4, "already quantised to int4");
    refused(&checkpoint(), "gguf:q3", &out, 2, "expected f32, f16");
    refused(&checkpoint(), "gguf:q8_0", &out, 4, "cannot be written as GGUF: its `model_type` is \"idefics2\"");
    refused(Path::new("./no-such-folder"), "q4", &out, 5, "no-such-folder");
    refused(&checkpoint(), "q4", &scratch.path().join("no/such/parent"), 5, "no/such");
    assert!(contents(scratch.path()).is_empty());
    fs::write(&out, "mine").unwrap();
    refused(&checkpoint(), "q4", &out, 5, "already exists");
    assert_eq!(fs::read(&out).unwrap(), b"mine");
}

#[test]
fn killed_run_leaves_a_complete_folder_or_none() {
    const ROUNDS: u32 = 24;
    let scratch = tempfile::tempdir().unwrap();
    let source = contents(&checkpoint());
    let whole = scratch.path().join("whole");
    let clock = Instant::now();
    assert!(quantize(&checkpoint(), "nf4", &whole, &[]).status.success());
    let run_time = clock.elapsed();
    let out = scratch.path().join("out");
    let mut cut_off = 0;
    for round in 0..=ROUNDS {
        let mut run = Command::new(env!("CARGO_BIN_EXE_idefics"))
            .arg("--model")
            .arg(checkpoint())
            .args(["quantize", "--to", "nf4"])
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if round < ROUNDS {
            std::thread::sleep(run_time * round / ROUNDS);
            run.kill().unwrap();
        }
        run.wait().unwrap();
        assert_eq!(contents(&checkpoint()), source, "round {round}");
        if out.exists() {
            assert_eq!(contents(&out), contents(&whole), "round {round}");
            fs::remove_dir_all(&out).unwrap();
        } else {
            assert!(round < ROUNDS, "the last run was not killed but wrote no folder");
            cut_off += 1;
        }
    }
    assert!(cut_off > 0, "every run finished before it was killed");
    // The last run removed the leftovers of the killed runs.
    let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["whole"]);
}
