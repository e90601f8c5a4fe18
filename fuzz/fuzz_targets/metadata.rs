//! Orientation in EXIF and XMP: the data is put into a small valid JPEG, PNG and WebP file as each kind of block.
#![no_main]

use idefics_fuzz::containers;
use idefics_image::{Alpha, ImageError, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for file in containers::with_metadata(data) {
        // A block that makes no sense leaves the picture as it is, or the file is refused.
        if let Err(ImageError::DecoderPanic { .. }) = decode(&file, "fuzz", &idefics_fuzz::limits(), Alpha::White) {
            panic!("the decoder panicked");
        }
    }
});
