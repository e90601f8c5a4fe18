//! IDEFICS v1: the examples of the Transformers guide, pickles, quantisation and device maps.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use crate::{idefics, text, xtask_folder};

/// Runs the program with `--json` and returns the answers that it prints.
fn answers(model: &Path, args: &[&str]) -> Vec<Value> {
    let output = idefics(model, &[&["--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts a server that answers every request with a photograph, and returns its URL.
fn photo_server() -> String {
    let photo = fs::read(xtask_folder("images/coffee.jpg")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", photo.len());
            let _ = stream.write_all(&[head.as_bytes(), &photo].concat());
        }
    });
    format!("http://{address}/photo.jpg")
}

#[test]
fn idefics1_guide_examples_run_with_their_options() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let model = xtask_folder("checkpoints/idefics1-vector");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let commands: Vec<&str> = readme.lines().filter(|line| line.contains("examples/idefics1/")).collect();
    assert_eq!(commands.len(), 8);
    let copies = tempfile::tempdir().unwrap();
    for command in commands {
        // The first three words are `idefics --model $M`.
        let mut args: Vec<String> = command.split_whitespace().skip(3).map(str::to_owned).collect();
        let file = folder.join(args[2].strip_prefix("examples/").unwrap());
        args[2] = file.to_str().unwrap().to_owned();
        let replace = |args: &mut Vec<String>, what: &str, with: &str| {
            let at = args.iter().position(|arg| arg == what).unwrap_or_else(|| panic!("{command} has {what}"));
            args[at] = with.to_owned();
        };
        replace(&mut args, "$B", "[[474],[475]]"); // token ids in the small vocabulary
        let is_conversation = command.contains("conversation.json");
        if is_conversation {
            replace(&mut args, "32002", "476");
            replace(&mut args, "100", "420");
            // The images of this example are on the network, so they are replaced by an image from the local server.
            let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            let url = photo_server();
            for part in json["prompt"].as_array_mut().unwrap() {
                if part.as_str().is_some_and(|text| text.starts_with("https://")) {
                    *part = url.clone().into();
                }
            }
            let copy = copies.path().join("conversation.json");
            fs::write(&copy, json.to_string()).unwrap();
            args[2] = copy.to_str().unwrap().to_owned();
        }
        let answers = answers(&model, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(answers.len(), if command.contains("batch-of-three") { 3 } else { 1 }, "{command}");
        for answer in &answers {
            assert!(!answer["token_ids"].as_array().unwrap().is_empty(), "{command}");
            let images = if is_conversation || command.contains("few-shot") { 2 } else { 1 };
            assert_eq!(answer["usage"]["image_tokens"], images, "{command}");
        }
        if is_conversation {
            let usage = &answers[0]["usage"];
            let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
            assert!(total <= 420, "max_length includes the prompt");
        }
    }
}

#[test]
fn ask_uses_the_prompt_format_of_the_model() {
    let photo = crate::photo();
    let ask = |checkpoint: &str| {
        let model = xtask_folder("checkpoints").join(checkpoint);
        answers(&model, &["ask", &photo, "What is it?", "--max-new-tokens", "4"])[0]["prompt"].clone()
    };
    let image = "<fake_token_around_image><image><fake_token_around_image>";
    assert_eq!(ask("idefics1-vector"), format!("<s>User:{image}What is it?<end_of_utterance>\nAssistant:"));
    assert_eq!(ask("idefics1-float"), format!("<s>{image}Question: What is it? Answer:"));
}

#[test]
fn reads_pickles_only_if_allowed() {
    let model = xtask_folder("checkpoints/idefics1-tied");
    let refused = idefics(&model, &["inspect"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("--allow-pickle"), "{}", text(&refused.stderr));
    let inspection = answers(&model, &["--allow-pickle", "inspect"]);
    assert_eq!(inspection[0]["family"], "idefics");
    let answer = answers(&model, &["--allow-pickle", "caption", &crate::photo(), "--max-new-tokens", "2"]);
    assert_eq!(answer[0]["usage"]["image_tokens"], 1);
}

#[test]
fn inspect_estimates_memory_from_a_configuration() {
    let model = xtask_folder("checkpoints/idefics1-photo"); // this folder has no weights
    let inspection = &answers(&model.join("config.json"), &["inspect"])[0];
    assert!(inspection["parameters"].as_u64().unwrap() > 8_000_000_000);
    let bytes = |name: &str| {
        let held = inspection["precisions"].as_array().unwrap().iter().find(|held| held["name"] == name).unwrap();
        assert!(!inspection["plans"][name].as_array().unwrap().is_empty(), "{name}");
        held["weights"]["taken"].as_u64().unwrap()
    };
    assert_eq!(bytes("f32"), 4 * inspection["parameters"].as_u64().unwrap());
    assert!(bytes("bf16") * 2 > bytes("f32") && bytes("nf4") < bytes("int8") && bytes("int8") < bytes("bf16"));
}

#[test]
fn quantised_folder_matches_quantising_on_load() {
    let photo = crate::photo();
    let ask = ["ask", &photo, "What is it?", "--max-new-tokens", "6", "--logprobs", "1"];
    let scratch = tempfile::tempdir().unwrap();
    for (checkpoint, format) in
        [("idefics1-float", "int8"), ("idefics1-vector", "nf4"), ("idefics1-float", "fp4"), ("idefics1-tied", "q4")]
    {
        let (model, out) = (xtask_folder("checkpoints").join(checkpoint), scratch.path().join(format));
        let written = idefics(&model, &["--allow-pickle", "quantize", "--to", format, out.to_str().unwrap()]);
        assert!(written.status.success(), "{format}: {}", text(&written.stderr));
        let on_load = answers(&model, &[&["--allow-pickle", "--quantize", format][..], &ask].concat());
        let on_disk = answers(&out, &ask);
        for key in ["token_ids", "logprobs"] {
            assert_eq!(on_load[0][key], on_disk[0][key], "{format}: {key}");
        }
        let parameters =
            [&model, &out].map(|model| answers(model, &["--allow-pickle", "inspect"])[0]["parameters"].clone());
        assert_eq!(parameters[0], parameters[1]);
    }
}

#[test]
fn device_map_does_not_change_the_answer() {
    let model = xtask_folder("checkpoints/idefics1-float");
    let photo = crate::photo();
    let question = ["ask", &photo, "What is it?", "--max-new-tokens", "5", "--num-beams", "2"];
    let alone = answers(&model, &question);
    let spread = ["--device-map", "auto", "--max-memory", "cpu:0=60kB,cpu:1=100kB,cpu:2=40kB"];
    let output = idefics(&model, &[&["--json"][..], &spread, &question].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let spread: Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    assert_eq!(spread["token_ids"], alone[0]["token_ids"]);
    let quantized = ["--quantize", "q4", "--device-map", "auto", "--max-memory", "cpu:0=40kB,cpu:1=100MB"];
    let quantized = answers(&model, &[&quantized[..], &question].concat());
    assert_eq!(
        quantized[0]["token_ids"],
        answers(&model, &[&["--quantize", "q4"][..], &question].concat())[0]["token_ids"]
    );
    let plan = text(&output.stderr);
    for place in ["cpu:0 ", "cpu:1 ", "cpu:2 ", "files "] {
        assert!(plan.lines().any(|line| line.starts_with(place)), "{plan}");
    }

    let refused = idefics(&crate::checkpoint(), &["--device-map", "auto", "caption", &photo]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--device-map"));
}
