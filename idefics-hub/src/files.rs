//! Names of the files of a model folder.

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// The names of the weights in one format.
pub(crate) struct WeightFiles {
    /// The one file, where there is one.
    pub(crate) single: &'static str,
    /// Which names the shards, where there are several.
    pub(crate) index: &'static str,
    /// What the shards' names end in.
    pub(crate) ending: &'static str,
}

pub(crate) const SAFETENSORS: WeightFiles =
    WeightFiles { single: "model.safetensors", index: "model.safetensors.index.json", ending: ".safetensors" };
pub(crate) const PICKLED: WeightFiles =
    WeightFiles { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", ending: ".bin" };

/// The accepted formats, in the order of preference.
pub(crate) fn weight_files(allow_pickles: bool) -> &'static [WeightFiles] {
    if allow_pickles { &[SAFETENSORS, PICKLED] } else { &[SAFETENSORS] }
}

/// What a folder may have besides its configuration, its tokenizer and its weights.
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
