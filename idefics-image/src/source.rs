//! Image sources, and functions that read their bytes within limits.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use url::Url;

use crate::base64_text::{Base64Error, decode_base64, decode_data_url, is_base64};
use crate::fetch::fetch;
use crate::{DecodeOptions, Format, ImageError, ResizeTarget, RgbImage, SourcePolicy, decode, decode_resized};

/// Limits that an image must not exceed. The size is checked from the header before pixels are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of the encoded image, in bytes. The bytes are counted while they are read, whatever length is
    /// declared.
    pub max_bytes: u64,
    /// Maximum area, in pixels. [`Self::with_max_pixels`] raises it together with the limits in bytes.
    pub max_pixels: u64,
    /// Maximum memory, in bytes. It applies twice, independently: to the pixels that a decoder holds in the pixel
    /// format of the file, and to RGB data (rows that are being resized, and the resulting images).
    pub max_decoded_bytes: u64,
    /// Maximum ratio of the longer side to the shorter.
    pub max_aspect_ratio: u32,
    /// Time limit for one remote image, including redirects.
    pub timeout: Duration,
    /// Maximum number of redirects for one remote image.
    pub max_redirects: u32,
}

/// Maximum number of bytes per pixel in any decoder: JPEG 2000 has up to four components of 32 bits.
pub(crate) const MAX_BYTES_PER_PIXEL: u64 = 16;

/// Maximum number of bytes per encoded pixel in common formats: RGBA with 16 bits per channel.
const MAX_ENCODED_BYTES_PER_PIXEL: u64 = 8;

/// Default maximum area, in pixels.
const MAX_PIXELS: u64 = 64_000_000;

/// The default limits are large enough for any photograph or scan, but reject decompression bombs. They are 64
/// megapixels, 257 MB of encoded bytes, and 1 GB of memory while decoding. An uncompressed image with 8 bits per sample
/// fits into the encoded bytes.
impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 4 * MAX_PIXELS + (1 << 20),
            max_pixels: MAX_PIXELS,
            max_decoded_bytes: MAX_BYTES_PER_PIXEL * MAX_PIXELS,
            max_aspect_ratio: 1000,
            timeout: Duration::from_secs(10),
            max_redirects: 3,
        }
    }
}

impl Limits {
    /// Returns these limits with a different maximum area in pixels; `None` means unlimited. The limits in bytes are
    /// raised, never lowered, to fit an image of that area.
    #[must_use]
    pub fn with_max_pixels(self, max_pixels: Option<u64>) -> Self {
        let max_pixels = max_pixels.unwrap_or(u64::MAX);
        Self {
            max_pixels,
            max_bytes: self.max_bytes.max(max_pixels.saturating_mul(MAX_ENCODED_BYTES_PER_PIXEL)),
            max_decoded_bytes: self.max_decoded_bytes.max(max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL)),
            ..self
        }
    }
}

/// Options for reading the bytes of an image.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Limits on bytes, pixels, memory and time.
    pub limits: Limits,
    /// Which sources may be read. All are allowed by default.
    pub sources: SourcePolicy,
    /// A flag that the caller sets to `true` to cancel. Reading then fails with [`ImageError::Cancelled`], within 100
    /// ms if it is waiting for a server.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ReadOptions {
    /// Returns whether the caller has cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

/// The place or data that an image comes from.
///
/// Strings are interpreted as by Transformers' `load_image`: as an `http(s)` URL, a file, a data URL, or an image file
/// in base64, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A local file.
    Path(PathBuf),
    /// An `http` or `https` URL. Needs the feature `http`.
    Url(Url),
    /// A data URL `data:…,…`. Its payload must be base64. The declared media type is ignored.
    DataUrl(String),
    /// Text that may be an image file in base64. If `folder` contains a file with this text as its name, that file is
    /// read instead.
    Base64 {
        /// The text.
        text: String,
        /// The folder that may contain a file of this name. An empty path means the working directory.
        folder: PathBuf,
    },
    /// The encoded bytes of an image file.
    Bytes(Arc<[u8]>),
}

