//! Image strings: paths, URLs, data URLs and base64. Nothing is fetched, and no file is opened.
#![no_main]

use idefics_image::{Alpha, ImageSource, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for text in [text.to_owned(), format!("data:{text}"), format!("data:image/png;base64,{text}")] {
        match text.parse::<ImageSource>() {
            Ok(source @ (ImageSource::DataUrl(_) | ImageSource::Bytes(_))) => {
                let _ = load(&source, &idefics_fuzz::limits(), Alpha::White);
            }
            Ok(_) | Err(_) => {}
        }
    }
});
