//! `config.json` and `generation_config.json`, separated by a NUL byte.
#![no_main]

use idefics_fuzz::Folder;
use idefics_generate::{GenerationConfig, ModelConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = Folder::new();
    folder.write_parts(data, &["config.json", "generation_config.json"]);
    let vocab_size = match ModelConfig::from_folder(folder.path()) {
        Ok(config) => config.family().shape().vocab_size,
        Err(_) => 100,
    };
    if let Ok(mut options) = GenerationConfig::from_folder(folder.path()) {
        let _ = options.warnings();
        options.drop_unsupported(vocab_size);
        options.check_vocab(vocab_size).expect("token ids outside the vocabulary were removed");
        let _ = options.validate();
    }
});
