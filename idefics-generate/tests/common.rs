//! Tiny checkpoints, images and reference cases.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use idefics_generate::processor::{ProcessOptions, Sample};
use idefics_generate::{CancelToken, GenerationConfig, Idefics, Prompts};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// Largest accepted difference between two computations of the same result, which may round differently.
pub(crate) const SAME: f32 = 1e-5;

pub(crate) fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

/// Copies a checkpoint to a temporary folder, where a test can modify it.
pub(crate) fn copy(checkpoint: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(xtask_folder("checkpoints").join(checkpoint)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

/// Edits a JSON file in place.
pub(crate) fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A tensor of a safetensors file: name, dtype, shape and bytes.
pub(crate) type FileTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Edits the tensors of `model.safetensors`.
pub(crate) fn edit_tensors(folder: &Path, change: impl FnOnce(&mut Vec<FileTensor>)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut tensors: Vec<FileTensor> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn load(checkpoint: &str) -> Idefics {
    load_folder(&xtask_folder("checkpoints").join(checkpoint)).unwrap()
}

pub(crate) fn load_folder(folder: &Path) -> Result<Idefics, idefics_generate::Error> {
    Idefics::from_folder(folder, &Device::flex(), DType::F32, |_| ())
}

/// Returns the path of an image of the case `two-images`. Its three images have different sizes.
pub(crate) fn picture(name: &str) -> String {
    xtask_folder("cases/two-images/images").join(name).to_str().unwrap().to_owned()
}

pub(crate) fn text_sample(text: &str, pictures: &[&str]) -> Sample {
    let images: Vec<String> = pictures.iter().map(|name| picture(name)).collect();
    serde_json::from_value(serde_json::json!({"text": text, "images": images})).unwrap()
}

/// Returns the `case.json` of a committed case, and its samples with resolved paths.
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

/// Computes the next-token logits of samples, `[batch, vocab_size]`.
pub(crate) fn next_logits(model: &Idefics, samples: &[Sample]) -> Tensor<2> {
    let processed = model.processor().process(samples, &no_splitting()).unwrap();
    let prompts = Prompts::pad_left(&processed.input_ids, 0).unwrap();
    let images: Vec<_> = processed.images.into_iter().flatten().collect();
    let features = model.model().encode_images(&images).unwrap();
    let mut cache = model.model().cache(&prompts, 0);
    model.model().prefill(&prompts, features, &mut cache).unwrap()
}

/// Returns the largest absolute difference.
pub(crate) fn difference<const D: usize>(left: Tensor<D>, right: Tensor<D>) -> f32 {
    assert_eq!(left.dims(), right.dims());
    (left - right).abs().max().into_scalar::<f32>()
}
