//! Errors of the TIFF decoder.

use std::borrow::Cow;

use crate::jpeg::JpegError;

/// Why a TIFF file cannot be decoded. The caller knows the name of the file and converts this error to an
/// [`ImageError`](crate::ImageError).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TiffError {
    /// The file is damaged.
    Damaged(Cow<'static, str>),
    /// The file is valid but uses an unsupported coding.
    Coding(Cow<'static, str>),
    /// Decoding needs this many bytes, more than the limit allows.
    Memory(u64),
    /// The system cannot allocate this many bytes.
    OutOfMemory(u64),
    /// The requested page does not exist. The field is the number of pages in the file.
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

/// Allocates `length` zero bytes for samples or pixels.
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