impl ImageSource {
    /// Reads the encoded bytes, at most [`Limits::max_bytes`] of them. Every kind of source is allowed.
    ///
    /// # Errors
    /// The errors of [`Self::read_with`].
    pub fn read(&self, limits: &Limits) -> Result<Cow<'_, [u8]>, ImageError> {
        self.read_with(&ReadOptions { limits: limits.clone(), ..ReadOptions::default() })
    }

    /// Reads the encoded bytes, at most [`Limits::max_bytes`] of them, if the policy allows this source.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`], [`ImageError::Read`], [`ImageError::NotAFile`], [`ImageError::TooManyBytes`],
    /// [`ImageError::Empty`], [`ImageError::OutOfMemory`], [`ImageError::DataUrl`], [`ImageError::Text`],
    /// [`ImageError::Cancelled`], or one of the network variants ([`ImageError::HttpDisabled`],
    /// [`ImageError::HttpStatus`], [`ImageError::Network`]).
    pub fn read_with(&self, options: &ReadOptions) -> Result<Cow<'_, [u8]>, ImageError> {
        if options.is_cancelled() {
            return Err(ImageError::Cancelled { image: self.to_string() });
        }
        let ReadOptions { limits, sources, .. } = options;
        let bytes = match self {
            Self::Path(path) => Cow::Owned(read_file(&sources.file(path)?, limits)?),
            Self::Url(url) => Cow::Owned(fetch(url, options)?),
            Self::DataUrl(text) => {
                sources.data("data URL")?;
                Cow::Owned(decode_data_url(text, limits)?)
            }
            Self::Base64 { text, folder } => {
                // A file that the policy forbids is treated as missing, so that its existence is not revealed.
                match sources.file(&folder.join(text)).ok().filter(|path| is_file(path)) {
                    Some(path) => Cow::Owned(read_file(&path, limits)?),
                    None => Cow::Owned(self.decode_text(text, options)?),
                }
            }
            Self::Bytes(bytes) => {
                if bytes.len() as u64 > limits.max_bytes {
                    return Err(ImageError::TooManyBytes { image: self.to_string(), limit: limits.max_bytes });
                }
                Cow::Borrowed(bytes.as_ref())
            }
        };
        if bytes.is_empty() {
            return Err(ImageError::Empty { image: self.to_string() });
        }
        Ok(bytes)
    }

    /// Returns the path of the file that reading this source opens if the policy allows it. The policy is not checked
    /// here. A path is returned even if it does not exist. A text is returned as a path only if a file of this name
    /// exists.
    pub fn file(&self) -> Option<Cow<'_, Path>> {
        match self {
            Self::Path(path) => Some(Cow::Borrowed(path)),
            Self::Base64 { text, folder } => Some(folder.join(text)).filter(|path| is_file(path)).map(Cow::Owned),
            Self::Url(_) | Self::DataUrl(_) | Self::Bytes(_) => None,
        }
    }

    /// Resolves a relative path, or the folder of a text, against `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        match self {
            Self::Path(path) => *path = folder.join(&*path), // an absolute path stays as it is
            Self::Base64 { folder: text_folder, .. } => *text_folder = folder.join(&*text_folder),
            Self::Url(_) | Self::DataUrl(_) | Self::Bytes(_) => {}
        }
    }

    fn decode_text(&self, text: &str, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
        let image = || self.to_string();
        options.sources.data(&image())?;
        let limits = &options.limits;
        let bytes = decode_base64(text, limits).map_err(|error| match error {
            Base64Error::TooManyBytes => ImageError::TooManyBytes { image: image(), limit: limits.max_bytes },
            Base64Error::Invalid(reason) => ImageError::Text { image: image(), reason },
        })?;
        match Format::sniff(&bytes) {
            Ok(_) => Ok(bytes),
            Err(found) => Err(ImageError::Text { image: image(), reason: format!("found {found}") }),
        }
    }
}

/// Writes the name of the source for messages: the path, the URL, `data URL`, the start of the text, or `image bytes`.
/// Paths and URLs are cut to 200 characters, text to 40.
impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&path_name(path)),
            Self::Url(url) => f.write_str(&shorten(url.as_str(), 200)),
            Self::DataUrl(_) => f.write_str("data URL"),
            Self::Base64 { text, .. } => f.write_str(&shorten(text, 40)),
            Self::Bytes(_) => f.write_str("image bytes"),
        }
    }
}

/// Returns the name of a file for messages: its path, cut to 200 characters.
pub(crate) fn path_name(path: &Path) -> String {
    shorten(&path.display().to_string(), 200)
}

