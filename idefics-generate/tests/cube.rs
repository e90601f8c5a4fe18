//! What GPUs alone do, on the best of the backends compiled in. `.ci/software-vulkan` gives a machine without one a
//! device, which needs WGSL: the feature `wgpu` without `vulkan`.

#![allow(clippy::unwrap_used)] // helpers too

use std::path::Path;

use burn::tensor::{DType, Device};
use idefics_generate::processor::Sample;
use idefics_generate::{Controls, DeviceChoice, Generation, GenerationConfig, Idefics, Prompts};
use serde_json::json;

/// Tokens of an answer: enough for a step to be recorded and replayed.
const N_TOKENS: usize = 40;

/// The GPU.
fn gpu() -> Device {
    let choice = if cfg!(feature = "cuda") {
        DeviceChoice::Cuda(0)
    } else if cfg!(feature = "vulkan") {
        DeviceChoice::Vulkan(0)
    } else {
        DeviceChoice::Wgpu(0)
    };
    choice.open().unwrap().1
}

fn xtask_folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

fn load(checkpoint: &str, device: &Device) -> Idefics {
    Idefics::from_folder(&xtask_folder("checkpoints").join(checkpoint), device, DType::F32, |_| ()).unwrap()
}

/// Rows with one, no and two images, of different lengths; the first Idefics takes lists of texts and images.
fn rows(is_list: bool) -> Vec<Sample> {
    let image = |name: &str| xtask_folder("cases/two-images/images").join(name).to_str().unwrap().to_owned();
    let samples = match is_list {
        false => json!([
            {"text": "User: What is this?<image>", "images": [image("small.png")]},
            {"text": "User: Hello", "images": []},
            {"text": "<image>and<image>", "images": [image("wide.png"), image("tall.png")]},
        ]),
        true => json!([
            {"prompt": ["User: What is this?", {"image": image("small.png")}]},
            {"prompt": ["User: Hello"]},
            {"prompt": [{"image": image("wide.png")}, "and", {"image": image("tall.png")}]},
        ]),
    };
    serde_json::from_value(samples).unwrap()
}

/// The tokens of each row with their log-probabilities, and whether steps were replayed.
fn answers(
    model: &Idefics,
    samples: &[Sample],
    is_list: bool,
    launches_every_step: bool,
) -> (Vec<Vec<u32>>, Vec<f32>, bool) {
    let processed = model.processor().process(samples, &Default::default()).unwrap();
    let tokenizer = model.processor().tokenizer();
    let mut prompts = Prompts::pad_left(&processed.input_ids, 0).unwrap();
    if is_list {
        prompts = prompts.seeing_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id());
    }
    let images: Vec<_> = processed.images.into_iter().flatten().collect();
    let features = model.model().encode_images(&images).unwrap();
    let options = GenerationConfig {
        max_new_tokens: Some(N_TOKENS),
        min_new_tokens: Some(N_TOKENS),
        ..GenerationConfig::default()
    };
    let controls = Controls { logprobs: Some(0), launches_every_step, ..Controls::default() };
    let mut generation = Generation::start(model.model(), &prompts, features, &options, controls).unwrap();
    while generation.step().unwrap().is_some() {}
    let logprobs = (0..samples.len()).flat_map(|row| generation.logprobs(row)).map(|token| token.token.logprob);
    let logprobs = logprobs.collect();
    (generation.sequences().to_vec(), logprobs, generation.is_replayed())
}

#[test]
fn replayed_steps_are_the_launched_ones() {
    let device = gpu();
    for (checkpoint, is_list) in [("odd-heads", false), ("sliding-sharded", false), ("idefics1-float", true)] {
        let model = load(checkpoint, &device);
        for samples in [&rows(is_list)[..], &rows(is_list)[..1]] {
            let (tokens, logprobs, is_replayed) = answers(&model, samples, is_list, true);
            assert!(!is_replayed, "{checkpoint}");
            let (same_tokens, same_logprobs, is_replayed) = answers(&model, samples, is_list, false);
            assert!(is_replayed, "{checkpoint}");
            assert_eq!(tokens, same_tokens, "{checkpoint}");
            let apart = logprobs.iter().zip(&same_logprobs).map(|(left, right)| (left - right).abs());
            assert!(apart.fold(0.0, f32::max) <= 1e-5, "{checkpoint}");
        }
    }
}
