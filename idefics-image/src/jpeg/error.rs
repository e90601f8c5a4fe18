//! Errors of the JPEG decoder.

use std::borrow::Cow;

/// Why a JPEG file cannot be decoded. The caller, who knows the name of the file, converts it to an
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
    /// The file ends where a marker is expected, or within the data before one.
    pub(super) const ENDS_EARLY: Self = Self::Damaged(Cow::Borrowed("the file ends early"));

    pub(super) fn damaged(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Damaged(reason.into())
    }
}