/// Cuts text to `limit` characters. If it was longer, its length in bytes is appended.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// A string that starts with `data:` or `http(s)://` is a URL. Any other `scheme://` is rejected. Other strings are
/// base64 text if they have the form of base64, and paths otherwise.
impl FromStr for ImageSource {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        if starts_with_ignore_case(text, "data:") {
            return Ok(Self::DataUrl(text.to_owned()));
        }
        match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
                match Url::parse(text) {
                    Ok(url) => Ok(Self::Url(url)),
                    Err(error) => Err(ImageError::Url { url: shorten(text, 200), reason: error.to_string() }),
                }
            }
            Some((scheme, _)) if is_scheme(scheme) => Err(ImageError::Url {
                url: shorten(text, 200),
                reason: format!("the scheme {scheme} is not supported"),
            }),
            _ if is_base64(text) => Ok(Self::Base64 { text: text.to_owned(), folder: PathBuf::new() }),
            _ => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<Vec<u8>> for ImageSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Reads and decodes an image to upright 8-bit RGB.
///
/// Every kind of source is allowed. The bytes are read within `limits`, the format is detected from the first bytes,
/// and the size is checked from the header before pixels are decoded. The orientation of the file is applied, and
/// transparency is handled as `options` says.
///
/// # Errors
/// The errors of [`ImageSource::read_with`] and [`decode`]. [`ImageError::kind`] groups them into categories.
pub fn load(source: &ImageSource, limits: &Limits, options: impl Into<DecodeOptions>) -> Result<RgbImage, ImageError> {
    load_with(source, &ReadOptions { limits: limits.clone(), ..ReadOptions::default() }, options)
}

/// Like [`load`], with a source policy and cancellation.
///
/// # Errors
/// The errors of [`load`], [`ImageError::NotAllowed`] and [`ImageError::Cancelled`].
pub fn load_with(
    source: &ImageSource,
    read: &ReadOptions,
    options: impl Into<DecodeOptions>,
) -> Result<RgbImage, ImageError> {
    decode(&source.read_with(read)?, &source.to_string(), &read.limits, options)
}

/// Like [`load_with`], but resizes to the targets that `plan` returns for the upright width and height. See
/// [`decode_resized`](crate::decode_resized).
///
/// # Errors
/// The errors of [`load_with`], and [`ImageError::Target`].
pub fn load_resized(
    source: &ImageSource,
    read: &ReadOptions,
    options: impl Into<DecodeOptions>,
    plan: impl FnOnce(u32, u32) -> Vec<ResizeTarget> + Send,
) -> Result<Vec<RgbImage>, ImageError> {
    decode_resized(&source.read_with(read)?, &source.to_string(), &read.limits, options, plan)
}

/// Returns whether the text is a URL scheme of at least two characters. So `C://x` and `a b://c` are paths, not URLs.
fn is_scheme(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

pub(crate) fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Returns whether a regular file exists at this path. Paths of more than 4096 bytes are not looked up, because systems
/// do not allow them.
fn is_file(path: &Path) -> bool {
    path.as_os_str().len() <= 4096 && path.is_file()
}

fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let image = || path_name(path);
    let read_error = |error| ImageError::Read { image: image(), error };

    // Opening a pipe would block until it has a writer, so the file type is checked before opening. It is checked
    // again on the open file, because the path may have changed in between.
    check_regular(path, &std::fs::metadata(path).map_err(read_error)?)?;
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    check_regular(path, &metadata)?;

    if metadata.len() > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: image(), limit: limits.max_bytes });
    }
    // The length is not reliable: a file may grow while it is read, and files in /proc report 0. So the bytes that
    // are actually read are counted.
    // At most 64 MiB are reserved up front, because a sparse file may be larger than the memory.
    let mut bytes = Vec::new();
    let expected = (metadata.len().min(64 << 20) + 1) as usize;
    let no_memory = |_| ImageError::OutOfMemory { image: image(), needed: metadata.len() };
    bytes.try_reserve_exact(expected).map_err(no_memory)?;
    let read = file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => ImageError::OutOfMemory { image: image(), needed: metadata.len() },
        _ => read_error(error),
    })?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: image(), limit: limits.max_bytes });
    }
    Ok(bytes)
}

fn check_regular(path: &Path, metadata: &std::fs::Metadata) -> Result<(), ImageError> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Err(ImageError::NotAFile { image: path_name(path), found })
}
