//! `idefics bench`: every number it reports, and the arguments it rejects.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{checkpoint, text, xtask_folder};

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.env_remove("IDEFICS_MODEL").args(["--device", "cpu", "bench"]).args(args).output().unwrap()
}

/// Runs `bench` with random weights in a tiny shape and returns the JSON report.
fn measured(more: &[&str]) -> Value {
    let shape = xtask_folder("checkpoints/tiny-idefics2/config.json");
    let args = ["--json", "--random-weights", shape.to_str().unwrap(), "--new-tokens", "3", "--runs", "1"];
    let output = bench(&[&args, more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn measures_every_stage() {
    let whole = measured(&["--image", "60x40", "--batch", "2"]);
    for stage in ["preprocess_ms", "vision_ms", "connector_ms", "prefill_ms", "prefill_tokens_per_s"] {
        let [min, median, max] = ["min", "median", "max"].map(|key| whole[stage][key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{stage}: {}", whole[stage]);
    }
    let decode = ["decode_ms_per_token", "decode_tokens_per_s"].map(|stage| whole[stage]["median"].as_f64().unwrap());
    assert!((decode[0] * decode[1] / 2000.0 - 1.0).abs() < 1e-6, "{decode:?}");
    for key in ["load_s", "decode_bytes_per_token", "memory_bandwidth_gb_s", "decode_bandwidth_fraction"] {
        assert!(whole[key].as_f64().unwrap() > 0.0, "{key}: {}", whole[key]);
    }
    let settings = ["device", "dtype", "quantize"].map(|key| whole[key].clone());
    assert_eq!(settings, ["cpu", "bf16", "none"].map(Value::from));
    assert!(whole["threads"].as_u64().unwrap() > 0);
    assert!(cfg!(not(target_os = "linux")) || whole["peak_rss_bytes"].as_u64() > whole["weight_bytes"].as_u64());

    let part = measured(&["--text-layers", "1", "--quantize", "int8", "--dtype", "f32"]);
    assert_eq!([&part["dtype"], &part["quantize"]], [&json!("f32"), &json!("int8")]);
    // A layer has four query heads and two key-value heads of width 8, a feed-forward block of width 64, and two norms.
    let layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 32;
    assert_eq!(whole["params"].as_u64().unwrap() - part["params"].as_u64().unwrap(), layer);
}

#[test]
fn profile_compares_operations_with_machine_limits() {
    let report = measured(&["--image", "60x40", "--image", "90x40", "--vision-batch", "1", "--profile"]);
    let stages = report["profile"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["vision tower", "connector", "prefill", "decode"]);
    for stage in stages {
        let operations = stage["operations"].as_array().unwrap();
        assert!(!operations.is_empty(), "{stage}");
        let seconds: f64 = operations.iter().map(|operation| operation["seconds"].as_f64().unwrap()).sum();
        assert!(seconds > 0.0 && seconds <= stage["seconds"].as_f64().unwrap(), "{stage}");
        for operation in operations {
            assert!(operation["share_of_limit"].as_f64().is_some_and(|share| share > 0.0), "{operation}");
        }
    }
    let limits = report["limits_ops_per_s"].as_object().unwrap();
    assert!(limits.values().all(|limit| limit.as_f64().is_some_and(|limit| limit > 1e6)), "{limits:?}");
}

#[test]
fn tiles_count_cells_and_frames_of_the_whole_batch() {
    let smolvlm2 = xtask_folder("checkpoints/tiny-smolvlm2");
    let config = smolvlm2.join("config.json");
    let tiles = |args: &[&str]| {
        let args = [&["--json"], args, &["--new-tokens", "1", "--runs", "1"]].concat();
        let output = bench(&args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["tiles"].as_u64().unwrap()
    };
    let (shape, model) = (["--random-weights", config.to_str().unwrap()], ["--model", smolvlm2.to_str().unwrap()]);
    for source in [shape, model] {
        assert_eq!(tiles(&source), 0);
        // Frames are never split, whatever their size.
        assert_eq!(tiles(&[&source[..], &["--video", "300x200x5", "--batch", "2"]].concat()), 10);
        let split = tiles(&[&source[..], &["--image", "300x200"]].concat());
        assert!(split > 1, "{split} tiles");
        let all = ["--image", "300x200", "--video", "20x30x2", "--video", "30x20x1", "--batch", "3"];
        assert_eq!(tiles(&[&source[..], &all].concat()), 3 * (split + 3));
    }
    assert_eq!(measured(&["--image", "60x40", "--batch", "2"])["tiles"], 2);
}

#[test]
fn measures_several_clients() {
    for more in [&["--image", "60x40"][..], &[]] {
        let report = measured(&[&["--clients", "1,3"], more].concat());
        let clients = report["clients"].as_array().unwrap();
        assert_eq!(clients.iter().map(|report| report["clients"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
        for report in clients {
            assert!(report["tokens_per_s"]["median"].as_f64().unwrap() > 0.0, "{report}");
            for key in ["first_token_ms", "inter_token_ms"] {
                let [p50, p99] = ["p50", "p99"].map(|share| report[key][share].as_f64().unwrap());
                assert!(0.0 < p50 && p50 <= p99, "{report}");
            }
        }
    }
    assert!(measured(&[]).get("clients").is_none());
}

#[test]
fn rejects_shapes_and_counts_that_cannot_be_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let huge = scratch.path().join("config.json");
    let text_config =
        json!({"vocab_size": 32_003, "hidden_size": 32_768, "intermediate_size": 262_144, "num_hidden_layers": 512});
    std::fs::write(&huge, json!({"model_type": "idefics2", "text_config": text_config}).to_string()).unwrap();
    let refused = |args: &[&str], code: i32, word: &str| {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(word), "{args:?}: no {word:?} in {}", text(&output.stderr));
    };
    refused(&["--random-weights", huge.to_str().unwrap()], 6, "none of int8, nf4, fp4 and q4 would fit");
    for option in ["--text-layers", "--new-tokens", "--runs", "--batch"] {
        refused(&["--random-weights", "idefics2-8b", option, "0"], 2, option);
    }
    refused(&["--model", checkpoint().to_str().unwrap(), "--text-layers", "1"], 2, "--random-weights");
    refused(&["--random-weights", "smolvlm-1b"], 2, "smolvlm-256m");
    for shape in ["idefics-9b", "idefics2-8b", "idefics3-8b", "smolvlm-256m"] {
        refused(&["--random-weights", shape, "--video", "8x8x2"], 2, "cannot read videos");
    }
    for size in ["8x8", "8x8x0", "0x8x1", "8x8x513", "8x8x8x8"] {
        refused(&["--random-weights", "smolvlm2-256m", "--video", size], 2, "640x360x16");
    }
}
