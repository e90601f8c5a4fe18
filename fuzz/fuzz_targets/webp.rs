//! WebP files: lossy, lossless and animated.
#![no_main]

use idefics_image::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| idefics_fuzz::picture(Format::WebP, data));
