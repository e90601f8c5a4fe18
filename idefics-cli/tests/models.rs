//! `idefics models`, which lists the public models and marks those in the hub cache.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::checkpoint;

fn models(cache: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.env_remove("HF_HUB_CACHE").env("HF_HOME", cache).args(args).arg("models").output().unwrap()
}

/// The expected numbers are the parameter counts that the hub shows for these checkpoints.
#[test]
fn parameter_counts_match_the_public_checkpoints() {
    let cache = tempfile::tempdir().unwrap();
    let output = models(cache.path(), &["--json"]);
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let models: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let parameters = |name: &str| {
        let model = models.iter().find(|model| model["model"] == name).unwrap();
        assert_eq!(model["cached"], Value::Null);
        assert!(model["weight_bytes"]["q4"].as_u64() < model["weight_bytes"]["int8"].as_u64(), "{model}");
        assert!(model["weight_bytes"]["int8"].as_u64() < model["weight_bytes"]["bf16"].as_u64(), "{model}");
        model["parameters"].as_u64().unwrap()
    };
    assert_eq!(parameters("HuggingFaceTB/SmolVLM-256M-Instruct"), 256_484_928);
    assert_eq!(parameters("HuggingFaceTB/SmolVLM-500M-Instruct"), 507_482_304);
    assert_eq!(parameters("HuggingFaceTB/SmolVLM-Instruct"), 2_246_272_880);
    assert_eq!(parameters("HuggingFaceM4/Idefics3-8B-Llama3"), 8_462_086_384);
}

#[test]
fn models_in_the_cache_are_marked() {
    let cache = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.path().join("hub/models--HuggingFaceTB--SmolVLM-256M-Instruct");
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(checkpoint().join(file), snapshot.join(file)).unwrap();
    }
    let table = String::from_utf8(models(cache.path(), &[]).stdout).unwrap();
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("HuggingFaceTB/SmolVLM-256M-Instruct").ends_with("yes"), "{table}");
    assert!(line("HuggingFaceTB/SmolVLM-500M-Instruct").ends_with("no"), "{table}");
}
