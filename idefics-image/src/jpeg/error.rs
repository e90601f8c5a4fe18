//! Errors of the JPEG decoder.

use std::borrow::Cow;

/// Why a JPEG file cannot be decoded. The caller knows the name of the file and converts this error to an
/// [`ImageError`](crate::ImageError).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JpegError {
    /// The file is damaged.
    Damaged(Cow<'static, str>),
    /// The file is valid but uses an unsupported coding.
    Coding(Cow<'static, str>),
    /// The coefficients need this many bytes, more than the limit allows.
    Memory(u64),
    /// The system cannot allocate this many bytes.
    OutOfMemory(u64),
}

impl JpegError {
    /// The file ends before an expected marker.
    pub(super) const ENDS_EARLY: Self = Self::Damaged(Cow::Borrowed("the file ends early"));

    pub(super) fn damaged(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Damaged(reason.into())
    }
}
