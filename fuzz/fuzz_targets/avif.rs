//! AVIF files: the container and AV1.
#![no_main]

use idefics_image::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| idefics_fuzz::picture(Format::Avif, data));
