//! Detects what a model path or folder contains, from the file names.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::config::read_json;
use crate::{Error, ModelWarning};

/// Files that contain or list the weights; a model has one of them.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Files that contain the weights of an adapter; an adapter has one of them.
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Rejects common things that are not model folders: GGUF files and PEFT adapters.
///
/// # Errors
/// [`Error::NoFolder`], [`Error::Gguf`], [`Error::Adapter`].
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    if !path.is_dir() {
        return Err(match is_gguf(path) {
            true => Error::Gguf { path: path.to_owned() },
            false => Error::NoFolder { path: path.to_owned() },
        });
    }
    let there = |name: &str| path.join(name).exists();
    if there("config.json") && WEIGHTS.into_iter().any(there) {
        return Ok(());
    }
    if there(ADAPTER_CONFIG) || ADAPTER_WEIGHTS.into_iter().any(there) {
        let base = adapter_base(path).unwrap_or_else(|| "a model that it does not name".to_owned());
        return Err(Error::Adapter { folder: path.to_owned(), base });
    }
    let files = fs::read_dir(path).into_iter().flatten().flatten();
    match files.map(|file| file.path()).find(|file| is_gguf(file)) {
        Some(path) => Err(Error::Gguf { path }),
        None => Ok(()),
    }
}

/// A warning if there is an adapter next to a model's own weights.
pub(crate) fn adapter_beside(folder: &Path) -> Option<ModelWarning> {
    let there = |name: &&str| folder.join(name).exists();
    let file = [ADAPTER_CONFIG].into_iter().chain(ADAPTER_WEIGHTS).find(there)?;
    Some(ModelWarning::AdapterBeside { path: folder.join(file), base: adapter_base(folder) })
}

/// The base model of an adapter.
fn adapter_base(folder: &Path) -> Option<String> {
    let config = read_json(&folder.join(ADAPTER_CONFIG)).ok()?;
    config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned)
}

/// Whether this is a GGUF file (of llama.cpp), judged by its extension or its first bytes.
fn is_gguf(path: &Path) -> bool {
    let has_ending = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    path.is_file() && (has_ending || begins_with_gguf(path))
}

fn begins_with_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}
