//! The trained model, as the files of its folder.

use std::io;
use std::path::Path;

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_bytes!(concat!("../model/", $name)).as_slice())),*] };
}

/// A small Idefics2 in the public layout that was trained on these scenes: (name, contents) of each file. How it was
/// made and what it knows is in its `README.md`.
pub const MODEL: [(&str, &[u8]); 8] = files![
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Writes the model's files into a folder that exists.
///
/// # Errors
/// The system's answer.
pub fn write_model(folder: &Path) -> io::Result<()> {
    MODEL.iter().try_for_each(|(name, contents)| std::fs::write(folder.join(name), contents))
}
