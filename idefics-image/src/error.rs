//! Errors of reading, decoding and resizing images.

use std::io;
use std::num::NonZeroU32;

/// The category of an [`ImageError`], for exit codes and HTTP status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageErrorKind {
    /// The file could not be opened or read: it is missing, not readable, or not a regular file.
    FileSystem,
    /// The input is rejected: its format is unsupported, it is damaged or too large, or the policy does not allow it.
    Input,
    /// The input has too many encoded bytes, frames, or pixels in all frames together; or the system is out of memory.
    Limit,
    /// A remote image could not be fetched.
    Network,
    /// The caller cancelled the read.
    Cancelled,
}

/// Why an image could not be read, decoded or resized.
///
/// The field `image` names the input: a path, a URL, `data URL`, the start of a base64 text, or the name that the
/// caller passed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be opened or read.
    #[error("{image}: cannot be read: {error}")]
    Read {
        /// Path of the file.
        image: String,
        /// Error of the operating system.
        #[source]
        error: io::Error,
    },

    /// The path is not a regular file but a folder, pipe, socket or device.
    #[error("{image}: expected a regular file, found {found}; give the path of an image file")]
    NotAFile {
        /// The path.
        image: String,
        /// The kind of file that was found, such as `a folder`.
        found: &'static str,
    },

    /// The file or data has 0 bytes.
    #[error("{image}: the image is empty (0 bytes); check that it was written or downloaded completely")]
    Empty {
        /// Name of the input.
        image: String,
    },

    /// The encoded image has more bytes than [`Limits::max_bytes`](crate::Limits::max_bytes).
    #[error(
        "{image}: the encoded image has more than {limit} bytes; re-encode it smaller or raise the limit \
         (it grows with --max-image-pixels)"
    )]
    TooManyBytes {
        /// Name of the input.
        image: String,
        /// Maximum number of bytes.
        limit: u64,
    },

    /// The first bytes are not those of a supported format. The file name does not matter.
    #[error("{image}: expected PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PNM, ICO or TGA, found {found}")]
    Format {
        /// Name of the input.
        image: String,
        /// Description of the first bytes, and a suggestion of what to do.
        found: String,
    },

    /// The requested page is beyond the last page of the file.
    #[error("{image}: there is no page {page}; expected a page from 1 to {pages}")]
    NoSuchPage {
        /// Name of the input.
        image: String,
        /// The requested page, counted from 1.
        page: NonZeroU32,
        /// Number of pages in the file.
        pages: u32,
    },

    /// The header declares more pixels than [`Limits::max_pixels`](crate::Limits::max_pixels). No pixels were
    /// decoded.
    #[error(
        "{image}: the image has {width}x{height} pixels; at most {max_pixels} are allowed; scale it down or raise \
         the limit (--max-image-pixels N, or none)"
    )]
    TooLarge {
        /// Name of the input.
        image: String,
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// Maximum area, in pixels.
        max_pixels: u64,
    },

    /// Decoding and resizing would need more memory than
    /// [`Limits::max_decoded_bytes`](crate::Limits::max_decoded_bytes).
    #[error(
        "{image}: decoding needs {needed} bytes of memory; at most {limit} are allowed; scale the image down or raise \
         the limit (--max-image-pixels N, or none)"
    )]
    Memory {
        /// Name of the input.
        image: String,
        /// Number of bytes needed.
        needed: u64,
        /// Maximum number of bytes.
        limit: u64,
    },

    /// A video or an animation has more frames than this crate accepts.
    #[error("{image}: the file has more than {limit} frames; cut it into shorter files")]
    TooManyFrames {
        /// Name of the input.
        image: String,
        /// Maximum number of frames.
        limit: usize,
    },

    /// The frames that must be decoded have too many pixels in total.
    #[error(
        "{image}: the frames to decode have {pixels} pixels in total; at most {limit} are allowed; cut the file, scale \
         it down, or raise the limit (--max-image-pixels N, or none)"
    )]
    TooManyFramePixels {
        /// Name of the input.
        image: String,
        /// Total number of pixels of the frames to decode. In an animation, these are all frames up to the last
        /// requested frame.
        pixels: u64,
        /// Maximum number of pixels.
        limit: u64,
    },

    /// An AVI file is damaged or ends early.
    #[error(
        "{image}: not a complete, valid AVI file: at byte {offset}: {reason}; repair it (ffmpeg -i FILE -c copy \
         NEW.avi), or save or download it again"
    )]
    Avi {
        /// Name of the input.
        image: String,
        /// Offset of the damaged chunk, in bytes.
        offset: u64,
        /// What is wrong with the chunk.
        reason: String,
    },

    /// The system could not allocate memory for the file or its pixels.
    #[error("{image}: out of memory: cannot allocate {needed} bytes; close other programs or scale the image down")]
    OutOfMemory {
        /// Name of the input.
        image: String,
        /// Number of bytes requested.
        needed: u64,
    },

    /// A [`ResizeTarget`](crate::ResizeTarget) has a rectangle that is empty or reaches outside the image, or a size of
    /// 0.
    #[error(
        "{image}: cannot resize columns {left} to {right} and rows {top} to {bottom} of the {width}x{height} image to \
         {target_width}x{target_height}; expected a rectangle inside the image and a target of at least 1x1 pixels"
    )]
    Target {
        /// Name of the input.
        image: String,
        /// First column of the rectangle.
        left: u32,
        /// First row of the rectangle.
        top: u32,
        /// One past the last column.
        right: u32,
        /// One past the last row.
        bottom: u32,
        /// Width of the upright image, in pixels.
        width: u32,
        /// Height of the upright image, in pixels.
        height: u32,
        /// Requested width, in pixels.
        target_width: u32,
        /// Requested height, in pixels.
        target_height: u32,
    },

    /// The ratio of the longer side to the shorter exceeds
    /// [`Limits::max_aspect_ratio`](crate::Limits::max_aspect_ratio). The contents of such an image would not be
    /// recognisable after resizing.
    #[error("{image}: the size is {width}x{height}; the long side may be at most {max} times the short side; crop it")]
    TooThin {
        /// Name of the input.
        image: String,
        /// Width, in pixels.
        width: u32,
        /// Height, in pixels.
        height: u32,
        /// Maximum ratio of the longer side to the shorter.
        max: u32,
    },

    /// The file is damaged or ends early.
    #[error("{image}: not a complete, valid {format} file: {reason}; save or download it again")]
    Decode {
        /// Name of the input.
        image: String,
        /// The format detected from the first bytes.
        format: &'static str,
        /// What is wrong with the file.
        reason: String,
    },

    /// The file is valid but uses a coding that the decoder does not support.
    #[error("{image}: this kind of {format} is not supported: {reason}; re-encode it as a baseline JPEG or a PNG")]
    Coding {
        /// Name of the input.
        image: String,
        /// The format detected from the first bytes.
        format: &'static str,
        /// The unsupported coding.
        reason: String,
    },

    /// The decoder panicked. The panic was caught and the process continues.
    #[error("{image}: the {format} decoder failed on this file; save it again with another program")]
    DecoderPanic {
        /// Name of the input.
        image: String,
        /// The format detected from the first bytes.
        format: &'static str,
    },

    /// A `data:` URL is malformed. The expected form is `data:image/…;base64,…`.
    #[error("{image}: {reason}; expected data:image/png;base64,… (of any media type)")]
    DataUrl {
        /// Always `data URL`.
        image: String,
        /// What is wrong with the URL.
        reason: String,
    },

    /// A text is neither the name of an existing file nor an image in base64.
    #[error(
        "{image}: no file has this name, and the text is not an image in base64: {reason}; give a path, an http(s) \
         URL, a data URL, or an image file in base64"
    )]
    Text {
        /// The start of the text.
        image: String,
        /// Why the text is not an image in base64.
        reason: String,
    },

    /// The [`SourcePolicy`](crate::SourcePolicy) does not allow this source. Nothing was read.
    #[error("{image}: reading {what} is not allowed; if you trust the author of the sample, allow it with {option}")]
    NotAllowed {
        /// Name of the source.
        image: String,
        /// The kind of source, such as `files`.
        what: String,
        /// The option of the program `idefics` that allows it, or the field of [`SourcePolicy`](crate::SourcePolicy) if
        /// there is no such option.
        option: &'static str,
    },

    /// The caller cancelled while the image was being read.
    #[error("{image}: reading was cancelled")]
    Cancelled {
        /// Name of the source.
        image: String,
    },

    /// A URL has an unsupported scheme or cannot be parsed.
    #[error("{url}: {reason}; give an http or https URL, a data URL or a path")]
    Url {
        /// The URL as the caller wrote it, shortened if it is long.
        url: String,
        /// What is wrong with the URL.
        reason: String,
    },

    /// The crate was built without the feature `http`.
    #[error("{url}: this build cannot fetch URLs; download the image and give its path, or enable the feature `http`")]
    HttpDisabled {
        /// The URL.
        url: String,
    },

    /// The server answered with a status that is not a success.
    #[error("{url}: the server returned HTTP {status}; check the address")]
    HttpStatus {
        /// The URL.
        url: String,
        /// HTTP status code.
        status: u16,
    },

    /// The image could not be fetched: name resolution, connection or TLS failed, the time limit was reached, or there
    /// were too many redirects.
    #[error("{url}: cannot fetch the image: {reason}; check the address and the connection")]
    Network {
        /// The URL.
        url: String,
        /// What went wrong.
        reason: String,
    },

    /// The length of the pixel data is not `3 × width × height`, or a side is 0.
    #[error("a {width}x{height} RGB image needs sides of at least 1 pixel and {expected} bytes, found {actual} bytes")]
    PixelCount {
        /// Width, in pixels.
        width: u32,
        /// Height, in pixels.
        height: u32,
        /// `3 × width × height`.
        expected: u64,
        /// Number of bytes passed.
        actual: usize,
    },
}

impl ImageError {
    /// Returns the category of this error.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::Read { .. } | Self::NotAFile { .. } => ImageErrorKind::FileSystem,
            Self::Cancelled { .. } => ImageErrorKind::Cancelled,
            Self::TooManyBytes { .. }
            | Self::TooManyFrames { .. }
            | Self::TooManyFramePixels { .. }
            | Self::OutOfMemory { .. } => ImageErrorKind::Limit,
            Self::HttpStatus { .. } | Self::Network { .. } => ImageErrorKind::Network,
            Self::Empty { .. }
            | Self::Format { .. }
            | Self::NoSuchPage { .. }
            | Self::TooLarge { .. }
            | Self::Memory { .. }
            | Self::Avi { .. }
            | Self::Target { .. }
            | Self::TooThin { .. }
            | Self::Decode { .. }
            | Self::Coding { .. }
            | Self::DecoderPanic { .. }
            | Self::DataUrl { .. }
            | Self::Text { .. }
            | Self::NotAllowed { .. }
            | Self::Url { .. }
            | Self::HttpDisabled { .. }
            | Self::PixelCount { .. } => ImageErrorKind::Input,
        }
    }
}
