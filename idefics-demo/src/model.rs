//! The files of the trained model, embedded in the library.

use std::io;
use std::path::Path;

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_bytes!(concat!("../model/", $name)).as_slice())),*] };
}

/// The files of a small Idefics2 that was trained on scenes of this crate: the name and contents of each file, in the
/// layout of the public checkpoints. `model/README.md` describes the training and the accuracy.
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

/// Writes the files of the model to an existing folder.
///
/// # Errors
/// The error of the first file that cannot be written.
pub fn write_model(folder: &Path) -> io::Result<()> {
    MODEL.iter().try_for_each(|(name, contents)| std::fs::write(folder.join(name), contents))
}
