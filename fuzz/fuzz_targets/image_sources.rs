//! Image strings: paths, URLs, data URLs and base64. The policy allows no access to files or the network.
#![no_main]

use idefics_image::{Alpha, ImageSource, ReadOptions, SourcePolicy, load_with};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut options = ReadOptions::default();
    options.limits = idefics_fuzz::limits();
    options.sources = SourcePolicy::data_only();
    for text in [text.to_owned(), format!("data:{text}"), format!("data:image/png;base64,{text}")] {
        if let Ok(source) = text.parse::<ImageSource>() {
            let _ = load_with(&source, &options, Alpha::White);
        }
    }
});
