//! Builds valid and broken safetensors folders. The tests of `idefics-nn` include this file.

use tempfile::TempDir;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Builds a safetensors file: header length, header, data.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

pub(crate) fn folder_with(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Builds a file of f32 tensors in which the value of each element is its flat index in the tensor.
pub(crate) fn tensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        (0..shape.iter().product()).for_each(|i: usize| data.extend((i as f32).to_le_bytes()));
        let end = data.len();
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

pub(crate) const TINY: [(&str, &[usize]); 3] = [("layers.0.weight", &[2, 3]), ("layers.0.bias", &[2]), ("norm", &[2])];

/// Builds two shards with the tensors of [`TINY`]: `layers` in the first, `norm` in the second.
pub(crate) fn shards() -> [Vec<u8>; 2] {
    [tensors(&TINY[..2]), tensors(&TINY[2..])]
}

/// Builds an index that maps the tensors of [`TINY`] to the given shards.
pub(crate) fn index(shards: [&str; 3]) -> Vec<u8> {
    let map: serde_json::Map<_, _> =
        TINY.iter().zip(shards).map(|((name, _), shard)| ((*name).to_owned(), shard.into())).collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()
}

/// Asserts that an error has the given variant, and that its message contains all given words.
macro_rules! assert_error {
    ($error:expr, $variant:pat, $($word:expr),*) => {{
        let error: idefics_checkpoint::CheckpointError = $error;
        let message = error.to_string();
        assert!(matches!(error, $variant), "{error:?}");
        $(assert!(message.contains($word), "{message:?} does not contain {:?}", $word);)*
    }};
}
pub(crate) use assert_error;
