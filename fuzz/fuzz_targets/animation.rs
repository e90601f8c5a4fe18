//! Animated GIF, WebP and PNG files.
#![no_main]

use idefics_image::{Alpha, Animation, ImageError, ReadOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut read = ReadOptions::default();
    read.limits = idefics_fuzz::limits();
    read.limits.max_pixels = 1 << 20;
    let Ok(Some(animation)) = Animation::open(data, "fuzz", &read, Alpha::White) else { return };
    let mut sizes = Vec::new();
    let every_other: Vec<usize> = (0..animation.len()).step_by(2).collect();
    match animation.decode(&every_other, |frame| sizes.push((frame.width(), frame.height()))) {
        Ok(()) => assert_eq!(sizes.len(), every_other.len()),
        Err(ImageError::DecoderPanic { .. }) => panic!("the decoder panicked"),
        Err(_) => {}
    }
    assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]));
});
