//! Why a TIFF file does not decode.

use std::borrow::Cow;

use crate::jpeg::JpegError;

/// Becomes an [`ImageError`](crate::ImageError) where the name of the file is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TiffError {
    /// The file is damaged.
    Damaged(Cow<'static, str>),
    /// The file is valid, but coded in a way that is not read.
    Coding(Cow<'static, str>),
    /// Decoding needs this many bytes of memory, more than is allowed.
    Memory(u64),
    /// The system has no room for this many bytes.
    OutOfMemory(u64),
    /// There are only this many pages.
    NoSuchPage(u32),
}

impl TiffError {
    pub(super) fn damaged(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Damaged(reason.into())
    }

    pub(super) fn coding(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Coding(reason.into())
    }
}

/// Zeros for samples or pixels.
pub(super) fn zeroed(length: usize) -> Result<Vec<u8>, TiffError> {
    crate::resize::zeroed(length).map_err(|_| TiffError::OutOfMemory(length as u64))
}

impl From<JpegError> for TiffError {
    fn from(error: JpegError) -> Self {
        match error {
            JpegError::Damaged(reason) => Self::Damaged(format!("JPEG data: {reason}").into()),
            JpegError::Coding(reason) => Self::Coding(format!("JPEG data: {reason}").into()),
            JpegError::Memory(needed) => Self::Memory(needed),
            JpegError::OutOfMemory(needed) => Self::OutOfMemory(needed),
        }
    }
}
