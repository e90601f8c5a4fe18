//! Decoding options.

use std::num::NonZeroU32;

use crate::Alpha;

/// Options that select how an image is decoded. The limits on its size and memory are in [`Limits`](crate::Limits).
///
/// An [`Alpha`] converts into options, so that `decode(bytes, name, &limits, Alpha::White)` works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// How transparency is flattened.
    pub alpha: Alpha,
    /// The page of a multi-page file (TIFF), counted from 1; the default is 1. Other formats have one page. The only
    /// page of an animation is its first frame.
    pub page: NonZeroU32,
}

impl DecodeOptions {
    /// Returns these options with a different page, counted from 1.
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
