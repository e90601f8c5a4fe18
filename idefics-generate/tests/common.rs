//! Tiny checkpoints, pictures and cases of the reference.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use idefics_generate::processor::{ProcessOptions, Sample};
use idefics_generate::{CancelToken, GenerationConfig, Idefics, Prompts};
use serde_json::Value;

/// Two computations of the same thing may differ by rounding only.
pub(crate) const SAME: f32 = 1e-5;

pub(crate) fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

pub(crate) fn load(checkpoint: &str) -> Idefics {
    load_folder(&xtask_folder("checkpoints").join(checkpoint)).unwrap()
}

pub(crate) fn load_folder(folder: &Path) -> Result<Idefics, idefics_generate::Error> {
    Idefics::from_folder(folder, &Device::flex(), DType::F32, |_| ())
}

/// Pictures of 3 sizes from the case `two-images`.
pub(crate) fn picture(name: &str) -> String {
    xtask_folder("cases/two-images/images").join(name).to_str().unwrap().to_owned()
}

pub(crate) fn text_sample(text: &str, pictures: &[&str]) -> Sample {
    let images: Vec<String> = pictures.iter().map(|name| picture(name)).collect();
    serde_json::from_value(serde_json::json!({"text": text, "images": images})).unwrap()
}

/// `case.json` of a committed case, with its samples' paths resolved.
pub(crate) fn case(name: &str) -> (Value, Vec<Sample>) {
    let folder = xtask_folder("cases").join(name);
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    let mut samples: Vec<Sample> = serde_json::from_value(case["samples"].clone()).unwrap();
    for sample in &mut samples {
        sample.resolve_paths(&folder);
    }
    (case, samples)
}

pub(crate) fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens: Some(max_new_tokens), ..GenerationConfig::default() }
}

pub(crate) fn no_splitting() -> ProcessOptions {
    ProcessOptions { do_image_splitting: Some(false), ..ProcessOptions::default() }
}

pub(crate) fn never() -> CancelToken {
    CancelToken::default()
}

/// Next-token logits of samples, `[batch, vocab_size]`.
pub(crate) fn next_logits(model: &Idefics, samples: &[Sample]) -> Tensor<2> {
    let processed = model.processor().process(samples, &no_splitting()).unwrap();
    let prompts = Prompts::pad_left(&processed.input_ids, 0).unwrap();
    let images: Vec<_> = processed.images.into_iter().flatten().collect();
    let features = model.model().encode_images(&images).unwrap();
    let mut cache = model.model().cache(&prompts, 0);
    model.model().prefill(&prompts, features, &mut cache).unwrap()
}

/// Largest |difference|.
pub(crate) fn difference<const D: usize>(left: Tensor<D>, right: Tensor<D>) -> f32 {
    assert_eq!(left.dims(), right.dims());
    (left - right).abs().max().into_scalar::<f32>()
}
