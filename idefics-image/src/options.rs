//! What a caller may choose about decoding.

use std::num::NonZeroU32;

use crate::Alpha;

/// How an image is decoded. [`Limits`](crate::Limits) bound what it may cost.
///
/// An [`Alpha`] alone converts into options, so `decode(bytes, name, &limits, Alpha::White)` works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// How transparency is flattened.
    pub alpha: Alpha,
    /// The page of a file with several pages (TIFF), counted from 1 as in a document viewer; 1 unless set. Files of
    /// other formats have one page; of an animation it is the first frame.
    pub page: NonZeroU32,
}

impl DecodeOptions {
    /// The same options with another page, counted from 1.
    #[must_use]
    pub fn with_page(self, page: NonZeroU32) -> Self {
        Self { page, ..self }
    }
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Alpha::default().into()
    }
}

impl From<Alpha> for DecodeOptions {
    fn from(alpha: Alpha) -> Self {
        Self { alpha, page: NonZeroU32::MIN }
    }
}
