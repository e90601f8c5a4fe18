//! AVI files.
#![no_main]

use idefics_image::{Avi, ImageError, ReadOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut read = ReadOptions::default();
    read.limits = idefics_fuzz::limits();
    let Ok(avi) = Avi::open(data, "fuzz", &read) else { return };
    assert!(avi.len() > 0 && avi.fps().is_none_or(f64::is_finite));
    let indices: Vec<usize> = (0..avi.len().min(8)).collect();
    let result = avi.decode(&indices, |frame| assert!(frame.width() > 0 && frame.height() > 0));
    assert!(!matches!(result, Err(ImageError::DecoderPanic { .. })), "the decoder panicked");
});
