//! ICO files. CUR files differ only in one byte.
#![no_main]

use idefics_image::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| idefics_fuzz::picture(Format::Ico, data));
