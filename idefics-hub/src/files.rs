//! Names of the files in a model folder.

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// File names of the weights in one format.
pub(crate) struct WeightFiles {
    /// Name of the weights file if they are not sharded.
    pub(crate) single: &'static str,
    /// Name of the index that lists the shards.
    pub(crate) index: &'static str,
    /// File name extension of the shards, including the dot.
    pub(crate) ending: &'static str,
}

pub(crate) const SAFETENSORS: WeightFiles =
    WeightFiles { single: "model.safetensors", index: "model.safetensors.index.json", ending: ".safetensors" };
pub(crate) const PICKLED: WeightFiles =
    WeightFiles { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", ending: ".bin" };

/// Returns the accepted formats of weights, in order of preference.
pub(crate) fn weight_files(allow_pickles: bool) -> &'static [WeightFiles] {
    if allow_pickles { &[SAFETENSORS, PICKLED] } else { &[SAFETENSORS] }
}

/// Optional files of a model folder. They are downloaded if the repository has them.
pub(crate) const OPTIONAL: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Returns the names of all parts if `file` is the first part of a GGUF file that was split
/// (`name-00001-of-00003.gguf`). For other files, returns only `file`.
pub(crate) fn gguf_parts(file: &str) -> Vec<String> {
    const MAX_PARTS: usize = 1000;
    let split = || {
        let stem = file.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let name = rest.strip_suffix("-00001")?;
        let parts: usize = (count.len() == 5).then(|| count.parse().ok())??;
        let part = |number: usize| format!("{name}-{number:05}-of-{count}.gguf");
        (1..=MAX_PARTS).contains(&parts).then(|| (1..=parts).map(part).collect())
    };
    split().unwrap_or_else(|| vec![file.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::gguf_parts;

    #[test]
    fn lists_all_parts_of_a_split_file() {
        assert_eq!(gguf_parts("m.gguf"), ["m.gguf"]);
        assert_eq!(gguf_parts("m-00001-of-00002.gguf"), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
        assert_eq!(gguf_parts("m-00001-of-99999.gguf"), ["m-00001-of-99999.gguf"]);
    }
}
