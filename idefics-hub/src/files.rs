//! Names of the files in a model folder.

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// File names of the weights in one format.
pub(crate) struct WeightFiles {
    /// Name of the weights file if they are not sharded.
    pub(crate) single: &'static str,
    /// Name of the index that lists the shards.
    pub(crate) index: &'static str,
    /// File name extension of the shards.
    pub(crate) ending: &'static str,
}

pub(crate) const SAFETENSORS: WeightFiles =
    WeightFiles { single: "model.safetensors", index: "model.safetensors.index.json", ending: ".safetensors" };
pub(crate) const PICKLED: WeightFiles =
    WeightFiles { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", ending: ".bin" };

/// The accepted formats, in order of preference.
pub(crate) fn weight_files(allow_pickles: bool) -> &'static [WeightFiles] {
    if allow_pickles { &[SAFETENSORS, PICKLED] } else { &[SAFETENSORS] }
}

/// Optional files of a model folder: downloaded if the repository has them.
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
