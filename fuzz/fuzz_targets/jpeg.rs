//! JPEG files: headers, scans, restart markers.
#![no_main]

use idefics_image::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| idefics_fuzz::picture(Format::Jpeg, data));
