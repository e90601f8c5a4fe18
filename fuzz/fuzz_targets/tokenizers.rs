//! The tokenizer's files: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `config.json`,
//! separated by NUL bytes.
#![no_main]

use idefics_fuzz::Folder;
use idefics_processor::{ProcessOptions, Processor, Sample};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"];

fuzz_target!(|data: &[u8]| {
    let folder = Folder::new();
    folder.write_parts(data, &FILES);
    let Ok(processor) = Processor::from_folder(folder.path()) else { return };
    let text = "User: Wörd <s>\n\u{1F600}</s>".to_owned();
    let sample = Sample::Text { text, images: Vec::new(), videos: Vec::new() };
    if let Ok(processed) = processor.process(&[sample], &ProcessOptions::default()) {
        let _ = processor.tokenizer().decode(&processed.input_ids[0], true);
    }
});
