//! Image arguments and the pixel limit.

use std::ffi::OsString;
use std::str::FromStr;

use clap::builder::{OsStringValueParser, TypedValueParser};
use idefics_generate::processor::image::{ImageError, ImageSource, Limits};

/// Returns a parser for image arguments.
pub(super) fn image_parser() -> impl TypedValueParser<Value = ImageSource> {
    OsStringValueParser::new().try_map(image)
}

/// Parses an image argument: a path, a URL or base64. Paths need not be UTF-8.
pub(crate) fn image(name: OsString) -> Result<ImageSource, ImageError> {
    name.into_string().map_or_else(|name| Ok(ImageSource::Path(name.into())), |text| text.parse())
}

/// Maximum number of pixels of an image to decode; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaxPixels(Option<u64>);

impl MaxPixels {
    /// Returns image limits with this maximum number of pixels. Limits on bytes are raised so that images with that
    /// many pixels are accepted.
    pub(super) fn limits(self) -> Limits {
        Limits::default().with_max_pixels(self.0)
    }
}

impl FromStr for MaxPixels {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text == "none" {
            return Ok(Self(None));
        }
        let pixels = text.parse().ok().filter(|pixels| *pixels > 0);
        pixels.map(|pixels| Self(Some(pixels))).ok_or("expected a number of pixels, or `none` for no limit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_limits_grow_with_the_pixel_limit() {
        let limits = |text: &str| text.parse::<MaxPixels>().map(MaxPixels::limits);
        let some = limits("300000000").unwrap();
        assert_eq!((some.max_pixels, some.max_bytes), (300_000_000, 2_400_000_000));
        assert_eq!(some.max_decoded_bytes, 4_800_000_000, "four components of 32 bits");
        assert_eq!(limits("100").unwrap().max_bytes, Limits::default().max_bytes);
        let none = limits("none").unwrap();
        assert_eq!((none.max_pixels, none.max_decoded_bytes), (u64::MAX, u64::MAX));
        assert!(["0", "-1", "many", ""].into_iter().all(|text| limits(text).is_err()));
    }
}
