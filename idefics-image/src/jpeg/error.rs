//! Why a JPEG file does not decode.

use std::borrow::Cow;

/// Becomes an [`ImageError`](crate::ImageError) where the name of the file is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JpegError {
    /// The file is damaged.
    Damaged(Cow<'static, str>),
    /// The file is valid, but coded in a way that this decoder does not read.
    Coding(Cow<'static, str>),
    /// The coefficients need this many bytes, more than the limit allows.
    Memory(u64),
    /// The system has no room for this many bytes.
    OutOfMemory(u64),
}

impl JpegError {
    /// A marker, or the data in front of one, is missing.
    pub(super) const ENDS_EARLY: Self = Self::Damaged(Cow::Borrowed("the file ends early"));

    pub(super) fn damaged(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Damaged(reason.into())
    }
}
