//! What the fuzz targets share.

pub mod containers;

use idefics_image::{Alpha, Format, ImageError, Limits, decode};

/// Limits of the targets: little memory, so that a decoder that takes more than it says is found.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_decoded_bytes = 64 << 20;
    limits
}

/// Decodes a file of the given format; files of other formats belong to other targets.
///
/// # Panics
/// If the decoder panicked, or if a picture breaks the limits.
pub fn picture(format: Format, data: &[u8]) {
    if Format::sniff(data) != Ok(format) {
        return;
    }
    for alpha in [Alpha::White, Alpha::Drop] {
        match decode(data, "fuzz", &limits(), alpha) {
            Ok(image) => assert_eq!(image.data().len() as u64, 3 * u64::from(image.width()) * u64::from(image.height())),
            Err(ImageError::DecoderPanic { .. }) => panic!("the decoder panicked"),
            Err(_) => {}
        }
    }
}
