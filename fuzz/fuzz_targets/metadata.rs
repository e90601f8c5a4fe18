//! Orientation in EXIF and XMP: the data is embedded as every kind of metadata block in small JPEG, PNG and WebP
//! files.
#![no_main]

use idefics_fuzz::containers;
use idefics_image::{Alpha, ImageError, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for file in containers::with_metadata(data) {
        // Invalid metadata must be ignored or rejected.
        if let Err(ImageError::DecoderPanic { .. }) = decode(&file, "fuzz", &idefics_fuzz::limits(), Alpha::White) {
            panic!("the decoder panicked");
        }
    }
});
