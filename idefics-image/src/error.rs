//! Why an image could not be used.

use std::io;
use std::num::NonZeroU32;

/// Which kind of failure an [`ImageError`] is, for exit codes and HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageErrorKind {
    /// The file system refused: missing file, no permission, not a regular file.
    FileSystem,
    /// The input itself is not an image that we read: another format, damaged, or of a size that we refuse.
    Input,
    /// There are more encoded bytes than a limit allows, or less memory than the pixels take.
    Limit,
    /// A remote image could not be fetched.
    Network,
    /// The caller gave up.
    Cancelled,
}

/// Why an image could not be read, decoded, or packed into a batch.
///
/// `image` names the input in every variant that has one: a path, a URL, `data URL`, or the name that the caller gave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file system did not hand over the file.
    #[error("{image}: cannot read the image file: {error}")]
    Read {
        /// The file.
        image: String,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },

    /// The path is a folder, a pipe or a device.
    #[error("{image}: expected a regular file, found {found}; give the path of an image file")]
    NotAFile {
        /// The path.
        image: String,
        /// What lies there.
        found: &'static str,
    },

    /// There is nothing in the file.
    #[error("{image}: the image is empty (0 bytes); check that it was written or downloaded completely")]
    Empty {
        /// The input.
        image: String,
    },

    /// The encoded image has more bytes than [`Limits::max_bytes`](crate::Limits::max_bytes).
    #[error(
        "{image}: more than {limit} bytes of encoded image; re-encode it smaller or raise the limit \
         (--max-image-pixels N, or none)"
    )]
    TooManyBytes {
        /// The input.
        image: String,
        /// The limit, in bytes.
        limit: u64,
    },

    /// The bytes are not in a format that we read, whatever the file is called.
    #[error("{image}: expected PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PNM, ICO or TGA, found {found}")]
    Format {
        /// The input.
        image: String,
        /// What the first bytes look like, and what can be done.
        found: String,
    },

    /// The file has fewer pages than the one that was asked for.
    #[error("{image}: there is no page {page}; the number of pages is {pages}")]
    NoSuchPage {
        /// The input.
        image: String,
        /// The page asked for, from 1.
        page: NonZeroU32,
        /// Pages in the file.
        pages: u32,
    },

    /// The header announces more pixels than [`Limits::max_pixels`](crate::Limits::max_pixels); nothing was decoded.
    #[error(
        "{image}: {width}x{height} pixels; at most {max_pixels} in all are allowed; scale it down or raise the limit \
         (--max-image-pixels N, or none)"
    )]
    TooLarge {
        /// The input.
        image: String,
        /// Announced width, in pixels.
        width: u32,
        /// Announced height, in pixels.
        height: u32,
        /// Largest area allowed, in pixels.
        max_pixels: u64,
    },

    /// Decoding, or the pictures to be made, would need more memory than the limits allow.
    #[error(
        "{image}: decoding needs {needed} bytes of memory and {limit} are allowed; scale it down or raise the limit \
         (--max-image-pixels N, or none)"
    )]
    Memory {
        /// The input.
        image: String,
        /// Bytes that the decoded pixels take.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },

    /// The system has no memory left for the file or its pixels.
    #[error("{image}: there is no memory left for {needed} bytes; close other programs or scale the image down")]
    OutOfMemory {
        /// The input.
        image: String,
        /// Bytes asked for.
        needed: u64,
    },

    /// A picture to be made of this one that it has no pixels for.
    #[error(
        "{image}: columns {left} to {right} and rows {top} to {bottom} of {width}x{height} pixels cannot become \
         {target_width}x{target_height}; expected a rectangle inside and sides of at least 1 pixel"
    )]
    Target {
        /// The input.
        image: String,
        /// First column asked for.
        left: u32,
        /// First row.
        top: u32,
        /// One past the last column.
        right: u32,
        /// One past the last row.
        bottom: u32,
        /// Width of the picture, in pixels.
        width: u32,
        /// Height of the picture, in pixels.
        height: u32,
        /// Width asked for, in pixels.
        target_width: u32,
        /// Height asked for, in pixels.
        target_height: u32,
    },

    /// One side is so much longer than the other that nothing would be recognizable after resizing.
    #[error("{image}: {width}x{height} pixels; one side may be at most {max} times the other; crop it")]
    TooThin {
        /// The input.
        image: String,
        /// Width, in pixels.
        width: u32,
        /// Height, in pixels.
        height: u32,
        /// Largest ratio of the sides.
        max: u32,
    },

    /// The file is damaged or ends early.
    #[error("{image}: not a complete, valid {format} file: {reason}; save or download it again")]
    Decode {
        /// The input.
        image: String,
        /// The format that its first bytes announce.
        format: &'static str,
        /// What the decoder found.
        reason: String,
    },

    /// The file is valid but coded in a way that our decoders do not read.
    #[error("{image}: this kind of {format} is not supported: {reason}; re-encode it as a baseline JPEG or a PNG")]
    Coding {
        /// The input.
        image: String,
        /// The format that its first bytes announce.
        format: &'static str,
        /// What the decoder met.
        reason: String,
    },

    /// The decoder failed on an assertion of its own; the process goes on.
    #[error("{image}: the {format} decoder failed on this file; save it again with another program")]
    DecoderPanic {
        /// The input.
        image: String,
        /// The format that its first bytes announce.
        format: &'static str,
    },

    /// A `data:` URL that is not `data:image/…;base64,…`.
    #[error("{image}: {reason}; expected data:image/png;base64,… (of any media type)")]
    DataUrl {
        /// The input, `data URL` unless the caller named it.
        image: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Text that names no file and holds no image.
    #[error(
        "{image}: there is no file of this name, and as base64 it holds no image: {reason}; give a path, an http(s) \
         URL, a data URL, or base64 of an image file"
    )]
    Text {
        /// The text, cut.
        image: String,
        /// What is wrong with it as base64.
        reason: String,
    },

    /// A source that the caller's [`SourcePolicy`](crate::SourcePolicy) does not allow; nothing was read.
    #[error("{image}: {what} are not read here; allow them if you trust who wrote the sample ({option})")]
    NotAllowed {
        /// The source.
        image: String,
        /// The kind of source.
        what: String,
        /// The options that allow it, of the program and of this crate.
        option: &'static str,
    },

    /// The caller gave up while the image was read.
    #[error("{image}: reading was cancelled")]
    Cancelled {
        /// The source.
        image: String,
    },

    /// A URL that we do not fetch: an unknown scheme, or one that does not parse.
    #[error("{url}: {reason}; give an http or https URL, a data URL or a path")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The crate was built without the feature `http`.
    #[error("{url}: this build does not fetch images; download it and give its path, or build with the feature `http`")]
    HttpDisabled {
        /// The URL.
        url: String,
    },

    /// The server answered, but not with the image.
    #[error("{url}: the server answered with status {status}; check the address")]
    HttpStatus {
        /// The URL.
        url: String,
        /// HTTP status code.
        status: u16,
    },

    /// The image could not be fetched: name, connection, TLS, timeout or too many redirects.
    #[error("{url}: cannot fetch the image: {reason}; check the address and the connection")]
    Network {
        /// The URL.
        url: String,
        /// What went wrong.
        reason: String,
    },

    /// Pixel data whose length is not `3 × width × height`, or a side of 0 pixels.
    #[error("a {width}x{height} RGB image needs sides of at least 1 and {expected} bytes, found {actual}")]
    PixelCount {
        /// Width, in pixels.
        width: u32,
        /// Height, in pixels.
        height: u32,
        /// `3 × width × height`.
        expected: u64,
        /// Bytes given.
        actual: usize,
    },
}

impl ImageError {
    /// Which kind of failure this is.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::Read { .. } | Self::NotAFile { .. } => ImageErrorKind::FileSystem,
            Self::Cancelled { .. } => ImageErrorKind::Cancelled,
            Self::TooManyBytes { .. } | Self::OutOfMemory { .. } => ImageErrorKind::Limit,
            Self::HttpStatus { .. } | Self::Network { .. } => ImageErrorKind::Network,
            Self::Empty { .. }
            | Self::Format { .. }
            | Self::NoSuchPage { .. }
            | Self::TooLarge { .. }
            | Self::Memory { .. }
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
