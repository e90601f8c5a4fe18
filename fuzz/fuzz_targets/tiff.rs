//! TIFF files: directories, strips, tiles, all compression schemes.
#![no_main]

use idefics_image::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| idefics_fuzz::picture(Format::Tiff, data));
